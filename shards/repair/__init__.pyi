from .repair import RepairResult as RepairResult, run as run
