"""Tables and text lists as other programs write them: every line is a link or is named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from ingest.config import Config
from ingest.lists.files import list_files, skipped
from ingest.lists.source import read_links
from ingest.plan import make
from ingest.record import BadLine, Link
from shards import store
from shards.dataset import read_plan

U = "http://a/{}.jpg"


def put(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def urls_of(path: str, **options: str) -> list[str]:
    found = list(read_links(path, **options))
    assert not [link for link in found if isinstance(link, BadLine)]
    return [link.url.rsplit("/", 1)[1].removesuffix(".jpg") for link in found]


# --- quotes and fields over several lines --------------------------------------------------------------------------

CAPTIONS = [
    "a dog",
    '"hello" said he',
    '"the end , one',
    "two",
    'of "it"',
    '"yes',
    'a man"',
    '"',
    '""',
    '"whole"',
    '5"',
]


@pytest.mark.parametrize("url_first", [True, False])
@pytest.mark.parametrize("header", [True, False])
def test_a_quote_in_a_tsv_is_text_unless_it_closes(tmp_path: Path, url_first: bool, header: bool) -> None:
    cells = [[U.format(at), caption][:: 1 if url_first else -1] for at, caption in enumerate(CAPTIONS)]
    names = [["url", "caption"][:: 1 if url_first else -1]] if header else []
    path = put(tmp_path / "list.tsv", "".join("\t".join(row) + "\n" for row in [*names, *cells]))
    assert urls_of(path) == [str(at) for at in range(len(CAPTIONS))]


@settings(max_examples=60, deadline=None)
@given(
    captions=st.lists(st.text(st.sampled_from('"a, \r'), max_size=6), min_size=2, max_size=8),
    ending=st.sampled_from(["tsv", "csv"]),
)
def test_whatever_a_caption_holds_every_line_is_a_row(
    tmp_path_factory: pytest.TempPathFactory, captions: list[str], ending: str
) -> None:
    between = "\t" if ending == "tsv" else ","
    lines = [f"{U.format(at)}{between}{caption}" for at, caption in enumerate(captions)]
    path = put(tmp_path_factory.getbasetemp() / f"any.{ending}", f"url{between}caption\n" + "\n".join(lines) + "\n")
    assert len(list(read_links(path))) == len(captions)


@pytest.mark.parametrize(("ending", "between"), [("csv", ","), ("tsv", "\t")])
def test_fields_over_several_lines(tmp_path: Path, ending: str, between: str) -> None:
    field = '"two\nlines, ""quoted""\n\nand more"'
    text = f"url{between}caption\n" + "".join(f"{U.format(at)}{between}{field}\n" for at in range(700))
    assert urls_of(put(tmp_path / f"list.{ending}", text)) == [str(at) for at in range(700)]


def test_a_field_over_the_end_of_a_block(tmp_path: Path) -> None:
    field = '"' + "\n".join(["x" * 70] * 50) + '"'
    text = "url,caption\n" + "".join(f"{U.format(at)},{field}\n" for at in range(1500))
    assert len(text) > 4 << 20
    assert urls_of(put(tmp_path / "list.csv", text)) == [str(at) for at in range(1500)]


# --- which column --------------------------------------------------------------------------------------------------


def table(header: str, *cells: str) -> str:
    return header + "\n" + "".join(",".join(cell.format(at) for cell in cells) + "\n" for at in range(3))


@pytest.mark.parametrize(
    "text",
    [
        table("id,image,url", "{}", "{}.jpg", U),
        table("link,url", "http://a/page{}.html", U),
        table(" URL , TEXT", " " + U + " ", "t"),
        table("url,", U, ""),
        table("name,photo", "x", U),
        table("page,image_url", "http://a/page{}.html", U),
        table("image,photo", "{}.jpg", U),
    ],
)
def test_the_column_of_urls(tmp_path: Path, text: str) -> None:
    path = put(tmp_path / "list.csv", text)
    assert urls_of(path) == ["0", "1", "2"]
    rows = [dict(zip(text.splitlines()[0].split(","), line.split(","))) for line in text.splitlines()[1:]]
    assert urls_of(put(tmp_path / "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows))) == ["0", "1", "2"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    assert urls_of(str(tmp_path / "list.parquet")) == ["0", "1", "2"]


def test_where_two_columns_may_be_meant_it_asks(tmp_path: Path) -> None:
    named = put(tmp_path / "a.csv", table("page,photo", "http://a/page{}", U))
    with pytest.raises(ValueError, match=r"which column holds the pictures' URLs\? URLs are in page, photo"):
        urls_of(named)
    assert urls_of(named, url_column="photo") == urls_of(named, url_column="1") == ["0", "1", "2"]
    lines = "".join(f"k{at}\thttp://a/page{at}\t{U.format(at)}\tx\n" for at in range(3))
    for name in ("a.tsv", "a.txt", "a"):
        with pytest.raises(ValueError, match=r"URLs are in 1, 2"):
            urls_of(put(tmp_path / name, lines))
    assert urls_of(str(tmp_path / "a.tsv"), url_column="2") == ["0", "1", "2"]
    twice = put(tmp_path / "b.csv", table("url,url", "http://a/page{}", U))
    with pytest.raises(ValueError, match=r"URLs are in 0, 1"):
        urls_of(twice)
    with pytest.raises(ValueError, match=r"several columns 'url': give the number of one \(0, 1\)"):
        urls_of(twice, url_column="url")


def test_another_delimiter_where_the_column_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "list.csv", table("id;url", "k{0};http://a/{0}.jpg"))
    with pytest.raises(ValueError, match=r"which column holds the URLs\? It has id;url: set --url-column$"):
        urls_of(path)
    assert urls_of(path, url_column="url") == ["0", "1", "2"]


@pytest.mark.parametrize("options", [{}, {"url_column": "0"}])
def test_tsv_http_data(tmp_path: Path, options: dict[str, str]) -> None:
    rows = "".join(f"{U.format(at)}\t20383\tI4V4qq54NBEFDwBqPYCkDA==\n" for at in range(3))
    path = put(tmp_path / "list.tsv", "TsvHttpData-1.0\n" + rows)
    assert urls_of(path, **options) == ["0", "1", "2"]
    first = next(iter(read_links(path, format="text")))
    assert isinstance(first, BadLine)


# --- JSON ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_arrays(tmp_path: Path, ending: str, indent: int | None) -> None:
    entries = [{"id": at, "url": U.format(at), "caption": "ü" * 40, "s": 0.3} for at in range(20_000)]
    path = put(tmp_path / f"a.{ending}", json.dumps(entries, indent=indent, ensure_ascii=False))
    assert [link.key for link in read_links(path)] == [str(at) for at in range(20_000)]
    strings = put(tmp_path / f"b.{ending}", json.dumps([U.format(at) for at in range(3)], indent=indent))
    assert urls_of(strings) == ["0", "1", "2"]
    mixed = put(tmp_path / f"c.{ending}", json.dumps([7, None, [U.format(0)], U.format(1), {"url": U.format(2)}]))
    assert [type(link) for link in read_links(mixed)] == [BadLine] * 3 + [Link] * 2


def test_damaged_arrays_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.json: damaged JSON at line 3"):
        urls_of(put(tmp_path / "a.json", '["http://a/0.jpg",\n"http://a/1.jpg",\n"http:'))
    with pytest.raises(ValueError, match=r"its array does not end"):
        urls_of(put(tmp_path / "a.json", '["http://a/0.jpg",\n'))
    assert urls_of(put(tmp_path / "a.json", '["http://a/0.jpg"]\n["http://a/1.jpg"]\n')) == ["0", "1"]


def test_json_lines_of_strings_and_columns_of_later_rows(tmp_path: Path) -> None:
    assert urls_of(put(tmp_path / "a.jsonl", "".join(f'"{U.format(at)}"\n' for at in range(3)))) == ["0", "1", "2"]
    rows = [{"url": U.format(0)}, {"id": "k", "url": U.format(1)}, {"label": ["x", "y"], "url": U.format(2)}]
    rows += [{"url": U.format(at)} for at in range(3, 300)] + [{"label": "late", "url": U.format(300)}]
    path = put(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    found = list(read_links(path))
    assert [link.key for link in found[:3]] == ["000000000", "k", "000000002"]
    assert (found[2].labels, found[300].labels) == (("x", "y"), ("late",))
    with pytest.raises(ValueError, match=r"has no column 'nope': it has url, id, label"):
        list(read_links(path, label_column="nope"))


# --- what is no list -----------------------------------------------------------------------------------------------


def test_a_folder_takes_its_lists_and_names_the_rest(base: str) -> None:
    folder = store.join(base, "lists")
    for name in ("README.md", ".gitattributes", "_SUCCESS", "part-0.csv", "part-1.csv.gz", "stats.json", "LICENSE"):
        store.put(store.join(folder, name), b"x")
    assert [url.rsplit("/", 1)[1] for url in list_files(folder + "/")] == ["part-0.csv", "part-1.csv.gz"]
    assert skipped(folder + "/") == [".gitattributes", "LICENSE", "README.md", "_SUCCESS", "stats.json"]
    store.put(store.join(folder, "a.parquet"), b"x")
    assert [url.rsplit("/", 1)[1] for url in list_files(folder + "/")] == ["a.parquet"]


def test_the_plan_says_what_was_left_out(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    put(tmp_path / "lists" / "README.md", "# a list")
    pq.write_table(pa.table({"url": [U.format(0)]}), tmp_path / "lists" / "a.parquet")
    plan = make(Config(str(tmp_path / "lists"), str(tmp_path / "out")))
    assert plan.links == 1
    assert plan.note.endswith("lists: ignored files that are no lists: README.md")


@pytest.mark.parametrize("name", ["a.xlsx", "a.xls", "a.csv"])
def test_a_spreadsheet_is_named(tmp_path: Path, name: str) -> None:
    body = b"\xd0\xcf\x11\xe0" if name.endswith("csv") else b"PK\x03\x04"
    with pytest.raises(ValueError, match=r"is a spreadsheet: save it as CSV"):
        urls_of(put(tmp_path / name, body + bytes(50)))


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.jsonl", '{"urls": ["http://a/1.jpg", "http://a/2.jpg"]}\n', "line 1, .*the url is a list"),
        ("a.txt", "\nno url\n" * 3000, "none of its 3,000 lines can be used; the first, line 2, 'no url'"),
        ("a.csv", "url\n" + "1.jpg\n" * 3, "the first, line 2, '1.jpg': url without scheme: give a URL a line"),
        ("a.json", '{\n "url": "http://a/1.jpg"\n}', "the first, line 1, '': not JSON"),
    ],
)
def test_a_list_of_which_nothing_can_be_used_leaves_no_dataset(tmp_path: Path, name: str, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        make(Config(put(tmp_path / name, text), str(tmp_path / "out"), unit=100))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_an_escaped_ampersand_is_one(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", "http://a/1.jpg?w=1&amp;h=2\nhttp://a/2.jpg?w=1&h=2\nk\thttp://a/3?a&amp;b\n")
    found = [link.url for link in read_links(path)]
    assert found == ["http://a/1.jpg?w=1&h=2", "http://a/2.jpg?w=1&h=2", "http://a/3?a&b"][: len(found)]
    assert len(found) == 3
    make(Config(path, str(tmp_path / "out")))
    assert read_plan(str(tmp_path / "out"), 0)["url"].to_pylist()[0] == found[0]


# Unicode TS 46, non-transitional.
@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("fa\u00df.de", "xn--fa-hia.de"),
        ("FA\u1e9e.de".lower(), "xn--fa-hia.de"),
        ("\u03b2\u03cc\u03bb\u03bf\u03c2.com", "xn--nxasmm1c.com"),
        ("B\u00dccher.de", "xn--bcher-kva.de"),
        ("bu\u0308cher.de", "xn--bcher-kva.de"),
        ("\u65e5\u672c\u3002jp", "xn--wgv71a.jp"),
        ("\uff41\uff42.c\u00f6m:80", "ab.xn--cm-fka:80"),
        ("a\u00adb\u00fc.de", "xn--ab-yka.de"),
        ("\u2603.net", "xn--n3h.net"),
        ("a\uff0fb.de", None),
        ("a\uff1fb.de", None),
        ("a\uff03b.de", None),
        ("a\uff20b.de", None),
        ("a\uff1ab.de", None),
        ("a\u2100b.de", None),
        ("u@b\u00fc.de", None),
        ("\u00fc" * 64 + ".de", None),
    ],
)
def test_international_host_names_as_browsers_ask(tmp_path: Path, host: str, asked: str | None) -> None:
    (found,) = read_links(put(tmp_path / "a.txt", f"http://{host}?a\u00fc\n"))
    if asked is None:
        assert isinstance(found, BadLine)
    else:
        assert found.url == f"http://{asked}?a%C3%BC"
