"""Every file of the dirty corpus, and of what ImageNet URLs really returned, against the verdict written for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from origin import unpacked

from ingest.filter import FilterConfig, judge
from ingest.record import Fetched, Link, Reason, Verdict
from shards.pixels.jpeg import END
from shards.pixels.phash import NEAR, distance

REASONS = {
    "too-small": Reason.TOO_SMALL,
    "aspect-ratio": Reason.BAD_ASPECT,
    "decompression-bomb": Reason.TOO_MANY_PIXELS,
    "blank": Reason.PLACEHOLDER,
    "placeholder": Reason.PLACEHOLDER,
    "html": Reason.NOT_AN_IMAGE,
    "not-an-image": Reason.NOT_AN_IMAGE,
    "not-raster": Reason.NOT_AN_IMAGE,
    "empty": Reason.NOT_AN_IMAGE,
    "unsupported-format": Reason.UNSUPPORTED,
    "corrupt-data": Reason.UNDECODABLE,
    "corrupt-header": Reason.UNDECODABLE,
    "truncated": Reason.UNDECODABLE,
}
# Where we come to another end, and why that is right.
OTHERWISE: dict[str, tuple[Reason | None, str]] = {
    "bad_exif_real.jpg": (
        Reason.UNDECODABLE,
        "not only its EXIF is bad: 1,200 bytes are left over in each row of blocks",
    ),
}
# Rejected as asked, under another name.
RENAMED: dict[str, tuple[Reason, str]] = {
    "two_bytes.jpg": (Reason.NOT_AN_IMAGE, "two bytes are not yet the three that a JPEG begins with"),
    "png_itxt_bomb_real.png": (Reason.UNDECODABLE, "the bomb is in its text, not in its pixels"),
}
# "keep-or-reject" in the corpus: what we do, so that a change is noticed.
EITHER = {
    "missing_eoi.jpg": None,  # kept, as preferred there, with the end marker that it lacked
    "missing_eoi_real.jpg": None,  # its end marker is there; other bytes follow
    "bmp_row_overflow_real.bmp": None,
}


@pytest.fixture(scope="module")
def corpus(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked(shared, "dirty", tmp_path_factory.mktemp("dirty"))


def judged(body: bytes, **options: Any) -> Verdict:
    link = Link("k", "http://a/1.jpg", (), 0)
    return judge(Fetched(link, body, None, "", 200, link.url, 1, 5, 1.5), FilterConfig(**options))


def entries(corpus: Path, verdicts: str, files: str) -> Iterator[tuple[dict[str, Any], Verdict]]:
    for entry in json.loads((corpus / verdicts).read_text())["files"]:
        yield entry, judged((corpus / files / entry["file"]).read_bytes())


def wanted(entry: dict[str, Any]) -> Reason | None:
    name, verdict = entry["file"], entry["verdict"]
    for table in (OTHERWISE, RENAMED):
        if name in table:
            return table[name][0]
    if verdict == "keep-or-reject":
        return EITHER[name]
    # Duplicates are whole pictures; comparing samples finds them, later.
    return REASONS[entry["reason"]] if verdict == "reject" else None


def test_every_verdict_of_the_corpus(corpus: Path) -> None:
    seen, wrong = 0, []
    for entry, found in entries(corpus, "verdicts.json", "files"):
        seen += 1
        if found.reason != wanted(entry):
            wrong.append((entry["file"], entry["verdict"], entry["reason"], found.reason, found.detail))
        if found.picture is None:
            assert found.detail
            assert found.body is not None
    assert wrong == []
    assert seen == 96


def test_every_verdict_on_what_imagenet_urls_returned(corpus: Path) -> None:
    seen, wrong = 0, []
    for entry, found in entries(corpus, "crawl-clock.verdicts.json", "crawl-clock"):
        seen += 1
        if found.reason != wanted(entry):
            wrong.append((entry["file"], entry["verdict"], entry["reason"], found.reason, found.detail))
    assert wrong == []
    assert seen == 106


def test_sizes_are_those_of_the_corpus(corpus: Path) -> None:
    for entry, found in entries(corpus, "verdicts.json", "files"):
        if found.picture is not None:
            assert [found.picture.width, found.picture.height] == entry["size"], entry["file"]


def test_duplicates_can_be_told_by_what_the_filter_leaves(corpus: Path) -> None:
    kept = {
        (folder, entry["file"]): (entry, found.picture)
        for verdicts, folder in (("verdicts.json", "files"), ("crawl-clock.verdicts.json", "crawl-clock"))
        for entry, found in entries(corpus, verdicts, folder)
        if found.picture is not None
    }
    exact = near = 0
    for (folder, _), (entry, picture) in kept.items():
        if entry["verdict"] == "duplicate":
            other = kept[folder, entry.get("of", entry["reason"])][1]
            assert (picture.sha256, picture.phash) == (other.sha256, other.phash)
            exact += 1
        elif entry["verdict"] == "near-duplicate":
            other = kept[folder, entry["of"]][1]
            assert picture.sha256 != other.sha256
            assert distance(picture.phash, other.phash) <= NEAR
            near += 1
    assert (exact, near) == (5, 1)


def test_different_photographs_of_the_corpus_are_not_near(corpus: Path) -> None:
    hashes: dict[str, int] = {}
    for entry, found in entries(corpus, "crawl-clock.verdicts.json", "crawl-clock"):
        if found.picture is not None and entry["verdict"] == "keep":
            hashes[entry["file"]] = found.picture.phash
    pairs = {(a, b) for a in hashes for b in hashes if a < b and distance(hashes[a], hashes[b]) <= NEAR}
    # The corpus does not say so, but these are the same clocks in the same photographs, seen by eye.
    assert pairs == {("data001.jpg", "data141.jpg"), ("data074.jpg", "data141.jpg"), ("data097.jpg", "data100.jpg")}


def test_a_missing_end_marker_is_added(corpus: Path) -> None:
    body = (corpus / "files" / "missing_eoi.jpg").read_bytes()
    found = judged(body)
    assert found.picture is not None
    assert found.picture.body == body + END
    assert found.picture.sha256 != found.fetched_sha256


def test_what_is_kept_can_be_resized(corpus: Path) -> None:
    for entry in json.loads((corpus / "verdicts.json").read_text())["files"]:
        body = (corpus / "files" / entry["file"]).read_bytes()
        small = judged(body, resize=48)
        assert small.reason == judged(body).reason, entry["file"]
        if small.picture is not None:
            assert min(small.picture.width, small.picture.height) <= 48 or small.picture.suffix != "jpg"
            assert small.picture.orientation == 1 or min(entry["size"]) <= 48
