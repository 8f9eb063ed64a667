"""What launchers say in the environment: torchrun's variables, Slurm's, and what is no group at all."""

from __future__ import annotations

import pytest

from jobs import cli
from jobs.cluster import WorkersWords
from jobs.flags import Call
from jobs.launch import workers
from jobs.launch.found import Place, find, first_host

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "gpu1",
    "MASTER_PORT": "4000",
}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODELIST": "gpu[003-005,9],big1"}


def test_the_ranks_of_torchrun_are_found() -> None:
    assert find(TORCHRUN) == Place("torchrun", 3, 4, 1, 2, "gpu1", 4000)


def test_others_set_no_local_rank_and_no_port() -> None:
    some = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "pod-0"}
    assert find(some) == Place("torchrun", 1, 2, 0, 0, "pod-0", 29500)


def test_the_tasks_of_srun_are_found_and_meet_at_the_first_node() -> None:
    assert find(SRUN) == Place("srun", 5, 8, 1, 0, "gpu003", 29500)
    one = SRUN | {"SLURM_NODELIST": "gpu003"}
    assert find(one) == Place("srun", 5, 8, 1, 8, "gpu003", 29500)  # all on one machine
    given = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}
    assert find(SRUN | given) == Place("srun", 5, 8, 1, 0, "10.0.0.1", 4000)


def test_a_step_smaller_than_its_job_counts_its_own_tasks() -> None:
    step = {"SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NODELIST": "gpu9", "SLURM_STEP_ID": "0"}
    assert find(SRUN | step) == Place("srun", 5, 6, 1, 6, "gpu9", 29500)


def test_jobs_of_one_node_have_ports_of_their_own() -> None:
    places = [find(SRUN | {"SLURM_JOB_ID": job, "SLURM_STEP_ID": step}) for job in ("70", "71") for step in ("0", "1")]
    ports = {place.port for place in places if place is not None}
    assert len(ports) == 4
    assert all(10_000 <= port < 30_000 for port in ports)
    again = find(SRUN | {"SLURM_JOB_ID": "70", "SLURM_STEP_ID": "1", "SLURM_PROCID": "0"})
    assert again is not None
    assert places[1] is not None
    assert again.port == places[1].port  # on every rank


def test_torchrun_inside_of_srun_is_torchruns() -> None:
    assert find(SRUN | TORCHRUN) == find(TORCHRUN)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"RANK": "0"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NODELIST": "gpu1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu1", "ENVIRONMENT": "BATCH"},  # sbatch's script
        {"SLURM_NTASKS": "8", "SLURM_NODELIST": "gpu1"},  # salloc's shell
    ],
    ids=["nothing", "no world", "one task", "sbatch", "salloc"],
)
def test_what_is_no_group_trains_as_ever(environ: dict[str, str]) -> None:
    assert find(environ) is None


def test_a_task_of_srun_in_a_script_of_sbatch_is_found() -> None:
    assert find(SRUN | {"ENVIRONMENT": "BATCH", "SLURM_STEP_ID": "0"}) == Place("srun", 5, 8, 1, 0, "gpu003", 29500)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x'; it must be a whole number from 0 on"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE is '0'; it must be a whole number from 1 on"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a"}, "RANK is 2 and WORLD_SIZE 2: ranks count from 0"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but MASTER_ADDR is not set"),
        (TORCHRUN | {"MASTER_PORT": "-1"}, "MASTER_PORT is '-1'"),
        (SRUN | {"SLURM_PROCID": "8"}, "SLURM_PROCID is 8 and SLURM_NTASKS 8"),
        (SRUN | {"SLURM_NODELIST": ""}, "SLURM_NTASKS is 8, but SLURM_NODELIST is not set"),
    ],
    ids=["rank", "world", "beyond", "master", "port", "task", "nodes"],
)
def test_a_wrong_variable_is_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(environ)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a1,a2", "a1"), ("n[01-04]", "n01"), ("r[2,4]n[7-9],x", "r2n7"), ("n[3,5-7]-ib,z", "n3-ib"), ("", "")],
)
def test_the_first_host_of_a_compressed_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_workers_may_say_what_the_launcher_did() -> None:
    for words, least in ((["--workers", "4"], 4), (["--workers=2..8"], 2), ([], 1)):
        call = Call("train", "", list(words), place=find(TORCHRUN))
        assert workers(call, call.config(WorkersWords)).least == least


@pytest.mark.parametrize(
    ("environ", "said"),
    [(TORCHRUN, "torchrun has started 4 (WORLD_SIZE)"), (SRUN, "srun has started 8 (SLURM_NTASKS)")],
    ids=["torchrun", "srun"],
)
def test_workers_that_contradict_the_launcher_are_one_line(
    environ: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    words = ["train", "demo32", "--data", "d", "--out", "o", "--workers", "3"]
    assert cli.main(words) == 2
    assert capsys.readouterr() == ("", "")  # not rank 0
    monkeypatch.setenv("RANK" if "RANK" in environ else "SLURM_PROCID", "0")
    assert cli.main(words) == 2
    line = f"xtra train: --workers is 3, but {said}: leave --workers out, or start as many\n"
    assert capsys.readouterr() == ("", line)


def test_a_world_of_one_trains_in_this_process_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["train", "demo32", "--data", "d", "--out", "o", "--workers", "2"]) == 2
    assert "--workers is 2, but torchrun has started 1" in capsys.readouterr().err
