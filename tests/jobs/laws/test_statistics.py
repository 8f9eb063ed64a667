"""Student's t against SciPy; comparisons, adjustment, the best of many, and power against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jobs.laws import statistics, student


def bits(accuracies: np.ndarray, images: int = 2000, draw: int = 0) -> np.ndarray:
    """One arm's bits, [seeds, images], of the accuracies given."""
    rng = np.random.default_rng(draw)
    return rng.random((len(accuracies), images)) < np.asarray(accuracies)[:, None]


@pytest.mark.parametrize("df", [1, 2, 3.7, 10, 250])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_students_t(df: float, level: float) -> None:
    assert student.t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)
    assert student.p_value(-2.1, df) == pytest.approx(2 * stats.t.sf(2.1, df), rel=1e-9)
    assert student.f_tail(2.5, df, 4) == pytest.approx(stats.f.sf(2.5, df, 4), rel=1e-9)


def test_the_power_of_a_t_test_is_the_noncentral_t() -> None:
    for df, shift in ((2, 3.0), (4, 3.0), (12, 2.5)):
        critical = stats.t.ppf(0.975, df)
        exact = stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift)
        assert student.power(shift, df) == pytest.approx(exact, abs=1e-6)
        assert student.power(student.detectable(df), df) == pytest.approx(0.8, abs=1e-6)
    assert student.detectable(math.inf) == pytest.approx(2.8016, abs=1e-3)


def test_what_a_design_can_find_is_what_simulation_finds() -> None:
    seeds, sd = 3, 0.5
    difference = statistics.detectable_difference(seeds, sd)
    rng = np.random.default_rng(1)
    paired = rng.normal(difference, sd * 2**0.5, (4000, seeds))
    found = stats.ttest_1samp(paired, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.02)
    assert statistics.detectable_difference(3, sd, arms=5) < 0.6 * difference
    assert statistics.detectable_difference(5, sd) < 0.6 * difference
    assert statistics.detectable_difference(3, sd, comparisons=10) > 2 * difference
    assert statistics.detectable_difference(3, 2 * sd) == pytest.approx(2 * difference)
    with pytest.raises(ValueError, match="sd is 0; it must be above 0"):
        statistics.detectable_difference(3, 0)


def test_a_clear_difference_is_found_and_its_interval_holds_it() -> None:
    two = {"high": bits([0.45, 0.452, 0.449]), "low": bits([0.38, 0.383, 0.381], draw=1)}
    (found,) = statistics.compare(two, [("high", "low")], primary=("high", "low"))
    assert found.verdict() == "higher"
    assert found.low < 0.069 < found.high
    assert found.difference == pytest.approx(two["high"].mean() - two["low"].mean())
    (back,) = statistics.compare(two, [("low", "high")])
    assert back.verdict() == "lower"
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert (found.unit, found.seeds, found.images) == ("seeds and images", 3, 2000)


def test_seeds_are_the_unit() -> None:
    """As many bits and the same difference, but seeds that disagree: undecided."""
    steady = {"a": bits([0.42, 0.42, 0.42], 20_000), "b": bits([0.38, 0.38, 0.38], 20_000, draw=1)}
    unsteady = {"a": bits([0.50, 0.42, 0.34], 20_000), "b": bits([0.38, 0.38, 0.38], 20_000, draw=1)}
    assert statistics.compare(steady, [("a", "b")])[0].verdict() == "higher"
    assert statistics.compare(unsteady, [("a", "b")])[0].verdict() == "undecided"
    (one,) = statistics.compare({name: b[:1] for name, b in unsteady.items()}, [("a", "b")])
    assert (one.unit, one.verdict(), one.freedom) == ("images of one seed", "higher", math.inf)


def test_pairing_by_image_takes_out_what_is_hard_for_both() -> None:
    rng = np.random.default_rng(3)
    hard = rng.random(5000) < 0.5
    flips = [rng.random((3, 5000)) < share for share in (0.02, 0.06)]
    paired = {"a": hard & ~flips[0], "b": hard & ~flips[1]}
    shuffled = {"a": paired["a"], "b": paired["b"][:, rng.permutation(5000)]}
    widths = [c.high - c.low for arms in (paired, shuffled) for c in statistics.compare(arms, [("a", "b")])]
    assert widths[0] < widths[1] / 3


def test_an_interval_over_seeds_alone_is_the_paired_t_interval() -> None:
    """Where images hardly vary, the method is the textbook's."""
    rows = [np.arange(50_000) % 100 < n for n in (52, 56, 50)]
    other = [np.arange(50_000) % 100 < n for n in (43, 42, 47)]
    (found,) = statistics.compare({"a": np.stack(rows), "b": np.stack(other)}, [("a", "b")])
    exact = stats.ttest_1samp([0.09, 0.14, 0.03], 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), rel=0.01)


def test_variance_is_pooled_over_arms_that_are_alike_and_not_with_an_unsteady_pair() -> None:
    rng = np.random.default_rng(0)
    alike = {f"arm{k}": bits(0.4 + rng.normal(0, 0.01, 3), 20_000, k) for k in range(5)}
    (pooled,) = statistics.compare(alike, [("arm0", "arm1")])
    uneven = dict(alike, arm0=bits([0.30, 0.40, 0.50], 20_000, 9))
    (own,) = statistics.compare(uneven, [("arm0", "arm1")])
    assert pooled.pooled
    assert pooled.freedom >= 8
    assert not own.pooled
    (other,) = statistics.compare({k: alike[k] for k in ("arm0", "arm1")}, [("arm0", "arm1")])
    assert not other.pooled


def test_holm() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.6, 0.9]) == [1.0, 1.0]


def test_only_the_declared_comparison_escapes_the_adjustment() -> None:
    arms = {name: bits(np.array([0.40, 0.402, 0.399]) + k * 0.02, draw=k) for k, name in enumerate("abcd")}
    pairs = [("b", "a"), ("c", "a"), ("d", "a")]
    first, *others = statistics.compare(arms, pairs, primary=("c", "a"))
    assert (first.arm, first.primary, first.adjusted) == ("c", True, first.p)
    assert [c.arm for c in others] == ["b", "d"]
    assert [c.adjusted for c in others] == statistics.holm([c.p for c in others])
    assert min(c.adjusted for c in others) == pytest.approx(2 * min(c.p for c in others))
    with pytest.raises(ValueError, match="d against b is not among the pairs"):
        statistics.compare(arms, pairs, primary=("d", "b"))


def test_bits_must_belong_together() -> None:
    with pytest.raises(ValueError, match=r"they must be \[seeds, images\], the same for every arm"):
        statistics.compare({"a": bits([0.4, 0.4]), "b": bits([0.4, 0.4, 0.4])}, [("a", "b")])
    with pytest.raises(ValueError, match="arm c has no bits; these arms have: a"):
        statistics.compare({"a": bits([0.4, 0.4])}, [("a", "c")])


def test_the_best_of_many_equal_arms_is_not_better_than_they_are() -> None:
    """Chosen and measured on the same images it would be."""
    honest, cursed = [], []
    for draw in range(60):
        arms = {str(k): bits([0.4, 0.4, 0.4], 400, 100 * draw + k) for k in range(10)}
        best = statistics.best_of(arms)
        assert best.of == 10
        honest.append(best.accuracy)
        cursed.append(best.chosen_at)
    assert np.mean(honest) == pytest.approx(0.4, abs=0.006)
    assert np.mean(cursed) > 0.42
