import base64
import csv
import gzip
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import run_folders

from jobs.report import findings, scaling
from jobs.report.arms import study as study_of
from jobs.report.compare import comparisons
from jobs.report.ledger import read_runs
from jobs.report.measured import measured
from jobs.report.scaling import Config, page, run, write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folders.write_study(tmp_path_factory.mktemp("study"))


class Reader(HTMLParser):
    """Text, tags and what would be fetched from elsewhere."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.fetched, self.data = "", [], [], []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        links = [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]
        self.data += [link for link in links if link.startswith("data:")]
        self.fetched += [link for link in links if not link.startswith(("#", "data:"))]

    def handle_data(self, data: str) -> None:
        self.text += data


def said(root: Path) -> tuple[list[str], list[str]]:
    """What the page's two lists say: shown, and not shown."""
    ledger = read_runs(str(root))
    found = measured(ledger, study_of(ledger.runs))
    made = comparisons(found)
    return findings.shown(ledger, found, made), findings.not_shown(ledger, found, made)


def svgs(html: str) -> list[str]:
    return re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL)


def test_the_page_is_one_file_that_fetches_nothing(study: Path):
    html = Path(write_report(str(study))).read_text()
    seen = Reader(html)
    assert seen.fetched == []
    assert not {"script", "link", "iframe", "object"} & {*seen.tags}
    assert not re.search(r"url\(|@import|\son[a-z]+=", html)
    assert "default-src 'none'" in html
    assert len(html) < scaling.MOST_BYTES


def test_the_same_runs_give_the_same_bytes(study: Path):
    ledger = read_runs(str(study))
    first, second = page(ledger, "note"), page(read_runs(str(study)), "note")
    assert first == second
    assert page(replace(ledger, rows=ledger.rows[:-5])) != first


def test_the_first_screen_has_the_question_the_data_and_the_answer_with_its_interval(study: Path):
    html = page(read_runs(str(study)))
    top = Reader(html[: html.index('id="shown"')]).text
    assert "Does XTRA 4x4 reach a higher accuracy than AIM-like 1x1 on tin-val" in top
    assert "Trained on tin (50,000 images); probed on 5,000 test images of tin-val" in top
    assert re.search(r"Undecided with one seed: XTRA 4x4 is above by \d\.\d points \(95 % interval", top)
    assert "No comparison was declared before the runs" in top
    assert len(svgs(html[: html.index('id="shown"')])) == 1


def test_every_section_that_has_something_to_say_is_there(study: Path):
    html = page(read_runs(str(study)))
    wanted = {"accuracy", "comparisons", "multiplier", "front", "training", "probes", "papers", "runs", "failures"}
    assert wanted | {"limits", "reproduce", "ledger", "glossary"} <= set(re.findall(r'<section id="(\w+)"', html))
    assert set(re.findall(r'<a href="#(\w+)"', html)) <= set(re.findall(r'<section id="(\w+)"', html))
    glossary = html[html.index('id="glossary"') :]
    assert {"XTRA", "AIM", "attentive", "96x4/4"} <= set(re.findall(r"<dt>(.*?)</dt>", glossary))


def test_charts_are_well_formed_and_have_words(study: Path):
    figures = svgs(page(read_runs(str(study))))
    assert len(figures) >= 1 + 3 * 2 + 2
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("aria-label")
        assert (root.findtext("desc") or "").strip()
        for point in root.iter("g"):
            if point.get("tabindex"):
                assert point.findtext("title"), "a point that can be reached says what it is"
    assert sum('tabindex="0"' in figure for figure in figures) > 5
    assert any("log scale" in figure for figure in figures)


def test_charts_side_by_side_have_one_scale(study: Path):
    html = page(read_runs(str(study)))
    part = html[html.index('id="accuracy"') : html.index('id="comparisons"')]
    scales = [re.findall(r'<text class="e" x="40" y="([\d.]+)">([\d.]+)<', figure) for figure in svgs(part)]
    assert len(scales) == 6
    assert scales[0] == scales[1] == scales[2] != scales[3] == scales[4] == scales[5]


def test_the_whole_ledger_is_inside_the_page(study: Path, monkeypatch: pytest.MonkeyPatch):
    result = run(Config(str(study)))
    link = next(link for link in Reader(Path(result.report).read_text()).data if link.startswith("data:text/csv"))
    wanted = scaling.ledger_csv(scaling.without_places(read_runs(str(study)).rows)).encode()
    assert base64.b64decode(link.partition(",")[2]) == wanted
    assert wanted.count(b"\n") == Path(result.csv).read_bytes().count(b"\n")
    assert str(study) not in Path(result.report).read_text(), "folders of this machine are nobody else's"
    assert str(study).encode() not in wanted
    monkeypatch.setattr(scaling, "LARGE_CSV", 10)
    (link,) = [link for link in Reader(page(read_runs(str(study)))).data if "gzip" in link]
    assert gzip.decompress(base64.b64decode(link.partition(",")[2])) == wanted


def test_every_row_is_in_the_table_and_unknown_numbers_stay_empty(study: Path):
    ledger = read_runs(str(study))
    html = page(ledger)
    table = html[html.index('id="ledger"') : html.index('id="glossary"')]
    assert table.count("<tr>") == 1 + len(ledger.rows)
    (pixels,) = re.findall(r"<tr>(?:(?!</tr>).)*<td>none</td>.*?</tr>", table)
    assert "<td class=n></td>" in pixels, "the loss of raw pixels"
    assert "nan" not in Reader(html).text.lower().split()
    assert not re.search(r"\bNone\b(?!:)", Reader(html).text)


def test_a_page_that_would_be_too_large_does_without_pictures(study: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scaling.pictures, "predictions", lambda found, runs: "x" * scaling.MOST_BYTES)
    ledger = read_runs(str(study))
    html = page(ledger, None, scaling.Extras(pictures=True))
    assert len(html) < scaling.MOST_BYTES
    assert html == page(ledger)


def test_a_page_that_would_still_be_too_large_shows_fewer_rows_and_charts(study: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = read_runs(str(study))
    whole = page(ledger)
    monkeypatch.setattr(scaling, "MOST_BYTES", len(whole) - 1)
    monkeypatch.setattr(scaling, "FEW", 5)
    brief = page(ledger)
    assert len(brief) < len(whole)
    assert "The first 5 of 43 rows; the file below has all." in brief
    assert len(svgs(brief)) < len(svgs(whole))
    assert Reader(brief).data == Reader(whole).data, "the ledger inside the page is whole"


def test_an_axis_with_one_value_is_not_drawn(tmp_path: Path):
    for samples in (6400, 12800):
        folder = run_folders.write_run(tmp_path / str(samples), samples)
        run_folders.write_probe(folder, 0.2 + samples / 1e6)
    html = page(read_runs(str(tmp_path)))
    titles = [ElementTree.fromstring(svg).get("aria-label") for svg in svgs(html[html.index('id="accuracy"') :])]
    assert "accuracy in % against samples seen" in titles
    assert "accuracy in % against FLOPs" in titles


def test_the_limits_are_said_where_they_apply(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a", samples=12800)
    run_folders.write_probe(folder, 0.2, samples_seen=6400)
    shown, limits = said(tmp_path)
    assert "1 of 1 probes measure checkpoints before the end" in " ".join(limits)
    assert "0 of 1 points have more than one seed" in " ".join(limits)
    assert "must not be compared" not in " ".join(limits), "there is one block size only"
    assert "AIM-like" not in " ".join(limits)
    assert "were not measured" in " ".join(shown), "no baseline was probed"


def test_warnings_of_probes_reach_the_page(tmp_path: Path):
    warning = "lr is the largest of the grid: the best may be above it"
    run_folders.write_probe(run_folders.write_run(tmp_path / "a"), 0.2, remark=warning)
    (row,) = read_runs(str(tmp_path)).rows
    assert row.remark == warning
    _, limits = said(tmp_path)
    assert f"1 of 1 probes carry a warning: tin-val ({warning})." in limits
    assert Reader(page(read_runs(str(tmp_path)))).text.count(warning) == 3, "limits, the probe's details, the ledger"


def test_an_accuracy_below_the_untrained_encoder_is_called_so(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    run_folders.write_probe(folder, 0.1)
    run_folders.write_probe(folder, 0.2, encoder="random")
    assert "it is below the untrained encoder (20.0 %)" in " ".join(said(tmp_path)[0])


def test_runs_without_probes_make_a_page_that_says_so(tmp_path: Path):
    run_folders.write_run(tmp_path / "a")
    text = Reader(page(read_runs(str(tmp_path)))).text
    assert "Nothing is known about accuracy" in text
    assert "No probe is in this folder yet" in text
    assert "training loss" in text


def test_what_went_wrong_is_said(tmp_path: Path):
    run_folders.write_probe(run_folders.write_run(tmp_path / "runs/whole"), 0.2)
    assert "None: every run finished" in Path(write_report(str(tmp_path / "runs"))).read_text()
    stopped = run_folders.write_run(tmp_path / "runs/stopped", 12800, commit=False)
    run_folders.write_commit(stopped, 6400, run_folders.digest("train", 6400))
    run_folders.write_json(stopped / "attempts/000002.json", run_folders.attempt(2))
    (stopped / "events/000002-000000.jsonl").write_text('{"event": "replaced", "key": "k"}\nno event\n')
    text = Reader(Path(write_report(str(tmp_path / "runs"))).read_text()).text
    assert "stopped is unfinished: 6,400 of 12,800 samples." in text
    assert "One run was interrupted and went on: stopped (2 attempts)." in text
    assert "1 events “replaced”." in text
    assert "events/000002-000000.jsonl line 2: is not JSON" in text


def test_the_first_curves_are_files_of_their_own_beside_the_page(study: Path):
    write_report(str(study))
    drawn = sorted(path.name for path in study.glob("curve-*.svg"))
    assert drawn == ["curve-tin-val-attentive.svg", "curve-tin-val-linear.svg"]
    for name in drawn:
        text = (study / name).read_text()
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in text


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
    with pytest.raises(ValueError, match=r"has no readable run: .*run"):
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
    """A study whose sets, classes, recipes, machines and events have names that try to be more than names."""
    study = run_folders.write_study(tmp_path / "study")
    for path in study.glob("*/probes/*.json"):
        more = {"set": HOSTILE, "labels": [HOSTILE, "b"], "per_class": [0.1, 0.2], "confused": [[0, 1, 3]]}
        more |= {"remark": HOSTILE, "protocol": HOSTILE, "eval": HOSTILE, "mistakes": [[0, 0, 1]]}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    for path in study.glob("*/run.json"):
        more = {"recipe": '=HYPERLINK("http://a/","b")', "hardware": HOSTILE, "dataset": HOSTILE, "git": HOSTILE}
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    for path in study.glob("*/config.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"recipe": HOSTILE, "arm": HOSTILE}))
    for path in study.glob("*/events/*.jsonl"):
        path.write_text(json.dumps({"event": HOSTILE}) + "\n")
    return study


def test_names_of_strangers_stay_names(hostile: Path):
    result = run(Config(str(hostile)))
    html = Path(result.report).read_text()
    assert "script" not in Reader(html).tags
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;$x$" in html
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", html)
    for figure in svgs(html):
        ElementTree.fromstring(figure)
    assert "default-src 'none'" in html


def test_no_cell_of_the_csv_is_a_formula(hostile: Path):
    with Path(run(Config(str(hostile))).csv).open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert any(cell.startswith("'=HYPERLINK") for cell in cells)
    for cell in cells:
        if cell[:1] in ("=", "+", "-", "@", "\t", "\r"):
            float(cell)


def test_the_csv_inside_the_page_reads_back(study: Path):
    rows = list(csv.DictReader(io.StringIO(scaling.ledger_csv(read_runs(str(study)).rows))))
    assert len(rows) == len(read_runs(str(study)).rows)
    assert {"accuracy", "remark", "file"} <= rows[0].keys()
