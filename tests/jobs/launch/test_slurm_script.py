"""deploy/slurm.sh: what it starts, and what it starts again. Slurm's own commands are scripts that note their words."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from places import ROOT

SCRIPT = ROOT / "deploy" / "slurm.sh"


@pytest.fixture
def slurm(tmp_path: Path) -> Path:
    """A folder with srun, which runs its command as it is, and scancel and scontrol, which note their words."""
    commands = {
        "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
        "scancel": f'echo "scancel $*" >> {tmp_path}/noted; kill -TERM "$(cat {tmp_path}/pid)"',
        "scontrol": f'echo "scontrol $*" >> {tmp_path}/noted',
        "trainer": f'echo $$ > {tmp_path}/pid; echo "$*" > {tmp_path}/words; trap "exit 143" TERM; '
        'if [ "$CODE" = wait ]; then while :; do read -rt 0.1 <> <(:); done; fi; exit "$CODE"',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def start(slurm: Path, code: str, *words: str, **more: str) -> subprocess.Popen[str]:
    env = {"PATH": f"{slurm}:{os.environ['PATH']}", "XTRA": "trainer", "CODE": code, "SLURM_JOB_ID": "7"} | more
    return subprocess.Popen(["bash", str(SCRIPT), *words], env=env, cwd=slurm, stderr=subprocess.PIPE, text=True)


def noted(slurm: Path) -> list[str]:
    return (slurm / "noted").read_text().splitlines() if (slurm / "noted").exists() else []


def test_bash_reads_it_and_shellcheck_finds_nothing() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", SCRIPT], check=True)
    lines = SCRIPT.read_text().splitlines()
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:USR1@180", "#SBATCH --open-mode=append"} <= {*lines}
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(n for n, line in enumerate(lines) if line.startswith("#SBATCH")) < first  # sbatch reads no further


@pytest.mark.parametrize(
    ("code", "again"),
    [("0", False), ("2", False), ("1", False), ("143", False), ("75", True), ("137", True), ("139", True)],
)
def test_only_a_lost_rank_is_tried_again(slurm: Path, code: str, again: bool) -> None:
    process = start(slurm, code, "demo32", "--data", "a b")
    process.communicate(timeout=60)
    assert (slurm / "words").read_text() == "train demo32 --data a b\n"
    assert noted(slurm) == (["scontrol requeue 7"] if again else [])
    assert process.returncode == (0 if again else int(code))


def test_before_the_time_limit_it_saves_and_is_queued_again(slurm: Path) -> None:
    process = start(slurm, "wait", "demo32")
    until = time.monotonic() + 60
    while not (slurm / "words").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert noted(slurm) == ["scancel --signal=TERM 7", "scontrol requeue 7"]
    assert process.returncode == 0


def test_it_is_not_tried_again_for_ever(slurm: Path) -> None:
    process = start(slurm, "75", "demo32", SLURM_RESTART_COUNT="20")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, noted(slurm)) == (75, [])
    assert "started 20 times: sbatch the same command to go on" in err


def test_without_a_recipe_it_is_one_line(slurm: Path) -> None:
    process = start(slurm, "0")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err == "slurm.sh: RECIPE is missing: sbatch slurm.sh RECIPE --data DATASET --out RUN\n"
