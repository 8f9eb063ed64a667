"""The attempt loop without a cluster: how many workers are taken, when a run is given up, what waiting says."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import inf
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import cli
from jobs.cluster import GroupWords, Workers
from jobs.cluster.attempts import LOSSES, Attempts, Ended, choose
from jobs.cluster.capacity import Room, _most
from jobs.cluster.wanted import TryLater, parse_workers
from jobs.flags import Call
from xtra.train import TrainResult


def room(total: int, free: int, limit: float | None = None) -> Room:
    return Room("CPU", total, free, jobs=2, limit=limit)


@pytest.mark.parametrize(
    ("least", "most", "total", "free", "settled", "chosen"),
    [
        (2, 2, 4, 4, False, 2),
        (2, 2, 1, 1, True, 0),  # fewer than the least: wait
        (1, 4, 3, 3, False, 3),  # all that the nodes can hold
        (1, 4, 3, 1, False, 0),  # a group has just ended: its places come free
        (1, 4, 3, 1, True, 1),  # they are taken by others
        (2, 4, 3, 1, True, 0),
    ],
)
def test_as_many_workers_are_taken_as_there_is_room_for(least, most, total, free, settled, chosen):
    assert choose(Workers(least, most), room(total, free), settled) == chosen


def test_waiting_says_what_is_in_use_and_what_may_come():
    assert room(4, 1, limit=8).waiting("2") == (
        "waiting for 2 CPUs: 3 of 4 in use by 2 other jobs; the cluster may grow to 8"
    )
    assert Room("GPU", 4, 4, 0, None).waiting("8") == "waiting for 8 GPUs: 0 of 4 in use"
    assert [room(1, 1, limit).may_have(2) for limit in (None, 1, 2, inf)] == [False, False, True, True]
    assert room(0, 0, limit=inf).waiting("2").endswith("in use by 2 other jobs; the cluster may grow")


def test_what_an_autoscaler_may_add_is_the_largest_nodes_first_up_to_their_number():
    kinds = {
        "head": {"resources": {"CPU": 2}, "max_workers": 0},
        "small": {"resources": {"CPU": 4}, "min_workers": 1},
        "large": {"resources": {"CPU": 16, "GPU": 8}, "max_workers": 2},
    }
    config = {"available_node_types": kinds, "head_node_type": "head", "max_workers": 5}
    assert _most(config) == {"CPU": 2 + 2 * 16 + 3 * 4, "GPU": 16}


@pytest.mark.parametrize("text", ["", "x", "2.5", "1..", "..2", "-1", "1...2"])
def test_workers_are_a_number_or_a_range(text):
    assert (parse_workers("4"), parse_workers("2..4")) == ((4, 4), (2, 4))
    with pytest.raises(ValueError, match=r"--workers is .*; it must be a whole number, or MIN"):
        parse_workers(text)


def test_the_flags_of_waiting(capsys):
    words = ["--workers", "1..3", "--wait-for-workers=5", "--stall", "9", "--resize-every=2.5"]
    call = Call("train", "RECIPE", words)
    assert call.config(GroupWords).wanted() == Workers(1, 3, wait=5.0, stall=9.0, resize_every=2.5)
    for words, said in (
        (["--workers", "3..1"], "workers is 3..1; give MIN..MAX, the smaller number first"),
        (["--workers", "0"], "workers is 0; it must be at least 1"),
        (["--wait-for-workers", "-1"], "wait-for-workers is -1; it must be 0 or more seconds"),
        (["--stall", "0"], "stall is 0; it must be more than 0 seconds"),
    ):
        assert cli.main(["train", "demo32", "--data", "d", "--out", "o", *words]) == 2
        assert capsys.readouterr().err == f"xtra train: {said}\n"
    for flag in ("--stall", "--resize-every"):  # an ingest has no group that could stall or grow
        assert cli.main(["ingest", "--urls", "l", "--out", "o", flag, "9"]) == 2
        assert f"{flag} is not a flag" in capsys.readouterr().err


def test_outside_of_a_job_waiting_has_an_end(monkeypatch):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert (Workers().patience, Workers(wait=5).patience) == (60, 5)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert (Workers().patience, Workers(wait=5).patience) == (float("inf"), 5)


def test_a_command_that_may_work_later_exits_75(monkeypatch, capsys):
    def later(call: Call) -> None:
        raise TryLater("no place for 2 workers")

    monkeypatch.setitem(cli.VERBS, "train", SimpleNamespace(takes="", run=later, examples=()))
    assert cli.main(["train"]) == 75
    assert capsys.readouterr().err == "xtra train: no place for 2 workers\n"


class Scripted(Attempts):
    """Groups with given ends, each with the newest checkpoint that it leaves."""

    def __init__(self, *script: tuple[Ended, str]) -> None:
        runs: list[Any] = [SimpleNamespace(out=name) for name in ("one", "two")]
        self.rows: list[dict[str, Any]] = []
        desk: Any = SimpleNamespace()
        controllers: Any = SimpleNamespace(prepare=bool)
        head: Any = SimpleNamespace(wait=bool)
        parts = {"desk": desk, "head": head, "controllers": controllers}
        super().__init__(runs, Workers(), False, threading.Event(), self.rows.append, **parts)
        self.script, self.newest, self.left = list(script), "", list[list[str]]()

    def _newest(self) -> list[str | None]:
        return [self.newest]

    @contextmanager
    def _places(self) -> Iterator[Any]:
        yield "places"

    def _attempt(self, places: Any) -> Ended:
        self.left.append([config.out for config in self._left])
        ended, self.newest = self.script.pop(0)
        return ended


def result(run: str, stopped: bool = False) -> dict[str, Any]:
    return asdict(TrainResult(run, 1, 10, 0.5, 1.0, stopped))


LOST = Ended("lost", why="rank 1: it died")


def test_a_run_is_given_up_only_after_losses_without_a_checkpoint_between():
    done = (Ended("done", (result("one"), result("two"))), "9")
    early = [(LOST, "")] * (LOSSES - 1)
    patient = Scripted(*early, (LOST, "1"), *[(LOST, "1")] * (LOSSES - 2), done)
    assert [r.run for r in patient.run()] == ["one", "two"]
    assert [row["remark"] for row in patient.rows] == [
        "workers were lost (rank 1: it died): resuming from the newest checkpoint"
    ] * (2 * LOSSES - 2)
    with pytest.raises(
        ValueError, match=f"one: {LOSSES} groups of workers in a row were lost without a new checkpoint"
    ):
        Scripted(*early, (LOST, "")).run()


def test_what_a_group_finished_before_it_made_way_is_not_begun_again():
    first = Ended("yield", (result("one"), result("two", stopped=True)))
    attempts = Scripted((first, "1"), (Ended("done", (result("two"),)), "2"))
    assert json.dumps([r.run for r in attempts.run()]) == '["one", "two"]'
    assert attempts.left == [["one", "two"], ["two"]]


def test_a_mistake_ends_the_run_at_once_and_a_stop_gives_what_there_is():
    with pytest.raises(ValueError, match=r"lower --optim\.lr"):
        Scripted((Ended("mistake", why="lower --optim.lr"), "")).run()
    stopped = Scripted((Ended("stopped", (result("one", stopped=True),)), ""))
    assert [r.stopped for r in stopped.run()] == [True]


@pytest.mark.parametrize(
    ("ended", "kind", "why"),
    [
        (LOST, "lost", "rank 1: it died"),
        (Ended("lost", why="rank 0: The actor died because its node has died"), "lost node", "its node has died"),
        (Ended("yield", (result("one", stopped=True),)), "drained", "a node of the group was about to go"),
        (Ended("stopped"), "stopped", "the user or the platform"),
        (Ended("mistake", why="lower --optim.lr"), "mistake", "lower --optim.lr"),
        (Ended("done"), "", ""),
        (Ended("stopped", ({**result("one"), "superseded": True},)), "", ""),
    ],
)
def test_the_driver_records_why_the_attempts_of_a_group_ended(ended, kind, why, tmp_path):
    attempts = Scripted()
    attempts.configs = [SimpleNamespace(out=str(tmp_path / name)) for name in ("one", "two")]
    for name, number in (("one", 1), ("one", 2), ("two", 1)):
        (tmp_path / name / "attempts").mkdir(parents=True, exist_ok=True)
        (tmp_path / name / f"attempts/{number:06d}.json").write_text("{}")
    attempts.yielded = "drained"
    attempts._record(ended, {str(tmp_path / "one"): 1, str(tmp_path / "two"): 1})  # only the second of one is its own
    found = sorted(tmp_path.glob("*/events/*"))
    assert [str(path.relative_to(tmp_path)) for path in found] == ["one/events/000002-800000.jsonl"] * bool(kind)
    if kind:
        event = json.loads(found[0].read_text())
        assert (event["event"], why in event["why"]) == (kind, True)
