"""The training device: copies to it, its clock, and the host's cores that serve it."""

from __future__ import annotations

import os

import torch
from torch import Tensor


def chosen(name: str) -> str:
    """The device for a setting: "auto" is the GPU if there is one."""
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str) -> None:
    """Raises ValueError if torch cannot compute there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # unknown name; not compiled for it; no such card
        raise ValueError(f"device is {name}: {str(error).partition(chr(10))[0]}: give one of this machine") from None


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, started without waiting, through pinned memory."""
    return (numbers.pin_memory() if device.type == "cuda" else numbers).to(device, non_blocking=True)


def mark(device: torch.device) -> torch.cuda.Event | None:
    """A timed event on the GPU's current stream; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def decoding_threads(device: torch.device) -> int:
    """Default number of decoding threads per rank: with a GPU, the rank's share of the cores, 2 to 32; on a CPU, which
    also trains, 2."""
    if device.type != "cuda":
        return 2
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or torch.cuda.device_count()
    return min(32, max(2, len(os.sched_getaffinity(0)) // max(1, ranks)))
