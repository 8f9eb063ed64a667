"""Processes of tests, forked from a server that has imported everything once: torch alone takes seconds to import."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["pytest", "pyarrow.dataset", "s3fs", "safetensors.torch", "xtra.train", "ranks"])


def run_ranks(target: Callable[..., None], world: int, *args: Any) -> None:
    """target(rank, world, *args) in that many processes; raises what the first of them to fail raised."""
    torch.multiprocessing.start_processes(target, (world, *args), nprocs=world, start_method="forkserver")
