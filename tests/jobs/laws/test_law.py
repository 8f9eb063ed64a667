"""Laws, their intervals, predictions and multipliers, on curves whose truth is known."""

from __future__ import annotations

import made_ledgers
import numpy as np
import pytest

from jobs.laws import bootstrap, fit, held_out, inversion, law, multiplier, table
from jobs.laws.joint import fit_sizes


def curve(*args, **options) -> law.Curve:
    rows = [
        {"unique_images": None, "flops": None, "params": None, **row} for row in made_ledgers.rows(*args, **options)
    ]
    (found,), _ = table.curves(table.Table("made", tuple(rows[0]), tuple(rows)), "samples_seen")
    return found


def analysed(rows: made_ledgers.Rows, axis: str = "samples_seen", against: str = "") -> fit.Fit:
    rows = [{"unique_images": None, "flops": None, "params": None, **row} for row in rows]
    return fit.analyse(table.Table("made", tuple(rows[0]), tuple(rows)), axis, against, 0.9)


@pytest.mark.parametrize(
    ("E", "A", "a", "n0", "counts"),
    [
        (0.3, 6.0, 0.35, 0.0, 6),
        (0.0, 2.0, 0.2, 0.0, 6),
        (0.55, 40.0, 0.7, 0.0, 6),
        (0.3, 6.0, 0.35, 0.0, 8),
        (0.3, 6.0, 0.35, 5000.0, 8),
        (0.2, 20.0, 0.45, 20_000.0, 9),
    ],
)
def test_a_law_without_noise_is_found_again(E: float, A: float, a: float, n0: float, counts: int) -> None:
    found, _ = law.fit(curve("x", E, A, a, n0, [2000 * 2**k for k in range(counts)], seeds=1))
    assert pytest.approx(E, abs=2e-5) == found.E
    assert found.a == pytest.approx(a, rel=2e-4)
    assert pytest.approx(A, rel=2e-3) == found.A
    assert found.n0 == pytest.approx(n0, rel=1e-3, abs=1)


def test_n0_is_fitted_from_seven_counts_on() -> None:
    counts = [2000 * 2**k for k in range(7)]
    six, _ = law.fit(curve("x", n0=5000.0, counts=counts[:6]))
    seven, _ = law.fit(curve("x", n0=5000.0, counts=counts))
    assert six.n0 == 0.0
    assert seven.n0 == pytest.approx(5000, rel=0.01)


def test_one_gross_error_hardly_moves_a_law() -> None:
    clean = curve("x", noise=0.002, seeds=4)
    spoilt = clean.error.copy()
    spoilt[9] += 0.2
    wrong = law.Curve("x", clean.x, spoilt, clean.count, clean.trunk, clean.seeds)
    as_it_was, robust = law.fit(clean)[0], law.fit(wrong)[0]
    squares = law.least_squares(wrong.x, wrong.error, offset=False)
    assert abs(robust.E - as_it_was.E) < 0.02 < abs(squares.E - as_it_was.E)


def test_intervals_hold_the_truth_without_noise_and_with_an_offset_alone() -> None:
    """An offset of each trunk leaves a exactly known: the interval is a point that holds it."""
    rows = made_ledgers.rows("x")
    for row in rows:
        row["accuracy"] += 0.004 * row["seed"] - 0.004
    values = analysed(rows).arms[0].values
    assert values["a"].low <= 0.35 + 1e-5
    assert values["a"].high >= 0.35 - 1e-5
    assert values["a"].high - values["a"].low < 0.01
    assert values["E"].low < 0.3 - 0.004 * 2.92 / 3**0.5 * 0.9
    assert values["E"].high > 0.3 + 0.004 * 2.92 / 3**0.5 * 0.9


def test_more_noise_and_fewer_trunks_widen_an_interval() -> None:
    def width(**options: float) -> float:
        found = [
            inversion.intervals(cut, fitted, 0.9)["a"]
            for draw in range(12)
            for fitted, cut in [law.fit(curve("x", draw=draw, **options))]
        ]
        return float(np.median([i.high - i.low for i in found]))

    narrow = width(noise=0.002, seeds=5)
    assert narrow < width(noise=0.006, seeds=5)
    assert narrow < width(noise=0.002, seeds=3)


def test_a_bound_of_the_search_ends_an_interval_that_the_data_leave_open() -> None:
    flat = curve("x", A=0.02, noise=0.004)
    fitted, cut = law.fit(flat)
    values = inversion.intervals(cut, fitted, 0.9)
    assert values["a"].low == pytest.approx(law.FLATTEST)
    assert values["a"].high == pytest.approx(law.STEEPEST)
    assert values["E"].low == 0.0


def test_from_ten_trunks_on_trunks_are_resampled() -> None:
    many = analysed(made_ledgers.rows("x", seeds=10, noise=0.004))
    few = analysed(made_ledgers.rows("x", seeds=9, noise=0.004))
    assert many.arms[0].fitted.resampled is not None
    assert few.arms[0].fitted.resampled is None
    laws = many.arms[0].fitted.resampled
    assert len(laws.E) == bootstrap.RESAMPLES
    values = many.arms[0].values["E"]
    tested = inversion.intervals(many.arms[0].fitted.curve, many.arms[0].fitted.law, 0.9)["E"]
    assert values.low < 0.3 < values.high
    assert values.high - values.low == pytest.approx(tested.high - tested.low, rel=0.5)


def test_a_multiplier_of_known_laws() -> None:
    """An arm that needs 1.6 times fewer samples everywhere."""
    cheaper = made_ledgers.rows("cheaper", A=6.0 * 1.6**-0.35)
    found = analysed(made_ledgers.rows("dear") + cheaper).multipliers["samples_seen"]
    ours = [m for m in found if m.arm == "cheaper"]
    assert {(m.arm, m.against) for m in found} == {("cheaper", "dear"), ("dear", "cheaper")}
    assert len(ours) >= 3
    for m in ours:
        assert m.value == pytest.approx(1.6, rel=1e-3)
    back = {m.at_accuracy: m for m in found if m.arm == "dear"}
    assert all(back[m.at_accuracy].value * m.value == pytest.approx(1, rel=1e-9) for m in ours)
    reached = [
        multiplier.Fitted(a.fitted.curve, a.fitted.law).reached()
        for a in analysed(made_ledgers.rows("dear") + cheaper).arms
    ]
    low, high = max(r[0] for r in reached), min(r[1] for r in reached)
    assert all(low <= m.at_accuracy <= high for m in ours)


def test_axes_have_multipliers_of_their_own() -> None:
    rows = made_ledgers.rows("one", noise=0.002) + made_ledgers.rows("other", noise=0.002, draw=1)
    for row in rows:
        row["flops"] = row["samples_seen"] * (1e9 if row["arm"] == "one" else 3e9)
        row["unique_images"] = 50_000
    found = analysed(rows)
    at = {axis: np.mean([m.value for m in ms if m.arm == "one"]) for axis, ms in found.multipliers.items()}
    assert at["flops"] == pytest.approx(3 * at["samples_seen"], rel=0.02)
    assert "unique_images" not in at
    assert any("unique_images" in remark for remark in found.remarks)
    assert analysed(rows, "flops").as_json()["multipliers"][0]["arm"] in ("one", "other")


def test_equal_seeds_are_paired() -> None:
    """What two arms share under a seed leaves no trace in their multiplier."""
    rng = np.random.default_rng(5)
    rows = made_ledgers.rows("one") + made_ledgers.rows("other", A=5.0)
    moved = {seed: rng.normal(0, 0.004) for seed in range(3)}
    for row in rows:
        row["accuracy"] += moved[row["seed"]] + rng.normal(0, 1e-5)
    paired = analysed(rows).multipliers["samples_seen"]
    for row in rows:
        if row["arm"] == "other":
            row["seed"] += 10
    unpaired = analysed(rows).multipliers["samples_seen"]
    assert all(p.high / p.low < (u.high / u.low) ** 0.6 for p, u in zip(paired, unpaired))


def test_the_largest_count_is_predicted_without_it() -> None:
    full = curve("x", noise=0.001)
    (point,) = held_out.held_out(full, 0.9)
    assert point.samples_seen == 64_000
    moved = full.error.copy()
    moved[full.count == 64_000] += 0.05
    (again,) = held_out.held_out(law.Curve("x", full.x, moved, full.count, full.trunk, full.seeds), 0.9)
    assert again.predicted == point.predicted, "the point had no say in its prediction"
    assert point.low < point.accuracy < point.high
    assert again.accuracy < again.low
    assert abs(point.predicted - point.accuracy) < abs(point.log_linear - point.accuracy)
    assert abs(point.predicted - point.accuracy) < abs(point.constant - point.accuracy)
    long = curve("x", counts=[2000 * 2**k for k in range(9)])
    assert [p.samples_seen for p in held_out.held_out(long, 0.9)] == [256_000, 512_000]
    assert held_out.held_out(curve("x", counts=made_ledgers.COUNTS[:3]), 0.9) == []


def test_several_sizes_have_a_joint_law() -> None:
    rows: made_ledgers.Rows = []
    for number, params in enumerate((5e6, 2e7, 8e7, 3e8)):
        E = 0.2 + 60 * params**-0.4
        rows += [{**row, "params": params} for row in made_ledgers.rows("x", E=E, noise=0.001, draw=number)]
    found = analysed(rows)
    (arm,) = found.arms
    assert set(arm.values) == {"E", "A", "a", "n0", "B", "b"}
    assert arm.values["b"].value == pytest.approx(0.4, abs=0.1)
    assert arm.values["a"].value == pytest.approx(0.35, abs=0.03)
    for name, truth in (("E", 0.2), ("a", 0.35), ("b", 0.4), ("B", 60)):
        assert arm.values[name].low < truth < arm.values[name].high
    exact: made_ledgers.Rows = []
    for params in (5e6, 2e7, 8e7):
        exact += [{**row, "params": params} for row in made_ledgers.rows("x", E=0.2 + 60 * params**-0.4)]
    curves, _ = table.curves(
        table.Table("made", tuple(exact[0]), tuple({"unique_images": None, "flops": None, **r} for r in exact)),
        "samples_seen",
    )
    joint, _ = fit_sizes(curves, 0.9)
    assert (joint.E, joint.a, joint.b) == pytest.approx((0.2, 0.35, 0.4), abs=0.003)


def test_two_sizes_are_two_curves() -> None:
    rows = [
        {**row, "params": params}
        for params, E in ((5e6, 0.4), (2e7, 0.3))
        for row in made_ledgers.rows("x", E=E, noise=0.001)
    ]
    found = analysed(rows)
    assert [arm.name for arm in found.arms] == ["x, 5e+06 parameters", "x, 2e+07 parameters"]
    assert found.arms[0].values["E"].value > found.arms[1].values["E"].value


def test_a_trunk_that_is_not_finished_counts_as_far_as_it_got() -> None:
    rows = made_ledgers.rows("x", noise=0.003)
    values = analysed(rows[:-2]).arms[0].values
    assert values["a"].low < 0.35 < values["a"].high
