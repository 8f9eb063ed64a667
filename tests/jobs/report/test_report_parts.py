"""Parts of the report: the papers' tables and figure, commands to reproduce, pictures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import run_folders
from made_datasets import make_dataset
from test_report import Reader

from ingest.sets.benchmarks import BENCHMARKS
from jobs.flags import parse
from jobs.report import papers, pictures, published, run_list
from jobs.report.arms import study
from jobs.report.ledger import read_runs
from jobs.report.measured import by_cell, measured, points
from jobs.report.scaling import Config, page, run
from xtra import probe, recipes, train


def test_figure_one_has_both_ratios_and_why(tmp_path: Path):
    run_folders.write_run(tmp_path / "a")
    html = papers.figure_1(read_runs(str(tmp_path)))
    text = Reader(html).text
    assert "152 times the unique images" in text
    assert "only 1.5 times its samples, because XTRA ViT-H/14 saw every image about 100 times" in text
    assert html.count("<svg") == 3, "both panels, the left one also over samples seen"
    assert "the left panel has none of ours" in text


def test_an_encoder_with_all_fifteen_sets_is_on_figure_one(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "mine")
    for name, benchmark in BENCHMARKS.items():
        run_folders.write_probe(folder, 0.5, name, "attentive", total=benchmark.eval)
    html = papers.figure_1(read_runs(str(tmp_path)))
    assert "mine: 50.0 % of 6.4k unique images" in html
    assert "none of ours" not in html
    assert "<tr class=ours><td>mine</td>" in html


def test_table_six_is_as_printed_and_ours_are_beside_the_same_share_of_an_image(tmp_path: Path):
    printed = {(a.changed, a.value): a.accuracy for a in published.ABLATIONS}
    assert printed["block, 256 px", "64 px, 4 x 4 tokens"] == published.BASELINE == 0.676
    assert printed["order of the blocks", "fixed random"] == 0.557
    for block, accuracy in ((1, 0.11), (4, 0.22)):
        sizes = {"patch": 4, "block": block}
        run_folders.write_probe(run_folders.write_run(tmp_path / str(block), block=block, sizes=sizes), accuracy)
    ledger = read_runs(str(tmp_path))
    (group,) = by_cell(measured(ledger, study(ledger.runs))).values()
    rows = re.findall(r"<tr>(.*?)</tr>", papers.ablations(points(group)))
    cells = {row[1]: row[-1] for row in (re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows) if row}
    assert cells["16 px, 1 x 1 tokens (the paper's AIM)".replace("'", "&#x27;")].startswith("11.0 (")
    assert cells["64 px, 4 x 4 tokens"].startswith("22.0 (")
    assert cells["32 px, 2 x 2 tokens"] == "", "nobody measured it"


def test_commands_make_the_same_config_again(tmp_path: Path):
    run_folders.write_run(tmp_path / "a")
    base = recipes.get("demo32")
    model, optim = dataclasses.replace(base.model, block=1), dataclasses.replace(base.optim, lr=0.3, clip=2.5)
    wanted = dataclasses.replace(base, batch=48, tf32=True, seed=3, data="s3://b/tin", optim=optim, model=model)
    run_folders.write_json(tmp_path / "a/config.json", dataclasses.asdict(wanted))
    ledger = read_runs(str(tmp_path))
    name, *words = run_list.command_words(ledger.runs[0])
    assert (
        dataclasses.replace(parse(train.Config, words, "xtra train", recipes.get(name)), data=wanted.data, out="")
        == wanted
    )
    assert len(words) == 2 * 7 + 1, "data, out, batch, block, clip, rate, seed; and one switch"
    run_folders.write_json(tmp_path / "a/config.json", dataclasses.asdict(wanted) | {"compile": False})
    assert run_list.command_words(read_runs(str(tmp_path)).runs[0])[1:] == words, "a config of an older build"
    text = Reader(run_list.commands(study(ledger.runs), ledger.runs, [])).text
    assert "xtra train demo32 --data DATA --out a" in text
    assert "s3://b/tin" not in text, "where the data is, is no part of it"


def test_settings_that_differ_are_a_table_of_lines(tmp_path: Path):
    for block in (1, 4):
        run_folders.write_run(tmp_path / str(block), block=block)
    html = run_list.differences(study(read_runs(str(tmp_path)).runs))
    (cells,) = re.findall(r"<tr><td>model.block</td>(.*?)</tr>", html)
    assert re.findall(r">(\d)<", cells) == ["4", "1"]
    assert "model.width" not in html, "they share it"
    assert "The 2 lines of the charts; all of their other" in Reader(html).text


def test_without_checkpoints_there_are_no_predictions_and_the_page_is_whole(tmp_path: Path):
    run_folders.write_probe(run_folders.write_run(tmp_path / "a"), 0.2)
    result = run(Config(str(tmp_path)))
    text = Path(result.report).read_text()
    assert 'id="predictions"' not in text
    assert "data:image" not in text


def test_test_images_that_were_got_wrong_need_the_very_set(tmp_path: Path):
    wrong = {"mistakes": [[0, 0, 1]], "labels": ["a", "b"], "eval": str(tmp_path / "gone"), "manifest_eval": "x"}
    assert pictures.mistakes(wrong) == ""
    assert pictures.mistakes({}) == ""


@pytest.mark.slow
def test_a_real_training_shows_what_it_predicts_and_what_its_probe_got_wrong(tmp_path: Path):
    data, runs = make_dataset(tmp_path / "data", [40, 24]).address, tmp_path / "runs"
    base = dataclasses.replace(recipes.get("demo32"), data=data, out=str(runs / "a"), samples=64, batch=16)
    train.run(dataclasses.replace(base, checkpoint_every=16, keep=9))
    probe.run(probe.Config(str(runs / "a"), train=data, eval=data, heads=("linear",), epochs=1, views=1, batch=8))
    assert "data:image" not in page(read_runs(str(runs))), "only where they are asked for"
    first = Path(run(Config(str(runs))).report).read_text()
    assert first.count("data:image/webp") == 4 * 6, "four images: themselves, by four checkpoints, a free run"
    assert ", predicted c" in first
    assert 'id="funnel"' in first
    assert first == Path(run(Config(str(runs))).report).read_text(), "the same bytes"
    without = Path(run(Config(str(runs), pictures=False)).report).read_text()
    assert "data:image" not in without
