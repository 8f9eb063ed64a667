"""The views encoded by an interrupted probe, from which the same command continues to the same result.

OUT/probes-unfinished/<digest>/000000001280-<attempt>.safetensors   features of some rows, up to that one
OUT/probes-unfinished/<digest>/state.json                           names these files, and the settings

Rows are encoded in a fixed order, so the kept ones are the first, in whole batches of the encoder. Files are written
once and never changed; each has at most PART bytes, which bounds the memory of a save or a load.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shards import store, typed_json
from shards.typed_json import Count
from xtra.probe.features import Cache, Features, Progress
from xtra.probe.resume import DAMAGED, FOLDER, STATE, remove_from, set_aside

PART = 64 << 20  # approximate bytes per file


@dataclass(frozen=True)
class State:
    """`state.json`."""

    rows: Count  # encoded rows: those of the first view, then those of the second
    parts: tuple[str, ...]  # names in the same folder, in the rows' order
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any("/" in name for name in self.parts):
            raise ValueError("field 'parts' names a file outside its folder")


class KeptViews:
    """The kept views of one cache; `settings` are all inputs of the probe, with the encoder's fingerprint. `say` passes
    on the probe's progress: if it raises, the views so far are kept."""

    def __init__(
        self, out: str, settings: Mapping[str, Any], every_seconds: float, since: float, progress: Progress
    ) -> None:
        self.settings = json.loads(json.dumps(settings))
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = store.join(out, FOLDER, digest[:16])
        self.every, self.saved, self.since = every_seconds, time.monotonic(), since
        self._progress, self._attempt = progress, secrets.token_hex(4)
        self._cache: Cache | None = None
        self._rows, self._parts = 0, list[str]()  # as in state.json, or about to be
        self._found: list[str] = []  # files that existed at the start

    def say(self, what: str, done: int, total: int) -> None:
        if self._cache is not None and time.monotonic() - self.saved >= self.every:
            self.save()
        try:
            self._progress(what, done, total)
        except BaseException:  # the caller may end it here, between two steps
            try:
                self.save()
            except store.StoreError as error:
                warnings.warn(f"the encoded views were not saved: {error}", stacklevel=2)
            raise

    def fill(self, cache: Cache) -> None:
        """Encode the missing rows; from here on `say` saves the cache's rows."""
        self._found = store.names(self.folder)
        cache.filled = self._load(cache.features)
        self._cache = cache
        if cache.filled:
            self._progress(f"going on at {cache.filled:,} views", cache.filled, len(cache.features))
        cache.fill(self.say)

    def _load(self, features: Features) -> int:
        """Load kept rows into the features; return their number. A damaged state is ignored with a UserWarning and
        kept as state-damaged.json, and the views are encoded again."""
        url = store.join(self.folder, STATE)
        if STATE not in self._found:
            return 0
        rows = 0
        try:
            state = typed_json.read(State, url)
            for name in state.parts:
                part = load(store.read(store.join(self.folder, name)))
                for into, row in _paired(features, part, rows):
                    into.copy_(row)
                rows += len(part["labels"])
            if rows != state.rows:
                raise ValueError(f"its files have {rows} rows, not {state.rows}")
        except (store.StoreError, SafetensorError, KeyError, TypeError, ValueError) as error:
            set_aside(self.folder, error)
            return 0
        self._rows, self._parts = rows, list(state.parts)
        self.since -= state.seconds
        return rows

    def save(self) -> None:
        """Write the new rows, then the state that names them, so an existing state is always complete."""
        if self._cache is None or self._cache.filled == self._rows:
            return
        features, rows = self._cache.features, self._cache.filled
        step = max(1, PART // max(1, self._cache.encode.bytes(1)))
        for first in range(self._rows, rows, step):
            end = min(first + step, rows)
            name = f"{end:012d}-{self._attempt}.safetensors"
            part = {key: tensor[first:end].contiguous() for key, tensor in _tensors(features).items()}
            store.put(store.join(self.folder, name), save(part))
            self._parts.append(name)
        seconds = round(time.monotonic() - self.since, 3)
        state = {"rows": rows, "parts": self._parts, "seconds": seconds, "settings": self.settings}
        store.put_json(store.join(self.folder, STATE), state)
        self._rows, self.saved = rows, time.monotonic()

    def remove(self) -> None:
        """After the result is written: remove our files, and those found at the start, but no newer state."""
        there = store.names(self.folder)
        going = {*self._parts, *self._found, DAMAGED} - {STATE}
        named: set[str] = set()
        if STATE in there:
            with contextlib.suppress(store.StoreError):
                named = {*typed_json.read(State, store.join(self.folder, STATE)).parts}
        going = going - named if named - going else going | {STATE}
        remove_from(self.folder, going & set(there))


def _tensors(features: Features) -> dict[str, Tensor]:
    named = {f"{feature.form}-{feature.layers}": values for feature, values in features.values.items()}
    return {"labels": features.labels_B, **named}


def _paired(features: Features, part: Mapping[str, Tensor], first: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(destination, rows of a file) for every tensor. Raises ValueError for rows of another shape, or too many."""
    for name, into in _tensors(features).items():
        rows = part[name]
        target = into[first : first + len(rows)]
        if (rows.shape, rows.dtype) != (target.shape, target.dtype):
            raise ValueError(f"{name} has the shape {list(rows.shape)}")
        yield target, rows
