"""What a probe says, and the file that says it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from shards import store


@dataclass(frozen=True)
class ProbeResult:
    """One head's outcome, as written to probes/*.json. What is not there in older files has a default."""

    checkpoint: str
    samples_seen: int
    manifest_train: str  # "" for an official probe, which came trained
    manifest_eval: str
    set: str  # list name of the eval dataset
    head: str  # attentive, linear, knn, logreg or pixels
    encoder: str  # trained, random, none, official, or the name of somebody else's
    accuracy: float  # of the chosen point on eval, 0..1
    low: float  # 95 % Wilson interval
    high: float
    correct: int
    total: int
    classes: int
    lr: float | None  # of the chosen point; None where the head has no such setting
    weight_decay: float | None
    selection: tuple[Mapping[str, float], ...]  # every grid point and its accuracy where it was selected
    per_class: tuple[float | None, ...]  # in the order of labels; None where eval has no sample of the class
    labels: tuple[str, ...]
    seconds: float  # of the whole run, which all its heads share
    protocol: str  # all settings in words
    layers: int = 0  # the features are the mean of this many last layers; 0: of none (pixels), or not recorded
    chosen: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the grid point, by name
    selected_on: str = "holdout"  # holdout, eval (as the paper's numbers were; it flatters) or nothing
    shared_sha256: int | None = None  # eval images that train has too, byte for byte; None: not looked for
    shared_phash: int | None = None  # further ones that look alike; None: not known
    epochs: int | None = None  # that the heads trained; None: they have none, or the result is from before this field
    warmup_defect: bool = False  # see heads.Schedule

    @property
    def name(self) -> str:
        """Of the file. Other protocols and other people's encoders overwrite nobody's result."""
        words = [self.set, self.head, self.encoder, str(self.samples_seen)]
        words += ["published"] * (self.selected_on == "eval") + ["warmup-defect"] * self.warmup_defect
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words)) + ".json"


def write(folder: str, result: ProbeResult) -> None:
    store.put_json(store.join(folder, "probes", result.name), dataclasses.asdict(result))


def wilson(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % score interval of a proportion (Wilson 1927): also sane at 0, at 1 and for few samples."""
    share, weight = correct / total, z * z / total
    centre = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, centre - half), min(1.0, centre + half)
