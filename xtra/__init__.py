"""XTRA: a block-causal vision transformer pretrained by predicting the next block of pixels (arXiv 2411.15648)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtra.model import Encoder

__all__ = ["load"]


def load(path: str) -> Encoder:
    """The trained encoder of a run folder (its newest checkpoint) or of one checkpoint folder, in eval mode.

    Raises ValueError naming the file when there is none or it does not fit.
    """
    from xtra.checkpoint import load_encoder  # torch is imported only when a model is wanted

    return load_encoder(path)
