"""The papers' models at full shape, without memory: names, shapes and counts of the official code."""

from __future__ import annotations

import pytest
import torch

from xtra.model import SIZES, Xtra
from xtra.official.weights import from_official, to_official

TOTALS = {
    "b16": (255, 85_843_200, 6_295_552, 56_901_120, 151_013_376, 300_053_248),
    "h14": (495, 630_762_240, 9_835_520, 39_553_280, 184_867_200, 865_018_240),
}


@pytest.mark.parametrize("size", ["b16", "h14"])
def test_the_papers_models_have_the_official_tensors_and_go_there_and_back_by_name(size):
    config = SIZES[size]
    with torch.device("meta"):
        ours = {name: p.detach() for name, p in Xtra(config).named_parameters()}
        theirs = to_official(ours, config)
        wrapped = {f"_forward_module.{name}": w for name, w in theirs.items()}
        again = from_official(wrapped, config)
    assert {name: list(w.shape) for name, w in theirs.items()} == {
        name: list(shape) for name, shape in official_table(size)
    }
    parts = [sum(w.numel() for n, w in theirs.items() if n.startswith(part + ".")) for part in PARTS]
    assert (len(theirs), *parts, sum(parts)) == TOTALS[size]
    assert {name: w.shape for name, w in again.items()} == {name: w.shape for name, w in ours.items()}


PARTS = ("enc", "proj", "predictor", "aim_proj")


def official_table(size: str) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes as the official modules have them at e711fb5."""
    d, depth, patch, hidden, dec, head, out = {
        "b16": (768, 12, 16, 4096, 768, 6144, 12288),
        "h14": (1280, 32, 14, 5120, 640, 9408, 9408),
    }[size]

    def transformer(prefix: str, width: int, depth: int) -> list[tuple[str, tuple[int, ...]]]:
        rows: list[tuple[str, tuple[int, ...]]] = [(f"{prefix}.pos_embed", (1, 256, width))]
        linears = (("attn.qkv", 3, 1), ("attn.proj", 1, 1), ("mlp.fc1", 4, 1), ("mlp.fc2", 1, 4))
        for block in (f"{prefix}.blocks.{i}" for i in range(depth)):
            rows += [(f"{block}.{norm}.{kind}", (width,)) for norm in ("norm1", "norm2") for kind in ("weight", "bias")]
            rows += [(f"{block}.{name}.weight", (a * width, b * width)) for name, a, b in linears]
            rows += [(f"{block}.{name}.bias", (a * width,)) for name, a, _ in linears]
        return [*rows, (f"{prefix}.norm.weight", (width,)), (f"{prefix}.norm.bias", (width,))]

    return [
        *transformer("enc", d, depth),
        ("enc.patch_embed.proj.weight", (d, 3, patch, patch)),
        ("enc.patch_embed.proj.bias", (d,)),
        ("proj.mlp.0.weight", (hidden, d)),
        ("proj.mlp.0.bias", (hidden,)),
        ("proj.mlp.2.weight", (dec, hidden)),
        *transformer("predictor", dec, 8),
        ("aim_proj.0.mlp.0.weight", (head, 16 * dec)),
        ("aim_proj.0.mlp.0.bias", (head,)),
        ("aim_proj.0.mlp.2.weight", (out, head)),
        ("aim_proj.0.mlp.2.bias", (out,)),
    ]
