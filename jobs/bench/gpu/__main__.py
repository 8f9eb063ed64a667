"""`python -m jobs.bench.gpu`: runs from this source tree, with no library installed for its command line."""

import sys

from jobs.bench.gpu.bench import main

sys.exit(main(sys.argv[1:]))
