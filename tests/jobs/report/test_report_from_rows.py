"""A page made from recorded rows has the numbers of the page made from their run folders, and says what it lacks."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import run_folders
from test_compare import arm, declare
from test_report import Reader

from jobs.lab.rows import write_rows
from jobs.report.arms import study as study_of
from jobs.report.comparable import digest_of
from jobs.report.compare import Comparison, comparisons, read_primary
from jobs.report.ledger import Ledger
from jobs.report.measured import measured
from jobs.report.rows import as_one, read_ledger, read_same_data
from jobs.report.scaling import Config, page, run, write_report

STUDY = Path(__file__).parents[3] / "docs" / "study"
INSIDE = re.compile(r"data:text/csv;base64,([^\"]*)")
ALIKE = ("accuracy", "comparisons", "multiplier", "front", "papers", "ledger", "glossary")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three arms at three counts, one of them declared against another; an untrained encoder; a run without a probe."""
    root = tmp_path_factory.mktemp("study") / "runs"
    for at, samples in enumerate((6400, 12800, 25600)):
        for name, accuracy, model in (
            ("block4", 0.36, {"block": 4}),
            ("block1", 0.30, {"block": 1}),
            ("random", 0.25, {"block": 4, "order": "random"}),
        ):
            more = {"protocol": "hold-out, seed 0", "epochs": 7, "selection": [{"lr": 0.1, "accuracy": 0.2}]}
            arm(root, name, accuracy + 0.03 * at, samples=samples, config={"model": model}, **more)
    run_folders.write_probe(root / "block4-n6400-s0", 0.1, encoder="random", total=2000)
    run_folders.write_run(root / "unprobed", 6400, block=2)
    declare(root, samples_seen=25600)
    return root


@pytest.fixture
def rows(runs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    write_rows(str(runs), str(folder), "grid")
    shutil.copy(runs / "study.json", folder)
    return folder


def sections(html: str) -> dict[str, str]:
    return dict(re.findall(r'<section id="(\w+)">(.*?)</section>', html, flags=re.DOTALL))


def test_rows_give_the_numbers_of_their_run_folders(runs: Path, rows: Path):
    folders = Path(write_report(str(runs))).read_text()
    recorded = Path(write_report(str(rows))).read_text()
    whole, ours = sections(folders), sections(recorded)
    for name in ALIKE:
        assert INSIDE.sub("", ours[name]) == INSIDE.sub("", whole[name]), name
    inside = [sorted(base64.b64decode(INSIDE.findall(html)[0]).splitlines()) for html in (folders, recorded)]
    assert inside[0] == inside[1], "the ledger inside the page, whose rows stand as in their table"
    for element in (r"<h1>.*?</h1>", r'<p class="answer">.*?</ul>', r'<section id="shown">.*?</section>'):
        (wanted,), (found,) = (re.findall(element, html, flags=re.DOTALL) for html in (folders, recorded))
        assert found == wanted
    assert "This comparison was declared before the runs." in recorded
    assert "order random" in ours["comparisons"]
    assert "wide" in ours["multiplier"], "there are laws"
    assert "28 runs: 0.0 h of CPU" in ours["runs"]
    assert "28 probes: 0.2 h of the clock" in ours["runs"]


def test_a_page_from_rows_says_what_it_leaves_out(rows: Path):
    result = run(Config(str(rows)))
    text = Reader(Path(result.report).read_text()).text
    (line,) = result.lacks
    assert line in text
    assert "leaves out what run folders alone have: pictures, losses along a run" in line
    assert "Learning rate, gradient norm, throughput" not in text
    assert "every run finished in one attempt" not in text
    assert "xtra train" not in text
    assert (result.ledger, result.csv) == ("", ""), "the rows are the ledger"
    assert sorted(path.name for path in rows.iterdir() if path.suffix not in (".svg", ".html")) == [
        "grid-right.csv",
        "grid-settings.json",
        "grid.csv",
        "study.json",
    ]
    first = Path(result.report).read_bytes()
    assert Path(write_report(str(rows))).read_bytes() == first, "the page itself is no row"


def test_one_ledger_is_as_good_as_its_folder(rows: Path):
    whole = Path(write_report(str(rows), str(rows / "a.html"))).read_text()
    assert Path(write_report(str(rows / "grid.csv"), str(rows / "b.html"))).read_text() == whole
    assert Path(run(Config(str(rows / "grid.csv"))).report) == rows / "report.html"


def test_tables_without_a_probe_count_as_cost_alone(runs: Path, rows: Path, tmp_path: Path):
    run_folders.write_run(tmp_path / "swept/rate", 6400)
    write_rows(str(tmp_path / "swept"), str(rows), "sweep")
    before, after = (run(Config(url, text=True)) for url in (str(rows / "grid.csv"), str(rows)))
    assert after.text[:-1] == before.text[:-1]
    many = [int(result.text[-1].partition(" runs: ")[0]) for result in (before, after)]
    assert many[1] == many[0] + 1
    assert (after.runs, after.report) == (before.runs, "")


def test_without_bits_there_are_no_pairs_of_images_and_the_page_says_so(rows: Path):
    (rows / "grid-right.csv").unlink()
    ledger = read_ledger(str(rows))
    assert {c.paired for c in compared(ledger)} == {"seeds"}
    text = Reader(page(ledger)).text
    assert "grid.csv has no grid-right.csv beside it" in text
    assert "no comparison is paired by image" in text


def test_without_settings_lines_are_told_apart_by_their_digest(rows: Path):
    (rows / "grid-settings.json").unlink()
    ledger = read_ledger(str(rows))
    found = {tuple(d.name for d in c.differs) for c in compared(ledger)}
    assert ("model.block",) in found
    assert ("model.order", "settings") in found, "what else differs is not known"
    assert "No *-settings.json states the settings behind" in Reader(page(ledger)).text


def test_rows_of_an_older_build_lack_columns(rows: Path):
    before = compared(read_ledger(str(rows)))
    edit(rows / "grid.csv", lambda table: [line[:-5] for line in table])
    ledger = read_ledger(str(rows))
    assert ledger.problems == ()
    assert [(c.low, c.high, c.adjusted) for c in compared(ledger)] == [(c.low, c.high, c.adjusted) for c in before]
    assert "Which rates a probe tried is not in all of these rows" in Reader(page(ledger)).text


def compared(ledger: Ledger, root: Path | None = None) -> list[Comparison]:
    return comparisons(measured(ledger, study_of(ledger.runs)), read_primary(str(root)) if root else None)


# ---- bad input ----


def edit(path: Path, change: Any) -> None:
    with path.open(newline="") as file:
        table = change(list(csv.reader(file)))
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(table)


def test_a_folder_with_neither_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(
        ValueError, match=r"contains no run .* and no ledger: give the --out of a training run, or a fold"
    ):
        write_report(str(tmp_path))
    with pytest.raises(ValueError, match=r"notes\.csv: column 'a' is not of a ledger"):
        write_report(str(tmp_path / "notes.csv"))
    assert not (tmp_path / "report.html").exists()


def test_a_column_that_no_ledger_has_is_refused(rows: Path):
    edit(rows / "grid.csv", lambda table: [[*table[0], "colour"], *([*line, "red"] for line in table[1:])])
    with pytest.raises(ValueError, match=r"grid\.csv: column 'colour' is not of a ledger: it is from a newer build"):
        write_report(str(rows))


def test_a_missing_column_is_named(rows: Path):
    edit(rows / "grid.csv", lambda table: [line[:8] + line[9:] for line in table])
    with pytest.raises(ValueError, match=r"grid\.csv: has no column block"):
        write_report(str(rows))


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("block", "four", r"grid\.csv line 2: block is 'four', not a whole number \(row skipped\)"),
        ("total", "9" * 30, r"grid\.csv line 2: total is '9{30}', not a whole number \(row skipped\)"),
        ("accuracy", "nan", r"grid\.csv line 2: accuracy is 'nan', not a number \(row skipped\)"),
        ("accuracy", "1.5", r"grid\.csv line 2: accuracy is 1\.5 of 2000 images \(row skipped\)"),
        ("manifest", "", r"grid\.csv line 2: names no run, no manifest, or an impossible block or count"),
    ],
)
def test_a_damaged_row_is_named_and_the_others_are_kept(rows: Path, column: str, cell: str, said: str):
    before = len(read_ledger(str(rows)).rows)

    def damage(table: list[list[str]]) -> list[list[str]]:
        table[1][table[0].index(column)] = cell
        return table

    edit(rows / "grid.csv", damage)
    ledger = read_ledger(str(rows))
    assert len(ledger.rows) == before - 1
    assert any(re.search(said, problem) for problem in ledger.problems), ledger.problems
    assert all("\n" not in problem for problem in ledger.problems)
    assert re.search(said, Reader(Path(write_report(str(rows))).read_text()).text)


def test_a_torn_line_and_a_run_with_two_manifests_are_named(rows: Path):
    def damage(table: list[list[str]]) -> list[list[str]]:
        (one,) = (line for line in table if line[0] == "block4-n6400-s0" and "random" in line)
        one[table[0].index("manifest")] = "f" * 64
        return [*table, table[-1][:5]]

    edit(rows / "grid.csv", damage)
    ledger = read_ledger(str(rows))
    assert any(re.search(r"grid\.csv line \d+: has 5 cells, not \d+ \(row skipped\)", p) for p in ledger.problems)
    assert any("the rows of block4-n6400-s0 name several manifests" in problem for problem in ledger.problems)
    assert "block4-n6400-s0" not in {row.run for row in ledger.rows}


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (
            "AAAA",
            r"grid-right\.csv line \d+: right has 3 bytes, but 2000 images have 250: it is damaged \(row skipped\)",
        ),
        ("A" * 332 + "AA==", r"grid-right\.csv line \d+: fits no row of grid\.csv"),
    ],
    ids=["torn", "another"],
)
def test_damaged_bits_are_named_and_not_used(rows: Path, cell: str, said: str):
    def damage(table: list[list[str]]) -> list[list[str]]:
        (compared,) = (line for line in table if line[0] == "block4-n25600-s0")
        compared[-1] = cell
        return table

    edit(rows / "grid-right.csv", damage)
    ledger = read_ledger(str(rows))
    assert any(re.search(said, problem) for problem in ledger.problems), ledger.problems
    assert "seeds" in {c.paired for c in compared(ledger)}, "of the comparisons that need these bits"


def test_settings_that_do_not_give_their_digest_are_refused(rows: Path):
    path = rows / "grid-settings.json"
    whole = json.loads(path.read_text())
    next(iter(whole.values()))["batch"] = 7
    run_folders.write_json(path, whole)
    with pytest.raises(ValueError, match=r"grid-settings\.json: '\w{12}' is not the digest of its settings"):
        write_report(str(rows))


def test_settings_that_describe_no_training_are_named(rows: Path):
    path = rows / "grid-settings.json"
    whole = json.loads(path.read_text())
    (digest, settings), *_ = whole.items()
    settings["model"]["width"] = "wide"
    del whole[digest]
    run_folders.write_json(path, whole | {digest_of(settings): settings})

    def change(table: list[list[str]]) -> list[list[str]]:
        return [[digest_of(settings) if cell == digest else cell for cell in line] for line in table]

    edit(rows / "grid.csv", change)
    ledger = read_ledger(str(rows))
    assert any(re.search(r"describes no training \(.*'width' is 'wide'", problem) for problem in ledger.problems)
    assert Path(write_report(str(rows))).exists()


def test_a_row_that_is_there_twice_counts_once(rows: Path):
    before = compared(read_ledger(str(rows)))
    edit(rows / "grid.csv", lambda table: [*table, table[-1], table[1]])
    ledger = read_ledger(str(rows))
    assert [c.accuracies for c in compared(ledger)] == [c.accuracies for c in before]
    assert (
        len([p for p in ledger.problems if re.search(r"grid\.csv line \d+: repeats .* of .* \(row skipped\)", p)]) == 2
    )


def test_a_run_in_two_ledgers_is_refused(rows: Path):
    shutil.copy(rows / "grid.csv", rows / "more.csv")
    with pytest.raises(ValueError, match=r"more\.csv: has rows of \S+, as grid\.csv has: give one of the two"):
        write_report(str(rows))


# ---- the same data, imported twice ----


def imported_again(rows: Path, arms: Sequence[str]) -> list[list[str]]:
    """Give these arms' rows other digests for the same data, as another machine would; the pairs."""
    again: dict[str, str] = {}
    for name, columns in (
        ("grid.csv", ("manifest", "probe_train", "probe_eval")),
        ("grid-right.csv", ("manifest_eval",)),
    ):

        def change(table: list[list[str]], columns: tuple[str, ...] = columns) -> list[list[str]]:
            for line in table[1:]:
                for at in (table[0].index(column) for column in columns):
                    if line[0].startswith(tuple(arms)) and line[at]:
                        line[at] = again.setdefault(line[at], run_folders.digest("again", line[at]))
            return table

        edit(rows / name, change)
    return [list(pair) for pair in again.items()]


def test_two_imports_are_separate_until_they_are_declared_the_same(rows: Path):
    before = compared(read_ledger(str(rows)), rows)
    pairs = imported_again(rows, ("random",))
    apart = read_ledger(str(rows))
    assert len({line.manifest for line in study_of(apart.runs).lines}) == 2
    assert not any("order random" in c.one.line.label + c.other.line.label for c in compared(apart, rows))

    declared = json.loads((rows / "study.json").read_text()) | {"same_data": pairs}
    run_folders.write_json(rows / "study.json", declared)
    found = compared(as_one(read_ledger(str(rows)), read_same_data(str(rows))), rows)
    assert [(c.low, c.high, c.adjusted, c.seeds) for c in found] == [
        (c.low, c.high, c.adjusted, c.seeds) for c in before
    ]
    by_order = {"order random" in c.one.line.label + c.other.line.label: c for c in found}
    assert by_order[False].equal == "all else equal"
    assert {*by_order[True].imports} == {digest[:8] for digest in pairs[0]}
    alone = next(c for c in found if [d.name for d in c.differs] == ["model.order"])
    assert alone.equal == "all else equal except the import of the data"

    text = Reader(Path(write_report(str(rows))).read_text()).text
    assert "By study.json, these digests are imports of the same data, and count as one" in text
    assert f"tin-val {pairs[2][0][:8]} = {pairs[2][1][:8]}" in text
    assert f"{pairs[0][0][:8]} / {pairs[0][1][:8]}" in text
    assert pairs[0][1][:16] in text, "the list of runs has the digests as recorded"


def test_an_import_that_the_rows_contradict_is_refused(rows: Path, tmp_path: Path):
    (train, _), *_ = imported_again(rows, ("random",))
    run_folders.write_run(tmp_path / "few/few", 6400, unique=5000)
    write_rows(str(tmp_path / "few"), str(rows), "grid")
    few = run_folders.digest("train", 5000)
    run_folders.write_json(rows / "study.json", {"same_data": [[train, few]]})
    with pytest.raises(
        ValueError, match=r"same, but as a training set they are tin, 6,400 images and tin, 5,000 images"
    ):
        write_report(str(rows))
    for wrong in ("abc", [["a" * 64]], [["a" * 64, "short"]], [["a" * 64, "b" * 64], ["b" * 64, "c" * 64]]):
        run_folders.write_json(rows / "study.json", {"same_data": wrong})
        with pytest.raises(ValueError, match=r"study\.json: same_data must be lists of two or more digests"):
            write_report(str(rows))


# ---- the block-size study ----


def test_the_first_machines_rows_give_the_comparison_of_its_report():
    """A page of 2026-11-30 was made from that machine's run folders, and said: lower by 4.2 points (-5.4 to -3.0)."""
    ledger = read_ledger(str(STUDY))
    ours = [run for run in ledger.runs if str(run.info["manifest"]).startswith(("23ec7615", "17125882"))]
    names = {run.url for run in ours}
    first, *_ = compared(
        replace(ledger, runs=tuple(ours), rows=tuple(row for row in ledger.rows if row.run in names)), STUDY
    )
    assert (first.one.line.name, first.other.line.name) == ("block4", "block1")
    assert (first.primary, first.seeds, first.one.row.total) == (True, 3, 10_000)
    assert [f"{100 * value:.1f}" for value in (first.difference, first.low, first.high)] == ["-4.2", "-5.4", "-3.0"]


def test_the_studys_page_is_that_of_its_rows():
    first, *_ = found = compared(as_one(read_ledger(str(STUDY)), read_same_data(str(STUDY))), STUDY)
    assert (first.one.line.name, first.primary, first.equal) == ("block4", True, "all else equal")
    interval = (
        f"lower by 4.2 points (95 % interval of the difference {100 * first.low:+.1f} to {100 * first.high:+.1f})"
    )
    text = Reader((STUDY / "report.html").read_text()).text
    assert interval in text
    assert f"{len(found)} comparisons: " in text
    assert len({line for c in found for line in (c.one.line.label, c.other.line.label)}) == 6


def test_every_settings_digest_of_the_study_is_stated():
    ledger = read_ledger(str(STUDY))
    assert ledger.problems == ()
    assert not any(run.unstated for run in ledger.runs)
    assert all(m.bits() is not None for m in measured(ledger, study_of(ledger.runs)))


def test_the_command_prints_every_comparison_and_what_the_study_took():
    command = [sys.executable, "-m", "jobs.cli", "report", str(STUDY), "--text"]
    _, first, *_, last = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert first.startswith("cifar10-test, linear, 64,000")
    assert first.endswith("declared")
    assert re.fullmatch(r"\d+ runs: .* h of CPU, .* h of the clock; \d+ probes: .* h of the clock", last)
