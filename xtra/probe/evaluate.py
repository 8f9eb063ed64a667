"""Trained classifiers on labelled features: right answers by image, the best point of a grid, accuracies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shards.figures import wilson
from xtra.probe import heads
from xtra.probe.features import Feature, Features, Labelled
from xtra.probe.heads import Candidates
from xtra.probe.result import pack

CONFUSED, MISTAKES = 20, 24  # most entries in a result


@dataclass(frozen=True)
class Score:
    """One kind's chosen point: its answers on the evaluation set, and every point's accuracy in selection."""

    kind: str
    feature: Feature
    chosen: dict[str, float]
    selection: tuple[dict[str, float], ...]
    said_N: np.ndarray  # the class predicted for each image, in the order of the set's rows; -1: none


@dataclass(frozen=True)
class Answers:
    """The answers of every point of one candidate for each image."""

    right_GN: Tensor  # bool
    said_GN: Tensor  # int32: the class; -1 where the head has diverged


@torch.no_grad()
def score(found: Sequence[Candidates], evaluation: Iterable[Features]) -> list[Answers]:
    """The answers of every candidate, images in the order of `evaluation`."""
    right: list[list[Tensor]] = [[] for _ in found]
    said: list[list[Tensor]] = [[] for _ in found]
    for features in evaluation:
        for one, hits, classes in zip(found, right, said):
            said_GB = heads.answers(one.logits(features.of(one.feature)))
            hits.append((said_GB == features.labels_B).cpu())
            classes.append(said_GB.to(torch.int32).cpu())
    return [Answers(torch.cat(hits, dim=1), torch.cat(classes, dim=1)) for hits, classes in zip(right, said)]


def choose(
    found: Sequence[Candidates], selected: Sequence[Answers], evaluated: Sequence[Answers], images: int
) -> list[Score]:
    """The best point of every kind on the `images` used for selection; the first of equals."""
    best = []
    for kind in dict.fromkeys(one.kind for one in found):
        mine = [n for n, one in enumerate(found) if one.kind == kind]
        tried = [(n, g, int(selected[n].right_GN[g].sum())) for n in mine for g in range(len(found[n].points))]
        n, g, _ = max(tried, key=lambda one: one[2])
        selection = tuple({**found[n].points[g], "accuracy": right / images} for n, g, right in tried)
        best.append(Score(kind, found[n].feature, dict(found[n].points[g]), selection, evaluated[n].said_GN[g].numpy()))
    return best


def accuracy(kind: str, said_N: np.ndarray, eval_set: Labelled, labels: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a ProbeResult on its accuracy and the evaluation set."""
    right_N = said_N == eval_set.class_N
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
        "eval": eval_set.manifest.address,
        "confused": confused(said_N, eval_set.class_N),
        "mistakes": mistakes(said_N, eval_set.class_N),
        "classes": len(labels),
        "per_class": tuple(right / total if total else None for right, total in zip(right_C, total_C)),
        "labels": labels,
    }


def confused(said_N: np.ndarray, class_N: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """The CONFUSED most common mistakes: (class, predicted class, times)."""
    wrong = (said_N != class_N) & (said_N >= 0)
    pairs, times = np.unique(np.stack([class_N[wrong], said_N[wrong]]), axis=1, return_counts=True)
    commonest = np.argsort(-times, kind="stable")[:CONFUSED]
    return tuple((int(pairs[0, n]), int(pairs[1, n]), int(times[n])) for n in commonest)


def mistakes(said_N: np.ndarray, class_N: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    """MISTAKES images that it got wrong, evenly spaced over the set: (row, class, predicted class)."""
    rows = np.flatnonzero((said_N != class_N) & (said_N >= 0))
    spaced = rows[np.linspace(0, len(rows) - 1, min(MISTAKES, len(rows))).round().astype(int)] if len(rows) else rows
    return tuple((int(row), int(class_N[row]), int(said_N[row])) for row in spaced)
