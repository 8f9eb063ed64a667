"""What `xtra export` may be asked. Loads no torch: the words of a command are read into it (see xtra/config.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from xtra.config import Mask


@dataclass(frozen=True)
class Config:
    checkpoint: str  # a run folder, one of its checkpoints, an official .ckpt file, or a DeepSpeed folder
    out: str  # folder to write
    # encoder (transformers is the same): for transformers or torch alone; torch: a .pt2 of torch.export; official: for
    # the official code; run: an official checkpoint as a run of ours
    to: Literal["encoder", "transformers", "timm", "torch", "official", "run"] = "encoder"
    # that the exported model applies. own: block-causal as in pretraining, or none after prefix attention
    mask: Mask = "own"
    license: str = ""  # license of the weights for the model card: a name of the Hugging Face hub, such as apache-2.0
    size: str = ""  # a name in xtra.model.SIZES, for an official checkpoint from which sizes cannot be read
    heads: int = 0  # of an official checkpoint's encoder, if not the usual for its width
    dec_heads: int = 0  # of its decoder, if not the usual for its width
    samples_seen: int = 0  # samples that an official checkpoint was trained on, for `--to run`

    def __post_init__(self) -> None:
        for name in ("heads", "dec_heads", "samples_seen"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if self.license and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(f"license is {self.license!r}; it must be an identifier such as apache-2.0, mit or other")
        if self.license and self.to in ("official", "run"):
            raise ValueError(f"license is {self.license}, which goes into a model card: --to {self.to} writes none")
        if self.to == "run" and self.mask != "own":
            raise ValueError(f"mask is {self.mask}, but a run has its model's own: leave it out; probes take --mask")
