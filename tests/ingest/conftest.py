"""A web origin on loopback for every test of ingest that wants one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from origin import Origin


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.fixture
def many() -> Iterator[Callable[[int], list[Origin]]]:
    """Origins that are distinct hosts."""
    with ExitStack() as stack:
        yield lambda n: [stack.enter_context(Origin(f"127.0.1.{k + 1}")) for k in range(n)]
