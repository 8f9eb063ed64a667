"""The least time that a training step can take on a GPU: its FLOPs and bytes over the machine's ceilings.

    python -m jobs.bench.gpu.floor        # the tables of docs/perf.md, for one H100 and one H200

The time is a sum over non-overlapping parts: matrix products at the rate of large ones in their precision; attention at
that rate or at the speed of reading and writing its operands, whichever takes longer; elementwise work (norms, GELU,
residuals, biases, the loss) at the bandwidth, with each tensor between two matrix products read and written once; and
the work for every parameter. Launch delays, partial tiles and waits are not included: they are the rest of the measured
time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from xtra.flops import Shape, flops_per_image, forward_flops, parameters

Precision = Literal["bf16", "tf32", "fp32"]


@dataclass(frozen=True)
class Ceilings:
    """A machine's limits: FLOP/s of large matrix products by precision, bytes/s read plus written, bytes/s from the
    host, and the nominal peak that defines utilisation."""

    name: str
    bf16: float
    tf32: float
    fp32: float
    bandwidth: float
    host: float
    peak: float


# Expected for large products and copies, of the nominal 989, 494 and 67 TFLOP/s, and 3.35 and 4.8 TB/s.
REACHED = Ceilings("H100 SXM", 800e12, 400e12, 50e12, 3.0e12, 50e9, 989e12)
REACHED_H200 = Ceilings("H200 SXM", 800e12, 400e12, 50e12, 4.3e12, 50e9, 989e12)


@dataclass(frozen=True)
class Variant:
    """One training variant. The defaults are the best known; every other variant changes some of them."""

    name: str
    shape: Literal["ours", "official"] = "ours"
    images: int = 128
    attention: str = "dense"  # xtra.attention.IMPLEMENTATIONS
    compile: Literal["none", "layers", "max-autotune"] = "layers"  # with head and loss
    decoder: Precision = "bf16"
    drop_last: bool = True
    dropped: Literal["compute", "skip", "subset"] = "compute"
    fused: bool = True  # the optimiser

    def __str__(self) -> str:
        return self.name


# Bytes that a layer reads and writes outside its matrix products, per token and unit of width, with MLP ratio 4 and
# bf16 with a float32 residual stream. Compiled: two norms, fused with the residual sum before and the cast after (each
# 12 + 16, forward and backward), GELU (16 + 24), sums for the gradients of biases (18). Not compiled: sums, norms,
# casts and drop path are separate passes.
LAYER_BYTES = {True: 2 * (12 + 16) + 16 + 24 + 18, False: 230}
ATTENTION_BYTES = 8 + 16  # reads q, k, v, writes o; then reads these and do, writes dq, dk, dv
MLP_BYTES = 12  # per hidden unit of bridge or head: GELU forward and backward, the bias's gradient
PIXEL_BYTES = 50  # per pixel value: normalised, cut to patches and targets, target normalised, compared, and back
# Per parameter: AdamW in one pass (4 read, 3 written) or in nine, the norm of gradients and their scaling, the weight
# cast to bf16 and the gradient back.
ADAMW_BYTES = {True: 28, False: 84}
CLIP_BYTES, CAST_BYTES = 12, 12
SAVED_BYTES = 36  # kept by the forward pass per token, unit of width and layer, bf16 with float32 residuals


def floor(
    shape: Shape, variant: Variant, machine: Ceilings, ends: tuple[tuple[int, ...], tuple[int, ...]], drop_path: float
) -> dict[str, float]:
    """Seconds of a step, by part. `ends`: see `flops.forward_flops`."""
    official = variant.shape == "official"
    last = official or not variant.drop_last
    keep = 1 - drop_path / 2 if variant.dropped != "compute" and not official else 1.0
    flops = forward_flops(shape, last, ends)
    tokens = shape.tokens - (0 if last else shape.block**2)
    n = variant.images
    wide = 1 if variant.decoder == "bf16" else 2  # the decoder's bytes are float32 or tf32
    by_bytes = LAYER_BYTES[variant.compile != "none"]

    def products(part: str, precision: Precision = "bf16", passes: int = 3) -> float:
        return n * passes * flops[part] / getattr(machine, precision)

    def attention(part: str, width: int, depth: int, precision: Precision) -> float:
        moved = n * tokens * width * depth * ATTENTION_BYTES * (1 if precision == "bf16" else 2)
        return max(products(part, precision), moved / machine.bandwidth)

    hidden = tokens * shape.bridge + shape.blocks * shape.head * shape.predict
    elementwise = tokens * by_bytes * (keep * shape.width * shape.depth + wide * shape.dec_width * shape.dec_depth) + (
        hidden * MLP_BYTES + 3 * shape.image**2 * PIXEL_BYTES
    )
    weights = parameters(shape)
    return {
        "data": n * 3 * shape.image**2 / machine.host,
        "encoder": keep
        * (products("encoder linears") + attention("encoder attention", shape.width, shape.depth, "bf16")),
        "decoder": products("decoder linears", variant.decoder)
        + attention("decoder attention", shape.dec_width, shape.dec_depth, variant.decoder),
        "bridge, head": products("patches", passes=2) + products("bridge") + products("head"),
        "elementwise": n * elementwise / machine.bandwidth,
        "weights": weights * (ADAMW_BYTES[variant.fused] + CLIP_BYTES + CAST_BYTES) / machine.bandwidth,
    }


def memory(shape: Shape, variant: Variant) -> float:
    """Bytes of weights, gradients and AdamW's moments in float32, bf16 weights, and kept activations."""
    last = variant.shape == "official" or not variant.drop_last
    tokens = shape.tokens - (0 if last else shape.block**2)
    wide = 1 if variant.decoder == "bf16" else 2
    kept = tokens * SAVED_BYTES * (shape.width * shape.depth + wide * shape.dec_width * shape.dec_depth)
    return 18 * parameters(shape) + variant.images * kept


def utilisation(shape: Shape, seconds: float, images: int, machine: Ceilings) -> float:
    """MFU in the official code's FLOPs."""
    return images / seconds * flops_per_image(shape) / machine.peak


B16 = Shape(256, 16, 4, 768, 12, bridge=4096, dec_width=768, dec_depth=8, head=6144)
H14 = Shape(224, 14, 4, 1280, 32, bridge=5120, dec_width=640, dec_depth=8, head=9408)
TILED = ((64, 128, 192, 240), (64, 128, 192, 240))
DENSE: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


def planned_variants(images: int) -> list[tuple[Variant, tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The variants whose floors docs/perf.md shows, and where their query tiles end."""
    best = Variant("best known", images=images)
    official = Variant("official shape, fp32 decoder", "official", images, compile="none", decoder="fp32", fused=False)
    return [
        (official, DENSE),
        (replace(official, name="official shape, TF32 decoder", decoder="tf32"), DENSE),
        (replace(official, name="official shape, bf16 decoder", decoder="bf16"), DENSE),
        (replace(best, name="ours, all blocks", drop_last=False), DENSE),
        (best, DENSE),
        (replace(best, name="tiled attention"), TILED),
        (replace(best, name="not compiled", compile="none"), DENSE),
        (replace(best, name="optimiser not fused", fused=False), DENSE),
        (replace(best, name="TF32 decoder", decoder="tf32"), DENSE),
        (replace(best, name="fp32 decoder", decoder="fp32"), DENSE),
        (replace(best, name="dropped branches skipped", dropped="skip"), DENSE),
        (replace(best, name="skipped, tiled attention", dropped="skip"), TILED),
    ]


def table(title: str, shape: Shape, images: int, machine: Ceilings, drop_path: float = 0.2) -> list[str]:
    """Lines of a Markdown table."""
    lines = [f"**{title}, {images} images a step; {machine.name}**", ""]
    rows = []
    for variant, ends in planned_variants(images):
        parts = floor(shape, variant, machine, ends, drop_path)
        total = sum(parts.values())
        share = 100 * utilisation(shape, total, images, machine)
        numbers = [f"{1e3 * seconds:.1f}" for seconds in (*parts.values(), total)]
        rows.append(
            [variant.name, *numbers, f"{images / total:,.0f}", f"{share:.0f} %", f"{memory(shape, variant) / 1e9:.0f}"]
        )
    names = ["arm", *parts, "step, ms", "images/s", "MFU, paper", "GB"]
    lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]


if __name__ == "__main__":
    for title, shape, images in (("XTRA-B/16 at 256", B16, 256), ("XTRA-H/14 at 224", H14, 128)):
        for machine in (REACHED, REACHED_H200):
            print("\n".join(table(title, shape, images, machine)))
