"""Features: what an encoder gives, once a view, of the samples that train and of those held out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_sets import (
    MODEL,
    PIXELS,
    POOLED,
    TOKENS,
    encode_of,
    images_of,
    labelled_set,
    labels,
)

from shards import selection
from xtra.model import build
from xtra.probe import features, probe


def test_features_are_the_unnormalised_streams_of_every_layer_set(world: Any) -> None:
    wanted = (TOKENS, features.Feature("tokens", 3), POOLED, features.Feature("pooled", 2), PIXELS)
    encode = encode_of(world, *wanted)
    batch = next(encode.batches(world["train"]))
    found = encode(batch.images_B3HW, np.arange(50))
    with torch.no_grad():
        streams = world["model"].encoder.layers(features.data.normalise(batch.images_B3HW), 3)
    for feature, expected in (
        (wanted[0], (streams[1] + streams[2]) / 2),
        (wanted[1], sum(streams) / 3),
        (wanted[2], streams[2].mean(1)),
        (wanted[3], ((streams[1] + streams[2]) / 2).mean(1)),
    ):
        assert torch.allclose(found.of(feature), expected, atol=1e-5), feature
    assert torch.equal(found.of(PIXELS).view(50, 3, 16, 16).to(torch.uint8), batch.images_B3HW)
    alone = encode_of(world, POOLED)(batch.images_B3HW, np.arange(50))
    assert torch.equal(alone.of(POOLED), found.of(POOLED))


def test_the_cache_shows_each_image_once_an_epoch_and_each_view_in_turn(world: Any) -> None:
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    encode = encode_of(world, PIXELS)
    cache = features.Cache(encode, train, views=2, batch=32, limit_gb=1)
    cache.fill(lambda *_: None)
    assert cache.images + len(train.held) == 240
    assert 5 <= len(train.held) <= 50
    shown = []
    for epoch in (0, 1):
        batches = list(cache.epoch(epoch))
        sizes = {len(batch) for batch in batches}
        assert max(sizes) - min(sizes) <= 1, "a short last batch"
        assert sum(map(len, batches)) == cache.images
        shown.append(images_of(batches))
    every = {row.numpy().tobytes() for row in cache.features.values[PIXELS]}
    alike = 2 * cache.images - len(every)  # random crops that happened to be the whole picture
    assert alike < 0.05 * cache.images, "the second view should crop"
    assert len(shown[0] & shown[1]) == alike
    assert shown[0] | shown[1] == every
    held = images_of(encode.evaluation(train, "choose", lambda *_: None, only=train.held))
    assert len(held) == len(train.held)
    assert not held & every
    order = [batch.labels_B.tolist() for batch in cache.epoch(0)]
    assert (
        order == [batch.labels_B.tolist() for batch in cache.epoch(0)] != [b.labels_B.tolist() for b in cache.epoch(1)]
    )


def test_the_hold_out_is_independent_of_subsets(tmp_path: Path) -> None:
    """Both are thresholds on a hash of the key; a 10 % subset must not be the validation split itself."""
    full = labelled_set(tmp_path / "a", "a", labels(900))
    part = selection.subset(full, 90)
    whole, _, _ = features.labelled(full, full, 0.1)
    few, _, _ = features.labelled(part, part, 0.1)
    assert whole.held_N.mean() == pytest.approx(0.1, abs=0.05)
    assert few.held_N.mean() < 0.3
    keys = [k for n in range(1) for k in selection.selected_index(part, n)["key"].to_pylist()]
    all_keys = selection.selected_index(full, 0)["key"].to_pylist()
    held = {k for k, h in zip(all_keys, whole.held_N) if h}
    assert [k in held for k in keys] == few.held_N.tolist(), "a sample is held out in every subset or in none"


def test_the_first_of_several_labels_counts(tmp_path: Path) -> None:
    several = labelled_set(tmp_path / "several", "s", [["red", "blue"], ["green", "red"]] * 30)
    found, _, classes = features.labelled(several, several, 0.2)
    assert classes == ("green", "red")
    assert found.class_N.tolist() == [1, 0] * 30


def test_a_cache_that_would_not_fit_is_refused_with_its_size(world: Any) -> None:
    with pytest.raises(ValueError, match="cache_gb is 1e-06: lower views"):
        probe.run(dataclasses.replace(world["config"], cache_gb=1e-6))


def test_features_outside_the_storage_type_are_refused(world: Any) -> None:
    encoder = build(MODEL, seed=1).encoder
    with torch.no_grad():
        encoder.pos_embed.add_(1e5)
    train, _, _ = features.labelled(world["train"], world["eval"], 0.1)
    cache = features.Cache(encode_of(world, TOKENS, encoder=encoder), train, views=1, batch=32, limit_gb=1)
    with pytest.raises(ValueError, match="use cache_dtype bfloat16"):
        cache.fill(lambda *_: None)


def test_finite_values_whose_sum_is_not_are_finite() -> None:
    assert features._finite(torch.tensor([1.0, -2.0]))
    assert features._finite(torch.full((9,), 3e38))
    assert features._finite(torch.full((70_000,), 6e4, dtype=torch.float16))
    for odd in (float("inf"), -float("inf"), float("nan")):
        assert not features._finite(torch.tensor([1.0, odd, -odd]))
        assert not features._finite(torch.tensor([odd, 0.0], dtype=torch.float16))
