"""`xtra bench growth`: exponents of known costs, and a small run of each verb."""

import pytest

from jobs.bench import growth

SIZES = [10, 100, 1_000, 10_000]


def test_the_exponent_is_that_of_the_cost_whatever_start_up_costs():
    for power in (1.0, 1.5, 2.0):
        row = growth.grown("plan", SIZES, [3.0 + 1e-4 * size**power for size in SIZES])
        assert row["exponent_100x"] == pytest.approx(power, abs=0.01)
        assert row["exponent_10x"] == pytest.approx(power, abs=0.1)
    assert row["rows"] == SIZES[1:]


def test_a_line_says_which_cost_grows_too_fast():
    slow = growth.grown("plan", SIZES, [1e-6 * size**1.2 for size in SIZES])
    assert growth._line(slow).endswith("above 1.05")
    assert "above" not in growth._line(growth.grown("plan", SIZES, [1e-6 * size for size in SIZES]))


def test_all_verbs_do_their_work_at_a_small_size(tmp_path):
    for verb in growth.ROWS:
        (tmp_path / verb).mkdir()
        found = growth.measured(verb, 60, tmp_path / verb, rounds=1)
        assert found["cpu_s"] > 0
    assert list((tmp_path / "fetch" / "0" / "commits").iterdir())
    assert list((tmp_path / "plan" / "0" / "links").iterdir())


@pytest.mark.slow
def test_a_run_gives_exponents_for_each_verb(tmp_path):
    done = growth.run(growth.Config(verbs=("plan",), rounds=1, scale=0.1, scratch=str(tmp_path)))
    assert set(done["ratios"]) == {"plan_exponent_10x", "plan_exponent_100x"}
    assert done["rows"][0]["rows"] == [1_000, 10_000, 100_000]
    assert not list(tmp_path.iterdir())


def test_mistakes_in_what_grows_are_named():
    with pytest.raises(ValueError, match="verbs has 'train': give some of fetch, plan, select, stream, status"):
        growth.Config(verbs=("train",))
    with pytest.raises(ValueError, match="rounds is 0"):
        growth.Config(rounds=0)
    with pytest.raises(ValueError, match="scale is 0"):
        growth.Config(scale=0)
