"""Memory that is used again and again: blocks for samples that wait for their turn, and buffers lent to consumers.

Fresh memory costs more than copying into it (the kernel clears each page first: 50 us for 110 KB, measured), and
allocations of varying size fragment memory. So both kinds are allocated once and kept.
"""

from __future__ import annotations

import numpy as np


class Slab:
    """`blocks` blocks of `block` bytes in one piece; a body takes as many as it needs, anywhere.

    `take` and `give` belong to one thread. Any thread may fill and read the blocks that it has.
    """

    def __init__(self, blocks: int, block: int) -> None:
        self.block = block
        self.memory_NK = np.empty((blocks, block), np.uint8)  # the kernel gives pages when they are first written
        self._free = list(range(blocks - 1, -1, -1))  # the end is taken first, so few pages are touched if few are used

    @property
    def free(self) -> int:
        return len(self._free)

    def blocks_for(self, length: np.ndarray) -> np.ndarray:
        return -(-length // self.block)

    def take(self, count: int) -> np.ndarray:
        """Numbers of `count` free blocks. There must be as many."""
        assert count <= len(self._free)
        cut = len(self._free) - count
        taken = self._free[cut:]
        del self._free[cut:]
        return np.array(taken, np.int64)

    def give(self, blocks: np.ndarray) -> None:
        self._free.extend(blocks.tolist())

    def fill(self, blocks: np.ndarray, body: np.ndarray) -> None:
        """Copy a body (uint8, whole blocks: its last one may hold anything behind the body's end) into blocks."""
        self.memory_NK[blocks] = body.reshape(len(blocks), self.block)

    def copy(self, blocks: np.ndarray, out: np.ndarray) -> None:
        """Copy blocks to `out`, uint8 of whole blocks."""
        # mode="clip" spares numpy a buffer, which it makes so that a bad index would leave `out` untouched.
        np.take(self.memory_NK, blocks, axis=0, out=out.reshape(len(blocks), self.block), mode="clip")


class Buffers:
    """Buffers that are lent and come back. One that never comes back is replaced."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self._free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """At least `size` bytes."""
        buffer = self._free.pop() if self._free else None
        if buffer is not None and len(buffer) > size:  # not equal: `give` takes a byte of it
            return buffer
        # One that is too small is dropped, and the next is an eighth larger than what was asked for.
        return bytearray(size + size // 8 + 1)

    def give(self, buffer: bytearray) -> None:
        """Raises BufferError while something still holds memory of it."""
        buffer.pop()  # a bytearray reports that its memory is held only when its size changes
        if len(self._free) < self.keep:
            self._free.append(buffer)
