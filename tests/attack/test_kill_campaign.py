"""The killer stops a process where it is told, and what it does to each verb leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import killer
import pytest
from kill_state import dataset_files, dataset_state
from made_datasets import make_dataset
from places import ROOT

from shards import store

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="the killer needs a C compiler")
CAMPAIGN = ROOT / "tests" / "attack" / "campaign.py"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with the killer in it."""
    made = tmp_path_factory.mktemp("killer") / "disk_killer.so"
    command = ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(made), str(killer.SOURCE)]
    subprocess.run([*command, "-ldl"], check=True)
    return dict(os.environ, LD_PRELOAD=str(made), XTRA_KILLER=str(made))


SCRIPT = """
import ctypes, os, sys
root, change, moment = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
ctypes.CDLL(os.environ["XTRA_KILLER"]).killer_arm(root.encode(), ctypes.c_long(change), moment, 9, 0, -1)
open("/dev/null", "w").close()
os.mkdir(root + "/made")                          # change 0
with open(root + "/made/file", "wb") as file:     # 1
    file.write(b"x" * 1000)                       # 2
os.rename(root + "/made/file", root + "/whole")   # 3
"""


@pytest.mark.parametrize(
    ("change", "moment", "there"),
    [
        (0, "before", {}),
        (0, "after", {"made": None}),
        (2, "before", {"made": None, "made/file": 0}),
        (2, "inside", {"made": None, "made/file": 500}),
        (2, "after", {"made": None, "made/file": 1000}),
        (3, "inside", {"made": None, "made/file": 1000}),
        (3, "after", {"made": None, "whole": 1000}),
    ],
)
def test_a_process_ends_before_inside_or_after_its_nth_change(loaded, tmp_path, change, moment, there):
    words = [str(tmp_path), str(change), str(killer.MOMENTS.index(moment))]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], env=loaded)
    assert done.returncode == -signal.SIGKILL
    found = {str(p.relative_to(tmp_path)): p.stat().st_size if p.is_file() else None for p in tmp_path.rglob("*")}
    assert found == there


def test_what_belongs_to_nothing_is_seen(tmp_path: Path) -> None:
    make_dataset(tmp_path, [6, 6])
    before, state = dataset_files(str(tmp_path)), dataset_state(str(tmp_path))
    for name in ("shards/000000-b2.tar", "commits/.aside-x", "events/.aside-x", f"manifests/{'0' * 64}.json"):
        store.put(f"{tmp_path}/{name}", b"{}")
    store.put(f"{tmp_path}/events/a-0.jsonl", b"")  # each life of an ingest says something
    assert len(dataset_files(str(tmp_path))) == len(before) + 4
    assert dataset_state(str(tmp_path)) == state
    tar = next((tmp_path / "shards").glob("000001-a1.tar"))
    tar.write_bytes(tar.read_bytes()[:600] + bytes(100) + tar.read_bytes()[700:])
    assert dataset_state(str(tmp_path))["problems"]


def campaign(out: Path, *words: str) -> dict[str, dict]:
    done = subprocess.run([sys.executable, str(CAMPAIGN), *words, "--out", str(out)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert all(row["left"] == row["failures"] == [] for row in rows.values())
    return rows


SAMPLES = [
    ("import", "in-place", "ingest", "retry", "select", "sweep"),
    ("train", "probe", "scale", "embed"),
]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verbs", SAMPLES, ids=lambda verbs: verbs[0])
def test_a_verb_that_is_killed_and_run_again_leaves_what_an_undisturbed_one_does(tmp_path: Path, verbs) -> None:
    """A few points of each; docs/campaigns/kills.json has hundreds."""
    seed = str(os.getpid() % 1000)  # not always the same points
    rows = campaign(tmp_path / "kills.json", *verbs, "--points", "3", "--seed", seed)
    assert {name: row["kills"] for name, row in rows.items()} == {f"{verb} points disk": 3 for verb in verbs}
    again = campaign(tmp_path / "kills.json", *verbs, "--points", "3", "--seed", seed)
    assert again == rows, "it was finished"


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("verbs", [("ingest", "import", "select"), ("train", "views", "scale")], ids=lambda v: v[0])
def test_a_verb_that_is_interrupted_and_run_again_ends_like_an_undisturbed_one(tmp_path: Path, verbs) -> None:
    """`make attack ROW=interrupts` does it to every long verb, at three moments."""
    seed = str(os.getpid() % 1000)
    rows = campaign(tmp_path / "interrupts.json", *verbs, "--points", "1", "--how", "ctrl-c", "--seed", seed)
    assert {name: row["kills"] for name, row in rows.items()} == {f"{verb} ctrl-c disk": 1 for verb in verbs}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_at_once_make_one(tmp_path: Path) -> None:
    rows = campaign(tmp_path / "twice.json", "import", "in-place", "select", "--points", "2", "--how", "twice")
    assert [row["kills"] for row in rows.values()] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_verb_that_is_killed_over_a_store_that_fails(tmp_path: Path) -> None:
    rows = campaign(tmp_path / "s3.json", "import", "select", "--points", "2", "--store", "s3")
    assert [row["kills"] for row in rows.values()] == [2, 2]
