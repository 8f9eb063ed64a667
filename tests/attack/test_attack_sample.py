"""A sample of every row of the attack (docs/reliability.md): `make attack ROW=name` runs one whole."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attack
import fuzz_rows
import other_rows
import pytest
from places import ROOT

SAMPLE = {
    "fuzz-image": 40,
    "fuzz-tar": 60,
    "fuzz-parquet": 30,
    "fuzz-json": 30,
    "fuzz-pickle": 30,
    "fuzz-robots": 20,
    "small-worlds": 3,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_a_row_finds_nothing(tmp_path: Path, name: str) -> None:
    words = [sys.executable, "-c", _SAMPLE, name, str(SAMPLE[name]), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=fuzz_rows._environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    outcomes = json.loads(done.stdout.splitlines()[-1])
    assert len(outcomes) == SAMPLE[name]
    assert {outcome for outcome in outcomes if outcome not in ("fine", "refused")} == set()


# In a process of its own, as rounds are forks: this one has threads of other tests.
_SAMPLE = """
import json, pathlib, sys, attack
name, rounds, folder = sys.argv[1:]
print(json.dumps(list(attack.ROWS[name].run(pathlib.Path(folder), 11, 0, int(rounds)))))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_sample_of_jpegs_under_sanitizers_finds_nothing(tmp_path: Path) -> None:
    try:
        fuzz_rows.build(tmp_path)
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no sanitizers, or there is no libjpeg")
    assert set(fuzz_rows.jpegs(tmp_path, 11, 0, 1000)) == {"fine"}


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root for a network namespace")
def test_no_private_address_is_reached(tmp_path: Path) -> None:
    try:
        outcomes = list(attack.ROWS["guard"].run(tmp_path, 7, 0, attack.ROWS["guard"].rounds))
    except RuntimeError as error:
        pytest.skip(str(error))
    assert len(outcomes) >= 114
    assert {outcome for outcome in outcomes if outcome not in ("fine", "refused")} == set()


def test_a_row_that_was_stopped_goes_on_with_the_same_rounds(tmp_path: Path) -> None:
    results = attack.Results(tmp_path / "results.json")
    state = attack.attack("fuzz-robots", 7, 0.0, results)  # the time is up after one round
    assert state["rounds"] == 1
    again = attack.Results(tmp_path / "results.json")
    assert attack.attack("fuzz-robots", 7, 0.0, again)["rounds"] == 2
    assert attack.attack("fuzz-robots", 8, 0.0, again)["rounds"] == 1  # another seed is another campaign
    assert sum(again.rows["fuzz-robots"]["outcomes"].values()) == 1
    drawn = [fuzz_rows.random_of("tar", 7, number).random() for number in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert "fuzz-robots" in attack.line("fuzz-robots", again.rows["fuzz-robots"])


def test_an_odd_round_is_done_again_and_counted_once(tmp_path: Path) -> None:
    results = attack.Results(tmp_path / "results.json")
    state = {"seed": 7, "rounds": 3, "outcomes": {"fine": 2, "fault": 1}, "faults": ["round 1: it stood still"]}
    results.rows["fuzz-robots"] = state | {"seconds": 0.0, "date": "2026-11-30", "commit": "c", "machine": "m"}
    state = attack.redo("fuzz-robots", results)
    assert (state["rounds"], state["faults"], state["redone"]) == (3, [], 1)
    assert (state["outcomes"]["fine"], state["outcomes"]["fault"]) == (3, 0)
    kills = json.loads((attack.RESULTS.parent / "kills.json").read_text())["rows"]
    assert "; 1 done again" in "".join(attack.table(attack.Results(tmp_path / "results.json").rows, kills))


def test_the_table_of_small_worlds_has_a_cell_for_each_verb_in_each() -> None:
    each = ["fine"] * attack.ROWS["small-worlds"].rounds
    each[1] = "refused"  # the first verb in the second world
    lines = attack.worlds({"each": each})
    assert lines[0] == "| | import | select | status | train |"
    assert lines[3] == "| 32 descriptors | one line | works | works | works |"
    assert len(lines) == 2 + len(other_rows.WORLDS)
