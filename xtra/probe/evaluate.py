"""Trained classifiers on labelled features: right answers by image, the best point of a grid, accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xtra.probe import heads
from xtra.probe.features import Feature, Features, Labelled
from xtra.probe.heads import Candidates
from xtra.probe.result import pack, wilson


@dataclass(frozen=True)
class Score:
    """One kind's chosen point: which images of the evaluation set it got right; how every point did in selection."""

    kind: str
    feature: Feature
    chosen: dict[str, float]
    selection: tuple[dict[str, float], ...]
    right_N: np.ndarray  # bool, in the order of the set's rows


@torch.no_grad()
def score(found: Sequence[Candidates], evaluation: Iterable[Features]) -> list[Tensor]:
    """Which images every point of every candidate gets right: bool [G, N] for each, in the order of `evaluation`."""
    right: list[list[Tensor]] = [[] for _ in found]
    for features in evaluation:
        for one, hits in zip(found, right):
            hits.append(heads.correct(one.logits(features.of(one.feature)), features.labels_B).cpu())
    return [torch.cat(hits, dim=1) for hits in right]


def choose(
    found: Sequence[Candidates], selected: Sequence[Tensor], evaluated: Sequence[Tensor], images: int
) -> list[Score]:
    """The best point of every kind on the `images` that selection looked at; of equals the first."""
    best = []
    for kind in dict.fromkeys(one.kind for one in found):
        mine = [n for n, one in enumerate(found) if one.kind == kind]
        tried = [(n, g, int(selected[n][g].sum())) for n in mine for g in range(len(found[n].points))]
        n, g, _ = max(tried, key=lambda one: one[2])
        selection = tuple({**found[n].points[g], "accuracy": right / images} for n, g, right in tried)
        best.append(Score(kind, found[n].feature, dict(found[n].points[g]), selection, evaluated[n][g].numpy()))
    return best


def accuracy(kind: str, right_N: np.ndarray, eval_set: Labelled, labels: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a ProbeResult that say how well it did, and on what."""
    total_C = np.bincount(eval_set.class_N, minlength=len(labels)).tolist()
    right_C = np.bincount(eval_set.class_N[right_N], minlength=len(labels)).tolist()
    low, high = wilson(sum(right_C), sum(total_C))
    return {
        "manifest_eval": eval_set.manifest.digest,
        "set": eval_set.manifest.list_name,
        "head": kind,
        "accuracy": sum(right_C) / sum(total_C),
        "low": low,
        "high": high,
        "correct": sum(right_C),
        "total": sum(total_C),
        "right": pack(right_N),
        "classes": len(labels),
        "per_class": tuple(right / total if total else None for right, total in zip(right_C, total_C)),
        "labels": labels,
    }
