"""Lists -> links: every line becomes a link, a bad line that says why, or (when empty) nothing."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from origin import unpacked

from ingest import source
from ingest.record import BadLine, Link, from_plan, to_plan


def links(path: Path, **options: str) -> list[Link | BadLine]:
    return list(source.read_links(str(path), **options))


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_fall11_lines_give_key_label_and_row(tmp_path: Path) -> None:
    found = links(put(tmp_path / "list.txt", "n00004475_6590\thttp://a/1.jpg\nn00004475_7\thttps://b/2.jpg\n"))
    assert found == [
        Link("n00004475_6590", "http://a/1.jpg", ("n00004475",), 0),
        Link("n00004475_7", "https://b/2.jpg", ("n00004475",), 1),
    ]


def test_a_list_of_urls_alone_has_rows_for_keys(tmp_path: Path) -> None:
    found = links(put(tmp_path / "list.txt", "http://a/1.jpg\r\n\r\n  \nhttp://a/2.jpg"))
    assert [(f.key, f.url, f.row, f.labels) for f in found] == [
        ("000000000", "http://a/1.jpg", 0, ()),
        ("000000001", "http://a/2.jpg", 1, ()),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"n00000001_2", "no tab"),
        (b"n00000001_2\t", "no url"),
        (b"\thttp://a/1.jpg", "empty id"),
        (b"n00000001_2\ta/1.jpg", "without scheme"),
        (b"n00000001_2\tftp://a/1.jpg", "'ftp'"),
        (b"n00000001_2\tfile:///etc/passwd", "'file'"),
        (b"n00000001_2\tdata:image/png;base64,AAAA", "'data'"),
        (b"x00000001_2\thttp://a/1.jpg", "wnid"),
        (b"n00000001\thttp://a/1.jpg", "wnid"),
        (b"n00000001_1\0\thttp://a/1.jpg", "NUL"),
        (b"n00000001_2\thttp://a/\0.jpg", "NUL"),
        (b"n00000001_2\thttp://a/\x01.jpg", "unquoted"),
        (b"n00000001_2\thttp:///1.jpg", "without host"),
        (b"n00000001_2\thttp://me:secret@a/1.jpg", "user name"),
        (b"n00000001_2\thttp://a:99999/1.jpg", "not a url"),
        (b"n00000001_2\thttp://[::1/1.jpg", "not a url"),
        (b"n00000001_2\thttp://a/" + b"a" * 9000, "9009 bytes"),
        (b"n00000001_2\thttp://a/" + b"a" * 200_000, "line longer"),
    ],
)
def test_a_bad_line_keeps_its_key_row_and_number(tmp_path: Path, line: bytes, why: str) -> None:
    good = b"n00000001_%d\thttp://a/1.jpg\n"
    found = links(put(tmp_path / "list.txt", good % 10 + b"\n" + line + b"\n" + good % 11))
    assert [type(f) for f in found] == [Link, BadLine, Link]
    bad = found[1]
    assert isinstance(bad, BadLine)
    assert (bad.row, bad.line) == (1, 3)
    assert why in bad.why
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,90}", bad.key)
    assert from_plan(**to_plan(bad)) == bad  # it survives the plan


def test_bytes_outside_ascii_are_quoted_as_they_are(tmp_path: Path) -> None:
    text = b"a\thttp://h/Coste\xf1o.jpg\nb\thttp://h/Coste\xc3\xb1o.jpg\nc\thttp://h/a b.jpg#top\nd\thttp://h/%20x\n"
    assert [f.url for f in links(put(tmp_path / "list.txt", text))] == [
        "http://h/Coste%F1o.jpg",
        "http://h/Coste%C3%B1o.jpg",
        "http://h/a%20b.jpg",
        "http://h/%20x",
    ]
    host = links(put(tmp_path / "host.txt", "a\thttp://bücher.example/1.jpg\n"))
    assert host[0].url == "http://xn--bcher-kva.example/1.jpg"


def test_one_bad_first_line_does_not_hide_fall11(tmp_path: Path) -> None:
    found = links(put(tmp_path / "list.txt", "junk\thttp://a/0.jpg\n" + "n00000001_1\thttp://a/1.jpg\n" * 3))
    assert [type(f) for f in found] == [BadLine, Link, Link, Link]
    assert found[1].labels == ("n00000001",)


def test_ids_that_are_no_wnids_are_just_ids(tmp_path: Path) -> None:
    found = links(put(tmp_path / "list.txt", "cat 1/ä\thttp://a/1.jpg\ndog\thttp://a/2.jpg\n"))
    assert [(f.key, f.labels) for f in found] == [("cat_1__", ()), ("dog", ())]


def test_repeated_ids_get_their_row(tmp_path: Path) -> None:
    ids = ["x", "y", "x", "x_r4", "x", "", "x_r4", "y" * 200, "y" * 200]
    text = "".join(f"{name}\thttp://a/{at}.jpg\n" for at, name in enumerate(ids))
    keys = [f.key for f in links(put(tmp_path / "list.txt", text))]
    assert keys[:7] == ["x", "y", "x_r2", "x_r4", "x_r4_1", "000000005", "x_r4_r6"]
    assert keys[8] == "y" * 87 + "_r8"
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,90}", key) for key in keys)


def test_repeats_are_found_across_batches_in_little_memory(tmp_path: Path) -> None:
    n = 50_000
    path = tmp_path / "list.txt"
    with path.open("w") as out:
        for at in range(n):
            out.write(f"k{at % 40_000}\thttp://a/{at}.jpg\n")
    list(source.read_links(str(put(tmp_path / "warm.txt", "a\thttp://a/1.jpg\n"))))
    tracemalloc.start()
    repeated = sum("_r" in link.key for link in source.read_links(str(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert repeated == 10_000
    assert peak < 16 * n + (6 << 20)  # 4096 links of work, and two times 8 bytes a link


def test_gz_is_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    body = gzip.compress(b"a\thttp://a/1.jpg\n" * 5000)
    assert len(links(put(tmp_path / "list.txt.gz", body))) == 5000
    with pytest.raises(ValueError, match=r"cut.txt.gz: damaged gzip"):
        links(put(tmp_path / "cut.txt.gz", body[:-20]))
    with pytest.raises(ValueError, match="is not read"):
        links(put(tmp_path / "list.txt.zst", body))


def table() -> Iterator[dict[str, str]]:
    yield {"ID": "a", "url": "http://a/1.jpg", "label": "cat, big"}
    yield {"ID": "b", "url": "http://a/2.jpg", "label": ""}
    yield {"ID": "", "url": "http://a/3.jpg", "label": "dog"}
    yield {"ID": "d", "url": "", "label": "dog"}


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "parquet"])
def test_tables_with_names(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(list(table())), path)
    else:
        opener = gzip.open if kind.endswith("gz") else open
        with opener(path, "wt", newline="") as out:
            writer = csv.DictWriter(out, ["ID", "url", "label"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(table())
    found = links(path)
    assert [(f.key, f.row, f.labels) for f in found[:2]] == [("a", 0, ("cat, big",)), ("b", 1, ())]
    assert isinstance(found[0], Link)
    assert [(type(f), f.why) for f in found[2:] if isinstance(f, BadLine)] == [
        (BadLine, "empty id"),
        (BadLine, "no url"),
    ]
    chosen = links(path, url_column="url", id_column="label", label_column="ID")
    assert (chosen[0].key, chosen[0].labels) == ("cat__big", ("a",))
    with pytest.raises(ValueError, match=r"no column 'nope': it has ID, url, label"):
        links(path, url_column="nope")


def test_tables_without_names_find_the_url(tmp_path: Path) -> None:
    path = put(tmp_path / "list.tsv", "4\thttp://a/1.jpg\tcat\n5\thttp://a/2.jpg\n\n6\n")
    assert [(f.key, f.labels) for f in links(path)] == [("000000000", ()), ("000000001", ()), ("000000002", ())]
    found = links(path, id_column="0", label_column="2")
    assert [(f.key, f.labels) for f in found] == [("4", ("cat",)), ("5", ()), ("6", ())]
    assert [type(f) for f in found] == [Link, Link, BadLine]
    with pytest.raises(ValueError, match="which column holds the URLs"):
        links(put(tmp_path / "list.csv", "a,b\n1,2\n"))


def test_a_quote_that_never_closes_costs_a_bounded_piece(tmp_path: Path) -> None:
    row = "http://a/{}.jpg,x\n"
    text = "url,name\n" + row.format(0) + '"http://a/' + "".join(row.format(at) for at in range(20_000))
    found = links(put(tmp_path / "list.csv", text))
    assert isinstance(found[0], Link)
    bad = found[1]
    assert isinstance(bad, BadLine)
    assert "lines 3 to" in bad.why
    assert sum(isinstance(f, Link) for f in found) > 10_000


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet"])
def test_a_missing_list_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no such list: check --urls$"):
        links(tmp_path / name)


def test_parquet_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a Parquet file"):
        links(put(tmp_path / "list.parquet", b"hello, this is text"))
    with pytest.raises(ValueError, match="format 'xml' is unknown"):
        links(tmp_path / "x", format="xml")


def test_the_stress_list_gets_its_verdicts(shared: Path, tmp_path: Path) -> None:
    folder = unpacked(shared, "meta", tmp_path) / "imagenet-urls"
    verdicts = json.loads((folder / "fall11_stress_DERIVED.verdicts.json").read_text())
    found = links(folder / "fall11_stress_DERIVED.txt")
    wanted = [entry for entry in verdicts if entry["verdict"] != "skip"]
    assert len(found) == len(wanted)
    assert len({f.key for f in found}) == len(found)
    wrong = []
    for entry, got in zip(wanted, found):
        repeated = got.key.endswith(f"_r{got.row}")
        match entry["verdict"], entry["why"]:
            case "reject", "loopback address (SSRF)":  # a good URL; the fetcher refuses the address
                good = isinstance(got, Link) and got.url.startswith("http://127.0.0.1")
            case "reject", _:
                good = isinstance(got, BadLine) and got.line == entry["line"]
            case "ok" | "unknown-wnid", _:
                good = isinstance(got, Link) and not repeated
            case (("ok-duplicate-id" | "duplicate-id"), _):
                good = isinstance(got, Link) and repeated
            case "duplicate", _:  # same id, same URL: kept apart here, merged when selecting
                good = isinstance(got, Link)
            case "reject-or-tolerate" | "reject-or-quote", _:
                good = isinstance(got, BadLine) or got.url.isascii()
            case _:
                good = False
        if not good:
            wrong.append((entry, got))
    assert wrong == []


def test_real_lists_lose_nothing(shared: Path, tmp_path: Path) -> None:
    folder = unpacked(shared, "meta", tmp_path) / "imagenet-urls"
    for name in ("fall11_real_sample.txt", "n02084071_urls.txt", "clock_geturls_no_ids.txt"):
        lines = [line for line in (folder / name).read_bytes().splitlines() if line.strip()]
        found = links(folder / name)
        assert len(found) == len(lines), name
        assert sum(isinstance(f, BadLine) for f in found) == 0, name
