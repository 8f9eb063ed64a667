"""The training device: what goes there, its clock, and the host's cores that serve it."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def chosen(name: str) -> str:
    """The device of a setting: of "auto" the GPU where there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Raises ValueError when torch cannot compute there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no such word; not compiled for it; no such card
        raise ValueError(f"device is {name}: {str(error).partition(chr(10))[0]}: give one of this machine") from None


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, begun but not waited for: pinned memory is what the host need not wait for."""
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """A point in what a GPU has been given to do, with its time; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def decoding_threads(device: torch.device) -> int:
    """How many threads of a rank decode by default: on a GPU the rank's share of the cores, 2 to 32; on a CPU, which
    has training to do, 2."""
    if device.type != "cuda":
        return 2
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or torch.cuda.device_count()
    return min(32, max(2, len(os.sched_getaffinity(0)) // max(1, ranks)))
