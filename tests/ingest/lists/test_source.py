"""Lists -> links: every line becomes a link, a bad line that says why, or (when empty) nothing."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from origin import unpacked

from ingest.lists import files, source
from ingest.record import BadLine, Link


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


def test_repeats_are_found_across_batches_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n = 200_000
    path = tmp_path / "list.txt"
    with path.open("w") as out:
        for at in range(n):
            out.write(f"k{at % 160_000}\thttp://a/{at}.jpg\n")
    monkeypatch.setattr(files, "BLOCK", 128 << 10)
    list(source.read_links(str(put(tmp_path / "warm.txt", "a\thttp://a/1.jpg\n"))))
    repeated = arrow = 0
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    for planned in source.plan_batches(str(path)):
        repeated += sum("_r" in key for key in planned.links["key"].to_pylist())
        arrow = max(arrow, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert repeated == 40_000
    assert peak + arrow < 16 * n + (6 << 20)  # twice 8 bytes a link, and a few blocks of work


def table() -> Iterator[dict[str, str]]:
    yield {"ID": "a", "url": "http://a/1.jpg", "label": "cat, big"}
    yield {"ID": "b", "url": "http://a/2.jpg", "label": ""}
    yield {"ID": "", "url": "http://a/3.jpg", "label": "dog"}
    yield {"ID": "d", "url": "", "label": "dog"}


def write_table(path: Path) -> Path:
    """The table in the format that the name says."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(table())), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as out:
        if ".jsonl" in path.name:
            out.writelines(json.dumps(row) + "\n" for row in table())
        else:
            writer = csv.DictWriter(out, ["ID", "url", "label"], delimiter="\t" if ".tsv" in path.name else ",")
            writer.writeheader()
            writer.writerows(table())
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "jsonl.gz", "parquet"])
def test_tables_with_names(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path / f"list.{kind}")
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


def test_a_quote_that_never_closes_costs_its_own_line(tmp_path: Path) -> None:
    row = "http://a/{}.jpg,x\n"
    text = "url,name\n" + row.format(0) + '"http://a/' + "".join(row.format(at) for at in range(20_000))
    found = links(put(tmp_path / "list.csv", text))
    assert [(f.line, f.why) for f in found if isinstance(f, BadLine)] == [(3, "url without scheme")]
    assert sum(isinstance(f, Link) for f in found) == 20_000


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.parquet"])
def test_a_missing_list_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"there is no such list: check --urls$"):
        links(tmp_path / name)


def test_parquet_that_is_not(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a Parquet file"):
        links(put(tmp_path / "list.parquet", b"hello, this is text"))
    with pytest.raises(ValueError, match="format 'xml' is unknown"):
        links(tmp_path / "x", format="xml")


def test_classes_leave_lines_out(tmp_path: Path) -> None:
    lines = ["n00000001_1\thttp://a/1.jpg", "n00000002_1\thttp://a/2.jpg", "broken", "n00000002_2\tno-scheme"]
    lines += ["n00000001_1\thttp://a/3.jpg", "n00000003_1\thttp://a/4.jpg"]
    path = str(put(tmp_path / "list.txt", "\n".join(lines)))
    batches = list(source.plan_batches(path, classes={"n00000001", "n00000009"}))
    found = [link for planned in batches for link in source.links_of(planned.links)]
    # A broken line may have been of any class, so it stays and is counted; rows and lines are those of the whole list.
    assert [(f.key, f.row, type(f)) for f in found] == [
        ("n00000001_1", 0, Link),
        ("000000002", 2, BadLine),
        ("n00000001_1_r4", 4, Link),
    ]
    assert sum(planned.not_chosen for planned in batches) == 3
    assert source.label_counts(path) == {"n00000001": 2, "n00000002": 1, "n00000003": 1}


@pytest.mark.parametrize("unit", [1, 2, 3, 4, 7, 100])
def test_units_have_their_size_and_lose_nothing(tmp_path: Path, unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "BLOCK", 64 << 10)
    lines = [f"n0000000{at % 3}_{at}\thttp://a/{'x' * 3000}{at}.jpg\n" for at in range(100)]
    path = str(put(tmp_path / "list.txt", "".join(lines)))
    whole = [f for planned in source.plan_batches(path, classes={"n00000000"}) for f in source.links_of(planned.links)]
    units = list(source.plan_units(path, unit, classes={"n00000000"}))
    assert [f for planned in units for f in source.links_of(planned.links)] == whole
    assert [len(planned.links) for planned in units[:-1]] == [unit] * (len(units) - 1)
    assert sum(planned.not_chosen for planned in units) == 66
    assert [len(planned.links) for planned in source.plan_units(path, 50)] == [50, 50]


@pytest.mark.parametrize("port", [0, 9_999, 10_000, 59_999, 60_000, 65_535, 65_536, 99_999, 100_000])
def test_a_port_is_judged_alike_in_a_column_and_in_one_url(tmp_path: Path, port: int) -> None:
    url = f"http://a.example:{port}/x.jpg"
    (planned,) = source.plan_batches(str(put(tmp_path / "list.txt", f"{url}\nhttp://b/1.jpg\n")))
    why = planned.links["why"].to_pylist()[0]
    assert (why is None) == (source.check_url(url) is None) == (port < 65_536)


def test_plain_urls_are_what_the_rule_for_one_url_says() -> None:
    """The column's shortcut must never say more than `check_url` and `quote` would."""
    parts = [
        "http://",
        "https://",
        "HTTP://",
        "ftp://",
        "a",
        "a.b-c",
        "[::1]",
        ":80",
        ":99999",
        "@",
        "/",
        "?",
        "#",
        " ",
    ]
    parts += ["\\", "%20", "é", "\x7f", "\0", "\n", "a" * 4096]
    pattern = re.compile(source._PLAIN_URL)
    plain = 0
    for url in map("".join, itertools.product(parts, repeat=4)):
        if len(url) <= source.MAX_URL and pattern.fullmatch(url):
            plain += 1
            assert source.quote(url) == url
            host, port = urlsplit(url).hostname, urlsplit(url).port
            assert host
            assert port is None or 0 <= port < 10_000
            assert not set("@\\#\n\0 ") & set(url.split("/", 3)[2])
    assert plain > 50


# Lines of the stress list whose verdict leaves a choice, or that end otherwise than it says here, and why.
BAD = {
    1632: "no tab between id and url",  # "reject-or-tolerate", a space in place of the tab
    1633: "no url",  # "reject-or-tolerate", two tabs: the second field is empty
}
GOOD = {
    1646: "raw space in the url",  # "reject-or-quote": quoted, as browsers do; its id repeats an earlier line's
    # "reject": the URL is good, and the fetcher refuses the address that it would connect to (blocked_address), as for
    # any name that resolves to one, unless --fetch.allow-private names it.
    1648: "loopback address (SSRF)",
}


def test_the_stress_list_gets_its_verdicts(shared: Path, tmp_path: Path) -> None:
    folder = unpacked(shared, "meta", tmp_path) / "imagenet-urls"
    verdicts = json.loads((folder / "fall11_stress_DERIVED.verdicts.json").read_text())
    lines = (folder / "fall11_stress_DERIVED.txt").read_bytes().split(b"\n")
    assert [entry["line"] for entry in verdicts] == list(range(1, len(lines)))
    found = iter(links(folder / "fall11_stress_DERIVED.txt"))
    keys: set[str] = set()
    for row, entry in enumerate(entry for entry in verdicts if entry["verdict"] != "skip"):
        number, verdict, line = entry["line"], entry["verdict"], lines[entry["line"] - 1].rstrip(b"\r")
        got = next(found)
        name, _, url = line.decode("utf-8", "surrogateescape").partition("\t")
        assert got.row == row, entry
        assert got.key not in keys, entry
        keys.add(got.key)
        if number in BAD or (verdict == "reject" and number not in GOOD):
            assert isinstance(got, BadLine), entry
            assert got.line == number, entry
            assert BAD.get(number, "") in got.why, entry
            continue
        assert isinstance(got, Link), entry
        assert got.labels == (name.split("_")[0],), entry
        assert got.url == source.quote(url), entry
        assert unquote_to_bytes(got.url) == unquote_to_bytes(line.partition(b"\t")[2]), entry  # the list's own bytes
        repeated = verdict in ("ok-duplicate-id", "duplicate-id", "duplicate") or number in GOOD
        assert got.key == (f"{name}_r{row}" if repeated else name), entry
        assert GOOD.get(number, entry["why"]) == entry["why"]
    assert list(found) == []


def test_the_stress_list_is_the_same_packed_and_in_small_pieces(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unpacked(shared, "meta", tmp_path) / "imagenet-urls" / "fall11_stress_DERIVED.txt"
    whole = links(path)
    body = path.read_bytes()
    monkeypatch.setattr(files, "BLOCK", files._PIECE)
    assert links(path) == whole
    assert links(put(tmp_path / "list.gz", gzip.compress(body[:70_000]) + gzip.compress(body[70_000:]))) == whole
    assert links(put(tmp_path / "list.zst", pa.compress(body, "zstd", asbytes=True))) == whole


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("fall11_real_sample.txt", 1623),
        ("n02084071_urls.txt", 1603),
        ("clock_geturls_no_ids.txt", 1076),
        ("fall11_quoted_lines.txt", 20),
        ("ml-images_train_urls_tiny.txt", 100),
    ],
)
def test_real_lists_lose_nothing(shared: Path, tmp_path: Path, name: str, count: int) -> None:
    path = unpacked(shared, "meta", tmp_path) / "imagenet-urls" / name
    found = links(path)
    assert [type(f) for f in found] == [Link] * count
    assert len({f.key for f in found}) == count
    for line, got in zip(filter(bytes.strip, path.read_bytes().splitlines()), found):
        fields = line.split(b"\t")
        if name.startswith(("fall11", "n0208")):
            assert (got.key.encode(), got.labels[0].encode()) == (fields[0], fields[0][:9])
            assert unquote_to_bytes(got.url) == unquote_to_bytes(fields[1])
        else:
            assert got.key == f"{got.row:09d}"
            assert unquote_to_bytes(got.url) == unquote_to_bytes(fields[0].strip().replace(b"&amp;", b"&"))
            assert got.labels == tuple(field.decode().split(":")[0] for field in fields[1:])
