"""Frozen encoders under one face: ours, and other people's, so that one protocol probes them all."""

from __future__ import annotations

from typing import Protocol, Self

import torch
from torch import Tensor

from xtra.data import MEAN, STD
from xtra.model import Encoder


class FrozenEncoder(Protocol):
    """Normalised images -> residual streams. What it is made of does not train."""

    name: str
    image: int  # side in pixels
    tokens: int  # N, patch tokens only
    width: int  # D
    depth: int  # layers
    mean: tuple[float, float, float]  # of pixels in 0..1
    std: tuple[float, float, float]

    def layers(self, images_B3HW: Tensor, last: int) -> list[Tensor]:
        """The residual streams [B, N, D] after each of the last `last` layers, un-normalised, patch tokens only.

        Raises ValueError when there are fewer layers.
        """
        ...

    def to(self, device: torch.device | str) -> Self: ...


class _Xtra:
    def __init__(self, encoder: Encoder, name: str) -> None:
        config = encoder.config
        self.encoder = encoder.eval()
        self.name, self.image, self.tokens = name, config.image, config.tokens
        self.width, self.depth = config.width, config.depth
        self.mean, self.std = MEAN, STD

    def layers(self, images_B3HW: Tensor, last: int) -> list[Tensor]:
        return self.encoder.layers(images_B3HW, last)

    def to(self, device: torch.device | str) -> Self:
        self.encoder.to(device)
        return self


def of_xtra(encoder: Encoder, name: str) -> FrozenEncoder:
    """Our own encoder, in eval mode; tokens are in block order."""
    return _Xtra(encoder, name)
