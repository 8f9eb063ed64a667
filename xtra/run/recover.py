"""Resume from the newest complete checkpoint."""

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
    """Load the model and the optimiser from the first of `checkpoints` (newest first) that is complete on every rank.

    Returns the samples it has seen (0 without any checkpoint) and a remark for each damaged one. Their COMMIT is
    renamed: the run will save at their sample counts again, and a COMMIT is never overwritten. Raises ValueError,
    without changing anything, if all are damaged.
    """
    damaged: list[tuple[str, str]] = []
    for url in checkpoints:
        state, error = None, ""
        for _ in range(2):  # a remote read may fail once
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
            f"{attempt.run}: none of its {len(damaged)} checkpoints is complete ({damaged[0][1]}): "
            "restore one from a copy, or begin again with another --out"
        )
    return 0, []


def _any_rank(error: str) -> str:
    """The error of the first rank that has one, on every rank."""
    if not dist.is_initialized():
        return error
    errors: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    return next(filter(None, errors), "")


def _set_aside(url: str, attempt: Attempt) -> None:
    """Rename the COMMIT; all files are kept until the checkpoint is due to be pruned."""
    if (dist.is_initialized() and dist.get_rank() > 0) or not attempt.is_newest():
        return
    try:
        commit = store.read(store.join(url, COMMIT))
    except store.Missing:
        return
    store.put(store.join(url, f"COMMIT-damaged-{attempt.number:06d}.json"), commit)
    store.delete(store.join(url, COMMIT))
