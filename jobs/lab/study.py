"""The block-size study (docs/study): a sweep of the learning rate for each block size, then the grid with its controls.

One command runs what is missing and continues after any stop. The study's definition is written to OUT/study.json when
it begins; a later call with another definition is refused.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jobs import cluster
from jobs.lab import chain
from jobs.lab.chain import Chain, Progress, Trial
from jobs.lab.config import ARMS, PRIMARY, SWEEP_SEED, Arm, StudyConfig as Config
from jobs.lab.rows import recorded, write_rows
from jobs.report.rows import SAME_DATA
from shards import folder_kind, roles, store
from shards.manifest import Manifest, read_manifest
from shards.selection import subset
from xtra import probe, recipes, train
from xtra.run import read_metrics, terms

LEAST_RATE, LARGEST_RATE = 1.25e-4, 3.2e-2  # a sweep does not extend beyond these
EVERY_STEPS = 2_000  # between checkpoints, if the batch is not the recipe's
PINNED = "study.json"


SWEPT = {4: "tiny_imagenet_block4", 1: "tiny_imagenet_block1", 2: "tiny_imagenet_block2"}  # by block


@dataclass(frozen=True)
class StudyResult:
    out: str
    rates: dict[str, float]  # by block
    trained: int  # by this call
    probed: int  # by this call
    stopped: bool


@dataclass(frozen=True)
class _Sets:
    train: Manifest
    few: Manifest
    held_out: Manifest
    tin: tuple[Manifest, ...]  # trains heads, evaluates them; empty: not probed
    cifar: tuple[Manifest, Manifest]
    grocery: tuple[Manifest, ...]


def run(config: Config, progress: Progress = lambda row: None, stop: threading.Event | None = None) -> StudyResult:
    """Run what is missing. Raises ValueError for a missing set, or a study begun with other settings or recipes."""
    stop = stop or threading.Event()
    folder_kind.require(config.out, "a study", "study", "probes")
    sets = _sets(config)
    _pin(config, sets)
    done: list[chain.Done] = []
    rates: dict[str, float] = {}
    while not stop.is_set() and len(rates) < len(SWEPT):
        done += _side_by_side(config, [Chain((trial,)) for trial in _sweep(config, sets)], stop, progress)
        rates = _chosen(config)
    for last in sorted({*config.stages}):
        if stop.is_set():
            break
        chains = _grid(config, sets, rates, last)
        for trial in (trial for one in chains for trial in one.trials):
            terms(trial.run.out, trial.run)
        done += _side_by_side(config, chains, stop, progress)
    trained, probed = sum(one.trained for one in done), sum(one.probed for one in done)
    if trained or probed:
        _write_rows(config.out, config.rows)  # of two that end together, the slower may have missed the other's
    return StudyResult(config.out, rates, trained, probed, stop.is_set())


def _side_by_side(config: Config, chains: list[Chain], stop: threading.Event, progress: Progress) -> list[chain.Done]:
    """Run what these chains are missing, `at_once` at a time."""
    jobs = [_Job(one, config.out, config.rows) for one in chains if not chain.is_done(one)]
    return cluster.side_by_side(_work, jobs, config.at_once, stop, progress)


@dataclass(frozen=True)
class _Job:
    chain: Chain
    out: str
    rows: str


def _work(job: _Job, stop: threading.Event, progress: Progress) -> chain.Done:
    """Run a chain, then write the rows of all finished runs."""
    done = chain.work(job.chain, stop, progress)
    _write_rows(job.out, job.rows)
    return done


def _write_rows(out: str, rows: str) -> None:
    for part in ("sweep", "grid") if rows else ():
        if store.names(store.join(out, part)):
            write_rows(store.join(out, part), rows, part)


# ---- the study's definition ----


def _sets(config: Config) -> _Sets:
    def of(name: str, images: int = 0) -> Manifest:
        found = read_manifest(store.absolute(store.join(config.data, name)))
        return subset(found, images) if 0 < images < found.samples else found

    return _Sets(
        of("tin-train"),
        of("tin-train", config.few_images),
        of("tin-val", config.held_out_images),
        (of("tin-train", config.head_images), of("tin-val")) if "tin" in config.secondary else (),
        (of("cifar10-train", config.head_images), of("cifar10-test")),
        (of("grocery-train"), of("grocery-test")) if "grocery" in config.secondary else (),
    )


def _pin(config: Config, sets: _Sets) -> None:
    """Write the study's definition, or compare it with the existing one."""
    settings = roles.chosen(Config, vars(config), "law")
    used = {arm.recipe: _shaping(recipes.get(arm.recipe)) for arm in _arms(config)}
    digests = {name: [m.digest for m in (ms if isinstance(ms, tuple) else (ms,))] for name, ms in vars(sets).items()}
    arms = {arm.name: dataclasses.asdict(arm) for arm in _arms(config)}
    primary = {**PRIMARY, "set": sets.cifar[1].list_name, "head": "linear", "samples_seen": max(config.samples)}
    whole = {"primary": primary, "settings": settings, "arms": arms, "recipes": used, "manifests": digests}
    now = json.loads(json.dumps(whole))
    # Rows outlive the machine and the manifests that it imported.
    pins = {config.rows: {name: value for name, value in now.items() if name != "manifests"}} if config.rows else {}
    for folder, pin in {**pins, config.out: now}.items():
        where = store.join(folder, PINNED)
        before = pin if not store.exists(where) else _with_defaults(store.read_json(where))
        for name, old, new in _differences("", before, pin):
            raise ValueError(
                f"{where}: the study was begun with {name} = {old!r}, now {new!r}: use the old value or another folder"
            )
    for folder, pin in {**pins, config.out: now}.items():
        store.put_json_if_absent(store.join(folder, PINNED), pin)


def _with_defaults(pin: dict[str, Any]) -> dict[str, Any]:
    """The definition without what was declared of its rows later; a setting that an older study lacks counts as its
    current default."""
    defaults = {
        f.name: f.default for f in dataclasses.fields(Config) if f.name in ("arms", "secondary", "batch", "warmup")
    }
    pin = {name: value for name, value in pin.items() if name != SAME_DATA}
    return pin | {"settings": json.loads(json.dumps(defaults)) | pin["settings"]}


def _arms(config: Config) -> list[Arm]:
    return [arm for arm in ARMS if not config.arms or arm.name in config.arms]


def _base(config: Config, recipe: str) -> train.Config:
    """The recipe on this study's machine."""
    base = dataclasses.replace(recipes.get(recipe), device=config.device, threads=config.threads)
    optim = dataclasses.replace(base.optim, warmup=config.warmup or base.optim.warmup)
    every = max(base.checkpoint_every, EVERY_STEPS * config.batch)
    return dataclasses.replace(base, optim=optim, batch=config.batch or base.batch, checkpoint_every=every)


def _shaping(recipe: train.Config) -> dict[str, Any]:
    """The settings of a recipe that shape its runs, without the rate, which the sweep sets."""
    kept = {name: dataclasses.asdict(recipe)[name] for name in roles.names(train.Config, "law")}
    return kept | {"optim": {name: value for name, value in kept["optim"].items() if name != "lr"}}


def _differences(path: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before):  # a setting that did not exist then counts as its default
            yield from _differences(f"{path}.{name}".lstrip("."), before[name], now.get(name))
    elif before != now:
        yield path, before, now


# ---- the sweep ----


def _sweep(config: Config, sets: _Sets) -> Iterator[Trial]:
    """A run for each block size and rate now in the sweep."""
    for block, recipe in SWEPT.items():
        for lr in _rates(config, block):
            base = _base(config, recipe)
            run = dataclasses.replace(
                base,
                data=sets.train.address,
                out=_sweep_run(config, block, lr),
                arm=f"block{block} lr {lr:g}",
                samples=config.sweep_samples,
                optim=dataclasses.replace(base.optim, lr=lr),
                val=dataclasses.replace(base.val, data=sets.held_out.address, every=config.sweep_samples),
            )
            done = _recorded_loss(config, run.out) is not None
            yield Trial(_seeded(run, SWEEP_SEED), recorded=done and not store.exists(run.out))


def _sweep_run(config: Config, block: int, lr: float) -> str:
    return store.join(store.absolute(config.out), "sweep", f"block{block}-lr{lr:g}")


def _rates(config: Config, block: int) -> list[float]:
    """The requested rates, and one more beyond each end that is the best so far."""
    rates = sorted(config.lrs)
    while len(losses := _losses(config, block, rates)) == len(rates):
        best = min(losses, key=losses.__getitem__)
        if best == rates[0] and best / 2 >= LEAST_RATE:
            rates = [best / 2, *rates]
        elif best == rates[-1] and best * 2 <= LARGEST_RATE:
            rates = [*rates, best * 2]
        else:
            break
    return rates


def _losses(config: Config, block: int, rates: list[float]) -> dict[float, float]:
    """The final held-out loss for each rate whose run is done."""
    found = {}
    for lr in rates:
        rows = read_metrics(_sweep_run(config, block, lr), [])
        if rows and rows[-1].samples_seen >= config.sweep_samples and rows[-1].val_loss is not None:
            found[lr] = rows[-1].val_loss
        elif loss := _recorded_loss(config, _sweep_run(config, block, lr)):
            found[lr] = loss
    return found


def _recorded_loss(config: Config, run: str) -> float | None:
    """The loss in the recorded rows, for a run trained on a machine that is gone."""
    for row in recorded(config.rows, "sweep") if config.rows else []:
        if row["name"] == run.rpartition("/")[2] and int(row["samples_seen"]) == config.sweep_samples:
            return float(row["val_loss"]) if row["val_loss"] else None
    return None


def _chosen(config: Config) -> dict[str, float]:
    """The rate with the smallest held-out loss for each block size whose sweep is complete."""
    chosen = {}
    for block in SWEPT:
        rates = _rates(config, block)
        if len(losses := _losses(config, block, rates)) == len(rates):
            chosen[f"block{block}"] = min(losses, key=losses.__getitem__)
    return chosen


# ---- the grid ----


def _grid(config: Config, sets: _Sets, rates: dict[str, float], last: int) -> list[Chain]:
    """The counts up to `last`, seed by seed, so that every finished seed is a complete result."""
    chains = []
    for seed in config.seeds:
        for arm in _arms(config):
            counts = [n for n in sorted(config.samples)[:: -arm.every][::-1] if n <= last]
            chains += [_chain(config, sets, rates, arm, seed, counts)] if counts else []
    return chains


def _chain(config: Config, sets: _Sets, rates: dict[str, float], arm: Arm, seed: int, counts: list[int]) -> Chain:
    base = _base(config, arm.recipe)
    folder = store.join(store.absolute(config.out), "grid")
    optim = dataclasses.replace(base.optim, lr=rates[f"block{base.model.block}"], schedule=arm.schedule)
    runs = [
        _seeded(
            dataclasses.replace(
                base,
                data=(sets.few if arm.few else sets.train).address,
                out=store.join(folder, f"{arm.name}-{samples:09d}-s{seed}"),
                arm=arm.name,
                samples=samples,
                optim=optim,
                val=dataclasses.replace(base.val, data=sets.held_out.address, every=samples),
            ),
            seed,
        )
        for samples in counts
    ]
    probes: list[tuple[probe.Config, ...]] = [(_linear(config, sets, run.out, seed),) for run in runs]
    secondary = dataclasses.replace(probes[-1][0], heads=("linear", "attentive"))
    for training, evaluation in filter(None, (sets.tin, sets.grocery)):
        probes[-1] += (dataclasses.replace(secondary, train=training.address, eval=evaluation.address),)
    if seed == min(config.seeds) and arm.schedule == "constant" and not arm.few:
        # Raw pixels do not depend on the arm.
        probes[0] += (dataclasses.replace(probes[0][0], encoder="random", pixels=arm is ARMS[0]),)
    if arm.schedule == "constant":
        runs = chain.with_trunk(runs, store.join(folder, f"{arm.name}-trunk-s{seed}"))
        probes = [(), *probes]
    rows = Counter(row["name"] for row in recorded(config.rows, "grid") if row["accuracy"]) if config.rows else {}

    def is_recorded(run: train.Config, of: tuple[probe.Config, ...]) -> bool:
        results = sum(len(settings.heads) + settings.pixels for settings in of)
        return 0 < results <= rows.get(run.out.rpartition("/")[2], 0) and not store.exists(run.out)

    return Chain(tuple(Trial(run, of, is_recorded(run, of)) for run, of in zip(runs, probes, strict=True)))


def _seeded(run: train.Config, seed: int) -> train.Config:
    """The run with this seed for weights, crops and data order."""
    return dataclasses.replace(run, seed=seed, order=dataclasses.replace(run.order, seed=seed))


def _linear(config: Config, sets: _Sets, out: str, seed: int) -> probe.Config:
    """The primary measure: CIFAR-10, linear, on all of its test images."""
    return probe.Config(
        checkpoint=out,
        out=out,
        train=sets.cifar[0].address,
        eval=sets.cifar[1].address,
        heads=("linear",),
        lrs=(1e-3, 4e-3, 1.6e-2, 6.4e-2),
        epochs=config.probe_epochs,
        views=1,
        seed=seed,
        device=config.device,
        precision="bf16",
        encode_batch=32 if config.device == "cpu" else 512,
        threads=config.threads,
    )
