"""A probe's result, and its file."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import store, typed_json
from shards.typed_json import Count, Share


@dataclass(frozen=True)
class ProbeResult:
    """One head's result, as written to probes/*.json. Fields missing from older files have a default."""

    checkpoint: str
    samples_seen: Count
    manifest_train: str  # "" for an official probe, which was trained elsewhere
    manifest_eval: str
    set: str  # list name of the eval dataset
    head: str  # attentive, linear, knn, logreg or pixels
    encoder: str  # trained, random, none, official, or another encoder's name
    accuracy: Share  # of the chosen point on eval, 0..1
    low: float  # 95 % Wilson interval
    high: float
    correct: Count
    total: Count
    classes: Count
    lr: float | None  # of the chosen point; None if the head has no such setting
    weight_decay: float | None
    selection: tuple[Mapping[str, float], ...]  # every grid point and its accuracy on the selection images
    per_class: tuple[float | None, ...]  # in the order of labels; None if eval has no sample of the class
    labels: tuple[str, ...]
    seconds: float  # of the whole run, which all its heads share
    protocol: str  # all settings in words
    layers: Count = 0  # the features are the mean of this many last layers; 0: none (pixels), or not recorded
    chosen: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the grid point, by name
    selected_on: str = "holdout"  # holdout, eval (as in the paper; overestimates accuracy) or nothing
    shared_sha256: Count | None = None  # eval images that train also has, byte for byte; None: not checked
    shared_phash: Count | None = None  # further ones that look alike; None: unknown
    epochs: Count | None = None  # of the heads' training; None: no epochs, or an older result
    warmup_defect: bool = False  # see heads.Schedule
    fingerprint: str = ""  # of the encoder (FrozenEncoder.fingerprint); "" for pixels, and in older results
    image: Count = 0  # side in pixels; 0: not recorded
    remark: str = ""  # a warning for readers of the numbers
    # Which of the `total` images of manifest_eval it got right, in the order of its rows (`unpack`); "": not recorded.
    right: str = ""
    seed: int | None = None  # of heads and views; None: not recorded
    eval: str = ""  # the dataset of manifest_eval, as given; "": not recorded
    mask: str = ""  # causal or none, if requested; "": the encoder's own (xtra.model.Mask)
    confused: tuple[tuple[int, int, int], ...] = ()  # most common mistakes: (label, predicted label, times)
    mistakes: tuple[tuple[int, int, int], ...] = ()  # some misclassified images: (row of the set, label, predicted)

    def name(self, own: bool) -> str:
        """The file's name. In a run's `own` folder, samples seen distinguish its encoders, elsewhere the fingerprint;
        other protocols also have other names."""
        of = self.fingerprint or (f"{self.image}px" if self.head == "pixels" else "")
        words = [self.set, self.head, self.encoder, *([of] if of and not own else []), str(self.samples_seen)]
        words += ["published"] * (self.selected_on == "eval") + ["warmup-defect"] * self.warmup_defect
        words += [f"seed{self.seed}"] * bool(self.seed) + [f"mask-{self.mask}"] * bool(self.mask)
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words)) + ".json"


def write(folder: str, result: ProbeResult, own: bool = False) -> None:
    """Write a result. `own`: the folder is the encoder's own run. Removes half-written files of a killed probe."""
    store.put_json(store.join(folder, "probes", result.name(own)), dataclasses.asdict(result))
    if store.is_local(folder):
        store.remove_left_aside(store.join(folder, "probes"))


def read_result(url: str, needs: Sequence[str]) -> dict[str, Any]:
    """A result as written, with the fields that a reader `needs`; others may be missing, as in older results.

    Raises Missing, and StoreError for a file that is damaged or not a result.
    """
    value = typed_json.parse(store.read(url), url)
    defaults = {name: default for name, default in _ABSENT.items() if name not in needs}
    typed_json.checked(ProbeResult, defaults | value if isinstance(value, dict) else value, url)
    return value


# Substitutes for missing fields that are not needed, for the type check.
_ABSENT: dict[str, Any] = dict.fromkeys(("checkpoint", "manifest_train", "manifest_eval", "set", "head"), "")
_ABSENT |= {"encoder": "", "protocol": "", "lr": None, "weight_decay": None, "seconds": 0.0}
_ABSENT |= {"samples_seen": 0, "accuracy": 0.0, "low": 0.0, "high": 1.0, "correct": 0, "total": 0, "classes": 0}
_ABSENT |= {"selection": [], "per_class": [], "labels": []}


def pack(right_N: np.ndarray) -> str:
    """bool [N] -> base64 with one bit per image, the first in the highest bit of the first byte."""
    return base64.b64encode(np.packbits(right_N).tobytes()).decode()


def unpack(right: str, total: int) -> np.ndarray:
    """The inverse of `pack`: bool [total]. Raises ValueError if the bytes are not for `total` images."""
    try:
        bits = np.frombuffer(base64.b64decode(right, validate=True), np.uint8)
    except ValueError:
        bits = np.empty(0, np.uint8)
    if len(bits) != math.ceil(total / 8):
        raise ValueError(f"right has {len(bits)} bytes, but {total} images have {math.ceil(total / 8)}: it is damaged")
    return np.unpackbits(bits, count=total).astype(bool)


def edge(selection: Sequence[Mapping[str, float]]) -> str:
    """A remark if the best learning rate may be outside the grid: all of the best points have the same extreme."""
    top = max(point["accuracy"] for point in selection)
    lrs = {point["lr"] for point in selection}
    best = {point["lr"] for point in selection if point["accuracy"] == top}
    if len(lrs) > 1 and best in ({max(lrs)}, {min(lrs)}):
        which, where = ("largest", "above") if best == {max(lrs)} else ("smallest", "below")
        return f"lr is the {which} of the grid: the best may lie {where} it"
    return ""
