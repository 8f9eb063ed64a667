"""The state of a probe that was interrupted, from which the same words go on to the same result.

OUT/probes-unfinished/<digest>/000000012800.safetensors     heads, batch-norm statistics and AdamW's moments
OUT/probes-unfinished/<digest>/state.json                   names that file; the settings, and the place in the data
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file

from shards import store
from xtra.probe.augmented_features import Position
from xtra.probe.heads import Head

FOLDER, STATE = "probes-unfinished", "state.json"


class Unfinished:
    """States of one training; `settings` is all that it follows from, the encoder by its fingerprint."""

    def __init__(self, out: str, settings: Mapping[str, Any], every_seconds: float, since: float) -> None:
        """`since`: when the probe began, by time.monotonic; loading a state moves it back by what that had taken."""
        self.settings = json.loads(json.dumps(settings))
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.folder = store.join(out, FOLDER, digest[:16])
        self.every, self.saved, self.since = every_seconds, time.monotonic(), since

    def due(self) -> bool:
        return time.monotonic() - self.saved >= self.every

    def load(self, heads: Sequence[Head]) -> Position | None:
        """Put the heads where they were; None when nothing was saved."""
        url = store.join(self.folder, STATE)
        if not store.exists(url):
            return None
        state = store.read_json(url)
        tensors = load(store.read(store.join(self.folder, state["tensors"])))
        for number, head in enumerate(heads):
            for name, tensor in head.state().items():
                tensor.copy_(tensors[f"{number}/{name}"])
            head.optimiser.steps = state["steps"]
        self.since -= state["seconds"]
        return Position(**state["position"])

    def save(self, heads: Sequence[Head], position: Position) -> None:
        """The tensors first: a state that is there is whole."""
        name = f"{position.trained:012d}.safetensors"
        tensors = {f"{n}/{key}": t.contiguous() for n, head in enumerate(heads) for key, t in head.state().items()}
        with tempfile.TemporaryDirectory(prefix="xtra-probe-") as scratch:
            save_file(tensors, Path(scratch, name))
            store.put_file(store.join(self.folder, name), Path(scratch, name))
        steps = heads[0].optimiser.steps if heads else 0
        state = {"tensors": name, "position": asdict(position), "steps": steps, "settings": self.settings}
        state["seconds"] = round(time.monotonic() - self.since, 3)
        store.put_json(store.join(self.folder, STATE), state)
        for other in store.names(self.folder):
            if other not in (name, STATE):
                store.delete(store.join(self.folder, other))
        self.saved = time.monotonic()

    def remove(self) -> None:
        for name in sorted(store.names(self.folder), reverse=True):  # the state before the tensors that it names
            store.delete(store.join(self.folder, name))
        if store.is_local(self.folder):
            with contextlib.suppress(OSError):  # nothing was saved, or another probe's state lies beside it
                store.local_path(self.folder).rmdir()
                store.local_path(self.folder).parent.rmdir()
