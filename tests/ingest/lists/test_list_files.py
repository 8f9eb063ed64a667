"""Bytes -> rows: compression, encodings, JSON lines, Parquet of any shape, labels in text, several files."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from buckets import bucket
from hypothesis import given, settings, strategies as st

from ingest.lists import files, rows
from ingest.lists.files import list_files, list_sha256
from ingest.lists.source import read_links
from ingest.record import BadLine, Link
from shards import store


def links(path: Path | str, **options: str) -> list[Link | BadLine]:
    return list(read_links(str(path), **options))


def good(path: Path | str, **options: str) -> list[tuple[str, str, tuple[str, ...]]]:
    found = links(path, **options)
    assert [f for f in found if isinstance(f, BadLine)] == []
    return [(f.key, f.url, f.labels) for f in found]


def complaints(path: Path | str) -> dict[int, str]:
    """What is wrong with which line."""
    return {f.line: f.why for f in links(path) if isinstance(f, BadLine)}


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def zst(body: bytes) -> bytes:
    return pa.compress(body, "zstd", asbytes=True)


# --- bytes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, zst])
def test_compression_is_detected_by_content(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    lines = b"".join(b"k%d\thttp://a/%d.jpg\n" % (n, n) for n in range(50_000))
    half = lines.index(b"\n", len(lines) // 2) + 1
    packed = pack(lines[:half]) + pack(lines[half:])
    wanted = good(put(tmp_path / "plain.txt", lines))
    assert len(wanted) == 50_000
    for name in ("list.txt.gz", "list.txt.zst", "list.txt", "list"):
        assert good(put(tmp_path / name, packed)) == wanted


@pytest.mark.slow
@pytest.mark.parametrize("pack", [gzip.compress, zst])
@pytest.mark.parametrize("kind", ["txt", "csv", "tsv", "jsonl"])
def test_a_damaged_list_names_the_line_that_was_reached(
    pack: Callable[[bytes], bytes], kind: str, tmp_path: Path
) -> None:
    cells = {"txt": "k{0}\thttp://a/{0}.jpg", "jsonl": '{{"url": "http://a/{0}.jpg"}}'}
    text = "" if kind in cells else "url\n"
    text += "".join(cells.get(kind, "http://a/{0}.jpg").format(n) + "\n" for n in range(200_000))
    packed = pack(text.encode())
    path = put(tmp_path / f"list.{kind}.x", packed[:-20])
    with pytest.raises(
        ValueError, match=rf"list.{kind}.x: damaged compressed list after line \d+ \(.*again$"
    ) as raised:
        links(path, format={"txt": "text"}.get(kind, kind))
    assert int(str(raised.value).split("line ")[1].split()[0]) > 190_000
    assert "\n" not in str(raised.value)


def test_compression_that_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"list.txt: this compression is not supported"):
        links(put(tmp_path / "list.txt", bz2.compress(b"http://a/1.jpg\n")))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["text", "csv", "jsonl"])
def test_marked_encodings(encoding: str, kind: str, tmp_path: Path) -> None:
    row = {"text": "{0}\thttp://a/ü{0}.jpg\r\n", "csv": "{0},http://a/ü{0}.jpg\r\n"}.get(
        kind, '{{"id": "{0}", "url": "http://a/ü{0}.jpg"}}\r\n'
    )
    text = ("id,url\r\n" if kind == "csv" else "") + "".join(row.format(n) for n in range(30_000))
    mark = "\ufeff" if encoding in ("utf-16-be", "utf-16-le") else ""
    found = good(put(tmp_path / "list", (mark + text).encode(encoding)), format=kind)
    assert found == [(str(n), f"http://a/%C3%BC{n}.jpg", ()) for n in range(30_000)]


def test_utf16_without_its_mark_is_all_bad_lines(tmp_path: Path) -> None:
    bad = complaints(put(tmp_path / "list.txt", "a\thttp://a/1.jpg\nb\thttp://a/2.jpg\n".encode("utf-16-le")))
    assert sorted(bad) == [1, 2, 3]


@pytest.mark.parametrize("size", [(64 << 10) - 1, 64 << 10, (64 << 10) + 1, 3 << 20])
def test_a_long_line_is_one_bad_line_wherever_blocks_end(size: int, tmp_path: Path) -> None:
    text = "a\thttp://a/1.jpg\n" * 100 + "x" * size + "\nb\thttp://a/2.jpg"
    found = links(put(tmp_path / "list.txt", text))
    assert [type(f) for f in found] == [Link] * 100 + [BadLine, Link]
    why = "line longer" if size > 64 << 10 else "no tab"
    assert why in complaints(tmp_path / "list.txt")[101]
    if size > 64 << 10:
        csv = put(tmp_path / "list.csv", "url\nhttp://a/1.jpg\n" + "x," * (size // 2 + 1) + "\nhttp://a/2.jpg\n")
        assert [type(f) for f in links(csv)] == [Link, BadLine, Link]


def test_hostile_bytes_never_raise(tmp_path: Path) -> None:
    junk = bytes(range(256)) * 300 + b"\n" + b"\t" * 50 + b"\n\r\r\r\n" + b"\n".join(bytes([n]) for n in range(256))
    for kind in ("text", "csv", "tsv", "jsonl"):
        body = b"url\n" if kind in ("csv", "tsv") else b'{"url": "http://a/1.jpg"}\n' if kind == "jsonl" else b""
        found = links(put(tmp_path / "list", body + junk), format=kind)
        assert sum(isinstance(f, BadLine) for f in found) > 100
        assert all(f.url.isprintable() for f in found)


# --- text ----------------------------------------------------------------------------------------------------------


def test_labels_with_confidences_after_a_url(tmp_path: Path) -> None:
    lines = ["http://a/1.jpg\t4097:1\t4089:0.9", "http://a/2.jpg", "http://a/3.jpg\tcat, 14:30", "http://a/4.jpg\t7:.5"]
    assert good(put(tmp_path / "list.txt", "\n".join(lines) + "\n")) == [
        ("000000000", "http://a/1.jpg", ("4097", "4089")),
        ("000000001", "http://a/2.jpg", ()),
        ("000000002", "http://a/3.jpg", ()),
        ("000000003", "http://a/4.jpg", ("7",)),
    ]


@pytest.mark.parametrize("caption", ["14:30", "a:b", "cat", "16:9", "see 4097:1", "4097:1 4089:1", "4097:100"])
def test_captions_after_a_url_are_not_labels(caption: str, tmp_path: Path) -> None:
    lines = [f"http://a/{n}.jpg\t{caption}" for n in range(3)] + ["http://a/3.jpg\t4097:1"]
    assert [labels for _, _, labels in good(put(tmp_path / "list.txt", "\n".join(lines)))] == [()] * 4


FIELDS = [b"n00000001_2", b"n00000001", b"cat", b"a b", b"", b" ", b"\r", b"\0", b"\xe9", b"n00000001_2\xe9", b"4097:1"]
FIELDS += [
    b"http://a/1.jpg",
    b"https://a/\xc3\xa9",
    b"HTTP://a/",
    b" http://a/2",
    b"http:",
    b"ftp://a/3",
    b"x" * 70_000,
]


@pytest.mark.parametrize("style", ["fall11", "ids", "labelled", "urls"])
@settings(deadline=None)
@given(lines=st.lists(st.lists(st.sampled_from(FIELDS), max_size=4).map(b"\t".join), max_size=12), end=st.booleans())
def test_lines_cut_all_at_once_are_what_each_is_by_itself(style: str, lines: list[bytes], end: bool) -> None:
    block = b"".join(line + (b"\r\n" if end else b"\n") for line in lines)
    if not block:
        return
    batch = rows._text_batch(7, block, style, "rest")
    wanted = [row for number, line in enumerate(lines, 7) if (row := rows._text_row(number, line, style)) is not None]
    columns = [batch[name].to_pylist() for name in ("line", "name", "url", "labels", "why")]
    found = [rows.Row(line, name, url, tuple(labels), why) for line, name, url, labels, why in zip(*columns)]
    assert found == [row._replace(cells=()) for row in wanted]
    rest = batch["rest"].to_pylist() if "rest" in batch.schema.names else [None] * len(batch)
    said = pa.array([row.cells[0] if row.cells else None for row in wanted], pa.binary())
    assert rest == rows.texts(said).to_pylist()


# --- tables --------------------------------------------------------------------------------------------------------


def test_json_lines_of_every_kind(tmp_path: Path) -> None:
    lines = [
        {"url": "http://a/1.jpg", "id": "a", "labels": ["x", 7, None, ""]},
        {"labels": "y", "id": 12, "other": {"deep": [1]}, "url": "http://a/\u00fc.jpg"},
        {"url": "http://a/3.jpg", "id": 1.5},
    ]
    text = "\n".join([json.dumps(lines[0]), "", json.dumps(lines[1], ensure_ascii=False), json.dumps(lines[2])])
    wanted = [
        ("a", "http://a/1.jpg", ("x", "7")),
        ("12", "http://a/%C3%BC.jpg", ("y",)),
        ("1_5", "http://a/3.jpg", ()),
    ]
    assert good(put(tmp_path / "list.jsonl", text)) == wanted
    assert good(put(tmp_path / "list.ndjson", text)) == wanted
    latin = b'{"url": "http://a/\xfc.jpg"}\n{"url": "http://a/\\ud800.jpg"}'
    assert [url for _, url, _ in good(put(tmp_path / "list.jsonl", latin))] == ["http://a/%FC.jpg", "http://a/?.jpg"]


def test_broken_json_lines_are_counted(tmp_path: Path) -> None:
    lines = ['{"url": "http://a/1.jpg"}', '{"url": "http://a/2', "[1]", "null", '"http://a/3.jpg"', "[" * 5000, "{}"]
    lines += ['{"url": null}', '{"url": 7}', '{"url": ["http://a/4.jpg"]}', "9" * 5000, '{"url": "http://a/5.jpg"}']
    path = put(tmp_path / "list.jsonl", "\n".join(lines))
    bad = complaints(path)
    assert sorted(bad) == [2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert "not JSON" in bad[2]
    assert bad[3] == bad[4] == "not a JSON object"
    assert bad[6].startswith("not JSON")
    assert bad[7] == bad[8] == "no url"
    assert [f.url for f in links(path) if isinstance(f, Link)] == [f"http://a/{n}.jpg" for n in (1, 3, 5)]
    with pytest.raises(ValueError, match=r"which column holds the URLs\? It has link2, x: set --url-column"):
        links(put(tmp_path / "list.jsonl", 'broken\n{"link2": 1, "x": 2}'))


def test_parquet_of_any_text_type(tmp_path: Path) -> None:
    urls = [f"http://a/{n}.jpg" for n in range(3)]
    for url_type in (
        pa.string(),
        pa.large_string(),
        pa.binary(),
        pa.large_binary(),
        pa.dictionary(pa.int8(), pa.string()),
    ):
        columns = {
            "url": pa.array(urls).cast(url_type),
            "id": pa.array([7, 8, 9]),
            "label": pa.array([["x", "", None, "y"], None, []], pa.large_list(pa.string())),
        }
        pq.write_table(pa.table(columns), tmp_path / "list.parquet")
        assert good(tmp_path / "list.parquet") == [
            ("7", urls[0], ("x", "y")),
            ("8", urls[1], ()),
            ("9", urls[2], ()),
        ]
    pq.write_table(pa.table({"url": [None, "", " ", urls[0]], "label": [1, 2, 3, 4]}), tmp_path / "list.parquet")
    assert complaints(tmp_path / "list.parquet") == {1: "no url", 2: "no url", 3: "no url"}
    assert links(tmp_path / "list.parquet")[3].labels == ("4",)
    pq.write_table(pa.table({"url": [{"a": 1}]}), tmp_path / "list.parquet")
    with pytest.raises(ValueError, match=r"list.parquet: a column is struct<a: int64>"):
        links(tmp_path / "list.parquet")


def test_parquet_damaged_inside(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    pq.write_table(pa.table({"url": [f"http://a/{n}.jpg" for n in range(100_000)]}), path, row_group_size=10_000)
    body = bytearray(path.read_bytes())
    body[len(body) // 2 : len(body) // 2 + 2000] = bytes(2000)
    with pytest.raises(ValueError, match=r"list.parquet: damaged Parquet after row \d{5} "):
        links(put(path, bytes(body)))


# --- several files -------------------------------------------------------------------------------------------------


def test_a_folder_or_a_pattern_is_one_list(base: str) -> None:
    for name, text in {
        "part-1.csv": "id,url\nc,http://a/3.jpg\n",
        "part-0.csv": "url,id\nhttp://a/1.jpg,a\nnothing,a\n",
        "part-2.jsonl": '{"id": "a", "url": "http://a/4.jpg"}',
        "_SUCCESS": "",
        ".hidden": "http://a/9.jpg",
    }.items():
        store.put(store.join(base, "lists", name), text.encode())
    found = links(store.join(base, "lists") + "/")
    assert [(f.key, f.row) for f in found] == [("a", 0), ("a_r1", 1), ("c", 2), ("a_r3", 3)]
    bad = found[1]
    assert isinstance(bad, BadLine)
    assert (bad.line, bad.why) == (3, "part-0.csv: url without scheme")
    assert links(store.join(base, "lists", "part-*.csv")) == found[:3]
    assert [url.rsplit("/", 1)[1] for url in list_files(store.join(base, "lists", "*-[12].*"))] == [
        "part-1.csv",
        "part-2.jsonl",
    ]
    with pytest.raises(ValueError, match=r"there are no lists: check --urls"):
        links(store.join(base, "lists", "*.parquet"))
    whole, some = (list_sha256(store.join(base, "lists", name)) for name in ("*", "part-*.csv"))
    assert len(whole) == 64
    assert whole != some
    store.put(store.join(base, "lists", "part-1.csv"), b"id,url\nc,http://a/5.jpg\n")
    assert list_sha256(store.join(base, "lists", "part-*.csv")) != some


def test_a_plain_folder_and_a_file_with_a_pattern_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    put(tmp_path / "lists" / "a[1].txt", "http://a/1.jpg")
    assert [url for _, url, _ in good(tmp_path / "lists")] == ["http://a/1.jpg"]
    assert [url for _, url, _ in good(tmp_path / "lists" / "a[1].txt")] == ["http://a/1.jpg"]


@pytest.mark.usefixtures("on_moto")
@pytest.mark.parametrize("kind", ["txt", "txt.gz", "txt.zst", "csv", "jsonl", "parquet"])
def test_lists_on_a_store(kind: str, tmp_path: Path) -> None:
    urls = [f"http://a/{n}.jpg" for n in range(1000)]
    text = {"csv": "url\n" + "\n".join(urls), "jsonl": "\n".join(json.dumps({"url": url}) for url in urls)}
    body = text.get(kind, "\n".join(urls)).encode()
    if kind == "parquet":
        pq.write_table(pa.table({"url": urls}), tmp_path / "x")
        body = (tmp_path / "x").read_bytes()
    elif "." in kind:
        body = gzip.compress(body) if kind.endswith("gz") else zst(body)
    url = f"{bucket()}/list.{kind}"
    store.put(url, body)
    assert [link for _, link, _ in good(url)] == urls


def test_a_web_address_of_a_list_may_have_a_query():
    url = "https://host/lists/part.csv.gz?download=1&name=a"
    assert files.list_files(url) == [url]
    assert files.list_name(url) == "part.csv.gz"
    assert files.kind_of(url) == "csv"


def test_what_a_bad_line_says_of_user_and_password_is_masked(tmp_path: Path):
    path = put(tmp_path / "list.txt", b"http://me:TOKEN9@host/a.jpg\nftp://h/b.jpg?token=TOKEN9\n")
    bad = [link for link in links(path) if isinstance(link, BadLine)]
    assert [link.url for link in bad] == ["http://…@host/a.jpg", "ftp://h/b.jpg?token=…"]
