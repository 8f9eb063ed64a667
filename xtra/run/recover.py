"""Going on from the newest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from shards import store
from xtra.run import checkpoint
from xtra.run.checkpoint import COMMIT
from xtra.run.folder import Attempt


def load_newest(
    attempt: Attempt, checkpoints: Sequence[str], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[str]]:
    """Fill the model and the optimiser from the first of `checkpoints` (newest first) that every rank finds whole.

    Returns the samples it has seen, 0 without any checkpoint, and remarks: one for each damaged one. Those lose their
    COMMIT to a name beside it: the run will save at their sample counts again, and a COMMIT is never written twice.
    Raises ValueError when all are damaged; nothing is changed then.
    """
    damaged: list[tuple[str, str]] = []
    for url in checkpoints:
        state, error = None, ""
        for _ in range(2):  # a read from afar may go wrong once
            try:
                state, error = checkpoint.load(url, model, optimizer), ""
                break
            except (checkpoint.Damaged, store.Missing) as found:
                error = str(found)
        if worst := _any_rank(error):
            damaged.append((url, worst))
            continue
        assert state is not None
        seen = int(state["cursor"]["samples_seen"])
        for url, _ in damaged:
            _set_aside(url, attempt)
        aside = [f"{error}; set aside: the run goes on from {seen:,} samples" for _, error in damaged]
        return seen, [*aside, f"going on at {seen:,} samples"]
    if damaged:
        raise ValueError(
            f"{attempt.run}: none of its {len(damaged)} checkpoints is whole ({damaged[0][1]}): "
            "bring one back from a copy, or begin again with another --out"
        )
    return 0, []


def _any_rank(error: str) -> str:
    """The error of the first rank that has one."""
    if not dist.is_initialized():
        return error
    errors: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next(filter(None, errors), "")


def _set_aside(url: str, attempt: Attempt) -> None:
    """Every file stays, until the checkpoint's turn to be pruned comes."""
    if (dist.is_initialized() and dist.get_rank() > 0) or not attempt.is_newest():
        return
    try:
        commit = store.read(store.join(url, COMMIT))
    except store.Missing:
        return
    store.put(store.join(url, f"COMMIT-damaged-{attempt.number:06d}.json"), commit)
    store.delete(store.join(url, COMMIT))
