"""Rows of the attack that mutate nothing: private addresses, secrets, small worlds, tests of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fuzz_rows

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
BAD_INPUT = (
    "tests/ingest/test_bombs.py",
    "tests/ingest/sets/test_odd_sources.py",
    "tests/shards/test_local_files.py",
    "tests/xtra/official/test_hostile_checkpoints.py",
    "tests/attack/test_wrong_json.py",
    "tests/ingest/http/test_robots.py",
    "tests/shards/test_store.py::test_a_plan_of_more_than_64_mb_is_put_in_one_write",
)
SECRETS = ("tests/jobs/test_planted_secrets.py",)


def _pytest(*which: str) -> str:
    done = subprocess.run([sys.executable, "-m", "pytest", *which], cwd=ROOT, capture_output=True, text=True)
    return "fine" if done.returncode == 0 else " ".join(done.stdout.split()[-60:])


def bad_input(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    yield from (_pytest(*BAD_INPUT) for _ in range(first, last))


def secrets(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    yield from (_pytest(*SECRETS) for _ in range(first, last))


def guard(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    """In a network namespace of its own, whose loopback has "public" addresses. Needs root."""
    script = Path(__file__).with_name("guard_in_namespace.py")
    setup = "ip link set lo up && ip addr add 93.184.216.34/32 dev lo && ip addr add 93.184.216.35/32 dev lo"
    setup += " && ip addr add 10.9.9.9/32 dev lo && ip addr add 169.254.169.254/32 dev lo"
    command = ["unshare", "-n", "sh", "-c", f'{setup} && exec "$0" "$@"', sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=fuzz_rows._environment())
    if done.returncode:
        raise RuntimeError(f"the namespace does not work: {done.stderr[-500:]}")
    yield from json.loads(done.stdout.splitlines()[-1])[first:last]


# --- small worlds --------------------------------------------------------------------------------------------------

WORLDS = (
    ("24 descriptors", "ulimit -n 24"),
    ("32 descriptors", "ulimit -n 32"),
    ("300 MB of memory", "ulimit -v 300000"),
    ("700 MB of memory", "ulimit -v 700000"),
    ("no HOME", "unset HOME"),
    ("no TMPDIR", "export TMPDIR=/nowhere"),
    ("no /dev/shm", "umount -l /dev/shm 2>/dev/null"),
    ("C locale", "export LC_ALL=C LANG=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"),
    ("a folder that cannot be written", "OUT=/proc/out"),
)
VERBS = (
    ("import", 'import "$DATA/set" --out "$OUT/dataset" --unit 5'),
    ("select", 'select "$DATA/dataset" --rules.near-distance 0'),
    ("status", 'status "$DATA/dataset"'),
    ("train", 'train demo32 --data "$DATA/dataset" --out "$OUT/run" --samples 8 --batch 8 --threads 1 --device cpu'),
)


def worlds(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    """Round n is verb n // worlds in world n % worlds."""
    data = fuzz_rows.prepared(folder / "data", "make_dataset")
    for number in range(first, last):
        (verb, words), (world, setup) = VERBS[number // len(WORLDS)], WORLDS[number % len(WORLDS)]
        out = folder / f"out-{number}"
        out.mkdir()
        script = f'OUT="{out}"; DATA="{data}"; {setup}; exec "{sys.executable}" -m jobs.cli {words}'
        command = ["sh", "-c", script]
        if "shm" in setup:
            command = ["unshare", "-m", *command]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_world()) as process:
            try:
                said = process.communicate(timeout=300)[0].decode("utf-8", "replace")
            except subprocess.TimeoutExpired:
                said = "Traceback: it took longer than 300 s"
            finally:
                process.kill()
        yield _outcome(f"{verb}, {world}", process.returncode, said)


def _world() -> dict[str, str]:
    return fuzz_rows._environment() | {"OPENBLAS_NUM_THREADS": "1"}


def _outcome(what: str, code: int, said: str) -> str:
    if "Traceback" in said or code not in (0, 1, 2):
        last = (said.strip().splitlines() or [""])[-1]
        return f"{what}: exit {code}: {last[:200]}"
    return "fine" if code == 0 else "refused"


# --- Ctrl-C --------------------------------------------------------------------------------------------------------

INTERRUPTED = (
    *("ingest", "retry", "import", "in-place", "select", "sweep"),
    *("train", "probe", "views", "scale", "generate", "export"),
)
MOMENTS = 3  # of each


def interrupts(folder: Path, seed: int, first: int, last: int) -> Iterator[str]:
    """Round n is verb n // MOMENTS, interrupted once, run again, and compared with an undisturbed run."""
    script = Path(__file__).with_name("campaign.py")
    for verb in range(first // MOMENTS, -(-last // MOMENTS)):
        results, name = folder / f"{verb}.json", INTERRUPTED[verb]
        words = [name, "--how", "ctrl-c", "--points", str(MOMENTS), "--seed", str(seed), "--out", str(results)]
        done = subprocess.run([sys.executable, script, *words], cwd=ROOT, capture_output=True, text=True)
        if not results.exists():
            raise RuntimeError(f"{name}: {done.stderr[-500:]}")
        faults = json.loads(results.read_text())["rows"][f"{name} ctrl-c disk"]["failures"]
        outcomes = [f"{name}: {fault}" for fault in faults] + ["fine"] * (MOMENTS - len(faults))
        yield from outcomes[max(0, first - verb * MOMENTS) : last - verb * MOMENTS]


def is_root() -> bool:
    return os.geteuid() == 0
