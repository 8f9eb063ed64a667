"""A state that a finished probe left is known to be of that probe; a state that is still needed is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from colour_sets import AUGMENT

from shards import store
from xtra.probe import probe
from xtra.probe.finished import unneeded_states
from xtra.probe.resume import Unfinished


def test_a_real_probe_and_the_state_that_it_left(world: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "out")
    config = dataclasses.replace(world["config"], out=out, augment=AUGMENT, encode_batch=20, epochs=1)
    written: list[str] = []
    monkeypatch.setattr(Unfinished, "remove", lambda self: written.append(self.folder))  # killed before it
    probe.run(config)
    (folder,) = written
    names = [f"probes-unfinished/{folder.rpartition('/')[2]}/{name}" for name in store.names(folder)]
    assert len(names) == 2
    assert [name for name, _ in unneeded_states(out)] == names
    linear = next(name for name in store.names(out + "/probes") if "linear" in name)
    store.delete(f"{out}/probes/{linear}")
    assert unneeded_states(out) == []
