"""The training step with our exact optimisations against the same step as the official code computes it.

All variants share one model, one optimiser and one batch, and differ in how forward and backward are computed:

official     tokens in raster order under a dense mask, every block computed, a block's tokens copied together
block_major  tokens in block order: joining a block is a view
drop_last    also without the last block, which does not affect the loss
halves       also attention in two halves (on CPUs)
all          also without the residual branches that drop path zeroes

The variants take turns, in reversed order every other round; a ratio is the median over rounds of a variant's time over
the official one's in the same round: CPU seconds on a CPU, which other processes may use too, and wall-clock time on a
GPU. On a CPU, also what `all` goes to: the shares of a step's time in matrix products, attention, GELU and norms, by
torch's profiler.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jobs.bench import result
from jobs.bench.memory import kept_for_backward
from jobs.bench.rounds import Spent, medians, paired, require_at_least, torch_threads
from xtra import drop_path, recipes
from xtra.attention import Causal
from xtra.blocks import block_causal_mask, raster_order, target_blocks
from xtra.loss import normalise_blocks
from xtra.model import SIZES, ModelConfig, Xtra, build
from xtra.optim import OptimConfig, make_optimizer
from xtra.run import cost


@dataclass(frozen=True)
class Config:
    size: str = "b16"  # a name in xtra.model.SIZES, or a recipe, whose model is taken
    images: int = 4  # per step
    rounds: int = 9
    drop_path: float = 0.2
    precision: Literal["fp32", "bf16"] = "fp32"  # bf16: autocast; only `official` then keeps the decoder in fp32
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 0  # torch's threads on a CPU; 0: torch's default
    compile: bool = False  # torch.compile each layer, in all variants

    def __post_init__(self) -> None:
        if self.size not in SIZES and self.size not in recipes.names():
            raise ValueError(f"size is {self.size!r}; it must be one of {', '.join(SIZES)}, or a recipe")
        require_at_least(self, images=1, rounds=1, threads=0)

    @property
    def model(self) -> ModelConfig:
        return SIZES[self.size] if self.size in SIZES else recipes.get(self.size).model


@dataclass(frozen=True)
class Variant:
    name: str
    drop_last: bool = True
    halves: bool = True
    skip_dropped: bool = True


VARIANTS = (
    Variant("official", drop_last=False, halves=False, skip_dropped=False),
    Variant("block_major", drop_last=False, halves=False, skip_dropped=False),
    Variant("drop_last", halves=False, skip_dropped=False),
    Variant("halves", skip_dropped=False),
    Variant("all"),
)


def official_shape(xtra: Xtra, images_B3HW: Tensor, drop_LSB: Tensor, decoder_fp32: bool = True) -> Tensor:
    """The loss as the official code computes it, with our weights (src/modules/xtra.py `_step` at e711fb5).

    On a GPU, cuDNN computes attention where it can, which is also torch's default there. Tokens are in raster order;
    the mask is dense and copied to the device for every layer; the head runs on a copy of all K blocks, the last of
    which is discarded; targets are computed for all blocks.
    """
    c = xtra.config
    order = raster_order(c.grid, c.block)
    mask = block_causal_mask(c.tokens, c.per_block)[order][:, order]
    device = images_B3HW.device

    def layers(blocks: nn.ModuleList, x: Tensor, drops: list[list[drop_path.Drop | None]]) -> Tensor:
        for block, drop in zip(blocks, drops):
            x = drop_path.added(*block(x, Causal(mask.to(device), cudnn=True), *drop))
        return x

    encoder, decoder = xtra.encoder, xtra.decoder
    order = order.to(device)
    x = nn.functional.conv2d(images_B3HW, encoder.patch_embed.weight, encoder.patch_embed.bias, stride=c.patch)
    x = x.flatten(2).transpose(1, 2) + encoder.pos_embed[:, order]
    x = encoder.norm(layers(encoder.blocks, x, drop_path.drops_of(drop_LSB, c.depth, device, skip_dropped=False)))
    x = xtra.bridge(x)
    autocast = torch.is_autocast_enabled(device.type) and not decoder_fp32
    with torch.autocast(device.type, enabled=autocast):
        h = x.float() + decoder.pos_embed[:, order]
        h = decoder.norm(layers(decoder.blocks, h, [[None, None]] * c.dec_depth)).to(x.dtype)
    b, rows = len(h), c.grid // c.block
    together = h.reshape(b, rows, c.block, rows, c.block, -1).permute(0, 1, 3, 2, 4, 5)
    (prediction_BKP,) = [head(together.reshape(b, c.blocks, -1).contiguous()) for head in xtra.heads]
    wanted_BKP = normalise_blocks(target_blocks(images_B3HW, c.side))
    return nn.functional.mse_loss(prediction_BKP[:, :-1].float(), wanted_BKP[:, 1:])


def our_shape(xtra: Xtra, images_B3HW: Tensor, drop_LSB: Tensor, variant: Variant) -> Tensor:
    """The loss as we compute it, with the variant's optimisations."""
    xtra.encoder.skip_dropped = variant.skip_dropped
    xtra.encoder.attention = xtra.decoder.attention = "auto" if variant.halves else "dense"
    (prediction_BKP,) = xtra(images_B3HW, drop_LSB, last_block=not variant.drop_last)
    wanted_BKP = normalise_blocks(target_blocks(images_B3HW, xtra.config.side)[:, 1:])
    return nn.functional.mse_loss(prediction_BKP[:, : wanted_BKP.shape[1]].float(), wanted_BKP)


def loss_of(variant: Variant, xtra: Xtra, images_B3HW: Tensor, drop_LSB: Tensor) -> Tensor:
    if variant.name == "official":
        return official_shape(xtra, images_B3HW, drop_LSB)
    return our_shape(xtra, images_B3HW, drop_LSB, variant)


def run(config: Config) -> dict[str, Any]:
    """Time every variant; return their rows and ratios."""
    with torch_threads(config.threads):
        return _run(config)


def _run(config: Config) -> dict[str, Any]:
    device = torch.device(config.device)
    c = dataclasses.replace(config.model, drop_path=config.drop_path, predict=1)
    xtra = build(c, 0, device, decoder_fp32=config.precision == "fp32")
    if config.compile:
        for block in (*xtra.encoder.blocks, *xtra.decoder.blocks):
            block.compile()
    optimizer = make_optimizer(
        xtra, OptimConfig(lr=0.0)
    )  # does all its work, but leaves the weights equal for all variants
    images = torch.randn(config.images, 3, c.image, c.image, generator=torch.Generator().manual_seed(0)).to(device)
    losses: dict[str, float] = {}
    seconds: dict[str, list[Spent]] = {variant.name: [] for variant in VARIANTS}
    memory = {variant.name: 0 for variant in VARIANTS}
    for turn in range(-1, config.rounds):  # the first round is a warm-up
        drop_LSB = drop_path.scales(c.drop_path, c.depth, 0, np.full(config.images, turn + 1), np.arange(config.images))
        for variant in VARIANTS if turn % 2 else VARIANTS[::-1]:
            step = _Step(device)
            losses[variant.name] = _stepped(config, variant, xtra, optimizer, images, drop_LSB).item()
            spent, memory[variant.name] = step.end()
            if turn >= 0:
                seconds[variant.name].append(spent)
        assert max(losses.values()) - min(losses.values()) < 0.01 * max(losses.values()), f"variants disagree: {losses}"
    found = _report(
        config, xtra, seconds, memory, lambda variant: activation_bytes(variant, xtra, images[:1], drop_LSB)
    )
    if device.type == "cpu":
        parts = shares(lambda: _stepped(config, VARIANTS[-1], xtra, optimizer, images, drop_LSB))
        found["ratios"] |= {f"{part}_share": share for part, share in parts.items()}
    return found


def _stepped(
    config: Config,
    variant: Variant,
    xtra: Xtra,
    optimizer: torch.optim.Optimizer,
    images_B3HW: Tensor,
    drop_LSB: Tensor,
) -> Tensor:
    """One training step; its loss."""
    with torch.autocast(images_B3HW.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        loss = loss_of(variant, xtra, images_B3HW, drop_LSB)
    loss.backward()
    nn.utils.clip_grad_norm_(xtra.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


# Parts of a step by a part of an operation's name, the first match.
PARTS = {"attention": ("scaled_dot_product",), "gelu": ("gelu",), "norm": ("layer_norm",), "products": ("mm", "bmm")}


def shares(step: Callable[[], object], steps: int = 3) -> dict[str, float]:
    """The share of each of PARTS in a step's time on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
        for _ in range(steps):
            step()
    spent = dict.fromkeys(PARTS, 0.0)
    whole = 0.0
    for event in profiled.key_averages():
        part = next((part for part, names in PARTS.items() if any(name in event.key for name in names)), None)
        whole += event.self_cpu_time_total
        if part is not None:
            spent[part] += event.self_cpu_time_total
    return {part: seconds / whole for part, seconds in spent.items()}


class _Step:
    """Wall-clock and CPU seconds of one step, and on a GPU its peak memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self) -> tuple[Spent, int]:
        memory = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            memory = torch.cuda.max_memory_allocated(self.device)
        return (time.perf_counter() - self.wall, time.process_time() - self.cpu), memory


def activation_bytes(variant: Variant, xtra: Xtra, images_B3HW: Tensor, drop_LSB: Tensor) -> int:
    """Bytes that the forward pass keeps for the backward pass, without parameters."""
    drops = drop_LSB[:, :, : len(images_B3HW)]
    return kept_for_backward(lambda: loss_of(variant, xtra, images_B3HW, drops), xtra.parameters())


def _report(
    config: Config,
    xtra: Xtra,
    seconds: dict[str, list[Spent]],
    memory: dict[str, int],
    activations: Callable[[Variant], int],
) -> dict[str, Any]:
    parameters = sum(p.numel() for p in xtra.parameters())
    rows, ratios = [], {}
    for variant in VARIANTS:
        wall, cpu = medians(seconds[variant.name])
        flops = cost(xtra.config, torch.device(config.device), 1, skips=variant.skip_dropped)
        rate = config.images / wall
        row: dict[str, Any] = {
            "arm": variant.name,
            "seconds": wall,
            "cpu_seconds": cpu,
            "samples_per_s": rate,
            "samples_per_cpu_s": config.images / cpu if config.device == "cpu" else None,
            "paper_flops_per_s": rate * flops.paper,
            **paired("ratio", seconds[variant.name], seconds["official"], config.device),
            "activation_bytes_per_image": activations(variant),
            "bytes_of_weights_gradients_and_adamw": 16 * parameters,
            "peak_bytes": memory[variant.name] or None,
            **flops.utilisation(rate),
        }
        rows.append(row)
        print(
            f"{variant.name:<12} {wall:8.3f} s  {rate:8.2f} images/s  "
            f"{config.images / cpu:8.2f} a CPU s  {row['paper_flops_per_s'] / 1e9:8.1f} GFLOP/s  "
            f"{row['activation_bytes_per_image'] / 1e6:7.1f} MB/image  {row['ratio']:.3f} "
            f"({row['ratio_least']:.3f} to {row['ratio_most']:.3f})"
        )
        ratios[f"{variant.name}_vs_official_shape"] = row["ratio"]
    del ratios["official_vs_official_shape"]
    return result("train", rows, ratios)
