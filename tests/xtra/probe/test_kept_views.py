"""A probe of cached views that is interrupted keeps what it had encoded, and ends as if nothing had happened."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from shards import store
from xtra.probe import kept_views, probe
from xtra.probe.finished import unneeded_states
from xtra.probe.result import ProbeResult


class Interrupted(BaseException):
    pass


def whole(result: ProbeResult) -> dict[str, Any]:
    """All but the time that it took."""
    return {name: value for name, value in dataclasses.asdict(result).items() if name != "seconds"}


@pytest.fixture
def config(world: dict[str, Any], tmp_path: Path) -> probe.Config:
    return dataclasses.replace(
        world["config"], out=str(tmp_path / "out"), heads=("linear", "knn"), epochs=2, encode_batch=20, pixels=True
    )


@pytest.fixture(scope="module")
def undisturbed(world: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = str(tmp_path_factory.mktemp("undisturbed"))
    config = dataclasses.replace(
        world["config"], out=out, heads=("linear", "knn"), epochs=2, encode_batch=20, pixels=True
    )
    return [whole(result) for result in probe.run(config)]


def stopped_at(config: probe.Config, what: str, done: int) -> Path:
    """The folder of what is kept, after a probe that was ended at its n-th step of a kind."""

    def say(now: str, n: int, of: int) -> None:
        if now.startswith(what) and n >= done:
            raise Interrupted

    with pytest.raises(Interrupted):
        probe.run(config, say)
    (digest,) = store.names(f"{config.out}/probes-unfinished")
    return Path(config.out) / "probes-unfinished" / digest


def encoded(config: probe.Config) -> tuple[list[ProbeResult], list[tuple[str, int]]]:
    """Run to the end; the results, and what was encoded or gone on from."""
    said: list[tuple[str, int]] = []
    results = probe.run(config, lambda what, done, total: said.append((what.partition(" (")[0], done)))
    return results, [step for step in said if step[0].startswith(("encode view", "going on"))]


def test_it_goes_on_with_the_views_it_had_to_the_same_bits(config, undisturbed, monkeypatch):
    monkeypatch.setattr(kept_views, "PART", 1 << 16)  # several files
    folder = stopped_at(config, "encode view 1", 100)
    rows = json.loads((folder / "state.json").read_text())["rows"]
    assert 100 <= rows < 216
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert unneeded_states(config.out) == [], "a sweep leaves it"
    stopped_at(config, "encode view 2", 40)  # and again, in the next view
    results, steps = encoded(config)
    first, *rest = steps
    assert first[0] == f"going on at {first[1]} views"
    assert first[1] > rows
    assert {what for what, _ in rest} == {"encode view 2 of 2"}
    assert [whole(result) for result in results] == undisturbed
    assert store.names(config.out) == ["probes"], "nothing is left"


@pytest.mark.parametrize("what", ["train heads", "choose", "evaluate"])
def test_all_views_are_kept_by_one_that_is_stopped_later(config, undisturbed, what):
    stopped_at(config, what, 1)
    results, steps = encoded(config)
    assert len(steps) == 1
    assert steps[0][0].startswith("going on at")
    assert [whole(result) for result in results] == undisturbed


def test_what_it_takes_long_over_is_kept_without_a_stop(config, monkeypatch):
    """A probe that is killed says nothing: what was saved meanwhile is there."""
    config = dataclasses.replace(config, save_minutes=0.0)
    saved: list[int] = []
    monkeypatch.setattr(kept_views.KeptViews, "remove", lambda self: saved.append(self._rows))
    probe.run(config)
    (folder,) = (Path(config.out) / "probes-unfinished").iterdir()
    assert json.loads((folder / "state.json").read_text())["rows"] == saved[0] > 0
    monkeypatch.undo()
    assert [name.rpartition("/")[2] for name, _ in unneeded_states(config.out)] == store.names(str(folder)), (
        "for a sweep"
    )
    encoded(config)
    assert store.names(config.out) == ["probes"]


def test_other_settings_do_not_take_them_up(config):
    stopped_at(config, "encode view 1", 100)
    _, steps = encoded(dataclasses.replace(config, views=1))
    assert steps[0][0] == "encode view 1 of 1"


def fewer(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"rows": state["rows"] - 1}))


def other_shape(folder: Path) -> None:
    (part,) = folder.glob("*.safetensors")
    save_file({name: tensor[:, None].contiguous() for name, tensor in load_file(part).items()}, part)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file is gone": lambda folder: next(folder.glob("*.safetensors")).unlink(),
    "a file is cut short": lambda folder: os.truncate(next(folder.glob("*.safetensors")), 40),
    "a tensor has another shape": other_shape,
    "rows are missing": fewer,
    "the state is empty": lambda folder: (folder / "state.json").write_text("{}"),
}


@pytest.mark.parametrize("what", sorted(DAMAGE))
def test_damaged_ones_are_encoded_again(config, undisturbed, what):
    DAMAGE[what](stopped_at(config, "encode view 1", 100))
    with pytest.warns(UserWarning, match=r"state.json: cannot be resumed \(.*begins again"):
        results, steps = encoded(config)
    assert steps[0][0] == "encode view 1 of 2"
    assert [whole(result) for result in results] == undisturbed
    assert store.names(config.out) == ["probes"]


def test_where_they_cannot_be_kept_the_stop_still_is_one(config, monkeypatch):
    def full(*_: Any) -> None:
        raise store.StoreError("out: cannot write: No space left on device")

    monkeypatch.setattr(kept_views.store, "put", full)
    with (
        pytest.warns(UserWarning, match="were not saved: out: cannot write: No space left"),
        pytest.raises(Interrupted),
    ):
        probe.run(config, lambda what, done, total: (_ for _ in ()).throw(Interrupted()))
