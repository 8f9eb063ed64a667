"""Which runs trained alike: a digest of all settings that shape a run's training."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# Fields of a run's config that set its data, length and machine, not how it trains.
NOT_SETTINGS = {"out", "data", "mix", "recipe", "seed", "samples", "micro", "device", "threads", "decoder"}
NOT_SETTINGS |= {"checkpoint_every", "keep", "keep_every", "max_bad", "other_manifest"}
NOT_SETTINGS |= {"val", "sinks", "compile", "attention", "shard_optimizer", "read", "arm", "branch", "keep_at"}


def settings_digest(config: Mapping[str, Any]) -> str:
    """12 hex digits, equal for runs that differ only in variant, seed, samples, data and machine.

    A field missing from an older run's config counts as its default.
    """
    kept = training_settings(config)
    kept["model"] = {k: v for k, v in kept["model"].items() if k != "block"}
    kept["order"] = {k: v for k, v in kept["order"].items() if k != "seed"}
    if kept["optim"]["schedule"] == "cosine":  # the digest from when cosine was the only schedule
        kept["optim"] = {k: v for k, v in kept["optim"].items() if k not in ("schedule", "decay")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def training_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that shape a run's training; of its seeds, only the data order's (order.seed)."""
    kept = {k: v for k, v in _filled(config, _defaults()).items() if k not in NOT_SETTINGS}
    if kept["precision"] == "fp32":
        del kept["decoder_fp32"]  # a setting of autocast, whose default has changed
    return kept


@functools.cache
def _defaults() -> dict[str, Any]:
    from xtra.model import ModelConfig  # torch comes with these
    from xtra.train import Config

    return _defaults_of(Config) | {"model": _defaults_of(ModelConfig)}


def _defaults_of(kind: type[DataclassInstance]) -> dict[str, Any]:
    given = {f.name: f.default for f in fields(kind) if f.default is not MISSING}
    return given | {f.name: asdict(f.default_factory()) for f in fields(kind) if f.default_factory is not MISSING}


def _filled(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    inner = {k: d for k, d in defaults.items() if isinstance(d, Mapping) and isinstance(values.get(k), Mapping)}
    return {**defaults, **values, **{k: _filled(values[k], d) for k, d in inner.items()}}
