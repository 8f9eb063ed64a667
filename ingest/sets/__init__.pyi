from . import benchmarks as benchmarks, folders as folders, import_benchmark as import_benchmark, in_place as in_place
from .benchmarks import BENCHMARKS as BENCHMARKS
from .config import ImportConfig as ImportConfig
