"""A submitted job's end without a cluster: its exit status, its log, what is done when it is lost."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobInfo, JobStatus
from run_folders import write_run

from jobs import submit_verb
from jobs.cluster import follow_job, head
from jobs.cluster.follow_job import Ended, Follower, Log, ended
from jobs.cluster.submit import Jobs, Submission
from jobs.flags import Call, Stopped


@pytest.mark.parametrize(
    ("status", "code", "kind", "expected"),
    [
        ("SUCCEEDED", 0, None, (0, False)),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", (2, False)),
        ("FAILED", 75, "JOB_ENTRYPOINT_COMMAND_ERROR", (75, False)),
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", (137, False)),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", (1, False)),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", (1, True)),
        ("STOPPED", None, None, (130, False)),
    ],
)
def test_the_exit_status_is_the_verbs_own(status, code, kind, expected):
    info = JobInfo(status=JobStatus(status), entrypoint="", driver_exit_code=code, error_type=kind, message="m")
    got = ended("j", info)
    assert (got.exit_code, got.lost) == expected


class Pretended:
    """A Follower for which every job ends as the list says."""

    def __init__(self, *ends: Ended | None) -> None:
        self.ends, self.followed, self.said = list(ends), list[str](), list[str]()

    def follow(self, job: str) -> Ended | None:
        self.followed.append(job)
        return self.ends.pop(0)

    def say(self, words: str) -> None:
        self.said.append(words)

    def patiently(self, job: str, ask: Any) -> Any:
        return ask()


def jobs_of(known: dict[str, str]) -> Any:
    def jobs() -> list[Any]:
        return [SimpleNamespace(submission_id=job, status=JobStatus(status)) for job, status in known.items()]

    made = object.__new__(Jobs)
    made.head = SimpleNamespace(jobs=jobs)
    made.submitted = list[str]()
    made._submit_as = lambda job, wanted: made.submitted.append(job) or known.setdefault(job, "FAILED")
    return made


WANTED = Submission(("train",), "train-x", "s3://b/x")
LOST = Ended("j", 1, "its node died", lost=True)


def test_a_lost_job_is_submitted_again_under_the_next_number_but_for_what_is_done():
    known = {"train-x-1": "FAILED", "train-x-4": "FAILED"}
    jobs, follower = jobs_of(known), Pretended(LOST, LOST, Ended("j", 0))
    got = jobs.wait("train-x-1", WANTED, 3, lambda folder: False, follower)
    assert (got.exit_code, jobs.submitted) == (0, ["train-x-5", "train-x-6"])
    assert "train-x-1 was lost (its node died): submitted again as train-x-5" in follower.said[0]
    jobs, follower = jobs_of({}), Pretended(LOST)  # a new head remembers nothing
    assert jobs.wait("train-x-3", WANTED, 3, lambda folder: folder == "s3://b/x", follower).exit_code == 0
    assert jobs.submitted == []
    follower = Pretended(LOST, Ended("j", 2, "exit code 2"))
    assert jobs.wait("train-x-3", WANTED, 3, lambda folder: False, follower).exit_code == 2
    assert jobs.submitted == ["train-x-4"]
    jobs = jobs_of({})
    assert jobs.wait("train-x-1", WANTED, 0, lambda folder: False, Pretended(LOST)).lost
    assert jobs.submitted == []


def test_a_lost_job_that_another_wait_has_submitted_again_is_followed():
    jobs, follower = jobs_of({"train-x-1": "FAILED", "train-x-2": "RUNNING"}), Pretended(LOST, Ended("j", 0))
    assert jobs.wait("train-x-1", WANTED, 3, lambda folder: False, follower).exit_code == 0
    assert (jobs.submitted, follower.followed) == ([], ["train-x-1", "train-x-2"])
    assert follower.said == ["train-x-1 was lost (its node died): goes on as train-x-2"]


def test_a_folder_says_whether_a_run_is_done(tmp_path: Path):
    done = write_run(tmp_path / "done")
    half = write_run(tmp_path / "half", commit=False)
    assert submit_verb.is_done(str(done))
    assert not submit_verb.is_done(str(half))
    assert not submit_verb.is_done(str(tmp_path / "none"))


def test_a_log_that_is_read_again_is_shown_once():
    lines: list[str] = []
    log = Log(lines.append)
    log.take("one\ntw", 0)
    left = log.take("one", log.seen)  # the connection was lost, and the log comes from its start
    assert log.take("\ntwo\nthree", left) == 0
    log.end()
    assert (lines, log.last) == (["one", "two", "three"], "three")


class Served:
    """A head whose job has ended in the meantime, and whose log's connection breaks after some of it."""

    def __init__(self, *brought: str, whole: str) -> None:
        self.client = SimpleNamespace(tail_job_logs=self._tail)
        self._brought, self._whole = brought, whole

    def info(self, job: str) -> JobInfo:
        ended = {"driver_exit_code": 2, "driver_agent_http_address": "http://h:2"}
        return JobInfo(status=JobStatus.FAILED, entrypoint="", **ended)

    async def _tail(self, job: str) -> Any:
        for text in self._brought:
            yield text
        raise RuntimeError("connection closed")

    def log(self, job: str) -> str:
        return self._whole


@pytest.mark.parametrize("brought", [(), ("one\nt",), ("one\ntwo\n", "three")])
def test_what_the_connection_of_a_log_did_not_bring_is_read_at_the_end(brought):
    lines: list[str] = []
    follower = Follower(Served(*brought, whole="one\ntwo\nthree"), lambda: False, print, lines.append)
    assert follower.follow("j-1") == Ended("j-1", 2, "exit code 2")
    assert lines == ["one", "two", "three"]


def test_a_log_without_a_word_is_left_when_the_head_does_not_answer(monkeypatch):
    """A machine that is gone closes no connection."""
    asked: list[str] = []

    async def silence(job: str) -> Any:
        await asyncio.sleep(60)
        yield ""

    def info(job: str) -> JobInfo:
        asked.append(job)
        if len(asked) in (2, 3):
            raise head.Away("http://h:1 does not answer now (timed out)")
        status = JobStatus.RUNNING if len(asked) == 1 else JobStatus.STOPPED
        return JobInfo(status=status, entrypoint="", driver_agent_http_address="http://h:2")

    for name in ("QUIET_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(follow_job, name, 0.01)
    said: list[str] = []
    served = SimpleNamespace(info=info, log=lambda job: "", client=SimpleNamespace(tail_job_logs=silence))
    assert Follower(served, lambda: False, said.append, print).follow("j-1") == Ended("j-1", 130, "stopped")
    assert said == ["http://h:1 does not answer now (timed out): waiting for the cluster's head"]


def test_a_head_that_stays_away_is_try_again_later(monkeypatch):
    def info(job: str) -> Any:
        raise head.Away("http://h:1 does not answer now (Connection refused)")

    monkeypatch.setattr(follow_job, "POLL_SECONDS", 0.01)
    follower = Follower(SimpleNamespace(info=info), lambda: False, lambda line: None, print, away=0.05)
    with pytest.raises(ValueError, match=r"has not answered for .* xtra submit wait j-1 follows it again") as later:
        follower.follow("j-1")
    assert getattr(later.value, "exit_code", 0) == os.EX_TEMPFAIL


def test_json_of_a_job_is_held_back_and_its_error_is_the_last_line(capsys):
    shown = submit_verb.Shown(as_json=True)
    for line in ("reading", '{"kept": 3}', ""):
        shown.line(line)
    assert (shown.result, shown.error) == ({"kept": 3}, "")
    shown.line("xtra train: --out is missing")
    assert shown.error == shown.last == "xtra train: --out is missing"
    assert capsys.readouterr().out == ""


def following(wait: Any, capsys: pytest.CaptureFixture[str]) -> tuple[Call, list[str], str]:
    """What `xtra submit` does with a job that it follows: the call, what it stopped, what it said."""
    stopped: list[str] = []
    jobs = SimpleNamespace(wait=wait, head=SimpleNamespace(stop=stopped.append))
    call = Call("submit", "VERB", [])
    with suppress(Stopped):
        submit_verb._wait(call, jobs, "train-x-1", WANTED, 3)
    return call, stopped, capsys.readouterr().err


def test_ctrl_c_ends_the_following_and_a_second_one_the_job(monkeypatch, capsys):
    monkeypatch.setattr(submit_verb, "AGAIN_SECONDS", 0.0)
    call, stopped, said = following(lambda *words: None, capsys)
    assert (stopped, call.quiet) == ([], True)  # no "rerun the same command": the job goes on
    assert "train-x-1 goes on: xtra submit wait train-x-1 follows it again, xtra submit stop train-x-1 stops it" in said

    def second(*words: Any) -> None:
        words[-1]("train-x-2")  # it was submitted again meanwhile
        raise Stopped

    _, stopped, said = following(second, capsys)
    assert stopped == ["train-x-2"]
    assert "it has 120 s to save" in said


def test_the_last_line_is_the_verbs_error_or_why_there_is_none(capsys):
    def ended(exit_code: int, why: str, *lines: str) -> Any:
        def wait(job: str, wanted: Any, retries: int, done: Any, follower: Any, again: Any) -> Ended:
            for line in lines:
                follower.line(line)
            return Ended(job, exit_code, why)

        return wait

    mistake = "xtra train: --data is missing"
    for lines in ((mistake,), (mistake, "Ray wrote this after it")):
        call, _, said = following(ended(2, "exit code 2", *lines), capsys)
        assert (call.exit_code, said.rstrip().splitlines()[-1]) == (2, mistake)
    call, _, said = following(ended(137, "exit code 137", "reading"), capsys)
    assert (call.exit_code, said) == (137, "xtra submit: train-x-1: exit code 137\n")
    assert following(ended(0, "", "done"), capsys)[2] == ""
