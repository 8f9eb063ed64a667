"""Lists and tars of any kind: every line is a link, a bad line or left out by a rule; every member is used or named;
copying a tar gives what indexing it in place gives.

200 examples of each kind, always the same. Offline, with 20,000 of each:

    XTRA_FUZZ=20000 python -m pytest tests/ingest/test_fuzz_inputs.py
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from test_class_folders import picture

from ingest.config import Config
from ingest.lists import carry, links_of, plan_batches, plan_units
from ingest.lists.rows import is_url
from ingest.record import Link
from ingest.sets import folders, in_place, sources, tars
from shards.tar import Source, pieces

EXAMPLES = int(os.environ.get("XTRA_FUZZ", "200"))
pytestmark = pytest.mark.timeout(0 if "XTRA_FUZZ" in os.environ else 300)
fuzz = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

# --- lists ---------------------------------------------------------------------------------------------------------

URLS = st.sampled_from(
    [
        *("http://a/1.jpg", "https://b.example/x?y=1&z=2", "http://a/1.jpg", "http://ü.example/ö.jpg", "HTTP://A/B"),
        *(
            "ftp://a/b.jpg",
            "http://",
            "",
            "no url",
            "http://u:p@a/b",
            "http://a/b c.jpg",
            "http://a/&amp;b",
            "//a/b.jpg",
        ),
    ]
)
WORDS = st.one_of(
    st.sampled_from(
        ["", "a dog", '"', '""', 'says "hi"', '"open', "5'", "größe 🐕", "a\tb", "a,b", "a;b", " ", "null", "0"]
    ),
    st.text("\"', \tab;|{}[]\\:é", max_size=6),
)
NUMBERS = st.sampled_from(["", "0.31", "7", "-1", "1e3", "nan", "wide", " 8 ", "1_000", "5.0"])
NAMES = ["url", "caption", "width", "similarity"]
Rows = list[dict[str, Any]]


def rows_of(words: st.SearchStrategy[Any], numbers: st.SearchStrategy[Any], urls: st.SearchStrategy[Any]) -> Any:
    row = st.fixed_dictionaries({"url": urls, "caption": words, "width": numbers, "similarity": numbers})
    return st.lists(row, min_size=1, max_size=12)


def as_table(rows: Rows, order: list[str], delimiter: str, ending: str, quoting: int) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ending, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(order)
    writer.writerows([row[name] for name in order] for row in rows)
    return out.getvalue().encode()


def check(path: Path, lines: int, width_of: Callable[[int], str | None]) -> pa.Table:
    """That all lines are accounted for, with rules and without, in units of any size; returns the plan."""
    everything = Config().columns
    whole = carry.joined([planned.links for planned in plan_batches(str(path), columns=everything)])
    assert whole["row"].to_pylist() == list(range(lines))
    keys = whole["key"].to_pylist()
    assert len(set(keys)) == lines
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,90}", key) for key in keys)
    found = list(links_of(*carry.split(whole), "caption"))
    bad = {link.row for link in found if not isinstance(link, Link)}
    for link in found:
        if isinstance(link, Link):
            assert link.url.isascii()
            assert not link.columns or isinstance(json.loads(link.columns), dict)
    cut = list(plan_units(str(path), 5, columns=everything))
    assert [len(planned.links) for planned in cut[:-1]] == [5] * (len(cut) - 1)
    assert carry.joined([planned.links for planned in cut]).equals(whole)
    if "width" in carry.names(whole):
        config = Config(where="width > 5 and caption is not null", keep_columns=("none",))
        some = list(plan_batches(str(path), columns=config.columns, where=config.rules))
        assert sum(len(planned.links) + planned.not_chosen for planned in some) == lines
        numbers = {row: width_of(row) for row in range(lines)}
        wide = {row for row, text in numbers.items() if text and _NUMBER.fullmatch(text) and float(text) > 5}
        lost = {row for row in bad if numbers[row] is None}
        taken = {row for planned in some for row in planned.links["row"].to_pylist()}
        assert taken <= wide | lost
        assert sum(planned.left_out.get("width > 5", 0) for planned in some) == lines - len(wide | lost)
    return whole


_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")


def cells(plan: pa.Table, name: str) -> list[Any]:
    return carry.split(plan)[1][name].to_pylist()


@fuzz
@given(
    rows=rows_of(st.one_of(WORDS, WORDS.map(lambda word: f"{word}\n{word}")), NUMBERS, URLS),
    order=st.permutations(NAMES),
    form=st.tuples(
        st.sampled_from(["csv", "tsv"]),
        st.sampled_from(["\n", "\r\n"]),
        st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    ),
    marks=st.tuples(st.booleans(), st.booleans()),
)
def test_tables(
    tmp_path_factory: pytest.TempPathFactory,
    rows: Rows,
    order: list[str],
    form: tuple[str, str, int],
    marks: tuple[bool, bool],
) -> None:
    kind, ending, quoting = form
    if order.index("caption") < order.index("url"):  # a line with a URL is a row, whatever field is open before it
        rows = [{name: cell.replace("\n", " ") for name, cell in row.items()} for row in rows]
    body = as_table(rows, order, "," if kind == "csv" else "\t", ending, quoting)
    body = (b"\xef\xbb\xbf" if marks[0] else b"") + body
    path = tmp_path_factory.getbasetemp() / f"any.{kind}{'.gz' if marks[1] else ''}"
    path.write_bytes(gzip.compress(body, 1) if marks[1] else body)
    said = [row for row in rows if any(cell.strip() for cell in row.values())]  # an empty line is no row
    if not said:
        assert list(plan_batches(str(path), columns=Config().columns)) == []
        return
    plan = check(path, len(said), lambda row: said[row]["width"] or None)
    for name in NAMES[1:]:
        assert cells(plan, name) == [row[name] or None for row in said]


@fuzz
@given(
    captions=st.lists(st.tuples(URLS, st.text("\"', \tab\r", max_size=8)), min_size=1, max_size=12),
    kind=st.sampled_from(["csv", "tsv"]),
)
def test_tables_whose_quotes_are_wrong(
    tmp_path_factory: pytest.TempPathFactory, captions: list[tuple[str, str]], kind: str
) -> None:
    between = "," if kind == "csv" else "\t"
    lines = [f"http://a/{at}.jpg{between}{caption}" for at, (_, caption) in enumerate(captions)]
    path = tmp_path_factory.getbasetemp() / f"wrong.{kind}"
    path.write_text(f"url{between}caption\n" + "\n".join(lines) + "\n", newline="")
    plan = carry.joined([planned.links for planned in plan_batches(str(path), columns=Config().columns)])
    assert plan["row"].to_pylist() == list(range(len(lines)))
    good = plan["url"].filter(plan["why"].is_null()).to_pylist()
    assert set(good) <= {f"http://a/{at}.jpg" for at in range(len(lines))}


VALUES = st.one_of(WORDS, st.none(), st.integers(), st.booleans(), st.floats(-9, 9), st.lists(WORDS, max_size=2))


@fuzz
@given(
    rows=rows_of(
        VALUES, st.one_of(NUMBERS, st.none(), st.integers(-9, 9), st.floats(-9, 9)), st.one_of(URLS, st.none())
    ),
    gone=st.lists(st.tuples(st.integers(0, 11), st.sampled_from(NAMES[1:])), max_size=6),
    others=st.lists(st.sampled_from([b"{", b"null", b"[1]", b'"http://a/s.jpg"', b"\xff", b"3"]), max_size=2),
    form=st.sampled_from(["jsonl", "json", "indented"]),
)
def test_json(
    tmp_path_factory: pytest.TempPathFactory, rows: Rows, gone: list[tuple[int, str]], others: list[bytes], form: str
) -> None:
    rows = [{"url": "http://a/first.jpg", "caption": "a", "width": "1", "similarity": ""}, *rows]
    entries: list[dict[str, Any]] = [dict(row) for row in rows]
    for at, name in gone:
        if 0 < at < len(entries):
            entries[at].pop(name, None)
    path = tmp_path_factory.getbasetemp() / f"any.{'json' if form == 'json' else 'jsonl'}"
    if form == "jsonl":
        path.write_bytes(b"\n".join([*(json.dumps(entry).encode() for entry in entries), *others]) + b"\n\n")
    else:
        others = []
        path.write_text(json.dumps(entries, indent=1 if form == "indented" else None))
    text = [
        {k: None if v is None else v if isinstance(v, str) else json.dumps(v) for k, v in entry.items()}
        for entry in entries
    ]
    lines = len(entries) + len(others)
    plan = check(path, lines, lambda row: text[row].get("width") if row < len(text) else None)
    for name in NAMES[1:]:
        assert cells(plan, name) == [entry.get(name) for entry in text] + [None] * len(others)


@fuzz
@given(
    rows=rows_of(st.one_of(WORDS, st.none()), st.one_of(st.none(), st.integers(-9, 9)), st.one_of(URLS, st.none())),
    groups=st.integers(1, 4),
    coded=st.booleans(),
)
def test_parquet(tmp_path_factory: pytest.TempPathFactory, rows: Rows, groups: int, coded: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "any.parquet"
    numbers = {name: pa.array([row[name] for row in rows], pa.int32()) for name in NAMES[2:]}
    words = pa.array([row["caption"] for row in rows], pa.string())
    urls = pa.array([row["url"] for row in rows], pa.string())
    caption = words.dictionary_encode() if coded else words
    pq.write_table(pa.table({"url": urls, "caption": caption, **numbers}), path, row_group_size=groups)
    plan = check(path, len(rows), lambda row: None if rows[row]["width"] is None else str(rows[row]["width"]))
    for name in NAMES[1:]:
        assert cells(plan, name) == [row[name] for row in rows]


@fuzz
@given(
    lines=st.lists(st.tuples(st.sampled_from(["", "n01440764_1\t", "id\t", "\t", " "]), URLS, WORDS), max_size=12),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_lines_of_text(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str, str]], ending: str
) -> None:
    text = ["http://a/first.jpg", *(start + url + ("\t" + more if more else "") for start, url, more in lines)]
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_text(ending.join(text) + ending, newline="")
    said = [line.split("\t") for line in text if line.strip()]
    plan = check(path, len(said), lambda row: None)
    rest = ["\t".join(fields[1 if is_url(fields[0].encode()) else 2 :]) or None for fields in said]
    assert (cells(plan, "rest") if "rest" in carry.names(plan) else [None] * len(said)) == rest


# --- tars ----------------------------------------------------------------------------------------------------------


class Member(NamedTuple):
    name: str
    kind: bytes


BODY = picture(1)
BODIES = {"jpg": BODY, "png": BODY, "cls": b"7", "json": b'{"label": 8}', "txt": b"nine"}
PLACES = st.sampled_from(["", "", "./", "a/", "b/", "train/", "val/", "a/b/", "__MACOSX/", "@eaDir/", "x" * 110 + "/"])
STEMS = st.sampled_from(["a", "b", "a.1", "v1.0_7", "a.x", "._a", "é", "n01440764_1", "a b", ".hidden", "k" * 95])
ENDS = st.sampled_from(
    [*(".jpg", ".png", ".JPG", ".cls", ".CLS", ".out.cls", ".json", ".txt", ".npy", "", ".in.jpg", ".webp")]
)
KINDS = st.sampled_from([tarfile.REGTYPE] * 8 + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
MEMBERS = st.builds(lambda folder, stem, end, kind: Member(folder + stem + end, kind), PLACES, STEMS, ENDS, KINDS)


def pack(path: Path, members: list[Member], form: int) -> Path:
    long = any(len(member.name.encode()) > 100 for member in members)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT if long and form == tarfile.USTAR_FORMAT else form) as out:
        for member in members:
            info = tarfile.TarInfo(member.name)
            info.type = member.kind
            info.linkname = "a.jpg" if member.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            body = BODIES.get(member.name.rpartition(".")[2].lower(), b"x") if info.isreg() else b""
            info.size = len(body)
            out.addfile(info, io.BytesIO(body))
    return path


class Outcome(NamedTuple):
    refused: str
    rows: list[tuple[str, tuple[str, ...]]]
    unused: dict[str, int]


def outcome(tar: Path, way: bool, labels: bool) -> Outcome:
    """What one way to import makes of a tar."""
    config = folders.Config(str(tar), "out", in_place=way, labels=labels)
    try:
        if way:
            indexed = in_place._index(config, str(tar), None, lambda: False)
            assert indexed is not None
            return Outcome("", sorted((row[1], tuple(row[3])) for row in indexed.rows), dict(indexed.unused.kinds))
        unused = tars.Unused()
        found = list(sources._in_tar(tar, None, folders.how(config), unused))
        return Outcome("", sorted((each.name, each.labels) for each in found), dict(unused.kinds))
    except ValueError as error:
        return Outcome(str(error), [], {})


@fuzz
@given(
    members=st.lists(MEMBERS, max_size=9),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT]),
    labels=st.booleans(),
)
def test_tars(tmp_path_factory: pytest.TempPathFactory, members: list[Member], form: int, labels: bool) -> None:
    path = pack(tmp_path_factory.getbasetemp() / "any.tar", members, form)
    copied, placed = outcome(path, False, labels), outcome(path, True, labels)
    assert "\n" not in copied.refused + placed.refused
    if placed.refused:
        assert copied.refused or "is apart from" in placed.refused
    elif copied.refused:
        assert labels
        assert "has no label" in copied.refused
    else:
        assert (copied.rows, copied.unused) == (placed.rows, placed.unused)
    if copied.refused:
        return
    used, seen = 0, tars.Unused()
    source = Source(pieces(str(path)))
    for sample in tars.samples(source, "x", seen, lambda placed: b"7", adjacent=False):
        found = tars.picture_of(sample, seen, labelled=False)
        used += isinstance(found, tuple)
    linked = sum(member.kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) for member in members)
    regular = sum(member.kind == tarfile.REGTYPE for member in members)
    assert used + seen.kinds.total() == regular + linked
