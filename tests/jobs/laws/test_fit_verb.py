"""`xtra fit`: what it reads, prints and refuses."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import made_ledgers
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli
from jobs.report.ledger import LedgerRow
from jobs.report.ledger_file import write_ledger


@pytest.fixture
def two(tmp_path: Path) -> str:
    rows = made_ledgers.rows("block1", noise=0.002) + made_ledgers.rows("block4", A=5.2, noise=0.002, draw=1)
    return made_ledgers.write(tmp_path / "ledger.csv", rows)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["fit", *words]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert cli.main(["fit", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_json_has_the_documented_shape(two: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, two)
    assert set(found) == {"arms", "multipliers", "held_out", "level"}
    assert found["level"] == 0.9
    assert set(found["arms"]) == {"block1", "block4"}
    for arm in found["arms"].values():
        assert set(arm) == {"E", "A", "a", "n0"}
        for value in arm.values():
            assert set(value) == {"value", "low", "high"}
            assert value["low"] <= value["value"] <= value["high"]
        assert arm["n0"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for m in found["multipliers"]:
        assert set(m) == {"arm", "against", "at_accuracy", "value", "low", "high"}
        assert m["low"] <= m["value"] <= m["high"]
    for h in found["held_out"]:
        assert set(h) == {"arm", "samples_seen", "accuracy", "predicted", "low", "high"}
        assert h["samples_seen"] == 64_000
    assert as_json(capsys, two, "--level", "0.5")["arms"]["block1"]["a"]["high"] < found["arms"]["block1"]["a"]["high"]


def test_by_names_the_arm_to_compare_with(two: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, two, "--by", "block1")
    assert {(m["arm"], m["against"]) for m in found["multipliers"]} == {("block4", "block1")}
    assert all(m["value"] > 1.2 for m in found["multipliers"])
    assert "'blok1'" not in refused(capsys, two, "--by", "blok1")
    assert "did you mean block1?" in refused(capsys, two, "--by", "blok1")


def test_by_may_name_the_column_of_the_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_ledgers.rows("1") + made_ledgers.rows("4", A=5.0)
    rows = [{"block" if name == "arm" else name: value for name, value in row.items()} for row in rows]
    where = made_ledgers.write(tmp_path / "ledger.csv", rows)
    assert set(as_json(capsys, where, "--by", "block")["arms"]) == {"block 1", "block 4"}
    assert "has no column arm" in refused(capsys, where)


def test_the_table_is_80_columns_and_says_what_it_means(two: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", two, "--at", "128000", "1e7"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert "3 trunks" in text
    assert "block4 against block1" in text
    assert "156 times beyond the data, more than a decade: a guess" in text
    assert text.count("beyond the data") == 2  # once an arm, and not at 128,000
    assert "log-linear" in text


def test_parquet_is_read_like_csv(two: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_ledgers.rows("block1", noise=0.002) + made_ledgers.rows("block4", A=5.2, noise=0.002, draw=1)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "ledger.parquet")
    assert as_json(capsys, str(tmp_path / "ledger.parquet")) == as_json(capsys, two)


def test_without_seeds_intervals_come_from_residuals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{k: v for k, v in row.items() if k != "seed"} for row in made_ledgers.rows("x", noise=0.002)]
    where = made_ledgers.write(tmp_path / "ledger.csv", rows)
    value = as_json(capsys, where)["arms"]["x"]["a"]
    assert value["low"] < 0.35 < value["high"]
    assert cli.main(["fit", where]) == 0
    assert "The table has no seeds" in capsys.readouterr().out
    one = made_ledgers.write(tmp_path / "one.csv", made_ledgers.rows("x", noise=0.002, seeds=1))
    assert cli.main(["fit", one]) == 0
    said = capsys.readouterr().out
    assert "One trunk only (x)" in said
    assert "residuals" in said


def test_our_own_ledger_has_baselines_and_heads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for head in ("linear", "attentive"):
        trained = made_ledgers.rows("x", E=0.3 if head == "linear" else 0.2)
        rows += [{**row, "head": head, "encoder": "trained"} for row in trained]
        rows.append({"arm": "x", "seed": 0, "samples_seen": 0, "accuracy": 0.2, "head": head, "encoder": "random"})
    rows.append({"arm": "x", "seed": 0, "samples_seen": 64_000, "accuracy": "", "head": "", "encoder": ""})
    where = made_ledgers.write(tmp_path / "ledger.csv", rows)
    assert "choose with --head" in refused(capsys, where)
    assert as_json(capsys, where, "--head", "linear")["arms"]["x"]["E"]["value"] == pytest.approx(0.3, abs=1e-3)
    assert as_json(capsys, where, "--head", "attentive")["arms"]["x"]["E"]["value"] == pytest.approx(0.2, abs=1e-3)
    assert "has attentive, linear" in refused(capsys, where, "--head", "knn").replace(", ,", ",")


def test_a_ledger_as_the_report_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With columns that name arms other than `arm`, both formats, and rows that are no measurement."""
    kinds = {"str": "", "int": 0, "float": 0.0}
    empty = {f.name: kinds.get(str(f.type)) for f in dataclasses.fields(LedgerRow)}
    rows = []
    for block in (1, 4):
        for made in made_ledgers.rows("", A=6.0 - block / 4, noise=0.001, draw=block):
            row = empty | {
                "block": block,
                "head": "linear",
                "set": "cifar10",
                "encoder": "trained",
                "params": 10 + block,
            }
            row |= {name: made[name] for name in ("seed", "samples_seen", "accuracy")}
            rows.append(LedgerRow(**row | {"flops": made["samples_seen"] * 10**6, "unique_images": 50_000}))
    rows.append(LedgerRow(**empty | {"block": 1, "encoder": "none", "accuracy": 0.3}))
    rows.append(LedgerRow(**empty | {"block": 1}))
    parquet, text = write_ledger(str(tmp_path), rows)
    found = as_json(capsys, parquet, "--by", "block")
    assert set(found["arms"]) == {"block 1", "block 4"}
    assert as_json(capsys, text, "--by", "block") == found
    assert cli.main(["fit", parquet, "--by", "block"]) == 0
    assert "At equal unique_images: no law" in capsys.readouterr().out


def test_loss_goes_with_accuracy_inside_a_block_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "block": 4, "loss": 1.5 - row["accuracy"]} for row in made_ledgers.rows("x", noise=0.002)]
    assert cli.main(["fit", made_ledgers.write(tmp_path / "ledger.csv", rows)]) == 0
    assert "Block 4: rank correlation of loss and accuracy -1.00 over 18 points." in capsys.readouterr().out


def test_an_arm_that_meets_no_other_is_named(two: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_ledgers.rows("one") + made_ledgers.rows("other", A=5.0) + made_ledgers.rows("random", E=0.9, A=0.5)
    where = made_ledgers.write(tmp_path / "three.csv", rows)
    found = as_json(capsys, where)
    assert {m["arm"] for m in found["multipliers"]} == {"one", "other"}
    assert set(found["arms"]) == {"one", "other", "random"}
    assert cli.main(["fit", where]) == 0
    assert "No multiplier for random: it shares no accuracy with another arm." in capsys.readouterr().out


def test_an_arm_that_is_hardly_begun_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_ledgers.rows("one") + made_ledgers.rows("begun", counts=[2000, 4000])
    where = made_ledgers.write(tmp_path / "ledger.csv", rows)
    assert set(as_json(capsys, where)["arms"]) == {"one"}
    assert cli.main(["fit", where]) == 0
    assert "Arm begun has 2 sample counts (2,000, 4,000): a law with a floor needs" in capsys.readouterr().out
    assert "too few counts for a law" in refused(capsys, where, "--by", "begun")


def changed(rows: made_ledgers.Rows, **changes: Any) -> made_ledgers.Rows:
    return [{**row, **changes} if number == 4 else row for number, row in enumerate(rows)]


BAD = {
    "no accuracy": ([{"arm": "x", "samples_seen": 2000}], "has no column accuracy"),
    "a near name": ([{"arm": "x", "samples_sen": 1, "accuracy": 0.3}], "did you mean samples_sen?"),
    "NaN": (changed(made_ledgers.rows("x"), accuracy=math.nan), "row 5: accuracy is 'nan'; it must be a number"),
    "empty": (changed(made_ledgers.rows("x"), accuracy=""), "row 5: accuracy is empty"),
    "text": (changed(made_ledgers.rows("x"), samples_seen="many"), "row 5: samples_seen is 'many'"),
    "percent": (changed(made_ledgers.rows("x"), accuracy=38.4), "accuracy is 38.4; it must be a share between 0 and 1"),
    "no samples": (changed(made_ledgers.rows("x"), samples_seen=0), "samples_seen is 0; it must be above 0"),
    "no arm": (changed(made_ledgers.rows("x"), arm=""), "row 5: arm is empty"),
    "one point": (
        made_ledgers.rows("x", counts=[2000], seeds=1),
        "arm x has 1 sample count (2,000): a law with a floor",
    ),
    "two counts": (made_ledgers.rows("x", counts=[2000, 4000]), "arm x has 2 sample counts (2,000, 4,000)"),
    "twice": (made_ledgers.rows("x") + made_ledgers.rows("x")[:1], "seed 0, has two rows of 2,000 samples: keep one"),
    "seeds of some": (changed(made_ledgers.rows("x"), seed=""), "some rows have a seed and some do not"),
    "no shared range": (
        made_ledgers.rows("low", E=0.8, A=0.5) + made_ledgers.rows("high", E=0.1, A=0.5),
        "arms share no range of accuracy (low 1",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_ledger_is_one_line(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, message = BAD[case]
    said = refused(capsys, made_ledgers.write(tmp_path / "ledger.csv", rows))
    assert message in said
    assert "ledger.csv" in said or "arm x" in said


def test_files_that_are_no_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read" in refused(capsys, str(tmp_path / "none.csv"))
    (tmp_path / "noise.csv").write_bytes(b"\xff\xfe\x00\x01" * 20)
    assert "is neither Parquet nor CSV" in refused(capsys, str(tmp_path / "noise.csv"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1" + b"\x00" * 50)
    assert "is neither Parquet nor CSV" in refused(capsys, str(tmp_path / "torn.parquet"))
    (tmp_path / "empty.csv").write_bytes(b"")
    assert "is empty" in refused(capsys, str(tmp_path / "empty.csv"))
    (tmp_path / "head.csv").write_text("arm,samples_seen,accuracy\n")
    assert "has no accuracy of a trained encoder" in refused(capsys, str(tmp_path / "head.csv"))
    assert "LEDGER is missing" in refused(capsys)


def test_an_axis_that_is_not_there(two: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, two, "--x", "flops")
    assert "has no column flops: choose another --x, of samples_seen" in said


def test_what_the_paper_claims_by_both_ways_of_counting(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--published", "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert max(map(len, text)) <= 80
    assert "152 times fewer unique images, 1.5 times fewer samples seen." in text
    (m,) = json.loads(last)["multipliers"]
    assert m["unique_images"] == pytest.approx(152.1, abs=0.1)
    assert m["samples_seen"] == pytest.approx(1.52, abs=0.01)


def test_power_says_what_a_design_can_find(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "--power", "--seeds", "3", "--sd", "0.5", "--arms", "5", "--json"]) == 0
    text = capsys.readouterr().out
    assert "finds a true difference of 1.3" in text
    assert refused(capsys, "--power", "--seeds", "1") == "xtra fit: seeds is 1; it must be at least 2\n"


def test_a_study_says_before_it_runs_what_it_can_find(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["scale", "--data", "D", "--out", str(tmp_path / "S"), "--power", "--sd", "0.5"]
    assert cli.main([*grid, "--recipes", "demo32", "demo32_aim", "--seeds", "0", "1", "2", "--json"]) == 0
    text = capsys.readouterr().out
    (found,) = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert (found["seeds"], found["arms"]) == (3, 2)
    assert "3 seeds an arm" in text
    assert not (tmp_path / "S").exists()
    assert cli.main(grid) == 2
    assert capsys.readouterr().err == "xtra scale: seeds is 1; it must be at least 2\n"
