"""What a probe says, and the file that says it."""

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
    """One head's outcome, as written to probes/*.json. What is not there in older files has a default."""

    checkpoint: str
    samples_seen: Count
    manifest_train: str  # "" for an official probe, which came trained
    manifest_eval: str
    set: str  # list name of the eval dataset
    head: str  # attentive, linear, knn, logreg or pixels
    encoder: str  # trained, random, none, official, or the name of somebody else's
    accuracy: Share  # of the chosen point on eval, 0..1
    low: float  # 95 % Wilson interval
    high: float
    correct: Count
    total: Count
    classes: Count
    lr: float | None  # of the chosen point; None where the head has no such setting
    weight_decay: float | None
    selection: tuple[Mapping[str, float], ...]  # every grid point and its accuracy where it was selected
    per_class: tuple[float | None, ...]  # in the order of labels; None where eval has no sample of the class
    labels: tuple[str, ...]
    seconds: float  # of the whole run, which all its heads share
    protocol: str  # all settings in words
    layers: Count = 0  # the features are the mean of this many last layers; 0: of none (pixels), or not recorded
    chosen: Mapping[str, float] = dataclasses.field(default_factory=dict)  # the grid point, by name
    selected_on: str = "holdout"  # holdout, eval (as the paper's numbers were; it flatters) or nothing
    shared_sha256: Count | None = None  # eval images that train has too, byte for byte; None: not looked for
    shared_phash: Count | None = None  # further ones that look alike; None: not known
    epochs: Count | None = None  # that the heads trained; None: they have none, or the result is from before this field
    warmup_defect: bool = False  # see heads.Schedule
    fingerprint: str = ""  # of the encoder (FrozenEncoder.fingerprint); "" for pixels, and in older results
    image: Count = 0  # side in pixels; 0: not recorded
    remark: str = ""  # what a reader of the numbers should know
    # Which of the `total` images of manifest_eval it got right, in the order of its rows (`unpack`); "": not recorded.
    right: str = ""
    seed: int | None = None  # of heads and views; None: not recorded
    eval: str = ""  # the dataset of manifest_eval, as it was named; "": not recorded
    mask: str = ""  # causal or none, where that was asked for; "": the encoder's own (xtra.model.Mask)
    confused: tuple[tuple[int, int, int], ...] = ()  # commonest mistakes: (label, label that it was taken for, times)
    mistakes: tuple[tuple[int, int, int], ...] = ()  # some images got wrong: (row of the set, label, taken for)

    def name(self, own: bool) -> str:
        """Of the file. In a run's `own` folder the samples seen tell its encoders apart, elsewhere the fingerprint
        does; other protocols have other names, too."""
        of = self.fingerprint or (f"{self.image}px" if self.head == "pixels" else "")
        words = [self.set, self.head, self.encoder, *([of] if of and not own else []), str(self.samples_seen)]
        words += ["published"] * (self.selected_on == "eval") + ["warmup-defect"] * self.warmup_defect
        words += [f"seed{self.seed}"] * bool(self.seed) + [f"mask-{self.mask}"] * bool(self.mask)
        return re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join(words)) + ".json"


def write(folder: str, result: ProbeResult, own: bool = False) -> None:
    """`own`: the folder is that of the run whose encoder it is. What a killed probe left half-written there goes."""
    store.put_json(store.join(folder, "probes", result.name(own)), dataclasses.asdict(result))
    if store.is_local(folder):
        store.remove_left_aside(store.join(folder, "probes"))


def read_result(url: str, needs: Sequence[str]) -> dict[str, Any]:
    """A result as it was written, with the fields that a reader `needs`; others may be missing, as in older results.

    Raises Missing, and StoreError for a file that is damaged or no result.
    """
    value = typed_json.parse(store.read(url), url)
    defaults = {name: default for name, default in _ABSENT.items() if name not in needs}
    typed_json.checked(ProbeResult, defaults | value if isinstance(value, dict) else value, url)
    return value


# What stands for a field that is missing and not needed, while types are checked.
_ABSENT: dict[str, Any] = dict.fromkeys(("checkpoint", "manifest_train", "manifest_eval", "set", "head"), "")
_ABSENT |= {"encoder": "", "protocol": "", "lr": None, "weight_decay": None, "seconds": 0.0}
_ABSENT |= {"samples_seen": 0, "accuracy": 0.0, "low": 0.0, "high": 1.0, "correct": 0, "total": 0, "classes": 0}
_ABSENT |= {"selection": [], "per_class": [], "labels": []}


def pack(right_N: np.ndarray) -> str:
    """bool [N] -> base64 of one bit an image, the first in the highest bit of the first byte."""
    return base64.b64encode(np.packbits(right_N).tobytes()).decode()


def unpack(right: str, total: int) -> np.ndarray:
    """What `pack` was given: bool [total]. Raises ValueError where that is not of so many images."""
    try:
        bits = np.frombuffer(base64.b64decode(right, validate=True), np.uint8)
    except ValueError:
        bits = np.empty(0, np.uint8)
    if len(bits) != math.ceil(total / 8):
        raise ValueError(f"right has {len(bits)} bytes, but {total} images have {math.ceil(total / 8)}: it is damaged")
    return np.unpackbits(bits, count=total).astype(bool)


def edge(selection: Sequence[Mapping[str, float]]) -> str:
    """A remark where the best learning rate may lie outside the grid: all of the best points have the same extreme."""
    top = max(point["accuracy"] for point in selection)
    lrs = {point["lr"] for point in selection}
    best = {point["lr"] for point in selection if point["accuracy"] == top}
    if len(lrs) > 1 and best in ({max(lrs)}, {min(lrs)}):
        which, where = ("largest", "above") if best == {max(lrs)} else ("smallest", "below")
        return f"lr is the {which} of the grid: the best may lie {where} it"
    return ""
