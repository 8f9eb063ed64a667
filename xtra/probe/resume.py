"""The state of an interrupted probe, from which the same command continues to the same result.

OUT/probes-unfinished/<digest>/000000012800-<attempt>.safetensors   heads, batch-norm statistics and AdamW's moments
OUT/probes-unfinished/<digest>/state.json                           names that file; settings, and position in the data

Two probes with the same settings may run at once: no two share a name. A finished probe removes its own files and the
state that it started from, even if the attempt that saved it still runs: the result exists by then.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from shards import scratch, store, typed_json
from shards.typed_json import Count
from xtra.probe.augmented_features import Position
from xtra.probe.heads import Head
from xtra.run import save_tensors

FOLDER, STATE, DAMAGED = "probes-unfinished", "state.json", "state-damaged.json"


@dataclass(frozen=True)
class State:
    """`state.json`."""

    tensors: str  # a name in the same folder
    position: Place
    steps: Count
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "/" in self.tensors:
            raise ValueError("field 'tensors' names a file outside its folder")


@dataclass(frozen=True)
class Place:
    """A `Position` as written: every field is required."""

    trained: Count
    start: Count
    skip: Count


def set_aside(folder: str, error: Exception) -> None:
    """Keep an unusable state as state-damaged.json, and give the reason in a UserWarning."""
    url = store.join(folder, STATE)
    store.put(store.join(folder, DAMAGED), store.read(url))
    store.delete(url)
    why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
    warnings.warn(
        f"{url}: cannot be resumed ({why}): the probe begins again; the old state is kept as {DAMAGED}",
        stacklevel=3,
    )


def remove_from(folder: str, names: set[str]) -> None:
    """Delete these objects, the state before what it names, and the folder itself where it is local and empty."""
    for name in sorted(names, reverse=True):
        store.delete(store.join(folder, name))
    if store.is_local(folder):
        store.remove_left_aside(folder)
        with contextlib.suppress(OSError):  # nothing was saved, or the folder has another probe's state
            store.local_path(folder).rmdir()
            store.local_path(folder).parent.rmdir()


class Unfinished:
    """States of one training; `settings` are all its inputs, with the encoder's fingerprint."""

    def __init__(self, out: str, settings: Mapping[str, Any], every_seconds: float, since: float) -> None:
        """`since`: the probe's start by time.monotonic; loading a state moves it back by that state's seconds."""
        self.settings = json.loads(json.dumps(settings))
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = store.join(out, FOLDER, digest[:16])
        self.every, self.saved, self.since = every_seconds, time.monotonic(), since
        self._attempt = secrets.token_hex(4)
        self._mine = ""  # the file of our last state's tensors
        self._found: list[str] = []  # files of tensors that existed at the start

    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.every

    def load(self, heads: Sequence[Head]) -> Position | None:
        """Restore the heads; None if nothing was saved.

        A state that is damaged or has lost its tensors is ignored with a UserWarning and kept as state-damaged.json,
        and the training begins again.
        """
        self._found = [name for name in store.names(self.folder) if name.endswith(".safetensors")]
        url = store.join(self.folder, STATE)
        if not store.exists(url):
            return None
        try:
            state = typed_json.read(State, url)
            position, steps, seconds = Position(**asdict(state.position)), state.steps, state.seconds
            tensors = load(store.read(store.join(self.folder, state.tensors)))
            theirs = [(head.state(), number) for number, head in enumerate(heads)]
            pairs = [(tensor, tensors[f"{n}/{name}"]) for own, n in theirs for name, tensor in own.items()]
            wrong = [list(saved.shape) for tensor, saved in pairs if saved.shape != tensor.shape]
            if wrong:
                raise ValueError(f"a tensor has the shape {wrong[0]}")
        except (store.StoreError, SafetensorError, KeyError, TypeError, ValueError) as error:
            set_aside(self.folder, error)
            return None
        for tensor, saved in pairs:
            tensor.copy_(saved)
        for head in heads:
            head.optimiser.steps = steps
        self.since -= seconds
        return position

    def save(self, heads: Sequence[Head], position: Position) -> None:
        """Write the tensors first, so an existing state is always complete."""
        name = f"{position.trained:012d}-{self._attempt}.safetensors"
        tensors = {f"{n}/{key}": t.contiguous() for n, head in enumerate(heads) for key, t in head.state().items()}
        with scratch.folder("xtra-probe-") as aside:
            save_tensors(aside / name, tensors)
            store.put_file(store.join(self.folder, name), aside / name, move=True)
        steps = heads[0].optimiser.steps if heads else 0
        state = {"tensors": name, "position": asdict(position), "steps": steps, "settings": self.settings}
        state["seconds"] = round(time.monotonic() - self.since, 3)
        store.put_json(store.join(self.folder, STATE), state)
        if self._mine not in ("", name):
            store.delete(store.join(self.folder, self._mine))
        self._mine, self.saved = name, time.monotonic()

    def remove(self) -> None:
        """After the result is written: remove our state and ended attempts' files, but no newer state."""
        there = store.names(self.folder)
        named = ""
        if STATE in there:
            with contextlib.suppress(store.StoreError, KeyError, TypeError):
                named = typed_json.read(State, store.join(self.folder, STATE)).tensors
        going = {self._mine, DAMAGED, *self._found}
        if named in going or not named:
            going |= {STATE}
        else:
            going -= {named}
        remove_from(self.folder, going & set(there))
