"""The cost of a run and an ingest before anything is spent: samples, FLOPs, hours, storage, egress, requests, money.

Everything is arithmetic from a recipe and the given prices; nothing is measured here. Hours come from a stated
utilisation (MFU) of the official code's FLOPs. With a ledger, the fitted law predicts the gain of the next doubling.

    python -m jobs.lab.plan docs/costs.md        # rewrite the page's blocks
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.flags import nearest, parse
from jobs.lab.config import PlanConfig as Config
from jobs.laws import Doubling, fit, next_doubling
from shards.stream import Order
from xtra import recipes
from xtra.flops import Shape, flops_per_image, parameters, peak_flops

if TYPE_CHECKING:
    from xtra.train import Config as TrainConfig

GB = 1e9
STATE = 12  # bytes per parameter in a checkpoint: float32 weights and two moments
_PUTS = 4  # a unit's plan, tar, index and commit; a large tar takes one per upload part
_READS = 2.1  # ranged reads of a chunk of 110 KB pictures: `requests` of `xtra bench stream --only delayed`
_MONTH = 730  # hours


@dataclass(frozen=True)
class Training:
    samples: int
    batch: int
    steps: int
    images: int
    params: int
    flops_an_image: int
    flops: float
    gpu_hours: float
    hours: float
    images_a_second: float  # over all GPUs
    money: float


@dataclass(frozen=True)
class Store:
    """The bucket's costs: storage, reads and requests."""

    dataset_gb: float
    checkpoints_gb: float
    months: float
    storage: float  # money
    read_gb: float  # over all epochs
    gets: int
    requests: float  # money
    egress: float  # money, if every epoch is read from another region
    egress_once: float  # the same, with a disk cache that fits the dataset


@dataclass(frozen=True)
class Ingest:
    links: int
    kept: int
    fetched_gb: float
    core_hours: float
    puts: int
    core_money: float
    put_money: float
    month: float  # of storing what was kept


@dataclass(frozen=True)
class Plan:
    recipe: str
    gpus: int
    gpu: str
    mfu: float
    training: Training
    store: Store | None  # None where the number of images is unknown
    ingest: Ingest | None
    doublings: tuple[Doubling, ...]

    @property
    def total(self) -> float:
        """GPUs, storage, requests and ingest, in the bucket's region."""
        store = self.store.storage + self.store.requests if self.store else 0.0
        ingest = self.ingest.core_money + self.ingest.put_money if self.ingest else 0.0
        return self.training.money + store + ingest


def run(config: Config) -> Plan:
    """Make a plan. Raises ValueError for an unknown recipe, a GPU with an unknown peak, and what `xtra fit` refuses."""
    if config.recipe not in recipes.names():
        near = nearest(config.recipe, recipes.names())
        raise ValueError(f"recipe {config.recipe!r} is unknown{near}: xtra train --help lists them")
    if (peak := peak_flops(config.gpu)) is None:
        raise ValueError(f"--gpu {config.gpu}: its peak is unknown: give one of those in xtra/flops.py, such as H100")
    recipe = recipes.get(config.recipe)
    training = _training(config, recipe, peak)
    return Plan(
        config.recipe,
        config.gpus,
        config.gpu,
        config.mfu,
        training,
        _store(config, recipe, training) if training.images else None,
        _ingest(config) if config.links else None,
        next_doubling(fit.run(fit.Config(config.ledger))) if config.ledger else (),
    )


def _training(config: Config, recipe: TrainConfig, peak: float) -> Training:
    shape = Shape(**{f.name: getattr(recipe.model, f.name) for f in fields(Shape)})
    an_image = flops_per_image(shape)
    flops = float(recipe.samples) * an_image
    gpu_hours = flops / (peak * config.mfu) / 3600
    known = {"_in1k": recipes.IN1K, "_in21k": recipes.IN21K}
    named = next((images for part, images in known.items() if part in config.recipe), 0)
    return Training(
        samples=recipe.samples,
        batch=recipe.batch,
        steps=-(-recipe.samples // recipe.batch),
        images=config.images or named,
        params=parameters(shape),
        flops_an_image=an_image,
        flops=flops,
        gpu_hours=gpu_hours,
        hours=gpu_hours / config.gpus,
        images_a_second=config.gpus * peak * config.mfu / an_image,
        money=gpu_hours * config.price,
    )


def _store(config: Config, recipe: TrainConfig, training: Training) -> Store:
    dataset = training.images * config.image_bytes / GB
    checkpoints = recipe.keep * training.params * STATE / GB
    months = config.months + training.hours / _MONTH
    read = training.samples * config.image_bytes / GB
    gets = math.ceil(training.samples / Order.chunk * _READS)
    return Store(
        dataset_gb=dataset,
        checkpoints_gb=checkpoints,
        months=months,
        storage=(dataset + checkpoints) * months * config.storage_price,
        read_gb=read,
        gets=gets,
        requests=gets / 1000 * config.get_price,
        egress=read * config.egress_price,
        egress_once=min(read, dataset) * config.egress_price,
    )


def _ingest(config: Config) -> Ingest:
    from ingest.config import Config as IngestConfig

    kept = round(config.links * config.kept)
    units = -(-config.links // IngestConfig.unit)
    tar = kept / units * config.image_bytes
    puts = units * (_PUTS - 1 + max(1, math.ceil(tar / (16 << 20))))
    core_hours = config.links / config.core_images / 3600
    return Ingest(
        links=config.links,
        kept=kept,
        fetched_gb=kept * config.image_bytes / GB,
        core_hours=core_hours,
        puts=puts,
        core_money=core_hours * config.core_price,
        put_money=puts / 1000 * config.put_price,
        month=kept * config.image_bytes / GB * config.storage_price,
    )


# ---- in words ----


def lines(plan: Plan) -> list[str]:
    """A plan in at most 80 columns; money is in the currency of the prices."""
    t = plan.training
    found = [
        f"{plan.recipe} on {plan.gpus} x {plan.gpu} at {100 * plan.mfu:g} % MFU (of the official code's FLOPs)",
        "",
        _row("samples", f"{t.samples:,}", f"{t.steps:,} steps of {t.batch:,}"),
        _row("parameters", f"{t.params:,}", f"{t.flops_an_image / 1e9:,.1f} GFLOP an image, forward and backward"),
        _row("FLOPs", f"{t.flops / 1e18:,.4g} EFLOP", ""),
        _row("hours", f"{t.hours:,.3g}", f"{t.gpu_hours:,.4g} GPU-hours, {t.images_a_second:,.0f} images/s"),
        _row("GPUs", f"{t.money:,.2f}", ""),
    ]
    if plan.store is None:
        found.append("storage and reading: give --images, the number of images in the dataset")
    else:
        s = plan.store
        found += [
            _row(
                "storage",
                f"{s.storage:,.2f}",
                f"{s.dataset_gb:,.0f} + {s.checkpoints_gb:,.0f} GB, {s.months:.2g} months",
            ),
            _row("requests", f"{s.requests:,.2f}", f"{s.gets:,} reads, {_READS:g} for each {Order.chunk} images"),
            _row("egress", "0.00", f"{s.read_gb:,.0f} GB read, inside the bucket's region"),
            _row("", f"{s.egress:,.2f}", "from another region, every epoch (not in the sum)"),
            _row("", f"{s.egress_once:,.2f}", "the same, once, with --read.cache (not in the sum)"),
        ]
    if plan.ingest is not None:
        i = plan.ingest
        found += [
            _row("ingest", f"{i.core_money:,.2f}", f"{i.links:,} links in {i.core_hours:,.3g} core-hours"),
            _row("", "", f"{i.kept:,} kept"),
            _row("", f"{i.put_money:,.2f}", f"{i.puts:,} writes; {i.fetched_gb:,.0f} GB in, which is free"),
            _row("", f"{i.month:,.2f}", "each month that it is kept (not in the sum)"),
        ]
    found.append(_row("sum", f"{plan.total:,.2f}", ""))
    return found + _doublings(plan)


def _row(name: str, value: str, remark: str) -> str:
    return f"{name:<11}{value:>18}   {remark}".rstrip()


def _doublings(plan: Plan) -> list[str]:
    if not plan.doublings:
        return []
    hour = plan.training.money / plan.training.gpu_hours
    rate = plan.training.gpu_hours / plan.training.samples  # GPU-hours a sample
    found = ["", "gain from the next doubling beyond the measured samples, in points of accuracy:"]
    for d in plan.doublings:
        interval = "no interval" if d.low is None or d.high is None else f"{100 * d.low:+.2f} to {100 * d.high:+.2f}"
        cost = d.samples * rate
        found += [
            f"  {d.arm[:20]:<20} {d.samples:>13,} more samples: {100 * d.points:+.2f} ({interval})",
            f"  {'':<20} {cost:,.3g} GPU-hours of this recipe, {cost * hour:,.2f}",
        ]
    return found


# ---- docs/costs.md ----


def rewritten(page: str) -> str:
    """The page with every block that begins with `$ xtra plan` replaced by that command's current output."""

    def block(match: re.Match[str]) -> str:
        config = parse(Config, ["--recipe", *shlex.split(match[1])[3:]], "xtra plan")
        return "\n".join(["```", match[1], *lines(run(config)), "```"])

    return re.sub(r"```\n(\$ xtra plan [^\n]*)\n.*?```", block, page, flags=re.S)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text()))
