"""Arms are never merged, comparisons name all that their sides differ in, and verdicts go by seeds and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import run_folders
from test_report import Reader

from jobs.report import answer
from jobs.report.arms import study
from jobs.report.compare import BUT_CODE, EQUAL, Comparison, comparisons, difference_interval, read_primary
from jobs.report.ledger import read_runs
from jobs.report.measured import bar, measured, seeds_vary
from jobs.report.scaling import Config, page, run, write_report
from jobs.report.seeds import controls
from xtra.probe.result import pack

IMAGES = 2000


def arm(
    root: Path,
    name: str,
    accuracy: float,
    seeds: tuple[int, ...] = (0, 1, 2),
    samples: int = 12800,
    unique: int = 6400,
    bits: bool = True,
    config: dict[str, Any] | None = None,
    **other: Any,
) -> None:
    """Runs of one arm, whose probes get about that share of the same hard and easy images right."""
    for seed in seeds:
        block = (config or {}).pop("block", 4) if config and "block" in config else 4
        folder = run_folders.write_run(root / f"{name}-n{samples}-s{seed}", samples, unique, block=block, seed=seed)
        before = json.loads((folder / "config.json").read_text())
        changes = {k: v for k, v in (config or {}).items() if k != "model"}
        model = before["model"] | (config or {}).get("model", {})
        run_folders.write_json(folder / "config.json", before | changes | {"model": model, "arm": name})
        difficulty = np.random.default_rng(0).uniform(size=IMAGES)
        noise = np.random.default_rng([seed, *name.encode()]).normal(0, 0.05, IMAGES)
        right = difficulty + noise < accuracy + 0.002 * (seed - 1)
        more = {"right": pack(right)} if bits else {}
        run_folders.write_probe(folder, float(right.mean()), total=IMAGES, seed=seed, **more, **other)


def made(root: Path) -> list[Comparison]:
    ledger = read_runs(str(root))
    return comparisons(measured(ledger, study(ledger.runs)), read_primary(str(root)))


def labels(root: Path) -> list[str]:
    return [line.label for line in study(read_runs(str(root)).runs).lines]


def test_newcombes_own_example():
    # Newcombe (1998), table II, column a: 56/70 against 48/80, method 10
    assert difference_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_arms_are_told_apart_by_block_order_targets_size_and_settings(tmp_path: Path):
    for block in (1, 2, 4):
        run_folders.write_run(tmp_path / f"b{block}", block=block)
    arm(tmp_path, "random", 0.3, (0,), config={"model": {"order": "random"}})
    arm(tmp_path, "l1", 0.3, (0,), config={"loss": {"l1": True}})
    arm(tmp_path, "two", 0.3, (0,), config={"model": {"predict": 2}})
    arm(tmp_path, "few", 0.3, (0,), unique=5000)
    assert sorted(labels(tmp_path)) == [
        "AIM-like 1x1",
        "XTRA 2x2",
        "XTRA 4x4",
        "XTRA 4x4, 5k images",
        "XTRA 4x4, l1 True",
        "XTRA 4x4, order random",
        "XTRA 4x4, predict 2",
    ]


def test_seeds_lengths_and_machines_make_no_arm(tmp_path: Path):
    arm(tmp_path, "a", 0.3)
    arm(tmp_path, "a", 0.3, samples=6400)
    arm(tmp_path, "b", 0.3, (7,), config={"threads": 3, "order": {"seed": 5}, "device": "cpu"})
    assert labels(tmp_path) == ["XTRA 4x4"]


def test_a_trunk_is_on_the_line_of_its_branches(tmp_path: Path):
    constant = {"schedule": "constant", "warmup": 800}
    run_folders.write_run(tmp_path / "cosine")
    for name, decay, branch in (("trunk", 0.0, ""), ("branch", 0.2, "somewhere/trunk")):
        folder = run_folders.write_run(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        optim = config["optim"] | constant | {"decay": decay}
        run_folders.write_json(folder / "config.json", config | {"optim": optim, "branch": branch})
    known = study(read_runs(str(tmp_path)).runs)
    assert known.line(f"{tmp_path}/trunk") is known.line(f"{tmp_path}/branch")
    assert known.line(f"{tmp_path}/trunk") is not known.line(f"{tmp_path}/cosine")


def test_three_block_sizes_are_three_lines_and_three_comparisons(tmp_path: Path):
    for block, accuracy in ((1, 0.30), (2, 0.33), (4, 0.36)):
        arm(tmp_path, f"block{block}", accuracy, config={"model": {"block": block}})
    pairs = made(tmp_path)
    assert [(c.one.line.label, c.other.line.label) for c in pairs] == [
        ("XTRA 4x4", "XTRA 2x2"),
        ("XTRA 4x4", "AIM-like 1x1"),
        ("XTRA 2x2", "AIM-like 1x1"),
    ]
    assert {c.verdict for c in pairs} == {"higher"}
    assert all(c.equal == EQUAL and c.paired == "seeds and images" and c.seeds == 3 for c in pairs)
    assert [str(c.differs[0]) for c in pairs] == ["model.block 4 / 2", "model.block 4 / 1", "model.block 2 / 1"]


def test_equal_arms_are_undecided(tmp_path: Path):
    arm(tmp_path, "block4", 0.30)
    arm(tmp_path, "block1", 0.30, config={"model": {"block": 1}})
    (pair,) = made(tmp_path)
    assert pair.verdict == "undecided"
    assert pair.low < 0 < pair.high


def test_pairing_makes_the_interval_narrower(tmp_path: Path):
    for folder, bits in (("with", True), ("without", False)):
        arm(tmp_path / folder, "block4", 0.32, (0,), bits=bits)
        arm(tmp_path / folder, "block1", 0.30, (0,), bits=bits, config={"model": {"block": 1}})
    (paired,), (alone,) = made(tmp_path / "with"), made(tmp_path / "without")
    assert paired.paired == "images of one seed"
    assert alone.paired == "images, unpaired"
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)
    assert alone.p is None
    assert paired.verdict == alone.verdict == "undecided: one seed", "one seed decides nothing"


def test_seeds_without_bits_are_the_unit_by_themselves(tmp_path: Path):
    arm(tmp_path, "block4", 0.36, bits=False)
    arm(tmp_path, "block1", 0.30, bits=False, config={"model": {"block": 1}})
    (pair,) = made(tmp_path)
    assert (pair.paired, pair.seeds, pair.verdict) == ("seeds", 3, "higher")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"manifest_train": "d" * 64}, "images that train the head"),
        ({"selection": [{"lr": 0.5, "accuracy": 0.2}]}, "rates tried"),
        ({"selection": [{"lr": 0.1, "weight_decay": 0.3, "accuracy": 0.2}]}, "decays tried"),
        ({"selection": [{"lr": 0.1, "layers": 6, "accuracy": 0.2}]}, "layers tried"),
        ({"epochs": 7}, "probe epochs"),
        ({"protocol": "other words, seed 3"}, "probe settings"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_another_probe_is_named_and_not_all_else_equal(tmp_path: Path, change: dict[str, Any], named: str):
    same = {"selection": [{"lr": 0.1, "accuracy": 0.2}], "protocol": "words, seed 1"}
    arm(tmp_path, "block4", 0.36, **same)
    arm(tmp_path, "block1", 0.30, config={"model": {"block": 1}}, **(same | change))
    (pair,) = made(tmp_path)
    assert named in [d.name for d in pair.differs]
    assert "model.block" in [d.name for d in pair.differs]
    assert pair.equal == ""
    text = Reader(page(read_runs(str(tmp_path)))).text
    assert "The two differ in more than one thing: " in text
    assert "1 of 1 comparisons change more than one thing" in text


def test_probes_that_chose_on_the_test_images_are_not_compared_with_others(tmp_path: Path):
    arm(tmp_path, "block4", 0.36, selected_on="eval")
    arm(tmp_path, "block1", 0.30, config={"model": {"block": 1}})
    assert made(tmp_path) == []


def test_where_the_largest_count_has_one_seed_of_both_the_largest_with_several_is_shown_too(tmp_path: Path):
    for samples, seeds in ((6400, (0, 1, 2)), (12800, (0, 1, 2)), (25600, (1,))):
        arm(tmp_path, "block4", 0.36, seeds, samples)
        arm(tmp_path, "block1", 0.30, (1, 2), samples, config={"model": {"block": 1}})
    pairs = made(tmp_path)
    assert [(c.one.row.samples_seen, c.seeds) for c in pairs] == [(25600, 1), (12800, 2)]
    assert pairs[0].verdict == "undecided: one seed"
    both = [m.accuracy for m in pairs[1].one.group if m.row.weights_seed in (1, 2)]
    assert pairs[1].accuracies[0] == pytest.approx(sum(both) / 2)


def test_another_commit_is_said(tmp_path: Path):
    arm(tmp_path, "block4", 0.36)
    arm(tmp_path, "block1", 0.30, config={"model": {"block": 1}})
    for path in tmp_path.glob("block1*/run.json"):
        run_folders.write_json(path, json.loads(path.read_text()) | {"git": "another"})
    (pair,) = made(tmp_path)
    assert pair.equal == BUT_CODE
    assert "and in the commit (" in Reader(page(read_runs(str(tmp_path)))).text


def test_the_same_arm_on_other_data_is_compared_with_itself_alone(tmp_path: Path):
    arm(tmp_path, "block4", 0.36)
    arm(tmp_path, "few", 0.33, unique=5000)
    arm(tmp_path, "block1", 0.30, config={"model": {"block": 1}})
    pairs = {(c.one.line.label, c.other.line.label): c for c in made(tmp_path)}
    assert list(pairs) == [("XTRA 4x4", "XTRA 4x4, 5k images"), ("XTRA 4x4", "AIM-like 1x1")]
    assert str(pairs["XTRA 4x4", "XTRA 4x4, 5k images"].differs[0]).startswith("data 6,400 images (")


def declare(root: Path, **changes: Any) -> None:
    wanted = {"arm": "block1", "against": "block4", "set": "tin-val", "head": "linear", "samples_seen": 6400}
    run_folders.write_json(root / "study.json", {"primary": wanted | changes})


def test_the_declared_comparison_is_the_answer_and_not_adjusted(tmp_path: Path):
    for samples in (6400, 12800):
        for block in (1, 2, 4):
            arm(tmp_path, f"block{block}", 0.3, samples=samples, config={"model": {"block": block}})
    declare(tmp_path)
    first, *others = made(tmp_path)
    assert first.primary
    assert first.adjusted == first.p
    assert (first.one.line.name, first.other.line.name, first.one.row.samples_seen) == ("block1", "block4", 6400)
    assert not any(c.primary for c in others)
    assert all(c.adjusted >= c.p for c in others)
    html = Path(write_report(str(tmp_path))).read_text()
    assert "This comparison was declared before the runs." in html
    assert "Does AIM-like 1x1 reach a higher accuracy than XTRA 4x4" in html
    assert "<tr class=ours><td>declared</td>" in html


def test_a_declaration_that_is_none_is_refused(tmp_path: Path):
    arm(tmp_path, "block4", 0.3)
    declare(tmp_path, samples_seen="many")
    with pytest.raises(ValueError, match=r"study.json: primary.samples_seen is 'many'; it must be int"):
        write_report(str(tmp_path))
    assert not (tmp_path / "report.html").exists()


def test_the_declared_comparison_can_be_named_by_the_command(tmp_path: Path):
    for block in (1, 4):
        arm(tmp_path, f"block{block}", 0.3, config={"model": {"block": block}})
    words = ("block4", "block1", "tin-val", "linear", "12800")
    result = run(Config(str(tmp_path), primary=words))
    assert "This comparison was declared before the runs." in Path(result.report).read_text()
    for wrong in (words[:4], (*words[:4], "many")):
        with pytest.raises(ValueError, match="it must be ARM AGAINST SET HEAD SAMPLES"):
            run(Config(str(tmp_path), primary=wrong))


def test_a_declared_comparison_that_was_not_measured_is_said(tmp_path: Path):
    for block in (1, 4):
        arm(tmp_path, f"block{block}", 0.3, config={"model": {"block": block}})
    declare(tmp_path, samples_seen=99)
    text = Reader(Path(write_report(str(tmp_path))).read_text()).text
    assert (
        "The declared comparison (block1 against block4 on tin-val, linear probe, after 99 samples) has not been"
        in text
    )
    assert "No comparison was declared" not in text


def test_the_answer_never_depends_on_how_it_came_out(tmp_path: Path):
    for name, better in (("a", 1), ("b", 4)):
        for block in (1, 4):
            accuracy = 0.36 if block == better else 0.30
            arm(tmp_path / name, f"block{block}", accuracy, config={"model": {"block": block}})
    answers = []
    for name in ("a", "b"):
        ledger = read_runs(str(tmp_path / name))
        found = measured(ledger, study(ledger.runs))
        answers.append(answer.answer(ledger, found, comparisons(found)))
    assert answers[0].question == answers[1].question
    assert answers[0].sentence.startswith("No: XTRA 4x4 is lower by ")
    assert answers[1].sentence.startswith("Yes: XTRA 4x4 is higher by ")
    assert any("would be found with 80 % probability" in line for line in answers[0].footing)


def test_what_seeds_change_is_said(tmp_path: Path):
    arm(tmp_path, "a", 0.3)
    ledger = read_runs(str(tmp_path))
    found = measured(ledger, study(ledger.runs))
    assert seeds_vary(found) == "initial weights and crops, the probe's heads and views"


def test_a_point_of_several_seeds_is_over_seeds_and_images(tmp_path: Path):
    arm(tmp_path, "a", 0.3)
    ledger = read_runs(str(tmp_path))
    found = measured(ledger, study(ledger.runs))
    all_of_them, one = bar(found), bar(found[:1])
    assert all_of_them.over == "seeds and images"
    assert all_of_them.mean == pytest.approx(sum(m.accuracy for m in found) / 3)
    assert one.over == "the images of one seed"
    assert (one.low, one.high) == (found[0].row.low, found[0].row.high), "Wilson's"


def test_a_trunk_whose_branches_are_not_there_yet_makes_no_line_of_its_own(tmp_path: Path):
    for name, decay in (("trunk", 0.0), ("other-seed", 0.2)):
        folder = run_folders.write_run(tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        optim = config["optim"] | {"schedule": "constant", "warmup": 800, "decay": decay}
        run_folders.write_json(folder / "config.json", config | {"optim": optim})
    assert labels(tmp_path) == ["XTRA 4x4"]


@pytest.mark.parametrize("change", [{"right": "AAAA"}, {"right": "not base64!"}, {"correct": 3}], ids=str)
def test_bits_that_do_not_fit_are_reported_and_not_used(tmp_path: Path, change: dict[str, Any]):
    for block, accuracy in ((4, 0.36), (1, 0.30)):
        arm(tmp_path, f"block{block}", accuracy, config={"model": {"block": block}})
    (path,) = (tmp_path / "block4-n12800-s1/probes").iterdir()
    run_folders.write_json(path, json.loads(path.read_text()) | change)
    (pair,) = made(tmp_path)
    assert pair.paired == "seeds", "one side's bits alone make no pairs"
    text = Reader(Path(write_report(str(tmp_path))).read_text()).text
    assert f"block4-n12800-s1, probes/{path.name}: its record of right images contradicts its accuracy" in text


def test_a_line_is_compared_with_itself_under_other_seeds(tmp_path: Path):
    arm(tmp_path, "block4", 0.40)
    arm(tmp_path, "alone", 0.40, (0,), config={"model": {"predict": 2}})
    ledger = read_runs(str(tmp_path))
    (control,) = controls(measured(ledger, study(ledger.runs)))
    assert (control.point.line.label, control.pairs, control.differ) == ("XTRA 4x4", 3, 0)
    assert 0 < control.lowest < control.highest < 1
    assert 0.0005 < control.spread < 0.006  # seeds are 0.2 points apart, and images add noise
    assert control.by_images == pytest.approx(0.005, abs=0.003)
    for number in range(1, 4):  # seeds that vary by much more than images do
        arm(tmp_path, "uneven", 0.1 * number, (number,), config={"model": {"order": "random"}})
    ledger = read_runs(str(tmp_path))
    by_label = {c.point.line.label: c for c in controls(measured(ledger, study(ledger.runs)))}
    assert by_label["XTRA 4x4, order random"].differ == 3
    whole = page(ledger)
    assert "Negative control" in whole
    assert "3 of 3" in whole


def test_without_bits_a_line_under_other_seeds_has_its_spread_alone(tmp_path: Path):
    arm(tmp_path, "block4", 0.40, bits=False)
    ledger = read_runs(str(tmp_path))
    (control,) = controls(measured(ledger, study(ledger.runs)))
    assert (control.by_images, control.differ) == (None, None)
    assert control.spread > 0
