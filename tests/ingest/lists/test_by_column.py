"""Lists are read by the column where they are plain: the rows are those that reading one by one gives."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from ingest.lists import json_lists, plan_units, tables
from ingest.lists.columns import Columns

URLS = st.sampled_from(["http://a/1.jpg", "https://b/ü.jpg", "", " ", "\xa0", "ftp://c/2.jpg", "http://a/x&amp;y"])
TEXT = st.text(st.characters(exclude_characters='\n\r,"', exclude_categories=["Cs"]), max_size=5)
VALUE = TEXT | st.none() | st.integers(-3, 3) | st.floats() | st.lists(TEXT, max_size=2) | st.booleans()
ENTRY = st.fixed_dictionaries({"url": URLS}, optional={"id": VALUE, "label": VALUE, "caption": VALUE, "size": VALUE})
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def planned(path: Path) -> list[dict[str, object]]:
    """What a list becomes, with all its columns."""
    return [row for part in plan_units(str(path), 7, columns=Columns(keep=None)) for row in part.links.to_pylist()]


def without_blanks(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Without nulls: whether a column that is null in all rows is there depends on which rows were read together."""
    return [{name: cell for name, cell in row.items() if cell is not None} for row in rows]


def agree(path: Path, room: object, monkeypatch: pytest.MonkeyPatch) -> None:
    found = planned(path)
    with monkeypatch.context() as patch:
        patch.setattr(room, "_by_column", lambda *_: None)
        assert without_blanks(planned(path)) == without_blanks(found)


@SETTINGS
@given(rows=st.lists(st.tuples(TEXT, URLS, TEXT, TEXT), min_size=1, max_size=12), cut=st.integers(0, 40))
def test_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, ...]], cut: int) -> None:
    lines = ["id,url,label,caption", "k,http://a/0.jpg,l,c", *map(",".join, rows)]
    lines[-1] = lines[-1][: len(lines[-1]) - cut] or ","
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr("ingest.lists.rows.chunked.__defaults__", (5,))
        agree(tmp_path / "list.csv", tables, monkeypatch)


@SETTINGS
@given(entries=st.lists(ENTRY, min_size=1, max_size=12))
def test_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: list[dict[str, object]]) -> None:
    lines = [json.dumps(entry) for entry in [{"url": "http://a/0.jpg"}, *entries]]
    (tmp_path / "list.jsonl").write_text("\n".join(lines) + "\n")
    with monkeypatch.context() as patch:
        patch.setattr("ingest.lists.rows.chunked.__defaults__", (3,))
        agree(tmp_path / "list.jsonl", json_lists, monkeypatch)


@pytest.mark.parametrize("name", ["list.csv", "list.jsonl"])
def test_a_plain_list_is_not_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = [{"url": f"http://a/{at}.jpg", "label": f"l{at % 3}", "caption": f"ü {at}"} for at in range(2000)]
    if name == "list.csv":
        text = "url,label,caption\n" + "".join(",".join(row.values()) + "\n" for row in rows)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / name).write_text(text)
    for room in (tables, json_lists):
        monkeypatch.setattr(room, "_rows", lambda *_: pytest.fail("a row was read alone"))
    found = planned(tmp_path / name)
    assert [(row["url"], row["labels"], row["+caption"]) for row in found] == [
        (row["url"], [row["label"]], row["caption"]) for row in rows
    ]


def test_half_of_a_character_is_read_alone(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"url": "http://a/1.jpg", "caption": "\\ud800"}\n')
    assert planned(tmp_path / "list.jsonl")[0]["+caption"] == "?"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("k1\thttp://a/1.jpg\tmore\tstill\nk2\thttp://a/2.jpg\n", ["more\tstill", None]),  # id, URL, more
        ("k1\thttp://a/1.jpg\nk2\thttp://a/2.jpg\nhttp://a/3.jpg\tits own\r\n", [None, None, "its own"]),
        ("http://a/1.jpg\na\thttp://a/2.jpg\thm\nhttp://a/3.jpg\ta caption\r\n", [None, "hm", "a caption"]),
        ("http://a/1.jpg\t3:1\t4:0.5\nhttp://a/2.jpg\t3:1\nhttp://a/3.jpg\tx\n", [None, None, "x"]),  # labels, but one
        ("n01440764_1\thttp://a/1.jpg\t640\nn01440764_2\thttp://a/2.jpg\t\n", ["640", None]),  # fall11, and a width
    ],
)
def test_what_follows_a_url_in_a_line_of_text_is_kept(tmp_path: Path, text: str, rest: list[str | None]) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode())
    assert [row["+rest"] for row in planned(tmp_path / "list.txt")] == rest
    plain = pa.concat_tables(part.links for part in plan_units(str(tmp_path / "list.txt"), 100))
    assert "+rest" not in plain.column_names
    named = [part.links for part in plan_units(str(tmp_path / "list.txt"), 100, columns=Columns(keep=("rest",)))]
    assert pa.concat_tables(named)["+rest"].to_pylist() == rest
