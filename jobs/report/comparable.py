"""Which runs trained alike: a digest of all settings that shape a run's training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from shards import roles


def settings_digest(config: Mapping[str, Any]) -> str:
    """12 hex digits, equal for runs that differ only in variant, seed, samples, data and machine.

    A field missing from an older run's config counts as its default.
    """
    return digest_of(digested(config))


def digested(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `settings_digest` is a digest of: with a block size, all of a run's config that shapes its training."""
    kept = training_settings(config)
    kept["model"] = {k: v for k, v in kept["model"].items() if k != "block"}
    if kept["optim"]["schedule"] == "cosine":  # the digest from when cosine was the only schedule
        kept["optim"] = {k: v for k, v in kept["optim"].items() if k not in ("schedule", "decay")}
    return kept


def digest_of(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def undigested(settings: Mapping[str, Any], block: int) -> dict[str, Any]:
    """The part of a config that `digested` kept, with the block size that it left out.

    Also of digests of older builds, which have no fields of newer ones: these count as their defaults.
    """
    optim = {"schedule": "cosine", **settings["optim"]}
    return {**settings, "model": {**settings["model"], "block": block}, "optim": optim}


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run's config that shapes its training (shards/roles.py), without its seeds."""
    from xtra.train import Config  # torch comes with it

    return roles.chosen(Config, _filled(config, roles.defaults(Config)), "law")


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    inner = {k: d for k, d in defaults.items() if isinstance(d, Mapping) and isinstance(values.get(k), Mapping)}
    return {**defaults, **values, **{k: _filled(values[k], d) for k, d in inner.items()}}
