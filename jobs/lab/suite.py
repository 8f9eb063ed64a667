"""The paper's 15 evaluation sets as one list of probes: each one's settings, which are missing, and their table.

Settings are those of the official configs (config/eval of the official code), whose grids are the paper's Table 2 with
one or two larger rates. One difference: the official batch of 4096 is four passes of 1024 with accumulated gradients,
each with its own batch-norm statistics; ours is one pass of 4096. Under --protocol published, the 13 sets without
warm-up train every grid point at a tenth of its rate, the scheduler's defect (`probe.Config.warmup_defect`); the
default protocol, hold-out, trains the intended grid.
"""

from __future__ import annotations

import dataclasses
import textwrap
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ingest.sets import BENCHMARKS
from jobs import cluster
from jobs.cluster import Progress
from jobs.lab import existing
from jobs.lab.config import SuiteConfig as Config
from shards import store
from shards.manifest import read_manifest
from xtra import probe
from xtra.augment import PROBE, PROBE_LINEAR_B
from xtra.model import model_config
from xtra.probe import published_resize
from xtra.run import records


@dataclass(frozen=True)
class Setting:
    """How the heads of one benchmark train; other settings are the same for all."""

    batch: int
    lrs: tuple[float, ...]
    warmup_epochs: float = 0.0


_LRS = (1e-4, 3e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 4e-3)  # ImageNet-1k's
_MORE = (*_LRS, 8e-3, 1e-2)
_MOST = (*_MORE, 1e-1)
EPOCHS = 100
H14_IMAGE = 224  # pixels, the official H/14's; B/16 has 256

SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "imagenet1k": Setting(4096, _LRS, warmup_epochs=10),
        "inat18": Setting(4096, _MOST, warmup_epochs=10),
        "cifar10": Setting(512, _MORE),
        "cifar100": Setting(512, _MORE),
        "food101": Setting(512, _MORE),
        "dtd": Setting(128, _MORE),
        "pets": Setting(128, _MORE),
        "cars": Setting(128, _MOST),
        "iwildcam": Setting(512, _MORE),
        "camelyon17": Setting(512, _MORE),
        "pcam": Setting(4096, _MORE),
        "rxrx1": Setting(512, _MORE),
        "eurosat": Setting(512, _MORE),
        "fmow": Setting(512, _MORE),
        "infograph": Setting(256, _MOST),
    }
)


@dataclass(frozen=True)
class SuiteResult:
    probes: tuple[existing.Result, ...]  # every existing result of the suite
    missing: tuple[str, ...]  # under the root: benchmarks, or NAME/train or NAME/eval if only that half is missing
    failed: Mapping[str, str]  # benchmark -> why
    probed: int  # probes done by this call
    stopped: bool


def run(config: Config, progress: Progress = lambda row: None, stop: threading.Event | None = None) -> SuiteResult:
    """Probe what is missing. A benchmark that cannot be probed is listed in `failed`, and the others continue.

    Raises ValueError if the root has no benchmark, or there is no encoder to probe.
    """
    stop = stop or threading.Event()
    base = absolute(dataclasses.replace(config.probe, device=cluster.probing_device(config.probe.device)))
    seen, image, mark = existing.samples_seen(base), image_side(base), existing.fingerprint(base)
    root = store.absolute(config.root)
    asked = [name for name in BENCHMARKS if name in (config.only or BENCHMARKS)]
    sets = {name: (store.join(root, name, "train"), store.join(root, name, "eval")) for name in asked}
    absent = {name: _absent(root, name) for name in asked}
    lying = [name for name in asked if not absent[name]]
    if not lying:
        raise ValueError(
            f"--root {config.root}: has none of {', '.join(asked)}: xtra import SOURCE --set NAME makes them"
        )
    named: dict[tuple[str, str], str] = {}
    failed: dict[str, str] = {}
    missing = []
    for name in lying:
        train, evaluation = sets[name]
        named[base.out, evaluation] = name
        for settings in configs(name, dataclasses.replace(base, train=train, eval=evaluation), image, config.kept):
            if (left := existing.only_missing(settings, seen, mark)) is not None:
                if why := _too_short(left):  # report it before the workers start
                    failed[name] = why
                else:
                    missing.append(left)

    def note_failure(settings: probe.Config, why: str) -> None:
        failed[named[settings.out, settings.eval]] = why

    probed = cluster.probe_all(missing, config.workers, stop, progress, note_failure)
    names = {read_manifest(sets[name][1]).digest: name for name in lying}  # a dataset may have another name
    found = tuple(
        {**r, "set": names[r["manifest_eval"]]}
        for r in existing.results(base.out)
        if r["manifest_eval"] in names and _same(base, seen, mark, r)
    )
    return SuiteResult(found, tuple(part for name in asked for part in absent[name]), failed, probed, stop.is_set())


def _absent(root: str, name: str) -> list[str]:
    """What is missing: nothing, one of the benchmark's two datasets, or the benchmark."""
    halves = [f"{name}/{half}" for half in ("train", "eval")]
    lost = [half for half in halves if not store.exists(store.join(root, half, "dataset.json"))]
    return [name] if lost == halves else lost


def _too_short(settings: probe.Config) -> str:
    """Why a probe that augments its images in each epoch has fewer than one batch of them; "" if it has enough."""
    images = settings.epochs * read_manifest(settings.train).samples
    if settings.augment is None or not {"attentive", "linear"} & {*settings.heads} or images >= settings.batch:
        return ""
    return f"--batch is {settings.batch}, but {settings.epochs} epochs show only {images} images: lower it"


def absolute(settings: probe.Config) -> probe.Config:
    """The config with absolute paths, as workers have other working directories; results go to the run by default."""
    given = store.absolute(settings.checkpoint) if settings.checkpoint else ""
    out = store.absolute(settings.out) if settings.out else existing.run_of(given)
    if not out:
        raise ValueError("RUN is missing: give a run folder, or --out for another encoder's results")
    return dataclasses.replace(settings, checkpoint=given, out=out)


def image_side(settings: probe.Config) -> int:
    """The side of the encoder's images, in pixels."""
    if settings.encoder in ("trained", "random"):
        return model_config(records.read_settings(existing.run_of(settings.checkpoint))["model"]).image
    from xtra.probe import open_encoder

    return open_encoder(settings.encoder).image


def _same(base: probe.Config, seen: int, mark: str, result: existing.Result) -> bool:
    mine = (result["encoder"], result["samples_seen"]) == (existing.label(base), seen) and result["head"] in base.heads
    alike = existing.published(result) == (base.protocol == "published") and existing.has_mask(result, base)
    return mine and existing.is_of(result, mark) and alike


def configs(name: str, base: probe.Config, image: int, kept: Collection[str] = ()) -> list[probe.Config]:
    """The probes of one benchmark: heads that need other images or another weight decay are separate probes."""
    setting = SETTINGS[name]
    wanted: dict[str, Any] = {
        "lrs": setting.lrs,
        "batch": setting.batch,
        "warmup_epochs": setting.warmup_epochs * (base.epochs / EPOCHS if "epochs" in kept else 1),
        "epochs": EPOCHS,
        "resize": published_resize(image),
        "warmup_defect": base.protocol == "published" and not setting.warmup_epochs,
        "precision": "bf16" if base.device.startswith("cuda") else "fp32",
    }
    # The official linear probe of B/16 has no RandAugment, no erasing and no weight decay; that of H/14 has all three,
    # like its attentive one (config/eval/xtra_h/in1k_linear).
    alike = image == H14_IMAGE
    made = []
    for attentive, augment, decay in ((True, PROBE, 0.1), (False, PROBE_LINEAR_B, 0.0)):
        heads = tuple(head for head in base.heads if (alike or head == "attentive") == attentive)
        fields = wanted | {"augment": augment, "weight_decays": (decay,)}
        fields = {field: value for field, value in fields.items() if field not in kept}
        if heads:
            made.append(dataclasses.replace(base, heads=heads, pixels=False, **fields))
    return made


def text(result: SuiteResult, heads: Sequence[str]) -> list[str]:
    """The table, and what it is missing."""
    notes = [f"failed   {name}: {why}" for name, why in result.failed.items()]
    if result.missing:
        notes.append(f"missing  {', '.join(result.missing)}: xtra import SOURCE --set NAME makes them")
    return table(result, heads) + [
        textwrap.fill(note, 80, subsequent_indent=" " * 9, break_long_words=False) for note in notes
    ]


# --- the table -----------------------------------------------------------------------------------------------------


def table(result: SuiteResult, heads: Sequence[str]) -> list[str]:
    """At most 80 columns: all 15 benchmarks, then their mean, given only if all 15 have a result."""
    by_cell = {(r["set"], r["head"]): r for r in result.probes}
    width = min(24, 58 // max(1, len(heads)))
    lines = [f"{'':<13}{'images':>8}" + "".join(f"{head:>{width}}" for head in heads)]
    for name, benchmark in BENCHMARKS.items():
        cells = [_cell(by_cell.get((name, head)), width) for head in heads]
        lines.append(f"{benchmark.title:<13}{benchmark.eval:>8,}" + "".join(f"{cell:>{width}}" for cell in cells))
    means = [average([by_cell.get((name, head)) for name in BENCHMARKS]) for head in heads]
    shown = ["" if mean is None else f"{100 * mean:.1f}" for mean in means]
    lines.append(f"{'average of 15':<21}" + "".join(f"{cell:>{width}}" for cell in shown))
    if not all(map(whole, by_cell.values())):
        lines.append("* not as many test images as in the paper")
    return [line.rstrip() for line in lines]


def _cell(result: existing.Result | None, width: int) -> str:
    if result is None:
        return ""
    interval = f" ({100 * result['low']:.1f} to {100 * result['high']:.1f})"
    mean = f"{100 * result['accuracy']:.1f}" + "*" * (not whole(result))
    return mean + (interval if len(interval) + 7 < width else "")


def whole(result: existing.Result) -> bool:
    """Whether it has as many test images as the paper."""
    return result["total"] == BENCHMARKS[result["set"]].eval


def average(cells: Sequence[existing.Result | None]) -> float | None:
    """The plain mean of the 15 accuracies, as in the paper; None with fewer."""
    found = [cell["accuracy"] for cell in cells if cell is not None and whole(cell)]
    return sum(found) / len(found) if len(found) == len(BENCHMARKS) else None
