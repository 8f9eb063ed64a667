"""Training under Ray Train: the same run on real worker processes, through kills, stops and the user's mistakes."""

import dataclasses
import os
import signal
import threading
import time

import pytest
import ray
from forked import run_ranks
from made_datasets import make_dataset
from test_train import config, losses, one_rank, same_weights

from jobs.cluster import attempt
from jobs.cluster.desk import POLL_SECONDS
from jobs.cluster.group import train_all
from jobs.cluster.wanted import TryLater, Workers
from shards import store
from xtra.run import this_process


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 37], bad=(5,))
    return base


@pytest.fixture(scope="module")
def two_ranks(data, tmp_path_factory):
    """The uninterrupted run on two plain gloo processes, without Ray."""
    base = tmp_path_factory.mktemp("two")
    run_ranks(one_rank, 2, str(base / "setup"), config(data, base / "run", samples=600))
    return base / "run"


pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.slow
def test_runs_of_one_group_equal_runs_alone(data, two_ranks, tmp_path):
    rows = []
    one = config(data, tmp_path / "one", samples=600)
    two = config(data, tmp_path / "two", samples=60, seed=5)
    results = train_all([one, two], workers=2, progress=rows.append)
    assert [(r.samples_seen, r.stopped) for r in results] == [(600, False), (60, False)]
    assert losses(tmp_path / "one") == losses(two_ranks)
    assert same_weights(tmp_path / "one", two_ranks)
    assert rows[-1]["samples_seen"] == 60


def wait_for(run, samples: int) -> dict:
    """Wait until the run has a checkpoint of that many samples; returns its newest attempt."""
    for _ in range(30_000):
        done = [int(name) for name in store.names(str(run / "checkpoints"))]
        if done and max(done) >= samples:
            newest = store.names(str(run / "attempts"))[-1]
            return store.read_json(str(run / "attempts" / newest))
        time.sleep(0.01)
    raise AssertionError("the run made no checkpoint in five minutes")


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_changes(data, two_ranks, tmp_path):
    killed = {}

    def kill() -> None:
        killed.update(wait_for(tmp_path / "run", 60))
        os.kill(killed["pid"], signal.SIGKILL)

    killing = threading.Thread(target=kill, daemon=True)
    killing.start()
    slow = config(data, tmp_path / "run", samples=600)
    (result,) = train_all([slow], workers=2)
    killing.join()
    assert result.attempt >= 2, "the run was over before the kill"
    assert losses(tmp_path / "run") == losses(two_ranks)
    assert same_weights(tmp_path / "run", two_ranks)


@pytest.mark.slow
def test_a_stop_reaches_the_workers_and_a_rerun_goes_on(data, two_ranks, tmp_path):
    stop = threading.Event()

    def ask() -> None:
        """Ask while rank 0 is paused: a run as short as this one could end before it hears of the request."""
        pid = wait_for(tmp_path / "run", 30)["pid"]
        os.kill(pid, signal.SIGSTOP)
        stop.set()
        time.sleep(10 * POLL_SECONDS)
        os.kill(pid, signal.SIGCONT)

    stopper = threading.Thread(target=ask, daemon=True)
    stopper.start()
    long = config(data, tmp_path / "run", samples=600)
    (result,) = train_all([long], workers=2, stop=stop)
    stopper.join()
    assert result.stopped
    assert result.samples_seen < 600
    assert store.exists(str(tmp_path / "run" / "checkpoints" / f"{result.samples_seen:012d}" / "COMMIT.json"))
    train_all([long], workers=2)
    assert losses(tmp_path / "run") == losses(two_ranks)


@pytest.mark.slow
def test_what_is_complete_waits_for_no_place(data, tmp_path):
    whole = config(data, tmp_path / "run", samples=20)
    train_all([whole], workers=2)
    taken = ray.util.placement_group([{"CPU": 1}] * int(ray.cluster_resources()["CPU"]))
    ray.get(taken.ready())
    try:
        again = train_all([whole], workers=2)
        with pytest.raises(TryLater, match="no place for 2 workers"):
            train_all([config(data, tmp_path / "other", samples=20)], workers=Workers(2, 2, wait=1))
    finally:
        ray.util.remove_placement_group(taken)
    assert [(done.samples_seen, done.loss, done.stopped) for done in again] == [(20, None, False)]
    assert store.names(str(tmp_path / "run" / "attempts")) == ["000001.json"]


@pytest.mark.slow
def test_workers_of_our_own_cluster_run_at_this_process_own_priority(ray_cluster):
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)


@pytest.mark.slow
def test_a_stop_before_the_workers_begin_ends_without_a_run(data, tmp_path):
    stop = threading.Event()
    stop.set()
    assert train_all([config(data, tmp_path / "run")], workers=2, stop=stop) == []
    assert not (tmp_path / "run" / "config.json").exists()
    assert ray.is_initialized(), "the cluster was left with a group in it, which is what once killed the process"


@pytest.mark.slow
def test_the_users_mistakes_come_back_as_one_line(data, tmp_path):
    train_all([config(data, tmp_path / "run", samples=20)], workers=1)
    with pytest.raises(ValueError, match="begun with seed = 0, now 9"):
        train_all([config(data, tmp_path / "run", samples=20, seed=9)], workers=2)
    with pytest.raises(ValueError, match=r"workers is 99; this cluster has \d+ CPUs"):
        train_all([config(data, tmp_path / "new", samples=20)], workers=99)
    for broken in (config(tmp_path / "nothing", tmp_path / "new"), config("", tmp_path / "new"), config(data, "")):
        with pytest.raises(ValueError, match=r"is not a dataset|is missing: give"):
            train_all([broken], workers=2)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="workers is 0"):
        train_all([dataclasses.replace(config(data, tmp_path / "run"))], workers=0)


@pytest.mark.slow
def test_an_attempt_names_the_command_that_drives_it_and_ray_knows_that_it_lives(data, tmp_path):
    train_all([config(data, tmp_path / "run", samples=20)], workers=2)
    driver = store.read_json(str(tmp_path / "run/attempts/000001.json"))["driver"]
    ours = dataclasses.asdict(this_process()) | attempt.this_job()
    assert driver == ours, "not the rank's own process"
    assert attempt.job_lives(driver["cluster"], driver["job"]) is True
    assert attempt.job_lives("a session of another cluster", driver["job"]) is None
    assert attempt.job_lives(driver["cluster"], "fefefefe") is None
