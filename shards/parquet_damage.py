"""The exceptions that Arrow raises for a damaged Parquet file: its own, and Python's."""

from __future__ import annotations

import pyarrow as pa

DAMAGE = (
    *(pa.ArrowException, OSError, ValueError, TypeError, LookupError),
    *(OverflowError, MemoryError, NotImplementedError, RecursionError),
)


def in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
