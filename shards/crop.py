"""A JPEG's view decoded in one go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shards.image import View

Body = bytes | memoryview


def sizes(bodies: Sequence[Body]) -> list[tuple[int, int] | None]:
    """(width, height) of each picture that `decode_batch` may take; None for the others."""
    return [None] * len(bodies)


def decode_batch(bodies: Sequence[Body], views: Sequence[View | None], size: int, out_B3HW: np.ndarray) -> list[int]:
    """Decode straight into uint8 [B, 3, size, size]; returns the indices that it refuses."""
    return list(range(len(bodies)))
