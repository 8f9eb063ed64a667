"""Training commands on a cluster of real nodes, and what their run folders say of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nodes import Cluster, Node
from places import ROOT
from safetensors.torch import load_file

from jobs.cluster.reaper import processes

RECIPE = ["demo32", "--batch=16", "--checkpoint-every=160", "--threads=1", "--device=cpu"]
PATIENCE = 900.0  # on a busy machine
RANK = "ray::RayTrainWorker"


@dataclass
class Command:
    """`xtra` in a process of its own."""

    cluster: Cluster
    run: Path
    words: list[str]
    env: dict[str, str] = field(default_factory=dict)
    on: Node | None = None  # on which it is to run; on the head's
    program: list[str] = field(default_factory=list)  # another one
    began: float = 0.0

    def start(self) -> Command:
        self.log = self.run.with_suffix(f".{time.monotonic_ns()}.log")
        program = ["-m", "jobs.cli"] if self.on is None else [str(Path(__file__).with_name("on_node.py"))]
        command = self.program or [sys.executable, *program, *self.words, "--out", str(self.run)]
        self.began = time.monotonic()
        with open(self.log, "wb") as log:
            env = {**self.cluster.env, **self.env}
            env |= {"XTRA_NODE": self.on.name} if self.on else {}
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        return self

    @property
    def said(self) -> str:
        return self.log.read_text()

    def end(self, seconds: float = PATIENCE) -> int:
        """Its exit code. Fails on a traceback, and when it does not end."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it does not end:\n{self.said}") from None
        assert "Traceback" not in self.said, self.said
        return code

    def until(self, happened: Callable[[], object], seconds: float = PATIENCE, alive: bool = True) -> float:
        """Wait for it, and give the time."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert not alive or self.process.poll() is None, f"it ended with {self.process.poll()}:\n{self.said}"
            assert time.monotonic() < deadline, f"it did not happen:\n{self.said}"
            time.sleep(0.02)
        return time.monotonic()

    def until_commit(self, samples: int) -> float:
        return self.until(lambda: max(committed(self.run), default=0) >= samples)

    def until_upload(self) -> float:
        """Until a checkpoint is being written."""
        return self.until(lambda: uploading(self.run))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def training(
    cluster: Cluster, name: str, *words: str, on: Node | None = None, verb: tuple[str, ...] = ("train",), **env: str
) -> Iterator[Command]:
    """`xtra train` of a run of that name, ended at the latest with the block; on a node, or as a job by `verb`."""
    data = ["--data", str(cluster.folder / "data")]
    with command(cluster, name, *verb, *RECIPE, *data, *words, on=on, **env) as begun:
        yield begun


@contextlib.contextmanager
def command(cluster: Cluster, name: str, *words: str, on: Node | None = None, **env: str) -> Iterator[Command]:
    """`xtra` with these words and --out NAME."""
    command = Command(cluster, cluster.folder / name, list(words), env, on).start()
    try:
        yield command
    finally:
        command.close()


def committed(run: Path) -> list[int]:
    return sorted(int(path.parent.name) for path in run.glob("checkpoints/*/COMMIT.json"))


def uploading(run: Path) -> bool:
    return any(not (folder / "COMMIT.json").exists() for folder in run.glob("checkpoints/*"))


def attempts(run: Path) -> list[int]:
    return sorted(int(path.stem) for path in run.glob("attempts/*.json"))


def steps_since(run: Path, attempt: int) -> bool:
    """Whether an attempt after that one has made a checkpoint."""
    for path in run.glob("checkpoints/*/COMMIT.json"):
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text())["attempt"] > attempt:
                return True
    return False


def rows(run: Path) -> list[dict]:
    """The run's metrics: of each step the row of the highest attempt."""
    found = {}
    for path in sorted(run.glob("metrics/*.jsonl")):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found[row["samples_seen"]] = row
    return [found[seen] for seen in sorted(found)]


def events(run: Path, name: str) -> list[dict]:
    lines = [line for path in sorted(run.glob("events/*.jsonl")) for line in path.read_text().splitlines()]
    return [event for event in map(json.loads, lines) if event.get("event") == name]


def once_each(run: Path, samples: int, batch: int = 16) -> None:
    """The metrics have every step of the run once."""
    assert [row["samples_seen"] for row in rows(run)] == list(range(batch, samples + 1, batch))


def same(run: Path, other: Path) -> None:
    """Losses and weights are equal to the bit."""
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in rows(other)]
    one, two = (weights(each) for each in (run, other))
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


def weights(run: Path) -> dict:
    folder = run / "checkpoints" / f"{committed(run)[-1]:012d}"
    attempt = json.loads((folder / "COMMIT.json").read_text())["attempt"]
    return load_file(folder / f"{attempt:06d}" / "model.safetensors")


def pids_of(node: Node, title: str) -> list[int]:
    """The node's processes whose title begins like that (Ray gives actors theirs)."""
    found = []
    for pid, _ in node.remember():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title.encode()):
                found.append(pid)
    return found


def ranks(cluster: Cluster) -> dict[int, Node]:
    return {pid: node for node in cluster.nodes for pid in pids_of(node, RANK)}


def actors(cluster: Cluster, title: str) -> list[int]:
    """The processes of actors of a class."""
    return [pid for node in cluster.nodes for pid in pids_of(node, f"ray::{title}")]


def actor(cluster: Cluster, title: str) -> int:
    """The one process of an actor."""
    found = actors(cluster, title)
    assert len(found) == 1, (title, found)
    return found[0]


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def gone(pids: list[int]) -> bool:
    return not {pid for pid, _ in processes()} & set(pids)
