"""The memory that training needs: parameters by part with their bytes, and activations per image.

Activations are the tensors that the forward pass keeps for the backward one: by a formula from the shapes, and as kept
by autograd, counted by its hooks while a step is traced without data (torch's fake tensors), so H/14 can be counted on
any machine. Steps of two and three images are traced: what does not grow, such as autocast's bfloat16 copies of
weights, is a constant. The number of images that fit is an upper bound: kernel and all-reduce buffers and the
allocator's gaps are not counted; `xtra bench train --device cuda` measures the peak of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from jobs.bench import result
from xtra.attention import causal_of
from xtra.blocks import target_blocks
from xtra.loss import next_block_loss
from xtra.micro_batch import kept_bytes
from xtra.model import SIZES, ModelConfig, Xtra

PARTS = ("encoder", "bridge", "decoder", "heads")
BYTES = {"weights": 4, "gradients": 4, "AdamW's two moments": 8}  # per parameter, all in float32


@dataclass(frozen=True)
class Config:
    sizes: tuple[str, ...] = ("b16", "h14")  # names in xtra.model.SIZES
    memory: float = 80.0  # GB of the GPU to fill

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size not in SIZES:
                raise ValueError(f"sizes has {size!r}; each must be one of {', '.join(SIZES)}")
        if not self.memory > 0:
            raise ValueError(f"memory is {self.memory}; it must be above 0 (GB)")


def run(config: Config) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for size in config.sizes:
        with torch.device("meta"):
            model = Xtra(SIZES[size])
        counts = {part: sum(p.numel() for p in getattr(model, part).parameters()) for part in PARTS}
        total = sum(counts.values())
        state = sum(BYTES.values()) * total
        rows.append(
            {"size": size, "parameters": counts, "total": total, "bytes_a_parameter": BYTES, "state_bytes": state}
        )
        listed = ", ".join(f"{part} {count:,}" for part, count in counts.items())
        print(f"{size}: {total:,} parameters, {state / 1e9:.2f} GB with gradients and AdamW; {listed}")
        for precision, decoder_fp32 in (("fp32", True), ("bf16", True), ("bf16", False)):
            held = kept(SIZES[size], precision == "bf16", decoder_fp32)
            fits = max(0, int((config.memory * 1e9 - state - held.constant) / held.image))
            rows.append(
                {
                    "size": size,
                    "precision": precision,
                    "decoder_fp32": decoder_fp32,
                    "bytes_an_image": held.image,
                    "bytes_an_image_by_formula": kept_bytes(SIZES[size], precision == "bf16", decoder_fp32),
                    "constant_bytes": held.constant,
                    "images_that_fit": fits,
                }
            )
            name = precision + ", decoder in fp32" * (precision == "bf16" and decoder_fp32)
            print(
                f"  {name:<22} {held.image / 1e6:7.1f} MB an image "
                f"(formula {rows[-1]['bytes_an_image_by_formula'] / 1e6:.1f}), "
                f"{held.constant / 1e9:.2f} GB constant, {fits:,} images in {config.memory:g} GB"
            )
    worst = max(abs(r["bytes_an_image_by_formula"] / r["bytes_an_image"] - 1) for r in rows if "precision" in r)
    return result("memory", rows, {"formula_off_by_at_most": worst})


@dataclass(frozen=True)
class Kept:
    """Bytes that the forward pass keeps for the backward one."""

    image: int  # per image
    constant: int  # independent of the number of images; parameters are not counted


def kept(config: ModelConfig, bf16: bool, decoder_fp32: bool) -> Kept:
    """Of a training step as in the trainer, but without drop path, on a CPU, and with attention unsplit."""
    two, three = (_traced(config, images, bf16, decoder_fp32) for images in (2, 3))
    return Kept(three - two, 3 * two - 2 * three)


def _traced(config: ModelConfig, images: int, bf16: bool, decoder_fp32: bool) -> int:
    # Made here and cached for later calls: one made without data would be useless to them.
    causal_of(config.tokens - config.per_block, config.per_block, 0, torch.device("cpu"), "dense")
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Xtra(config, decoder_fp32)
        model.encoder.attention = model.decoder.attention = "dense"
        x = torch.empty(images, 3, config.image, config.image)
        targets_BKP = target_blocks(x, config.side)

        def forward() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                predictions = model(x)
            return next_block_loss(predictions, targets_BKP)

        return kept_for_backward(forward, model.parameters())


def kept_for_backward(forward: Callable[[], Tensor], parameters: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps after a forward pass, without the parameters'."""
    owned = {p.untyped_storage()._cdata for p in parameters}
    held: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in owned:
            held[storage._cdata] = storage  # keep it alive, so that no address is reused
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = forward()
    del loss
    return sum(storage.nbytes() for storage in held.values())
