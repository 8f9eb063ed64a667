"""Reusable memory for batches of images: fresh pages for every batch cost as much as copying it."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from torch import Tensor


class Lease:
    """A batch's images until `release`; without a release they stay valid for ever."""

    def __init__(self, images_B3HW: Tensor, whole: Tensor | None = None, home: Free | None = None) -> None:
        """`whole` is returned to `home`; without them nothing is returned."""
        self._images: Tensor | None = images_B3HW
        self._whole, self._home = whole, home

    @property
    def images_B3HW(self) -> Tensor:
        """The images, uint8. Raises ValueError after the release."""
        if self._images is None:
            raise ValueError("the batch was released: copy images that you need before release()")
        return self._images

    @property
    def pixels_B3HW(self) -> np.ndarray:
        """The same memory as an array, for images on the CPU."""
        return self.images_B3HW.numpy()

    def release(self) -> None:
        """Return the memory; repeated calls do nothing. Copies to a device already queued on the current stream still
        see the images."""
        whole, self._images, self._whole = self._whole, None, None
        if whole is None or self._home is None:
            return
        copied = None
        if whole.is_pinned():
            copied = torch.cuda.Event()
            copied.record()
        self._home.append((whole, copied))


Free = deque[tuple[Tensor, torch.cuda.Event | None]]


class Slots:
    """Leases of uint8 [B, 3, size, size] that reuse released memory, pinned if there is a GPU."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: Free = deque()
        self._none = torch.empty(0, 3, size, size, dtype=torch.uint8)

    def take(self, images: int) -> Lease:
        whole, copied = self._free.popleft() if self._free else (self._none, None)
        if copied is not None:
            copied.synchronize()
        if len(whole) < images:  # the first batches, or a larger one
            shape = (images, 3, self._size, self._size)
            whole = torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        return Lease(whole[:images], whole, self._free)
