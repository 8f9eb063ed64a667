"""Ranks of torchrun and of Slurm: the run that Ray gives, to the bit; stops, kills and mistakes as of one process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_datasets import make_dataset
from places import ROOT
from test_train import losses, same_weights

pytestmark = pytest.mark.slow  # processes that import torch

LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "SLURM_", "RAY_", "OMP_NUM_THREADS")
NO_RAY = "import sys; sys.modules['ray'] = None; from jobs import cli; sys.exit(cli.main())"  # an import of it fails


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data")
    make_dataset(base, [40, 37])
    return base


def words(data: Path, run: Path, samples: int = 192) -> list[str]:
    counts = ["--samples", str(samples), "--batch", "16", "--checkpoint-every", "32"]
    return ["train", "demo32", "--data", str(data), "--out", str(run), *counts]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def free_port() -> int:
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return asking.getsockname()[1]


def torchrun_ranks() -> list[dict[str, str]]:
    port = str(free_port())
    group = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [group | {"RANK": str(n), "LOCAL_RANK": str(n)} for n in range(2)]


def srun_ranks() -> list[dict[str, str]]:
    step = {"SLURM_NTASKS": "2", "SLURM_NODELIST": "localhost", "MASTER_PORT": str(free_port())}
    return [step | {"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(2)]


def start(ranks: list[dict[str, str]], line: list[str]) -> list[subprocess.Popen[str]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", NO_RAY, *line],
            cwd=ROOT,
            env=environment(**rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit status, stdout, stderr of each."""
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, *text) for process, text in zip(processes, said)]


def wait_for_checkpoint(run: Path, processes: list[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 150
    while not list(run.glob("checkpoints/*/COMMIT.json")):
        assert time.monotonic() < until, "no checkpoint in time"
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def by_ray(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ray") / "run"
    line = [*words(data, run), "--workers", "2"]
    subprocess.run([sys.executable, "-m", "jobs.cli", *line], cwd=ROOT, env=environment(), check=True)
    return run


def test_torchrun_gives_rays_run_to_the_bit(data: Path, by_ray: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    line = [*torchrun, "-m", "jobs.cli", *words(data, tmp_path / "run"), "--json"]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "run") == losses(by_ray)
    assert same_weights(tmp_path / "run", by_ray)
    first, second = done.stdout.splitlines()  # one rank speaks
    assert first.startswith("192 samples seen, loss ")
    assert second.startswith('{"run": ')
    assert done.stderr.count("recipe demo32") == 1


def test_tasks_of_slurm_give_rays_run_to_the_bit_without_ray(data: Path, by_ray: Path, tmp_path: Path) -> None:
    ranks = ended(start(srun_ranks(), [*words(data, tmp_path / "run"), "--workers", "2"]))
    assert [code for code, _, _ in ranks] == [0, 0], ranks
    assert losses(tmp_path / "run") == losses(by_ray)
    assert same_weights(tmp_path / "run", by_ray)
    assert ranks[0][1].startswith("192 samples seen")
    assert ranks[1][1:] == ("", "")


@pytest.mark.parametrize("signalled", [(0, 1), (1,)], ids=["all ranks", "rank 1"])
def test_sigterm_saves_and_the_same_command_goes_on(
    data: Path, by_ray: Path, tmp_path: Path, signalled: tuple[int, ...]
) -> None:
    run = tmp_path / "run"
    long = [*words(data, run, 100_000_000), "--optim.warmup", "0"]
    processes = start(torchrun_ranks(), long)
    wait_for_checkpoint(run, processes)
    for rank in signalled:
        processes[rank].send_signal(signal.SIGTERM)
        processes[rank].send_signal(signal.SIGTERM)  # as a platform and its launcher both do
    ranks = ended(processes)
    assert [code for code, _, _ in ranks] == [143, 143], ranks
    assert ranks[0][2].splitlines()[-1] == "xtra train: stopped by SIGTERM: rerun the same command to go on"
    assert ranks[1][1:] == ("", "")
    saved = max(run.glob("checkpoints/*/COMMIT.json")).parent.name
    processes = start(torchrun_ranks(), long)
    until = time.monotonic() + 150
    while max(run.glob("checkpoints/*/COMMIT.json")).parent.name == saved:
        assert time.monotonic() < until, "it did not go on"
        time.sleep(0.05)
    for process in processes:
        process.send_signal(signal.SIGINT)
    assert [code for code, _, _ in ended(processes)] == [130, 130]


def test_a_killed_rank_ends_the_others_in_one_line_and_a_rerun_changes_nothing(
    data: Path, by_ray: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    processes = start(torchrun_ranks(), words(data, run))
    wait_for_checkpoint(run, processes)
    processes[1].kill()
    first, second = ended(processes)
    assert second[0] == -signal.SIGKILL
    if first[0] != 0:  # the run may have been over
        assert first[0] == os.EX_TEMPFAIL, first
        assert first[2].splitlines()[-1].startswith("xtra train: another rank was lost, or did not answer (")
        assert "Traceback" not in first[2]
    assert [code for code, _, _ in ended(start(torchrun_ranks(), words(data, run)))] == [0, 0]
    assert losses(run) == losses(by_ray)
    assert same_weights(run, by_ray)


def test_a_mistake_is_one_line_of_rank_0(data: Path, tmp_path: Path) -> None:
    ranks = ended(start(torchrun_ranks(), words(data / "nothing", tmp_path / "run")))
    assert [code for code, _, _ in ranks] == [2, 2]
    assert ranks[0][2].startswith("xtra train: ")
    assert len(ranks[0][2].splitlines()) == 1
    assert ranks[1][1:] == ("", "")
    assert not (tmp_path / "run").exists()


def test_a_rank_that_does_not_come_is_waited_for_and_then_named(data: Path, tmp_path: Path) -> None:
    (alone,) = ended(start(srun_ranks()[:1], [*words(data, tmp_path / "run"), "--wait-for-workers", "1"]))
    assert alone[0] == os.EX_TEMPFAIL
    assert alone[2].startswith("xtra train: not all of 2 ranks joined at localhost:")
    assert len(alone[2].splitlines()) == 1
    assert not (tmp_path / "run").exists()
