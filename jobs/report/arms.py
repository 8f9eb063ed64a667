"""Arms: a run's settings apart from its seed, data and length; and how two arms differ.

An arm is every setting that shapes a run's training: block, order, targets, head, size, optimiser. Two runs of one arm
are repetitions of each other; two arms are compared by naming every field in which they differ. So arms are never
merged under a common name, and never called equal where they are not.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from jobs.laws import grouped
from jobs.report.comparable import training_settings
from jobs.report.ledger import Run
from jobs.report.tables import human

TRUNK = "constant"  # without a decay
SAID = 3  # most differing fields in a label


@dataclass(frozen=True)
class Arm:
    """All settings of a training by dotted name, e.g. model.block; equal settings are the same arm."""

    settings: Mapping[str, Any]
    names: tuple[str, ...] = field(compare=False, default=())  # its names in configs

    @cached_property
    def key(self) -> str:
        """12 hex digits."""
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def block(self) -> int:
        return int(self.settings["model.block"])

    @property
    def base(self) -> str:
        """XTRA with its block size in tokens, or the paper's name AIM."""
        name = f"XTRA {self.block}x{self.block}" if self.block > 1 else "AIM-like 1x1"
        return name + ", prefix" * bool(self.settings.get("model.prefix"))


@dataclass(frozen=True, eq=False)  # one object per line
class Line:
    """An arm on one dataset: one line of a chart."""

    arm: Arm
    manifest: str
    images: int  # of the dataset
    label: str
    style: int  # colour and marker

    @property
    def name(self) -> str:
        """Its name in its configs and in the ledger."""
        return ", ".join(self.arm.names)


def arm_of(run: Run, decays: Mapping[str, float] | None = None) -> Arm:
    """decays: trunk name -> the share of samples over which its branches decay the learning rate."""
    names = (str(run.config.get("arm") or run.info.get("recipe") or run.config.get("recipe") or ""),)
    if run.unstated:  # what rows name; all else is in the digest
        known = {"model": run.config["model"], "optim": {"schedule": ""}, "settings": run.unstated}
        return Arm(dict(_flat("", known)), names)
    settings = dict(_flat("", training_settings(run.config)))
    decay, floor = settings.pop("optim.decay", 0.0), settings.pop("optim.min_lr", 0.0)
    decay = (decays or {}).get(run.name, decay)
    if settings["optim.schedule"] == "cosine":
        settings["optim.schedule"] = f"cosine to {floor:g}"
    else:
        settings["optim.schedule"] = f"constant, decay over the last {decay:g}" if decay else TRUNK
    return Arm(settings, names)


def _flat(path: str, values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for name, value in sorted(values.items()):
        if isinstance(value, Mapping):
            yield from _flat(f"{path}{name}.", value)
        else:
            yield f"{path}{name}", list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class Study:
    """The arms and lines of a folder of runs."""

    by_run: Mapping[str, Line]  # by the run's URL
    lines: tuple[Line, ...]  # XTRA first, larger blocks first

    def line(self, run: str) -> Line:
        return self.by_run[run]

    def named(self, name: str) -> list[Line]:
        return [line for line in self.lines if name in (line.label, *line.arm.names)]


def study(runs: Sequence[Run]) -> Study:
    """Every run's line; each line has a unique label."""
    branches = {str(run.config.get("branch") or "").rstrip("/").rpartition("/")[2]: run for run in runs}
    decays = {trunk: run.config["optim"].get("decay", 0.0) for trunk, run in branches.items() if trunk}
    arms = _with_trunks({run.url: arm_of(run, decays) for run in runs})
    found = grouped(runs, lambda run: (arms[run.url].key, str(run.info["manifest"])))
    merged = {key: _merge([arms[run.url] for run in group]) for key, group in found.items()}
    images = {key: int(group[0].info.get("manifest_samples") or 0) for key, group in found.items()}
    weights = {key: len(group) for key, group in found.items()}
    order = sorted(found, key=lambda k: (-merged[k].block, _random(merged[k]), -images[k], -weights[k], k))
    labels = _labels(order, merged, images, weights)
    lines = {key: Line(merged[key], key[1], images[key], labels[key], at) for at, key in enumerate(order)}
    return Study({run.url: lines[key] for key, group in found.items() for run in group}, tuple(lines.values()))


def _with_trunks(arms: Mapping[str, Arm]) -> dict[str, Arm]:
    """A trunk without a branch counts as the arm that decays, if there is exactly one such arm."""
    found = dict(arms)
    for url, arm in arms.items():
        if arm.settings["optim.schedule"] == TRUNK:
            others = {a.key: a for a in arms.values() if [d.name for d in differences(a, arm)] == ["optim.schedule"]}
            decaying = [a for a in others.values() if str(a.settings["optim.schedule"]).startswith(TRUNK)]
            if len(decaying) == 1:
                found[url] = Arm(decaying[0].settings, arm.names)
    return found


def _random(arm: Arm) -> bool:
    return arm.settings.get("model.order", "raster") != "raster"


def _merge(arms: Sequence[Arm]) -> Arm:
    return Arm(arms[0].settings, tuple(dict.fromkeys(name for arm in arms for name in arm.names if name)))


Key = tuple[str, str]


def _labels(
    order: Sequence[Key], arms: Mapping[Key, Arm], images: Mapping[Key, int], weights: Mapping[Key, int]
) -> dict[Key, str]:
    """The base name, then the settings that differ from the most typical arm of that name, then the data if they
    differ."""
    sizes = {(a.settings.get("model.width"), a.settings.get("model.depth")) for a in arms.values()}
    usual = Counter({manifest: sum(w for k, w in weights.items() if k[1] == manifest) for _, manifest in order})
    most = max(usual, key=lambda manifest: (usual[manifest], manifest), default="")
    labels: dict[Key, str] = {}
    for key in order:
        arm = arms[key]
        alike = [k for k in order if arms[k].base == arm.base]
        reference = arms[min(alike, key=lambda k: (_apart(arms[k], arms, alike), -weights[k], order.index(k)))]
        words = [arm.base]
        if len(sizes) > 1:
            words.append(f"{arm.settings.get('model.width')}x{arm.settings.get('model.depth')}")
        apart = [d for d in differences(arm, reference) if not d.name.startswith(("model.width", "model.depth"))]
        if len(apart) > SAID:
            words.append(f"settings {arm.key[:6]}")
        else:
            words += [f"{d.name.rpartition('.')[2].replace('_', ' ')} {d.one}" for d in apart]
        if key[1] != most:
            words.append(f"{human(images[key])} images")
        labels[key] = ", ".join(words)
    return _unique(labels)


def _apart(arm: Arm, arms: Mapping[Key, Arm], keys: Sequence[Key]) -> int:
    return sum(len(differences(arm, arms[key])) for key in keys)


def _unique(labels: Mapping[Key, str]) -> dict[Key, str]:
    counts = Counter(labels.values())
    return {k: f"{label}, {k[0][:4]}-{k[1][:4]}" if counts[label] > 1 else label for k, label in labels.items()}


@dataclass(frozen=True)
class Difference:
    """A field in which two sides differ."""

    name: str
    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.name} {self.one} / {self.other}"


def differences(one: Arm, other: Arm) -> list[Difference]:
    """Every setting in which two arms differ, by name."""
    return [
        Difference(name, shown_value(one.settings.get(name)), shown_value(other.settings.get(name)))
        for name in sorted({*one.settings, *other.settings})
        if one.settings.get(name) != other.settings.get(name)
    ]


def shown_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:g}"
    return " ".join(map(shown_value, value)) if isinstance(value, list) else str(value)
