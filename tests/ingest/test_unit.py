"""A unit: the same verdicts in any order give the same bytes, and a few of its pictures can be looked at."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from origin import picture
from PIL import Image

from ingest import thumbs, unit
from ingest.record import BadLine, Fetched, Link, Picture, Reason, Verdict
from ingest.unit import UnitWriter, about
from ingest.unit_tar import Spool
from shards import store
from shards.dataset import FORMAT, INDEX_SCHEMA, PLAIN, Commit, read_table
from shards.tar import read_tar, tar_sha256

LINKS = [Link(f"k{row}", f"http://a/{row}", (f"c{row % 3}",), row) for row in range(40)]
BAD = BadLine("k40", 40, 41, "no url", "")


def verdict(link: Link) -> Verdict:
    fetched = Fetched(link, b"", None, "", 200, link.url, 1, 10, 1.7e9)
    body = picture(link.key)
    if link.row % 4 == 3:
        return Verdict(fetched, None, Reason.TOO_SMALL, "9x9", "jpeg", 9, "0" * 64, body=picture(link.key, side=9))
    if link.row % 4 == 2:
        cut = body[: 99 if link.row % 8 == 2 else len(body) * 3 // 4]  # nothing of it can be shown, or a part
        return Verdict(fetched, None, Reason.UNDECODABLE, f"cut at {len(cut)}", "jpeg", 9, "0" * 64, body=cut)
    if link.row % 4 == 1:
        return Verdict(fetched, None, Reason.HTTP_404, "status 404")
    digest = hashlib.sha256(body).hexdigest()
    return Verdict(fetched, Picture(body, "jpg", digest, 64, 48, "RGB", 1, False, "4:2:0", False, 7), None, "")


def written(out: Path, seed: int, show: bool = True, format_: int = FORMAT) -> Commit:
    order = list(LINKS)
    random.Random(seed).shuffle(order)
    scratch = out.parent / f"scratch-{out.name}"
    scratch.mkdir()
    with contextlib.closing(UnitWriter(str(out), 0, [*LINKS, BAD], scratch, format_=format_)) as writer:
        for link in order:
            writer.add(verdict(link), show)
        return writer.seal()


def test_any_order_gives_the_same_tar_and_index(tmp_path: Path) -> None:
    one, two = (written(tmp_path / name, seed) for seed, name in enumerate("ab"))
    assert (one.tar_sha256, one.index_sha256, one.reasons) == (two.tar_sha256, two.index_sha256, two.reasons)
    assert one.reasons == {"bad_url": 1, "http_404": 10, "too_small": 10, "undecodable": 10}
    tar = store.read(str(tmp_path / "a" / "shards" / one.tar))
    assert (len(tar), tar_sha256([memoryview(tar)])) == (one.tar_bytes, one.tar_sha256)
    index = read_table(str(tmp_path / "a" / "shards" / one.index))
    assert index.schema.equals(INDEX_SCHEMA)
    rows = index.to_pylist()
    assert [row["row"] for row in rows] == list(range(41))
    members = {name: (offset, body) for name, offset, body in read_tar(io.BytesIO(tar))}
    kept = [row for row in rows if row["reason"] == "kept"]
    assert list(members) == [name for row in kept for name in (f"{row['key']}.jpg", f"{row['key']}.json")]
    for row in kept:
        assert (row["offset"], members[row["member"]][1]) == (members[row["member"]][0], picture(row["key"]))
        assert json.loads(members[f"{row['key']}.json"][1])["labels"] == row["labels"]
        assert row["phash"] == 7
    assert rows[40]["detail"] == "line 41: no url"
    assert rows[1]["member"] is rows[1]["sha256"] is rows[1]["phash"] is None


def test_in_a_dataset_of_an_older_build_the_tar_is_the_same_and_its_sha256_the_plain_one(tmp_path: Path) -> None:
    new, old = written(tmp_path / "a", 0), written(tmp_path / "b", 0, format_=PLAIN)
    tar = store.read(str(tmp_path / "b" / "shards" / old.tar))
    assert store.read(str(tmp_path / "a" / "shards" / new.tar)) == tar
    assert (old.format, old.tar_sha256) == (1, hashlib.sha256(tar).hexdigest())
    committed = (json.loads((tmp_path / name / "commits" / "000000.json").read_text()) for name in "ab")
    assert [commit.get("format") for commit in committed] == [2, None]


@pytest.mark.parametrize("format_", [PLAIN, FORMAT])
@pytest.mark.parametrize("held", [0, 3000, 1 << 20])
def test_how_much_waits_in_memory_does_not_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, format_: int
) -> None:
    one = written(tmp_path / "a", 0, format_=format_)
    monkeypatch.setattr(unit, "HELD", held)
    two = written(tmp_path / "b", 1, format_=format_)
    copied = (tmp_path / "scratch-b" / "bodies").exists()
    assert (one.tar_sha256, one.index_sha256) == (two.tar_sha256, two.index_sha256)
    assert copied == (held < 1 << 20)  # else the spool was the tar, and has moved
    assert not (tmp_path / "scratch-a" / "bodies").exists()


def test_thumbnails_are_the_same_few_every_time(tmp_path: Path) -> None:
    tables = []
    for seed, name in enumerate("ab"):
        commit = written(tmp_path / name, seed)
        tables.append(read_table(str(tmp_path / name / "thumbs" / commit.index)))
    assert tables[0].equals(tables[1])
    rows = tables[0].to_pylist()
    many = {"kept": thumbs.EACH, "too_small": thumbs.EACH, "undecodable": thumbs.DAMAGED}
    assert [row["reason"] for row in rows] == [reason for reason, n in many.items() for _ in range(n)]
    assert {row["jpeg"] is None for row in rows if row["reason"] == "undecodable"} == {True, False}
    for row in rows:
        assert (row["jpeg"] is None) == (row["detail"] == "cut at 99")
        if row["jpeg"] is not None:  # a damaged one is shown as far as it decodes
            image = Image.open(io.BytesIO(row["jpeg"]))
            assert image.format == "JPEG"
            assert max(image.size) <= thumbs.SIDE


def test_a_tiny_picture_keeps_its_colours() -> None:
    pixels = Image.new("RGB", (3, 1))
    pixels.putdata([(250, 10, 10), (10, 250, 10), (10, 10, 250)])
    out = io.BytesIO()
    pixels.save(out, "PNG")
    small = thumbs.thumbnail(out.getvalue(), 100)
    assert small is not None
    for at, channel in enumerate(range(3)):
        colour = Image.open(io.BytesIO(small)).getpixel((at, 0))
        assert colour[channel] == max(colour) > 200 + 2 * min(colour) / 5


def test_what_would_be_judged_in_a_child_process_is_not_drawn_where_it_is_damaged() -> None:
    large = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (5000).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0" + b"x" * 100_000
    damaged = Verdict(Fetched(LINKS[0], b"", None, "", 200, "", 1, 1, 0.0), None, Reason.UNDECODABLE, "", body=large)
    assert thumbs.shown(damaged) is None
    assert thumbs.shown(dataclasses.replace(damaged, body=large[:90] + b"x")) is not None
    assert thumbs.shown(dataclasses.replace(damaged, reason=Reason.NOT_AN_IMAGE, body=b"<html>")) is None


def test_what_may_kill_its_decoder_is_not_drawn(tmp_path: Path) -> None:
    commit = written(tmp_path / "a", 0, show=False)
    rows = read_table(str(tmp_path / "a" / "thumbs" / commit.index)).to_pylist()
    assert {row["jpeg"] for row in rows} == {None}


def test_a_second_attempt_takes_its_objects_back(tmp_path: Path) -> None:
    first = written(tmp_path / "a", 0)
    (tmp_path / "scratch-a").rename(tmp_path / "old")
    assert written(tmp_path / "a", 1) == first
    assert store.names(str(tmp_path / "a" / "shards")) == sorted([first.tar, first.index])
    assert store.names(str(tmp_path / "a" / "thumbs")) == [first.index]


@given(st.text(), st.lists(st.text()), st.integers(1, 10**6), st.integers(1, 10**6))
def test_about_is_plain_json(url: str, labels: list[str], width: int, height: int) -> None:
    said = {"url": url, "labels": labels, "sha256": "ab" * 32, "width": width, "height": height}
    link = Link("k", url, tuple(labels), 0)
    assert about(link, "ab" * 32, width, height) == json.dumps(said, sort_keys=True).encode()
    said |= {"columns": {"caption": url}, "also": [{"key": "l"}]}
    link = dataclasses.replace(link, columns=json.dumps(said["columns"]), also=json.dumps(said["also"]))
    assert about(link, "ab" * 32, width, height) == json.dumps(said, sort_keys=True).encode()


@contextlib.contextmanager
def small_disk() -> Iterator[None]:
    """Files end at 10,000 bytes; what crosses that is written in part, as on a disk that is full. No fixture: pytest
    writes its progress between a test and the end of its fixtures, perhaps to a longer file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_short_write_is_an_error(tmp_path: Path) -> None:
    with small_disk(), contextlib.closing(Spool(tmp_path / "bodies")) as spool:
        spool.write(bytes(9_000))
        spool.flush()
        spool.write(bytes(600), bytes(600))
        with pytest.raises(OSError, match="too large"):
            spool.flush()


def test_a_short_write_that_is_no_error_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.writev", lambda fd, pieces: os.write(fd, pieces[0][:2]))
    with contextlib.closing(Spool(tmp_path / "bodies")) as spool:
        spool.write(b"abc", b"def")
        spool.flush()
        spool.write(b"gh", b"i")
        assert spool.read(0, 9) == b"abcdefghi"
    assert (tmp_path / "bodies").read_bytes() == b"abcdefghi"


@pytest.mark.parametrize(("each", "times"), [(1, 2000), (100_000, 20)])
def test_pieces_are_written_some_at_a_time(tmp_path: Path, each: int, times: int) -> None:
    """However small or large, what waits is bounded, and the system takes it at once."""
    with contextlib.closing(Spool(tmp_path / "bodies")) as spool:
        most = 0
        for at in range(times):
            spool.write(bytes([at % 256]) * each)
            most = max(most, spool.size - (tmp_path / "bodies").stat().st_size)
        assert 0 < most < 700_000
        assert spool.size == times * each
        assert spool.read(0, spool.size) == b"".join(bytes([at % 256]) * each for at in range(times))
