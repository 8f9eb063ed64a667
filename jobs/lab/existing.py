"""Existing probe results, so that studies, suites and followers of a run do not repeat them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from shards import store
from shards.manifest import read_manifest
from xtra import probe
from xtra.probe import read_result
from xtra.run import checkpoint

Result = Mapping[str, Any]  # a ProbeResult as read: older ones miss newer fields


_NEEDED = ("manifest_train", "manifest_eval", "head", "encoder", "samples_seen")


def results(folder: str) -> list[Result]:
    """The results in FOLDER/probes. Raises StoreError naming a file that is not a result."""
    probes = store.join(folder, "probes")
    names = [name for name in store.names(probes) if name.endswith(".json") and name[0] not in "._"]
    return [read_result(store.join(probes, name), _NEEDED) for name in names]


def published(result: Result) -> bool:
    """Whether its grid point was chosen on the test images themselves, as in the paper."""
    return result.get("selected_on") == "eval"


def run_of(given: str) -> str:
    """The run folder of a run folder or of one of its checkpoints."""
    given = given.rstrip("/")
    return given.rsplit("/", 2)[0] if given and store.exists(store.join(given, checkpoint.COMMIT)) else given


def samples_seen(settings: probe.Config) -> int:
    """The samples that the encoder has seen: 0 unless a run here trained it. Raises what `checkpoint.find` raises."""
    trained = settings.encoder == "trained"
    return int(checkpoint.find(settings.checkpoint).commit["samples_seen"]) if trained else 0


def label(settings: probe.Config) -> str:
    """The encoder's name in results; for a file, without its folder."""
    kind, colon, name = settings.encoder.rpartition(":")
    return f"{kind}{colon}{name.rpartition('/')[2]}"


def fingerprint(settings: probe.Config) -> str:
    """The encoder's fingerprint; "" in its run's own folder, where samples seen identify an encoder."""
    if settings.encoder in ("trained", "random"):
        run = store.absolute(run_of(settings.checkpoint))
        if store.absolute(settings.out or run) == run:
            return ""
    return probe.open_probed(dataclasses.replace(settings, device="cpu")).fingerprint


def is_of(result: Result, mark: str) -> bool:
    """Whether a result may belong to the encoder with this fingerprint: older results have none."""
    return not mark or result.get("fingerprint", "") in ("", mark)


def has_mask(result: Result, settings: probe.Config) -> bool:
    """Whether a result was made under the requested mask; raw pixels have none."""
    return result["head"] == "pixels" or (result.get("mask") or "own") == settings.mask


def _as_wanted(result: Result, settings: probe.Config) -> bool:
    """Whether a result has the same mask, protocol, seed, epochs, learning rates and weight decays: a short trial
    does not replace the real probe. Layers, views and batch are not compared."""
    if result.get("epochs") is not None:
        if (result["epochs"], result["warmup_defect"]) != (settings.epochs, settings.warmup_defect):
            return False
        for name, wanted in (("lr", settings.lrs), ("weight_decay", settings.weight_decays)):
            tried = {point[name] for point in result.get("selection") or () if name in point}
            if tried and tried != {*wanted}:
                return False
    return (
        has_mask(result, settings)
        and result.get("seed") in (None, settings.seed)
        and published(result) == (settings.protocol == "published")
    )


def only_missing(settings: probe.Config, samples: int, mark: str = "") -> probe.Config | None:
    """The probe without the heads that already have results, for an encoder with these samples seen and the fingerprint
    `mark`; None if all have."""
    there = results(settings.out or settings.checkpoint)
    key = {"manifest_train": read_manifest(settings.train).digest, "manifest_eval": read_manifest(settings.eval).digest}
    there = [r for r in there if key.items() <= r.items() and _as_wanted(r, settings) and is_of(r, mark)]

    def is_done(head: str, encoder: str, seen: int) -> bool:
        return any((r["head"], r["encoder"], r["samples_seen"]) == (head, encoder, seen) for r in there)

    heads = tuple(head for head in settings.heads if not is_done(head, label(settings), samples))
    pixels = settings.pixels and not is_done("pixels", "none", 0)
    return dataclasses.replace(settings, heads=heads, pixels=pixels) if heads or pixels else None
