"""`python -m jobs.bench.gpu`: runs from this source tree; its command line needs no installed library."""

import sys

from jobs.bench.gpu.bench import main

sys.exit(main(sys.argv[1:]))
