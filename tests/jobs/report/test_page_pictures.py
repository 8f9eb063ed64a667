"""What ingest.html shows of classes and pictures, its links, and the words of a retry."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from made_datasets import jpeg, make_dataset, rows_of, rule, write_unit
from test_dataset_page import EVIL, FULL, Reader, crawl, read

from ingest.config import Config
from ingest.filter import FilterConfig
from ingest.http import FetchConfig
from jobs import link_counts
from jobs.flags import Call
from jobs.report import dataset_page, survey
from shards.dataset import DatasetInfo, write_info
from shards.manifest import make_version

# ---- classes ----


def test_every_class_is_counted_and_some_are_shown_from_the_most_common_to_the_rarest(tmp_path: Path) -> None:
    rows = rows_of(0, 465, side=40)
    owners = [f"c{n:02d}" for n in range(30) for _ in range(n + 1)]  # 1 of c00, 30 of c29
    assert len(owners) == len(rows)
    for row, owner in zip(rows, owners):
        row["labels"] = [owner]
    write_unit(str(tmp_path), 0, rows)
    write_info(str(tmp_path), DatasetInfo("l", "0" * 64, 1, 465, "c", "t", classes=("c99", *sorted(set(owners)))))
    version = make_version(str(tmp_path), "import")
    seen = survey.survey(version)
    assert seen.classes == {f"c{n:02d}": n + 1 for n in reversed(range(30))}
    assert len(seen.shown) == survey.CLASSES
    assert [c.name for c in seen.shown] == sorted((c.name for c in seen.shown), reverse=True)
    assert (seen.shown[0].name, seen.shown[-1].name) == ("c29", "c00")
    keys = {row["key"]: owner for row, owner in zip(rows, owners)}
    for c in seen.shown:
        assert len(c.thumbs) == min(c.pictures, survey.THUMBS_A_CLASS)
        assert {keys[thumb.key] for thumb in c.thumbs} == {c.name}
    text = read(dataset_page.write(str(tmp_path))).text
    assert "30 classes, from 30 pictures down to 1; half have 16 or more. No picture of 1 more: c99." in text
    assert f"{survey.CLASSES} of them, by example" in text


def test_one_class_and_none_have_a_page(tmp_path: Path) -> None:
    one, none = rows_of(0, 5, side=40), rows_of(0, 5, side=40)
    for name, rows, labels in (("one", one, ["only"]), ("none", none, [])):
        for row in rows:
            row["labels"] = labels
        write_unit(str(tmp_path / name), 0, rows)
        write_info(str(tmp_path / name), DatasetInfo("l", "0" * 64, 1, 5, "c", "t"))
        make_version(str(tmp_path / name), "import")
    assert "One class, 5 pictures." in read(dataset_page.write(str(tmp_path / "one"))).text
    bare = read(dataset_page.write(str(tmp_path / "none")))
    assert "Classes" not in bare.text
    assert len(bare.pictures) == 5


def test_classes_of_one_size_need_no_chart(tmp_path: Path) -> None:
    rows = rows_of(0, 60, side=40)
    for n, row in enumerate(rows):
        row["labels"] = [f"c{n % 30}"]
    write_unit(str(tmp_path), 0, rows)
    write_info(str(tmp_path), DatasetInfo("l", "0" * 64, 1, 60, "c", "t"))
    make_version(str(tmp_path), "import")
    page = Path(dataset_page.write(str(tmp_path))).read_text()
    assert "30 classes of 2 pictures each." in page
    assert "the smallest" not in page


def test_labels_that_others_left_behind_count_for_the_picture_that_stays(tmp_path: Path) -> None:
    version = rule(crawl(tmp_path), {0: [(1, "duplicate", None), (2, None, ["extra", "c2"])]})
    seen = survey.survey(version)
    assert seen.classes["extra"] == 1
    (shown,) = [c for c in seen.shown if c.name == "extra"]
    assert [thumb.key for thumb in shown.thumbs] == ["k000002"]


# ---- pictures ----


def test_the_page_stays_small_whatever_its_pictures_are(tmp_path: Path) -> None:
    version = crawl(tmp_path)
    seen = survey.survey(version)
    heavy = replace(seen.shown[0].thumbs[0], jpeg=jpeg(1) + bytes(40_000))
    seen = replace(
        seen,
        thumbs={reason: (heavy,) * 8 for reason in dataset_page.MEANINGS if reason != "kept"},
        shown=tuple(survey.Class(f"c{n}", 9, tuple(replace(heavy) for _ in range(4))) for n in range(12)),
    )
    seen = replace(seen, thumbs={r: tuple(replace(t) for t in some) for r, some in seen.thumbs.items()})
    html = dataset_page.page(version, link_counts.of_manifest(version), seen, dataset_page.happened(()), {})
    assert 1_000_000 < len(html) < dataset_page.MOST_BYTES
    for name in ("timeout", "http_404", "undecodable"):
        section = html.split(f"<h3>{name}</h3>")[1].split("<h3>")[0]
        assert "<img" in section, "each group keeps its first picture"


def test_tiny_pictures_are_enlarged_in_a_frame_and_others_are_not(tmp_path: Path) -> None:
    version = crawl(tmp_path)
    tiny, large = (survey.Thumb("k", "u", "too_small", "", jpeg(1, side=side)) for side in (1, 60))
    assert '<img class="tiny"' in dataset_page.thumb(tiny)
    assert 'class="tiny"' not in dataset_page.thumb(large)
    assert 'class="tiny"' not in dataset_page.thumb(replace(large, jpeg=b"no picture")), version.address
    style = dataset_page.document("", "")
    assert re.search(r"\.thumbs img\.tiny \{[^}]*image-rendering: pixelated[^}]*border:", style)


def test_an_import_has_no_hosts_and_speaks_of_pictures(tmp_path: Path) -> None:
    version = make_dataset(tmp_path, [5], bad=(1,))
    seen = replace(survey.survey(version), largest=(), failing=(), slowest=())
    text = Reader(
        dataset_page.page(version, link_counts.of_manifest(version), seen, dataset_page.happened(()), {})
    ).text
    assert "Hosts" not in text
    assert "Import of test" in text
    assert "Where the pictures went" in text
    assert "Hosts" in read(dataset_page.write(str(tmp_path))).text


@pytest.mark.parametrize(
    ("url", "linked"),
    [
        ("https://a.example.org/x.jpg?a=1&b=2", True),
        ("http://a.example.org", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("file:///etc/passwd", False),
        ("//a.example.org/x", False),
        ("class/picture.jpg", False),
        ("https://[broken/x", False),
        ("https://", False),
        ("https://a.example.org/\u202ex", False),
        ("https://a.example.org/" + "x" * 2000, False),
        ("", False),
    ],
)
def test_only_links_to_the_web_can_be_followed(url: str, linked: bool) -> None:
    html = dataset_page.link(url, most=40)
    reader = Reader(html)
    assert reader.fetched == ([url] if linked else [])
    assert len(reader.text) <= 40
    if linked:
        assert 'rel="noreferrer noopener nofollow"' in html
    assert Reader(dataset_page.link(f"https://h/{EVIL}".replace("\x1b", ""))).tags == ["a"]


# ---- the retry ----


def test_the_words_of_a_retry_are_whole_and_do_what_they_say(tmp_path: Path) -> None:
    config = Config(
        urls="list.txt",
        out="a set",
        filter=FilterConfig(min_side=48, decode_check=False),
        fetch=FetchConfig(contact="you@lab.org", allow_private=("10.0.0.0/8", "127.0.0.0/8"), robots=False),
        where="width > 3",
    )
    words = dataset_page.retry_command("a set", dataset_page.settings(config))
    assert words.startswith("xtra ingest --retry --out 'a set' ")
    again = Call("ingest", "", shlex.split(words)[2:]).config(Config)
    assert again == replace(Config(), out="a set", retry=True, filter=config.filter, fetch=config.fetch)
    assert dataset_page.retry_command("s3://b/x", {}) == "xtra ingest --retry --out s3://b/x"
    html = dataset_page.page(
        crawl(tmp_path),
        FULL,
        survey.survey(crawl(tmp_path / "b")),
        dataset_page.happened(()),
        {"filter.min-side": "48"},
    )
    assert f"xtra ingest --retry --out {tmp_path} --filter.min-side 48" in Reader(html).text
