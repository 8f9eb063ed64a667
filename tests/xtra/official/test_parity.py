"""Agreement with numbers computed by the official modules; needs the folder of vectors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from places import SHARED

from jobs.bench import parity

VECTORS = Path(os.environ.get("XTRA_VECTORS") or SHARED / "vectors").resolve()
CASES = ["aim_causal", "xtra_block2", "xtra_block4", "xtra_l1", "xtra_permuted", "xtra_two_ahead"]

needs_vectors = pytest.mark.skipif(
    not any(VECTORS.glob("*.safetensors")), reason=f"no parity vectors in {VECTORS}: set XTRA_VECTORS to their folder"
)


@needs_vectors
@pytest.mark.parametrize("name", CASES)
def test_every_output_and_gradient_is_the_official_one(name):
    (case,) = [case for case in parity.read_cases(str(VECTORS)) if case.name == name]
    errors = parity.compare(case)
    grads = [n for n in errors if n.startswith("g/")]
    assert len(grads) == len(case.part("w/"))
    assert {"out/encoder", "out/bridge", "out/decoder", "out/pred0", "out/target", "out/loss"} < errors.keys()
    assert {n: e for n, e in errors.items() if not e < 1e-9} == {}


@needs_vectors
def test_the_bench_reports_every_case_and_the_largest_error(capsys):
    result = parity.run(parity.Config(str(VECTORS)))
    assert {row["case"] for row in result["rows"]} == set(CASES)
    assert result["ratios"]["max_relative_error"] == max(row["relative_error"] for row in result["rows"]) < 1e-9
    assert result["subject"] == "parity"
    assert result["hardware"]
    assert result["commit"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in CASES)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no NAME\.json"):
        parity.run(parity.Config(str(tmp_path)))


def test_relative_error_is_of_the_tensor_and_sees_a_wrong_shape():
    theirs = torch.tensor([0.0, 4.0])
    assert parity.relative_error(theirs + torch.tensor([2.0, 0.0]), theirs) == 0.5
    assert parity.relative_error(torch.zeros(3), theirs) == float("inf")
    assert parity.relative_error(torch.ones(2), torch.zeros(2)) == 1.0
