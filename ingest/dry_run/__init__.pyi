from .dry_run import run as run
from .forecast import lines as lines
