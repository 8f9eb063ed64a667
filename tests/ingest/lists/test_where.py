"""`--where`: what a condition takes, and what it refuses in one line."""

from __future__ import annotations

import datetime
import math

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from ingest.lists import where

TEXT = ["0.5", "0.2", "", None, "much", " 1e-1 ", "-3"]


def rows(**columns: object) -> pa.RecordBatch:
    arrays = {
        f"+{name}": values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
    }
    n = len(next(iter(arrays.values())))
    return pa.record_batch({"why": pa.nulls(n, pa.string()), **arrays})


def taken(text: str, batch: pa.RecordBatch) -> list[int]:
    """The rows that meet every rule."""
    left = list(range(len(batch)))
    for rule in where.parse(text):
        takes = rule.takes(batch).to_pylist()
        left = [at for at in left if takes[at]]
    return left


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x > 0.3", [0]),
        ("x >= 0.2", [0, 1]),
        ("x<=-3", [6]),
        ("0.3 < x", [0]),
        ("x = .1 or x == 0.5", [0, 5]),
        ("x != 0.5", [1, 5, 6]),
        ("not x > 0.3", [1, 5, 6]),
        ("not (x > 0.3 or x < 0)", [1, 5]),
        ("x in (0.5, 0.2, 7)", [0, 1]),
        ("x not in (0.5, 0.2)", [5, 6]),
        ("x is null", [3]),
        ("x is not null and x < 0.4", [1, 5, 6]),
        ("x = 'much'", [4]),
        ('x in ("much", "0.5")', [0, 4]),
        ("x > 0.1 and x < 0.5", [1]),
        ("x > 0.3 or x < 0 and x > -10", [0, 6]),
    ],
)
def test_text_compares_as_numbers_where_it_is_compared_with_one(text: str, expected: list[int]) -> None:
    assert taken(text, rows(x=TEXT)) == expected


def test_columns_of_parquet_compare_as_their_type() -> None:
    day = datetime.datetime(2026, 1, 1)
    batch = rows(
        width=[100, 300, None, 2**53 + 1],
        score=pa.array([0.1, math.nan, 0.9, 0.5]),
        nsfw=[True, False, None, False],
        at=pa.array([day, None, day.replace(year=2027), day], pa.timestamp("us")),
        height=["50", "400", "x", "9007199254740993"],
        never=pa.nulls(4),
        large=pa.array([0, 1, None, 2**63], pa.uint64()),
    )
    assert taken("width >= 256", batch) == [1, 3]
    assert taken(f"width = {2**53 + 1}", batch) == [3]
    assert taken("nsfw = false", batch) == [1, 3]
    assert taken("at > '2026-06-01'", batch) == [2]
    assert taken("width > height", batch) == [0]
    assert taken("width > 0.5", batch) == [0, 1, 3]
    assert taken("large > -1", batch) == [0, 1, 3]
    assert taken(f"large = {2**63}", batch) == [3]
    assert taken("never > 3 or never = 'a'", batch) == []
    assert taken("score > 0.4 and nsfw != true", batch) == [3]


def test_names_of_any_kind() -> None:
    batch = rows(**{"aesthetic score": [5.5, 1.0], "top.k-1": [1, 2], "größe": ["a", "b"], "and": [1, 2]})
    assert taken("`aesthetic score` > 2", batch) == [0]
    assert taken("top.k-1 > 1", batch) == [1]
    assert taken("größe = 'b'", batch) == [1]
    assert taken("`and` = 2 AND größe = 'b'", batch) == [1]


def test_rules_are_what_and_joins() -> None:
    parts = where.parse("a > 1  and (b = 'x y' or c < 2) and not d is null")
    assert [rule.text for rule in parts] == ["a > 1", "(b = 'x y' or c < 2)", "not d is null"]
    assert [rule.columns for rule in parts] == [("a",), ("b", "c"), ("d",)]
    (one,) = where.parse("a > 1 and b > 2 or c > 3")
    assert (one.text, one.columns) == ("a > 1 and b > 2 or c > 3", ("a", "b", "c"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "similarity",
            "> 3",
            "a >",
            "a > 3 and",
            "a > 3 b < 2",
            "(a > 3",
            "a > 3)",
            "a in ()",
            "a in (b)",
            "a in 3",
        ),
        *("a is 3", "1 > 2", "a > 'x", "a ** 2 > 3", "a + 1 > 2", "a > 3; b > 2", "__import__('os')", "a.b() > 1"),
        *("a > 1e", "a = = 3", "not", "a not > 3", "a > 3 or", "a < b < c", "lambda: 3", "a[0] > 1", "a > 3kB"),
        *("(" * 60 + "a > 1" + ")" * 60, "not " * 60 + "a > 1", "a > 1 and " * 2000 + "a > 1"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(ValueError, match=r"^--where") as error:
        where.parse(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["x > 'a'", "x = true", "y > 3", "y = 'a'", "z > 3", "z > 'soon'", "x > y", "l = 3"])
def test_types_that_do_not_compare_are_named(text: str) -> None:
    day = pa.array([datetime.date(2026, 1, 1)])
    batch = rows(x=[1], y=[True], z=day, l=pa.array([[1, 2]]))
    with pytest.raises(ValueError, match=r"^--where: .*(holds|cannot be compared)"):
        taken(text, batch)


VALUES = st.one_of(st.none(), st.integers(-3, 3).map(str), st.sampled_from(["", "a", "1.5", "-0"]))


@settings(max_examples=200)
@given(st.lists(VALUES, min_size=1, max_size=8), st.integers(-3, 3), st.sampled_from(["<", "<=", ">", ">=", "=", "!="]))
def test_a_condition_and_its_negation_share_no_row_and_take_what_is_a_number(
    values: list[str | None], literal: int, sign: str
) -> None:
    batch = rows(x=pa.array(values, pa.string()))
    yes, no = taken(f"x {sign} {literal}", batch), taken(f"not x {sign} {literal}", batch)
    numbers = [at for at, value in enumerate(values) if value not in (None, "", "a")]
    assert sorted(yes + no) == numbers
    python = {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__", "=": "__eq__", "!=": "__ne__"}[sign]
    assert yes == [at for at in numbers if getattr(float(values[at] or 0), python)(float(literal))]


@settings(max_examples=200)
@given(st.text("ab> <=!'\"`()0.5,andornit", max_size=30))
def test_any_text_is_a_condition_or_one_line(text: str) -> None:
    try:
        rules = where.parse(text)
    except ValueError as error:
        wrong = str(error)
    else:
        batch = rows(**{name: ["1", None] for rule in rules for name in rule.columns})
        assert all(len(rule.takes(batch)) == 2 for rule in rules)
        return
    assert wrong.startswith("--where")
    assert "\n" not in wrong
