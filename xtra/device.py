"""The training device: copies to it, its clock, and the host's cores and memory that serve it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

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


@contextlib.contextmanager
def freed_memory_kept(device: str) -> Iterator[None]:
    """On a CPU with glibc, let the process keep inside the block what its tensors free, for those of the next step.

    By default all of it goes back to the system after each step, and every page of the next is then a fault: a fifth of
    a probe's CPU seconds. Larger single tensors than _MAPPED go back at once, all else at the end.
    """
    libc = ctypes.CDLL(None)
    if device != "cpu" or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # what glibc's own adjustment ends with
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MAPPED = 256 << 20  # bytes: the tokens of 256 images at ViT-Base


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
