"""Probes under another mask than the encoder's own: what is read, and that its results are kept apart."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import MODEL

from jobs.lab import existing
from jobs.report.ledger import protocol
from shards import store
from xtra.model import Encoder, build
from xtra.probe import probe
from xtra.probe.encoders import of_xtra
from xtra.probe.resume import Unfinished


def last_layer(encoder: Encoder, mask: Any, images: torch.Tensor) -> torch.Tensor:
    return of_xtra(encoder, "mine", mask).layers(images, 1)[0]


def test_a_mask_that_is_asked_for_is_the_one_that_is_read() -> None:
    images = torch.randn(2, 3, 16, 16)
    changed = images.clone()
    changed[:, :, -1, -1] += 3  # of the last block, which only tokens of that block see under the causal mask
    causal, prefix = (build(dataclasses.replace(MODEL, prefix=p), 0).eval().encoder for p in (False, True))
    for encoder, mask, blind in (
        (causal, "own", True),
        (causal, "causal", True),
        (causal, "none", False),
        (prefix, "own", False),
        (prefix, "causal", True),
        (prefix, "none", False),
    ):
        first = [last_layer(encoder, mask, x)[:, : MODEL.per_block] for x in (images, changed)]
        assert torch.equal(*first) == blind, (encoder.config.prefix, mask)
    marks = [of_xtra(causal, "mine", mask).fingerprint() for mask in ("own", "causal", "none")]
    assert len({*marks}) == 3


def test_results_under_another_mask_are_kept_next_to_the_others(world: Any, tmp_path: Path) -> None:
    own = dataclasses.replace(world["config"], heads=("knn",), out=str(tmp_path))
    other = dataclasses.replace(own, mask="none", pixels=True, epochs=1)
    (first,), (pixels, second) = probe.run(own), probe.run(other)
    assert (first.mask, second.mask, pixels.mask) == ("", "none", "")
    assert ", mask none, " in second.protocol
    assert "mask" not in first.protocol
    assert first.fingerprint != second.fingerprint
    results = dict(zip(store.names(str(tmp_path / "probes")), existing.results(str(tmp_path))))
    assert len(results) == 3
    assert {name for name, r in results.items() if r["mask"]} == {name for name in results if "mask-none" in name}
    assert {protocol(r) for r in results.values() if r["head"] == "knn"} == {"hold-out", "hold-out, mask none"}
    knn = [r for r in results.values() if r["head"] == "knn"]
    assert [r["mask"] for r in knn if existing.has_mask(r, other)] == ["none"]
    assert [r["mask"] for r in knn if existing.has_mask(r, own)] == [""]
    assert existing.only_missing(other, 1280) is None
    assert existing.only_missing(dataclasses.replace(own, mask="causal"), 1280) is not None


def test_a_result_of_an_older_build_is_of_the_encoders_own_mask() -> None:
    old = {"head": "linear", "selected_on": "eval", "warmup_defect": True}
    assert protocol(old) == "published, warm-up defect"
    assert existing.has_mask(old, probe.Config())


def test_states_of_older_builds_are_still_those_of_the_same_probe(world: Any) -> None:
    def state(config: probe.Config) -> Unfinished:
        return probe._unfinished(config, probe.open_probed(config), world["train"], 0.0)

    own, other = state(world["config"]), state(dataclasses.replace(world["config"], mask="none"))
    assert "mask" not in own.settings
    assert other.settings["mask"] == "none"
    assert own.folder != other.folder


def test_a_mask_is_refused_where_there_is_no_other(world: Any) -> None:
    with pytest.raises(ValueError, match="mask is none, but timm:vit takes no mask: leave it out"):
        dataclasses.replace(world["config"], encoder="timm:vit", mask="none")
    with pytest.raises(ValueError, match="an official probe was trained with its own"):
        probe.run(dataclasses.replace(world["config"], train="", mask="causal"))
