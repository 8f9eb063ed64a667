"""XTRA: a block-causal vision transformer pretrained by predicting the next block of pixels (arXiv 2411.15648)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xtra.model import Encoder

__all__ = ["load"]


def load(path: str) -> Encoder:
    """The trained encoder, in eval mode, of a run folder (its newest checkpoint), of one checkpoint folder, or of an
    official checkpoint (a .ckpt file or a DeepSpeed folder).

    Raises ValueError naming the file when there is none or it does not fit.
    """
    from xtra import official
    from xtra.run import checkpoint

    return official.load_encoder(path) if official.is_official(path) else checkpoint.load_encoder(path)
