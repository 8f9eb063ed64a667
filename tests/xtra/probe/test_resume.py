"""The state of an interrupted probe: damage is reported and costs only the state, and two probes do not interfere."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shards import local_files, store
from xtra.probe.augmented_features import Position
from xtra.probe.resume import Unfinished

POSITION = Position(trained=64)


class Optimiser:
    steps = 0


class OneHead:
    """What a state is made of: named tensors and a count of steps."""

    def __init__(self, value: float) -> None:
        self.weight, self.optimiser = torch.full((3, 2), value), Optimiser()

    def state(self) -> dict[str, torch.Tensor]:
        return {"weight": self.weight}


def begun(out: Path) -> Unfinished:
    return Unfinished(str(out), {"lr": 1.0}, 60.0, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the state of a probe that was killed."""
    unfinished = begun(tmp_path)
    unfinished.save([OneHead(2.0)], POSITION)  # type: ignore[list-item]
    return store.local_path(unfinished.folder)


def tensors(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def cut(folder: Path) -> None:
    os.truncate(tensors(folder), 40)


def other_shape(folder: Path) -> None:
    save_file({"0/weight": torch.zeros(2, 3)}, tensors(folder))


def without_a_tensor(folder: Path) -> None:
    save_file({"1/weight": torch.zeros(3, 2)}, tensors(folder))


def no_place(folder: Path) -> None:
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"position": {"what": 1}}))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "the tensors are gone": lambda folder: tensors(folder).unlink(),
    "the tensors are cut short": cut,
    "a tensor has another shape": other_shape,
    "a tensor is missing": without_a_tensor,
    "the state is empty": lambda folder: (folder / "state.json").write_text("{}"),
    "the state is a list": lambda folder: (folder / "state.json").write_text("[1]"),
    "the state is cut short": lambda folder: (folder / "state.json").write_text('{"tens'),
    "the place is none": no_place,
}


@pytest.mark.parametrize("what", sorted(DAMAGE))
def test_a_damaged_state_is_reported_kept_and_the_probe_begins_again(what: str, folder: Path, tmp_path: Path) -> None:
    DAMAGE[what](folder)
    head, unfinished = OneHead(1.0), begun(tmp_path)
    with pytest.warns(UserWarning, match=r"state.json: cannot be resumed \(.*begins again") as caught:
        assert unfinished.load([head]) is None  # type: ignore[list-item]
    assert "\n" not in str(caught[0].message)
    assert head.weight.eq(1).all(), "no half of it was taken"
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".json") == ["state-damaged.json"]
    unfinished.save([head], POSITION)  # type: ignore[list-item]
    unfinished.remove()
    assert not (tmp_path / "probes-unfinished").exists()


def test_what_killed_probes_left_goes_with_the_work(folder: Path, tmp_path: Path) -> None:
    """Tensors that no state names, and a file that was half put."""
    (folder / "000000000032-dead.safetensors").write_bytes(b"x")
    (folder / ".aside-dead").write_bytes(b"x")
    os.utime(folder / ".aside-dead", (1, 1))
    head, unfinished = OneHead(1.0), begun(tmp_path)
    assert unfinished.load([head]) == POSITION  # type: ignore[list-item]
    assert head.weight.eq(2).all()
    unfinished.save([head], POSITION)  # type: ignore[list-item]
    unfinished.remove()
    assert not (tmp_path / "probes-unfinished").exists()


def test_a_file_that_is_being_written_is_not_left_behind(folder: Path) -> None:
    target = folder / "big.safetensors"
    with local_files.aside(target) as aside:
        os.utime(aside, (1, 1))
        store.remove_left_aside(str(folder))
        assert aside.exists()
    assert not aside.exists()


def test_two_probes_of_the_same_settings_leave_each_others_files(tmp_path: Path) -> None:
    one, other = begun(tmp_path), begun(tmp_path)
    assert one.load([]) is other.load([]) is None
    one.save([OneHead(1.0)], POSITION)  # type: ignore[list-item]
    other.save([OneHead(2.0)], Position(trained=64))  # type: ignore[list-item]
    folder = store.local_path(one.folder)
    assert len(list(folder.glob("*.safetensors"))) == 2
    one.save([OneHead(3.0)], Position(trained=96))  # type: ignore[list-item]
    other.save([OneHead(4.0)], Position(trained=96))  # type: ignore[list-item]
    one.remove()
    state = json.loads((folder / "state.json").read_text())
    assert load_file(folder / state["tensors"])["0/weight"].eq(4).all(), "the newer state is the other probe's"
    other.remove()
    assert not (tmp_path / "probes-unfinished").exists()
