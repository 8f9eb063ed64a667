"""Independent pieces of work: all done once, stopped together, and no death or error is passed over."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import cluster


def wait_for_file(path: Path, seconds: float = 240.0) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear"
        time.sleep(0.05)


def meet(job: tuple[Path, str, str], stop: threading.Event, progress: cluster.Progress) -> tuple[str, int, int]:
    """Two of these can only end if they run at the same time."""
    import torch

    folder, mine, other = job
    (folder / mine).touch()
    wait_for_file(folder / other)
    progress({"run": mine})
    return mine, os.getpid(), torch.get_num_threads()


def test_pieces_run_at_the_same_time_in_processes_that_share_the_cores(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = []
    done = cluster.side_by_side(meet, [(tmp_path, "a", "b"), (tmp_path, "b", "a")], 2, progress=rows.append)
    assert sorted(name for name, _, _ in done) == ["a", "b"]
    assert len({pid for _, pid, _ in done} | {os.getpid()}) == 3
    assert {threads for _, _, threads in done} == {max(1, (os.cpu_count() or 1) // 2)}
    assert sorted(str(row["run"]) for row in rows) == ["a", "b"]


def until_stopped(job: Path, stop: threading.Event, progress: cluster.Progress) -> str:
    job.touch()
    assert stop.wait(240)
    return job.name


def test_a_stop_reaches_every_piece_and_no_further_one_begins(tmp_path: Path) -> None:
    stop = threading.Event()

    def stop_when_both_run() -> None:
        wait_for_file(tmp_path / "a")
        wait_for_file(tmp_path / "b")
        stop.set()

    threading.Thread(target=stop_when_both_run, daemon=True).start()
    done = cluster.side_by_side(until_stopped, [tmp_path / name for name in "abc"], 2, stop)
    assert sorted(done) == ["a", "b"]
    assert not (tmp_path / "c").exists()


def fail_or_wait(job: tuple[Path, str], stop: threading.Event, progress: cluster.Progress) -> None:
    folder, how = job
    (folder / how).touch()
    if how == "wait":
        assert stop.wait(240)
        (folder / "was stopped").touch()
        return
    wait_for_file(folder / "wait")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("no such thing:\n use another")


@pytest.mark.parametrize(
    ("how", "message"),
    [("raise", "^no such thing: use another$"), ("die", "ended early with -9: rerun the same")],
)
def test_an_error_or_a_death_stops_the_others_and_is_one_line(tmp_path: Path, how: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cluster.side_by_side(fail_or_wait, [(tmp_path, "wait"), (tmp_path, how), (tmp_path, "third")], 2)
    assert (tmp_path / "was stopped").exists()
    assert not (tmp_path / "third").exists()


def test_one_at_a_time_needs_no_process() -> None:
    assert cluster.side_by_side(lambda job, stop, progress: (job, os.getpid()), [1, 2]) == [
        (1, os.getpid()),
        (2, os.getpid()),
    ]


ORPHANS = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from jobs import cluster
from test_side_by_side import until_stopped
if __name__ == "__main__":
    cluster.side_by_side(until_stopped, [Path({folder!r}) / name for name in "ab"], 2)
"""


def test_pieces_end_with_the_process_that_began_them(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    root = str(Path(__file__).parents[3])
    parent = subprocess.Popen([sys.executable, script], cwd=root, env=os.environ | {"PYTHONPATH": root})
    wait_for_file(tmp_path / "a")
    wait_for_file(tmp_path / "b")
    children = _children(parent.pid)
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < until, "an orphan goes on"
        time.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# ---- as tasks of a Ray cluster ----


@pytest.fixture
def joined(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where RAY_ADDRESS names the cluster that is joined already; its workers may not find this file."""
    import ray
    from ray import cloudpickle

    gc.collect()  # an exception's traceback may still hold an actor
    until = time.monotonic() + 120  # what earlier tests of this cluster held is given back a while after they end
    while ray.available_resources().get("CPU", 0) < 2:
        assert time.monotonic() < until, f"only {ray.available_resources()} of {ray.cluster_resources()} is free"
        time.sleep(0.2)
    monkeypatch.setenv("RAY_ADDRESS", "in-use:6379")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.slow
def test_on_a_cluster_pieces_are_tasks(tmp_path: Path, joined: None) -> None:
    rows: list[dict[str, object]] = []
    done = cluster.side_by_side(meet, [(tmp_path, "a", "b"), (tmp_path, "b", "a")], 2, progress=rows.append)
    assert sorted((name, threads) for name, _, threads in done) == [("a", 1), ("b", 1)]
    assert len({pid for _, pid, _ in done} | {os.getpid()}) == 3
    assert {str(row["run"]) for row in rows} <= {"a", "b"}


@pytest.mark.slow
def test_on_a_cluster_a_stop_reaches_every_task(tmp_path: Path, joined: None) -> None:
    stop = threading.Event()
    threading.Thread(target=lambda: (wait_for_file(tmp_path / "b"), stop.set()), daemon=True).start()
    assert sorted(cluster.side_by_side(until_stopped, [tmp_path / name for name in "abc"], 2, stop)) == ["a", "b"]
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "message"), [("raise", "^no such thing: use another$"), ("die", "a worker was lost")])
def test_on_a_cluster_an_error_or_a_death_stops_the_others(
    tmp_path: Path, joined: None, how: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cluster.side_by_side(fail_or_wait, [(tmp_path, "wait"), (tmp_path, how), (tmp_path, "third")], 2)
    assert (tmp_path / "was stopped").exists()
    assert not (tmp_path / "third").exists()
