"""`--hash-column`: bytes that are not those whose hash a list, or an older dataset, gives are not kept."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingesting import FETCH, balance, rows_of, tars_of
from origin import Origin

from ingest import checksum, dry_run, plan
from ingest.config import Config
from ingest.crawl import Assignment, Crawl
from ingest.filter import FilterConfig
from ingest.http.fetcher import Fetcher
from ingest.record import CONTENT, Reason
from ingest.run import run
from ingest.scratch import scratch_folder
from shards import check
from shards.tar import read_tar

BODY = b"the bytes"
MD5, SHA1, SHA256 = (hashlib.new(name, BODY).hexdigest() for name in ("md5", "sha1", "sha256"))


def test_a_mismatch_is_a_verdict_on_content() -> None:
    assert Reason("hash_mismatch") in CONTENT
    assert not Reason.HASH_MISMATCH.retryable


@pytest.mark.parametrize(
    ("text", "column", "expected"),
    [
        *(
            (MD5, "hash", f"md5:{MD5}"),
            (SHA1.upper(), "hash", f"sha1:{SHA1}"),
            (f" {SHA256} ", "x", f"sha256:{SHA256}"),
        ),
        (base64.b64encode(bytes.fromhex(MD5)).decode(), "OriginalMD5", f"md5:{MD5}"),
        (base64.b64encode(bytes.fromhex(SHA1)).decode(), "hash", f"sha1:{SHA1}"),
        (base64.b64encode(bytes.fromhex(SHA256)).decode(), "hash", f"sha256:{SHA256}"),
        *((f"sha256:{SHA256}", "md5", f"sha256:{SHA256}"), (f"MD5:{MD5}", "hash", f"md5:{MD5}")),
        *((MD5, "SHA-256", f"?{MD5}"), ("abc", "hash", "?abc"), ("g" * 32, "hash", "?" + "g" * 32)),
        *(("", "hash", None), ("  ", "hash", None), (None, "hash", None)),
    ],
)
def test_hashes_are_known_by_length_or_by_the_columns_name(text: str | None, column: str, expected: str | None) -> None:
    assert checksum.parse(text, column) == expected


@pytest.mark.parametrize("text", [MD5, SHA1, SHA256, None, ""])
def test_the_right_bytes_have_the_hash_and_others_have_not(text: str | None) -> None:
    expected = checksum.parse(text, "hash")
    assert checksum.difference(BODY, SHA256, expected) == ""
    other = b"other"
    wrong = checksum.difference(other, hashlib.sha256(other).hexdigest(), expected)
    assert (text or "no hash") in wrong if text else wrong == ""


def table(tmp_path: Path, origin: Origin, cells: dict[str, str]) -> str:
    path = tmp_path / "list.csv"
    path.write_text("url,sum\n" + "".join(f"{origin.url(path)},{cell}\n" for path, cell in cells.items()))
    return str(path)


def test_what_differs_is_not_kept_whatever_it_is(tmp_path: Path, origin: Origin) -> None:
    bodies = {name: origin_bytes(origin, f"/ok/{name}.jpg") for name in "abcd"}
    cells = {
        "/ok/a.jpg": hashlib.md5(bodies["a"]).hexdigest(),
        "/ok/b.jpg": hashlib.sha1(bodies["b"]).hexdigest(),
        "/ok/c.jpg": hashlib.sha256(bodies["d"]).hexdigest(),  # of another picture
        "/ok/d.jpg": "",
        "/html": SHA256,
        "/status/404": SHA256,
        "/ok/e.jpg": "not a hash",
    }
    made = Config(urls=table(tmp_path, origin, cells), out=str(tmp_path / "out"), fetch=FETCH, hash_column="sum")
    result = run(made)
    balance(result, 7)
    assert (result.kept, result.reasons) == (3, {"hash_mismatch": 3, "http_404": 1})
    details = {row["url"].rpartition("/")[2]: row["detail"] for row in rows_of(made.out) if row["reason"] != "kept"}
    own = hashlib.sha256(bodies["c"]).hexdigest()
    assert details["c.jpg"] == f"sha256 is {own}, the list says {cells['/ok/c.jpg']}"
    assert details["e.jpg"] == "the list says 'not a hash', which is no md5, sha1 or sha256"
    assert check.run(check.Config(made.out)).ok
    forecast = dry_run.run(made, 7)
    assert round(forecast.reasons["hash_mismatch"].value) == 3


def origin_bytes(origin: Origin, path: str) -> bytes:
    with urllib.request.urlopen(origin.url(path)) as reply:
        return reply.read()


def test_a_column_without_any_hash_is_one_line(tmp_path: Path, origin: Origin) -> None:
    urls = table(tmp_path, origin, {f"/ok/{n}.jpg": f"caption {n}" for n in range(3)})
    with pytest.raises(ValueError, match="its column 'sum' holds no md5, sha1 or sha256, but 'caption 0'"):
        run(Config(urls=urls, out=str(tmp_path / "out"), fetch=FETCH, hash_column="sum"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_retry_compares_too_and_keeps_the_column_although_none_are_kept(tmp_path: Path, origin: Origin) -> None:
    cells = {"/flaky/1/a": SHA256, "/flaky/1/b": "", "/ok/a.jpg": ""}
    urls = table(tmp_path, origin, cells)
    first = Config(
        urls=urls,
        out=str(tmp_path / "out"),
        fetch=dataclasses.replace(FETCH, retries=0),
        keep_columns=("none",),
        hash_column="sum",
    )
    with_hash = run(first)
    assert (with_hash.kept, with_hash.reasons) == (1, {"http_5xx": 2})
    again = run(Config(out=first.out, retry=True, fetch=FETCH))
    assert (again.kept, again.reasons) == (2, {"hash_mismatch": 1})
    assert run(Config(out=first.out, retry=True, fetch=FETCH)).reasons == again.reasons  # no retry brings it back


def test_a_child_process_compares_too(tmp_path: Path, origin: Origin) -> None:
    cells = {"/ok/a.jpg": SHA256, "/ok/b.jpg": hashlib.sha256(origin_bytes(origin, "/ok/b.jpg")).hexdigest()}
    made = Config(urls=table(tmp_path, origin, cells), out=str(tmp_path / "out"), fetch=FETCH, hash_column="sum")
    plan.make(made)
    with (
        scratch_folder(None, made.out) as scratch,
        closing(Fetcher(FETCH, scratch.folder)) as fetcher,
        closing(Crawl(made.out, FilterConfig(), scratch, fetcher)) as crawl,
    ):
        (commit,) = [done for done in crawl.run([Assignment(0, careful=True)], lambda: False) if done is not None]
    assert (commit.kept, commit.reasons) == (1, {"hash_mismatch": 1})


def test_a_dataset_is_asked_for_again_and_compared_with_what_it_recorded(tmp_path: Path, origin: Origin) -> None:
    """A domain that has changed hands serves another picture under the same URL."""
    path = tmp_path / "list.csv"
    lines = [f"k{n},{origin.url(f'/ok/{n}.jpg')},c{n % 2},caption {n}" for n in range(6)]
    path.write_text("id,url,label,caption\n" + "\n".join([*lines, f"k6,{origin.url('/status/404')},c1,gone"]) + "\n")
    old = Config(urls=str(path), out=str(tmp_path / "old"), unit=3, fetch=FETCH)
    assert run(old).kept == 6
    again = Config(urls=old.out, out=str(tmp_path / "same"), fetch=FETCH, hash_column="recorded")
    same = run(again)
    assert (same.links, same.kept, same.reasons) == (6, 6, {})
    assert [(row["key"], row["labels"], row["sha256"]) for row in rows_of(again.out)] == [
        (row["key"], row["labels"], row["sha256"]) for row in rows_of(old.out) if row["reason"] == "kept"
    ]
    assert [about["columns"]["caption"] for about in jsons(again.out)] == [f"caption {n}" for n in range(6)]
    rewritten = tamper(Path(old.out), "k2")
    other = Config(urls=rewritten, out=str(tmp_path / "other"), fetch=FETCH, hash_column="recorded")
    found = run(other)
    assert (found.kept, found.reasons) == (5, {"hash_mismatch": 1})
    assert [row["key"] for row in rows_of(other.out) if row["reason"] == "hash_mismatch"] == ["k2"]
    some = Config(urls=old.out, out=str(tmp_path / "some"), fetch=FETCH, where="caption = 'caption 4'")
    assert (run(some).links, run(some).not_chosen) == (1, 5)


def tamper(dataset: Path, key: str) -> str:
    """As if another picture had been recorded for a key."""
    for path in (dataset / "shards").glob("*.parquet"):
        index = pq.read_table(path)
        changed = [
            "0" * 64 if name == key else was
            for name, was in zip(index["key"].to_pylist(), index["fetched_sha256"].to_pylist())
        ]
        at = index.schema.names.index("fetched_sha256")
        pq.write_table(index.set_column(at, index.schema.field(at), pa.array(changed, pa.string())), path)
    return str(dataset)


def jsons(dataset: str) -> list[dict[str, Any]]:
    return [
        json.loads(body) for tar in tars_of(dataset) for name, _, body in read_tar(io.BytesIO(tar)) if ".json" in name
    ]
