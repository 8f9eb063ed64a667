"""Named runs: each function returns a whole training Config. `xtra train NAME` starts from one; flags override fields.

The paper is arXiv 2411.15648; its Table 1 gives the pretraining settings. Where the official configs or the names of
the published runs differ, the docstring says so; variants for those belong to their own functions.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable

from xtra.model import SIZES, ModelConfig
from xtra.optim import OptimConfig
from xtra.train import Config

IN1K, IN21K = 1_281_167, 13_151_276  # images of ImageNet-1k, and of the release that the H/14 run's step count gives


def b16_in1k() -> Config:
    """XTRA-B/16 at 256 px, ImageNet-1k, 800 epochs, as in Table 1 (the official config says 1600, warm-up 40)."""
    return Config(
        recipe="b16_in1k",
        model=dataclasses.replace(SIZES["b16"], drop_path=0.2),
        samples=800 * IN1K,
        batch=2048,
        optim=OptimConfig(warmup=15 * IN1K),
        precision="bf16",
    )


def h14_in21k() -> Config:
    """XTRA-H/14 at 224 px, ImageNet-21K, 100 epochs, as in Table 1."""
    return Config(
        recipe="h14_in21k",
        model=dataclasses.replace(SIZES["h14"], drop_path=0.2),
        samples=100 * IN21K,
        batch=2048,
        optim=OptimConfig(warmup=3 * IN21K),
        precision="bf16",
    )


def _cpu(recipe: str, model: ModelConfig, samples: int, batch: int) -> Config:
    """Settings that train within minutes on two cores; the warm-up is a tenth of the run."""
    return Config(
        recipe=recipe,
        model=model,
        samples=samples,
        batch=batch,
        optim=OptimConfig(lr=1e-3, warmup=0.1),
        checkpoint_every=max(samples // 4, batch),
    )


def demo32() -> Config:
    """The demo's XTRA: 32 px images, 4 px patches, blocks of 2 x 2 patches; many small steps, as samples are few."""
    model = dataclasses.replace(SIZES["tiny32"], width=96, depth=4, heads=3)
    base = _cpu("demo32", model, 8192, 32)
    return dataclasses.replace(base, optim=dataclasses.replace(base.optim, lr=2e-3))


def demo32_aim() -> Config:
    """The demo's plain-causal twin: a block is one patch, everything else the same (the paper's AIM baseline)."""
    base = demo32()
    return dataclasses.replace(base, recipe="demo32_aim", model=dataclasses.replace(base.model, block=1))


def small64() -> Config:
    """A small XTRA for 64 px photographs such as Tiny ImageNet: 8 px patches, blocks of 2 x 2, 6 layers of 128."""
    model = dataclasses.replace(SIZES["small64"], patch=8, block=2, depth=6)
    return _cpu("small64", model, 160_000, 64)


def small64_aim() -> Config:
    """The plain-causal twin of small64."""
    base = small64()
    return dataclasses.replace(base, recipe="small64_aim", model=dataclasses.replace(base.model, block=1))


def _recipes() -> dict[str, Callable[[], Config]]:
    functions = inspect.getmembers(sys.modules[__name__], inspect.isfunction)
    return {
        name: f for name, f in functions if f.__module__ == __name__ and name[0] != "_" and name not in ("names", "get")
    }


def names() -> list[str]:
    return sorted(_recipes())


def get(name: str) -> Config:
    """Raises ValueError naming the recipes there are."""
    if name not in _recipes():
        raise ValueError(f"recipe {name!r} is unknown: use one of {', '.join(names())}")
    return _recipes()[name]()
