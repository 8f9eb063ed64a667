import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_folders

from jobs.report import charts, findings
from jobs.report.ledger import read_runs
from jobs.report.scaling import Config, page, run, write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.write_study(tmp_path_factory.mktemp("study"))


class Reader(HTMLParser):
    """Text, tags and what would be fetched from elsewhere."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.fetched = "", [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not (v or "").startswith("#")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_that_fetches_nothing(study: Path):
    html = Path(write_report(str(study))).read_text()
    seen = Reader(html)
    assert seen.fetched == []
    assert "script" not in seen.tags
    assert "link" not in seen.tags
    assert not re.search(r"url\((?!#)|@import", html)


def test_the_same_runs_give_the_same_bytes(study: Path):
    ledger = read_runs(str(study))
    first, second = page(ledger, "note"), page(read_runs(str(study)), "note")
    assert first == second
    assert page(replace(ledger, rows=ledger.rows[:-5])) != first


def test_charts_are_well_formed_and_their_references_are_their_own(study: Path):
    html = page(read_runs(str(study)))
    figures = re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)
    # samples, unique images and FLOPs for two heads; losses of two variants
    assert len(figures) == 3 * 2 + 2
    for figure in figures:
        ElementTree.fromstring(figure)
        ids = set(re.findall(r' id="([^"]+)"', figure))
        assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', figure)) <= ids
    every = re.findall(r' id="([^"]+)"', html)
    assert len(every) == len(set(every)), "two charts share an id: one would draw with the other's shapes"


def test_every_row_is_in_the_table_and_unknown_numbers_stay_empty(study: Path):
    ledger = read_runs(str(study))
    html = page(ledger)
    table = html[html.index("All runs and probes") : html.index("Where the numbers come from")]
    assert table.count("<tr>") == 1 + len(ledger.rows)
    (pixels,) = re.findall(r"<tr>(?:(?!</tr>).)*<td>none</td>.*?</tr>", table)
    assert "<td class=n></td>" in pixels, "the loss of raw pixels"
    assert "nan" not in Reader(html).text.lower().split()
    assert "None" not in Reader(html).text


def test_baselines_are_named_with_their_numbers(study: Path):
    rows = list(read_runs(str(study)).rows)
    palette = charts.colours(rows)
    lines = {line.label: line.accuracies for line in charts.baselines(rows, "linear")}
    assert lines == {"chance": (1 / 200,), "raw pixels": (0.034,), "untrained": (0.062,)}
    svg = charts.accuracy_chart(rows, "linear", "samples_seen", palette)
    assert svg is not None
    for text in ("untrained 6.2", "raw pixels 3.4", "chance 0.5", "XTRA 192x4/8", "AIM 192x4/8"):
        assert text in svg


def test_a_baseline_far_below_is_named_without_squeezing_the_curves(tmp_path: Path):
    for samples, accuracy in ((6400, 0.50), (12800, 0.55)):
        folder = run_folders.write_run(tmp_path / str(samples), samples=samples)
        run_folders.write_probe(folder, accuracy, classes=10)
    rows = read_runs(str(tmp_path)).rows
    svg = charts.accuracy_chart(rows, "linear", "samples_seen", charts.colours(rows))
    assert svg is not None
    assert "chance 10 ↓" in svg


def test_models_have_colours_of_their_own(tmp_path: Path):
    for block in (4, 1):
        for width in (96, 192, 384):
            run_folders.write_run(tmp_path / f"{block}-{width}", block=block, sizes={"width": width})
    palette = charts.colours(read_runs(str(tmp_path)).rows)
    assert len(palette) == len(set(palette.values())) == 6
    assert next(iter(palette)).startswith("XTRA")


def test_an_axis_with_one_value_is_not_drawn(study: Path):
    rows = [r for r in read_runs(str(study)).rows if r.unique_images == 5000]
    assert charts.accuracy_chart(rows, "linear", "unique_images", charts.colours(rows)) is None


def test_newcombes_own_example():
    # Newcombe (1998), table II, column a: 56/70 against 48/80, method 10
    assert findings.difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_only_runs_that_differ_in_the_variant_alone_are_compared(tmp_path: Path):
    for block, unique, samples, accuracy in ((4, 6400, 12800, 0.3), (1, 6400, 12800, 0.2), (1, 6400, 6400, 0.1)):
        folder = run_folders.write_run(tmp_path / f"{block}-{samples}", samples, unique, block)
        run_folders.write_probe(folder, accuracy)
    other = run_folders.write_run(tmp_path / "other-lr", 6400, 6400, 4)
    config = json.loads((other / "config.json").read_text())
    run_folders.write_json(other / "config.json", config | {"optim": {"lr": 9.0}})
    run_folders.write_probe(other, 0.4)
    (pair,) = findings.comparisons(read_runs(str(tmp_path)).rows)
    assert (pair.xtra, pair.aim, pair.samples_seen, pair.verdict) == (0.3, 0.2, 12800, "XTRA higher")


def test_a_difference_inside_its_interval_is_undecided(tmp_path: Path):
    for block, accuracy in ((4, 0.201), (1, 0.2)):
        run_folders.write_probe(run_folders.write_run(tmp_path / str(block), block=block), accuracy)
    ledger = read_runs(str(tmp_path))
    assert findings.comparisons(ledger.rows)[0].verdict == "undecided"
    assert "AIM 0 times, and 1 stayed undecided" in " ".join(findings.shown(ledger))


def test_the_limits_are_said_where_they_apply(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a", samples=12800)
    run_folders.write_probe(folder, 0.2, samples_seen=6400)
    ledger = read_runs(str(tmp_path))
    limits = " ".join(findings.not_shown(ledger))
    assert "1 of 1 probes are of checkpoints before the end" in limits
    assert "0 of 1 points have more than one seed" in limits
    assert "must not be compared" not in limits, "there is one variant only"
    assert "were not measured" in " ".join(findings.shown(ledger)), "no baseline was probed"


def test_an_accuracy_below_the_untrained_encoder_is_called_so(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    run_folders.write_probe(folder, 0.1)
    run_folders.write_probe(folder, 0.2, encoder="random")
    assert "it is below the untrained encoder (20.0 %)" in " ".join(findings.shown(read_runs(str(tmp_path))))


def test_runs_without_probes_make_a_page_that_says_so(tmp_path: Path):
    run_folders.write_run(tmp_path / "a")
    text = Reader(page(read_runs(str(tmp_path)))).text
    assert "No probe is in this folder yet" in text
    assert "training loss" in text


def test_the_first_curves_are_files_of_their_own_beside_the_page(study: Path):
    write_report(str(study))
    drawn = sorted(path for path in study.glob("curve-*.svg"))
    assert drawn
    for path in drawn:
        assert ElementTree.fromstring(path.read_text()).tag == "{http://www.w3.org/2000/svg}svg"


def test_text_from_files_is_escaped(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    run_folders.write_probe(folder, 0.2, set_name="<b>&set")
    html = page(read_runs(str(tmp_path)), note="<i>")
    assert "<b>" not in html
    assert "<i>" not in html
    assert "<b>&set" in Reader(html).text


def test_a_folder_of_unreadable_runs_is_no_report(tmp_path: Path):
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"no run in it can be read: .*run"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_run_writes_page_and_ledger_and_reports_problems(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "runs/a")
    run_folders.write_probe(folder, 0.2).write_text("{")
    result = run(Config(str(tmp_path / "runs"), out=str(tmp_path / "page.html"), note="a note"))
    assert (result.runs, result.rows, len(result.problems)) == (1, 1, 1)
    html = Path(result.report).read_text()
    assert "a note" in Reader(html).text
    assert result.problems[0] in Reader(html).text
    assert Path(result.ledger).exists()
    assert Path(result.csv).exists()


HOSTILE = 'cats"><script>alert(1)</script>$x$ \x1b[31m\x07'


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A study whose evaluation sets and runs have names that try to be more than names."""
    study = run_folders.write_study(tmp_path / "study")
    for path in study.glob("*/probes/*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"set": HOSTILE}))
    for path in study.glob("*/run.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": '=HYPERLINK("http://a/","b")'}))
    return study


def test_names_of_strangers_stay_names(hostile: Path):
    result = run(Config(str(hostile)))
    html = Path(result.report).read_text()
    assert "script" not in Reader(html).tags
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x$" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    for figure in re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(figure)
    assert "default-src 'none'" in html


def test_no_cell_of_the_csv_is_a_formula(hostile: Path):
    with Path(run(Config(str(hostile))).csv).open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    for cell in cells:
        if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
            float(cell)
