"""Comparisons from a study's recorded rows: those of the report, and also across machines."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.lab.compare_rows import Recorded, compared, main, read
from xtra.probe.result import pack

STUDY = Path(__file__).parents[3] / "docs" / "study"


def test_the_declared_comparison_is_that_of_the_report():
    """The report was made from the runs of one machine; those of another came later."""
    probes = [probe for probe in read(str(STUDY)) if probe.manifest.startswith(("23ec7615", "17125882"))]
    first, *_ = compared(probes, ("block4", "block1", ("cifar10-test", "linear", 64_000)))
    found = first.found
    assert (found.arm, found.against, found.primary, found.seeds, found.images) == ("block4", "block1", True, 3, 10_000)
    shown = [f"{100 * value:.1f}" for value in (found.difference, found.low, found.high)]
    assert shown == ["-4.2", "-5.4", "-3.0"]
    assert "lower by 4.2 points (95 % interval of the difference -5.4 to -3.0)" in (STUDY / "report.html").read_text()


def test_the_command_prints_every_comparison_and_what_the_study_took():
    command = [sys.executable, "-m", "jobs.lab.compare_rows", str(STUDY)]
    _, first, *_, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert first.startswith("cifar10-test, linear, 64,000")
    assert first.endswith("declared")
    assert re.fullmatch(r"\d+ runs: .* h of CPU, .* h of the clock; \d+ probes: .* h of the clock", last)


def probe(arm: str, seed: int, right: np.ndarray, samples: int = 100, manifest: str = "a" * 64) -> Recorded:
    return Recorded(arm, seed, ("set", "linear", samples), len(right), manifest, "b" * 64, pack(right))


def test_pairs_are_made_of_the_seeds_that_both_have_at_the_largest_count():
    draw = np.random.default_rng(0)
    good, bad = draw.random((3, 400)) < 0.8, draw.random((3, 400)) < 0.3
    probes = [probe("one", seed, good[seed], samples) for seed in range(3) for samples in (50, 100)]
    probes += [probe("two", seed, bad[seed]) for seed in (1, 2)]
    (row,) = compared(probes)
    assert (row.cell, row.found.seeds, row.found.primary) == (("set", "linear", 100), 2, False)
    assert row.accuracy == pytest.approx(good[1:].mean())
    assert row.found.difference == pytest.approx(good[1:].mean() - bad[1:].mean())
    (declared,) = compared(probes, ("two", "one", ("set", "linear", 100)))
    assert (declared.found.arm, declared.found.primary) == ("two", True)
    assert declared.found.difference == pytest.approx(-row.found.difference)


def test_arms_without_a_common_seed_are_not_compared():
    right = np.ones(10, bool)
    assert compared([probe("one", 0, right), probe("two", 1, right)]) == []


def test_bits_without_a_ledger_row_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no grid-right\.csv with probes of trained encoders"):
        read(str(tmp_path))
    columns = ("name", "set", "head", "encoder", "samples_seen", "seed", "manifest_eval", "total", "right")
    with (tmp_path / "grid-right.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, ("run-1", "set", "linear", "trained", 5, 0, "b", 8, "/w==")])
    with pytest.raises(ValueError, match=r"grid\.csv: has no row of run-1, whose bits are recorded"):
        read(str(tmp_path))


def test_the_command_names_a_folder_without_rows(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "has no grid-right.csv" in capsys.readouterr().err
