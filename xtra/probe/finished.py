"""States of interrupted probes that are obsolete because the probes have their results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from shards import store, typed_json
from xtra.augment import Augment
from xtra.probe.config import Config, in_words
from xtra.probe.resume import DAMAGED, FOLDER, STATE

_ENCODER = ", encoder in "  # the part of a protocol before it describes the images' evaluation


def unneeded_states(out: str) -> list[tuple[str, store.Entry]]:
    """Obsolete files in OUT/probes-unfinished, by their names below OUT.

    These are states whose heads all have a result with the same settings in OUT/probes, and tensors that no state
    names. A running probe may still write either.
    """
    found: list[tuple[str, store.Entry]] = []
    digests = store.names(store.join(out, FOLDER))
    results = _results(out) if digests else []
    for digest in digests:
        folder = store.join(out, FOLDER, digest)
        entries = store.entries(folder)
        needed: set[str] = set()
        if any(entry.name == STATE for entry in entries):
            state = _read(store.join(folder, STATE))
            if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
                continue  # damaged: the probe itself will report it
            if not _is_finished(state["settings"], results):
                parts = state.get("parts", ())  # of kept views
                needed = {STATE, DAMAGED, state.get("tensors", ""), *(parts if isinstance(parts, list) else ())}
        found += [(f"{FOLDER}/{digest}/{entry.name}", entry) for entry in entries if entry.name not in needed]
    return found


def _results(out: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for name in store.names(store.join(out, "probes")):
        if name.endswith(".json") and isinstance(value := _read(store.join(out, "probes", name)), dict):
            found.append(value)
    return found


def _read(url: str) -> Any:
    try:
        return typed_json.parse(store.read(url), url)
    except store.StoreError:
        return None


def _is_finished(settings: Mapping[str, Any], results: list[Mapping[str, Any]]) -> bool:
    try:
        names = {setting.name for setting in dataclasses.fields(Config)} & settings.keys() - {"train"}
        values = _tuples({name: settings[name] for name in names})
        augment = settings["augment"]
        values["augment"] = None if augment is None else Augment(**_tuples(augment))
        config = dataclasses.replace(Config(), **values)
        return bool(config.heads) and all(
            any(_fits(settings, config, head, r) for r in results) for head in config.heads
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return False  # from another build


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _fits(settings: Mapping[str, Any], config: Config, head: str, result: Mapping[str, Any]) -> bool:
    if (result["head"], result.get("fingerprint")) != (head, settings["fingerprint"]):
        return False
    if result["manifest_train"] != settings["train"]:
        return False
    grid = {(point["lr"], point["weight_decay"]) for point in result["selection"]}
    if grid != {(lr, decay) for lr in config.lrs for decay in config.weight_decays}:
        return False
    had, asked = result["protocol"], in_words(config, result["image"], head, result["selection"])
    if config.protocol != "published" and had.partition(", image ")[0] != asked.partition(", image ")[0]:
        return False
    selected_on = "eval" if config.protocol == "published" else "holdout"
    return result["selected_on"] == selected_on and had.partition(_ENCODER)[2] == asked.partition(_ENCODER)[2]
