"""The probes' part of the report: beside the papers nothing is invented, and nothing is mixed."""

import re
from pathlib import Path

import run_folders
from test_report import Reader, said, svgs

from ingest.sets.benchmarks import BENCHMARKS
from jobs.report import papers, probes
from jobs.report.draw import selection_chart
from jobs.report.ledger import read_runs
from jobs.report.ledger_file import write_ledger
from jobs.report.scaling import Config, page, run

XTRA_H = "76.2 80.9 67.0 98.2 90.0 90.8 79.7 93.7 93.1 59.5 93.3 90.0 5.7 98.5 58.6 43.9"
POINTS = [{"lr": lr, "weight_decay": 0.1, "accuracy": a} for lr, a in ((1e-3, 0.2), (1e-2, 0.4), (1e-1, 0.3))]


def probed(root: Path, names: list[str], accuracy: float = 0.5, **other) -> Path:
    folder = run_folders.write_run(root / "a")
    for name in names:
        run_folders.write_probe(folder, accuracy, name, "attentive", total=BENCHMARKS[name].eval, **other)
    return folder


def rows(html: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html)]


def ours(html: str) -> list[list[str]]:
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr class=ours>(.*?)</tr>", html)]


def test_the_average_is_of_all_fifteen_or_is_not_there(tmp_path: Path):
    probed(tmp_path / "all", list(BENCHMARKS))
    (line, imagenet) = ours(papers.benchmarks(read_runs(str(tmp_path / "all"))))
    assert line[3:19] == ["50.0"] * 16
    assert imagenet[2:6] == ["tin", "", "", "50.0"], "what it was pretrained on is said"
    probed(tmp_path / "most", list(BENCHMARKS)[1:])
    (line,) = ours(papers.benchmarks(read_runs(str(tmp_path / "most"))))
    assert line[3:19] == ["", "", *["50.0"] * 14]


def test_a_set_of_another_size_is_marked_and_makes_no_average(tmp_path: Path):
    folder = probed(tmp_path, list(BENCHMARKS)[1:])
    run_folders.write_probe(folder, 0.5, "imagenet1k", "attentive", total=1000)
    (line,) = ours(papers.benchmarks(read_runs(str(tmp_path))))
    assert line[3:6] == ["", "50.0*", "50.0"]


def test_the_papers_rows_stand_above_and_unknown_cells_are_empty(tmp_path: Path):
    probed(tmp_path, ["cifar10"])
    html = papers.benchmarks(read_runs(str(tmp_path)))
    (unknown,) = [row for row in rows(html) if "DFN-2B" in row and "AIM, Table 2" in row]
    assert unknown[3:19] == ["74.5", *[""] * 15]
    (xtra,) = [row for row in rows(html) if row and row[0] == "XTRA" and "IN-21k" in row]
    assert " ".join(xtra[3:19]) == XTRA_H
    assert html.index("IN-21k") < html.index("class=ours")


def test_the_papers_rows_are_there_without_one_of_their_sets(tmp_path: Path):
    run_folders.write_probe(run_folders.write_run(tmp_path / "a"), 0.2)
    ledger = read_runs(str(tmp_path))
    assert ours(papers.benchmarks(ledger)) == []
    assert "76.2" in papers.benchmarks(ledger)
    assert "Tables 3 to 5" in page(ledger)


def test_published_probes_and_hold_out_probes_are_not_mixed(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    run_folders.write_probe(folder, 0.2)
    other = run_folders.write_probe(folder, 0.9, selected_on="eval", warmup_defect=True)
    other.rename(other.with_name("published.json"))
    run_folders.write_probe(folder, 0.2)
    early = run_folders.write_probe(folder, 0.1, samples_seen=6400)
    run_folders.write_probe(folder, 0.8, samples_seen=6400, selected_on="eval", warmup_defect=True).rename(
        early.with_name("published-early.json")
    )
    run_folders.write_probe(folder, 0.1, samples_seen=6400)
    ledger = read_runs(str(tmp_path))
    assert sorted(r.protocol for r in ledger.rows) == ["hold-out"] * 2 + ["published, warm-up defect"] * 2
    shown, limits = said(tmp_path)
    assert re.search(r"^tin-val, linear probe: the best is .*12.8k samples, 20.0 %", shown[0])
    assert re.search(r"^tin-val, linear probe \(published, warm-up defect\): the best is .*, 90.0 %", shown[1])
    assert "overestimates accuracy" in " ".join(limits)
    html = page(ledger)
    accuracy = html[html.index('id="accuracy"') : html.index('id="training"')]
    assert len(re.findall("<h3>tin-val", accuracy)) == 2, "curves of their own"


def test_other_peoples_encoders_stand_beside_the_papers_and_in_no_curve(tmp_path: Path):
    folder = probed(tmp_path, ["cifar10"])
    run_folders.write_probe(folder, 0.9, "cifar10", "attentive", encoder="timm:vit_base", total=10_000)
    run_folders.write_probe(folder, 0.4, "cifar10", "attentive", samples_seen=6400, total=10_000)
    beside = tmp_path / "theirs"
    run_folders.write_json(
        beside / "probes/cifar10.json",
        {"set": "cifar10", "head": "linear", "encoder": "timm:mae", "accuracy": 0.8, "total": 10_000},
    )
    ledger = read_runs(str(tmp_path))
    assert {r.encoder for r in ledger.rows} == {"trained"}
    assert sorted(p["encoder"] for p in ledger.others) == ["timm:mae", "timm:vit_base"]
    assert {line[0] for line in ours(papers.benchmarks(ledger))} == {
        "a, 12.8k samples seen",
        "a, 6.4k samples seen",
        "timm:mae",
        "timm:vit_base",
    }
    assert not any("90.0 %" in svg for svg in svgs(page(ledger)))
    assert run(Config(str(tmp_path))).problems == ()


def test_a_probe_says_what_it_chose_who_chose_it_and_what_it_knows(tmp_path: Path):
    run_folders.write_probe(
        run_folders.write_run(tmp_path / "a"),
        0.4,
        selection=POINTS,
        chosen={"lr": 0.01, "weight_decay": 0.1, "layers": 6},
        labels=[f"class {n}" for n in range(12)],
        per_class=[n / 12 for n in range(11)] + [None],
        shared_sha256=3,
        shared_phash=1234,
        seconds=61.4,
        confused=[[3, 5, 7], [1, 2, 4]],
    )
    ledger = read_runs(str(tmp_path))
    text = Reader(probes.details(ledger)).text
    assert (
        "chosen: lr 0.01, weight decay 0.1, layers 6 (of 3 grid points, on a validation split of the training set)"
        in text
    )
    assert "3 of the test images are among the training images byte for byte, 1,234 more look alike" in text
    assert "61 s for all heads" in text
    assert "of 11 classes, best class 10 83, class 9 75" in text
    assert "worst class 0 0, class 1 8" in text
    assert "it most often mistakes class 3 for class 5 (7 times), class 1 for class 2 (4 times)" in text
    assert "accuracy in % on the validation split" in text
    (row,) = ledger.rows
    assert (row.shared_sha256, row.shared_phash, row.probe_seconds) == (3, 1234, 61.4)
    assert "For tin-val, the heads' training set contains" in " ".join(said(tmp_path)[1])


def test_the_selection_chart_has_a_line_for_each_head_and_layer_set():
    linear = {"set": "s", "head": "linear", "selection": POINTS}
    deep = [{**point, "layers": n} for point in POINTS for n in (1, 6)]
    svg = selection_chart([linear, {"set": "s", "head": "attentive", "selection": deep}])
    for text in ("linear", "attentive, layers 1", "attentive, layers 6", "0.001", "learning rate"):
        assert text in svg
    assert selection_chart([{"set": "s", "head": "knn", "selection": [{"k": 5, "accuracy": 0.1}]}]) is None
    assert selection_chart([{**linear, "selection": POINTS[:1]}]) is None, "one rate is no curve"


def test_old_results_stay_readable_and_the_new_columns_are_empty(tmp_path: Path):
    run_folders.write_probe(run_folders.write_run(tmp_path / "a"), 0.2)
    (row,) = read_runs(str(tmp_path)).rows
    assert (row.protocol, row.layers, row.shared_sha256, row.shared_phash) == ("hold-out", None, None, None)
    write_ledger(str(tmp_path), [row])


def test_a_sample_of_a_set_wins_nothing_from_the_whole(tmp_path: Path):
    folder = run_folders.write_run(tmp_path / "a")
    toy = run_folders.write_probe(folder, 1.0, "imagenet1k", "attentive", total=20, manifest_eval="toy")
    toy.rename(toy.with_name("toy.json"))
    run_folders.write_probe(folder, 0.5, "imagenet1k", "attentive", total=50_000)
    ledger = read_runs(str(tmp_path))
    whole, toys = sorted(said(tmp_path)[0], key=lambda line: "[toy]" in line)
    assert "imagenet1k [toy], attentive probe: there is" in toys
    assert "samples, 100.0 %" in toys
    assert whole.startswith("imagenet1k [")
    assert "samples, 50.0 %" in whole
    line, imagenet = ours(papers.benchmarks(ledger))
    assert (line[4], imagenet[5]) == ("50.0", "50.0")
    assert probes.details(ledger).count("<details>") == 2


def test_a_suite_is_told_in_one_line_and_one_point_makes_no_chart(tmp_path: Path):
    folder = probed(tmp_path, list(BENCHMARKS))
    run_folders.write_probe(folder, 0.1, "cifar10", "attentive", encoder="random", total=10_000)
    ledger = read_runs(str(tmp_path))
    (line,) = said(tmp_path)[0]
    assert line.startswith("attentive probe, the best encoder on each of 15 sets: against the untrained encoder, above")
    assert "above it on 1, 14 without that measurement" in line
    assert "<svg" not in page(ledger).partition('id="training"')[0]
