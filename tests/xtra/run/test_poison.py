"""Samples that end the process that decodes them: who is suspect, who is cleared, and a run that gets past them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made_datasets import jpeg, make_dataset, rows_of, write_unit
from PIL import Image, ImageFile
from places import FOLDERS, ROOT
from test_train import config, losses, same_weights

from shards import store
from shards.manifest import Manifest, make_version
from shards.pixels import image
from shards.pixels.isolate import InFlight, Killed, suspects
from shards.stream.stream import Sample
from xtra import train
from xtra.data import Augment, RandomCrop, augmented
from xtra.run import poison
from xtra.run.folder import Attempt
from xtra.run.poison import Guard, Known

# Loaded by Python itself at the start of a process: a decoder with a hole. It really reads address 0, in C.
HOLE = """
import ctypes, io
from PIL import ImageFile
load = ImageFile.ImageFile.load
def holed(self):
    if isinstance(self.fp, io.BytesIO) and self.fp.getvalue().endswith(b"SEGV"):
        ctypes.string_at(0)
    return load(self)
ImageFile.ImageFile.load = holed
"""

# Three attempts at one run, each in a process of its own, of which torch is imported once.
RUN = """
import os, sys; sys.path[:0] = sys.argv[3:]
import torch._dynamo
from test_train import config
from xtra import train
torch.set_num_threads(1)
for attempt in range(3):
    if not (child := os.fork()):
        steps = iter(range(99))
        train.run(config(sys.argv[1], sys.argv[2], samples=160), stop=lambda: next(steps) == 3)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the node's own."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    base = str(tmp_path / "data")
    make_dataset(base, [40])
    rows = rows_of(40, 37)
    out = io.BytesIO()
    Image.new("L", (32, 32), 128).save(out, "GIF")
    rows[4]["body"] = out.getvalue() + b"SEGV"  # k000044, of the first batch
    write_unit(base, 1, rows)
    return make_version(base, "with one that kills its decoder")


def events(run: Path) -> list[dict]:
    parts = sorted((run / "events").iterdir())
    return [json.loads(line) for part in parts for line in part.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_gets_past_a_sample_that_kills_it_and_later_attempts_know_at_once(
    data: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hole = tmp_path / "run", tmp_path / "hole"
    hole.mkdir()
    (hole / "sitecustomize.py").write_text(HOLE)
    paths = [str(hole), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-c", RUN, data.dataset, str(run), *FOLDERS]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    assert [int(code) for code in done.stdout.split()] == [-signal.SIGSEGV, -signal.SIGSEGV, 0]
    shown = [event for event in events(run) if event["event"] == "substitute"]
    assert {(event["key"], event["why"]) for event in shown} == {("k000044", "kills its decoder (SIGSEGV)")}
    assert shown[0]["shard"] == f"{data.dataset}/shards/000001-a1.tar"

    train.run(config(data.dataset, run, samples=160))  # in this process, whose decoder has no hole
    assert len([event for event in events(run) if event.get("key") == "k000044"]) > len(shown)
    assert not list((tmp_path / "node").glob("xtra-train-*"))

    # As if the sample had been one that just does not decode.
    load = ImageFile.ImageFile.load

    def honest(self):
        if isinstance(self.fp, io.BytesIO) and self.fp.getvalue().endswith(b"SEGV"):
            raise OSError("broken")
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", honest)
    train.run(config(data.dataset, tmp_path / "alone", samples=160))
    assert losses(run) == losses(tmp_path / "alone")
    assert same_weights(run, tmp_path / "alone")


def mark(run: str, manifest: str, attempt: int, rank: int, *samples: int) -> None:
    """As a process leaves them that dies in this attempt."""
    name = f"{poison._prefix(run)}{manifest[:16]}-{attempt:06d}-{rank:06d}"
    marks = InFlight(poison.private_folder() / name)
    with marks.decoding(*samples):
        shutil.copy(marks._path, f"{marks._path}-copy")
    marks.close()
    Path(f"{marks._path}-copy").rename(marks._path)


def test_who_was_in_flight_at_the_deaths_of_two_attempts_is_suspect(tmp_path: Path) -> None:
    run, this, other = str(tmp_path / "run"), "a" * 64, "b" * 64
    mark(run, this, 1, 0, 5, 6)
    mark(run, this, 1, 1, 5, 7)  # of the same attempt: one death
    mark(run, other, 2, 0, 5)  # another dataset's number 5
    mark(run, this, 3, 0)
    poison.publish(run)
    assert poison.known(run, this) == Known({}, frozenset(), frozenset(), frozenset())
    mark(run, this, 3, 1, 6, 8)
    poison.publish(run)
    poison.publish(run)
    assert poison.known(run, this).suspects == {6}
    assert len(store.names(store.join(run, "killers", "deaths"))) == 4
    assert poison.known(str(tmp_path / "another"), this).suspects == set()


def test_marks_that_an_older_build_left_count_and_what_others_put_there_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were in the temporary folder itself, where anybody may put a name that looks like one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    run, this = str(tmp_path / "run"), "a" * 64
    for attempt in (1, 2):
        mark(run, this, attempt, 0, 5)
    for path in poison.private_folder().iterdir():
        path.rename(tmp_path / "shared" / path.name)
    (tmp_path / "shared" / f"{poison._prefix(run)}not-a-mark-of-ours").write_bytes(b"x")
    os.mkfifo(tmp_path / "shared" / f"{poison._prefix(run)}{'a' * 16}-000003-000000")
    poison.publish(run)
    assert poison.known(run, this).suspects == {5}


def test_who_still_lives_is_let_alone(tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    marks = InFlight(poison.private_folder() / f"{poison._prefix(run)}{'a' * 16}-000001-000000")
    with marks.decoding(3):
        poison.publish(run)
        assert suspects(marks._path) == {3}
    marks.close()
    assert store.names(store.join(run, "killers", "deaths")) == []


class Frail:
    """A child that dies of what the fast decoder, or any, makes of some bodies."""

    def ask(self, words: dict, body: bytes, memory: int) -> tuple[dict, bytes]:
        if body.endswith(b"DEAD") or (body.endswith(b"FAST") and words["fast"]):
            raise Killed("kills its decoder (SIGBUS)")
        return poison.answer(json.loads(json.dumps(words)), body)

    def close(self) -> None:
        pass


def test_suspects_are_judged_once_and_the_verdict_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(poison, "Child", lambda work: Frail())
    run, digest, crop = str(tmp_path / "run"), "a" * 64, RandomCrop(16, Augment(), 3)
    bodies = [jpeg(0), jpeg(1) + b"FAST", jpeg(2) + b"DEAD", b"no picture", jpeg(4)]
    samples = [Sample(f"k{n}", 0, n, n, n, 7, 0, n, (), body) for n, body in enumerate(bodies)]
    out = np.zeros((3, 16, 16), np.uint8)

    def attempt(number: int, die: bool = True) -> Known:
        poison.publish(run)
        known = poison.known(run, digest)
        with Guard(known, Attempt(run, number), 0, digest, crop, lambda shard: f"tar {shard}", 64) as guard:
            for sample in filter(guard.risky, samples):
                with contextlib.suppress(image.Undecodable):
                    guard.decode(sample, out)
                    assert np.array_equal(out, augmented(sample.body, 16, crop.augment, 3, 7, sample.sample))
        if die:
            mark(run, digest, number, 0, 0, 1, 2, 3)
        return known

    attempt(1)
    attempt(2)
    assert attempt(3, die=False).suspects == {0, 1, 2, 3}
    settled = attempt(4)
    assert settled == Known({2: "kills its decoder (SIGBUS)"}, frozenset({1}), frozenset({0, 3}), frozenset())
    record = store.read_json(store.join(run, "killers", "judged", "000000000002-000003.json"))
    assert (record["shard"], record["key"], record["verdict"]) == ("tar 0", "k2", "bad")
    attempt(5)
    assert attempt(6, die=False).suspects == {0, 3}  # two more attempts died at them
    assert attempt(7, die=False).careful == {0, 1, 3}
