"""The file and line of a list's rows: rows count links, lines count lines of the file."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from ingest.lists import files
from ingest.lists.columns import Columns
from ingest.lists.source import rows_of_file


def row_places(urls: str, rows: Collection[int], columns: Columns = Columns()) -> dict[int, tuple[str, int]]:  # noqa: B008
    """Row number -> (file, line from 1) for these rows of a list. Raises ValueError when the list is missing, or its
    format is not the one that its name says."""
    wanted, found, first = np.array(sorted(rows), np.int64), dict[int, tuple[str, int]](), 0
    for file in files.list_files(urls):
        for batch in rows_of_file(file, "auto", columns):
            here = wanted[slice(*np.searchsorted(wanted, [first, first + len(batch)]))] - first
            lines = batch["line"].take(here).to_pylist() if len(here) else []
            found |= {int(row) + first: (file, line) for row, line in zip(here, lines)}
            first += len(batch)
    return found
