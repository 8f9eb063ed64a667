"""One URL in many lines of a list: asked for once, one sample with all that the lines say, and no placeholder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from ingesting import FETCH, rows_of, tars_of
from origin import Origin

from ingest.config import Config
from ingest.run import run
from shards import check
from shards.manifest import read_manifest
from shards.stream import once
from shards.tar import read_tar

LABELS = [f"/m/{n:02d}" for n in range(20)]


def listed(tmp_path: Path, lines: list[tuple[str, str, str]]) -> str:
    path = tmp_path / "list.csv"
    path.write_text("url,label,caption\n" + "".join(",".join(line) + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("unit", [10_240, 7])
def test_one_url_under_twenty_labels_and_captions(tmp_path: Path, origin: Origin, unit: int) -> None:
    url = origin.url("/ok/many.jpg")
    lines = [(url, label, f"caption {at}") for at, label in enumerate(LABELS)]
    lines[10:10] = [(origin.url("/ok/other.jpg"), "x", "other")]
    made = Config(urls=listed(tmp_path, lines), out=str(tmp_path / "out"), fetch=FETCH, unit=unit)
    result = run(made)
    assert origin.requests["/ok/many.jpg"] == -(-len(lines) // unit), "once for each unit"
    assert (result.links, result.kept, result.samples) == (21, 21, 2)
    assert result.deselected == {"duplicate": 19}
    version = read_manifest(made.out)
    streamed = {sample.row: sample.labels for batch in once(version, 2) for sample in batch}
    assert streamed == {0: tuple(LABELS), 10: ("x",)}
    tar = {name: body for tar in tars_of(made.out) for name, _, body in read_tar(io.BytesIO(tar))}
    about = json.loads(tar["000000000.json"])
    said = [about, *about["also"]]
    assert [(row["labels"], row["columns"]["caption"]) for row in said] == [
        ([label], caption) for of, label, caption in lines[:unit] if of == url
    ]
    assert [row["key"] for row in about["also"]] == [f"{at:09d}" for at in range(1, min(21, unit)) if at != 10]
    assert "also" not in json.loads(tar["000000001.json"])
    assert check.run(check.Config(made.out, decode=True)).ok


def test_a_verdict_against_it_is_that_of_all_its_lines_and_a_retry_asks_once_more(
    tmp_path: Path, origin: Origin
) -> None:
    lines = [(origin.url(path), label, "") for label in "abc" for path in ("/flaky/3/x", "/status/404")]
    made = Config(urls=listed(tmp_path, lines), out=str(tmp_path / "out"), fetch=FETCH)
    first = run(made)
    assert (first.kept, first.reasons) == (0, {"http_404": 3, "http_5xx": 3})
    assert origin.requests["/status/404"] == 1
    assert [row["attempts"] for row in rows_of(made.out)] == [3, 1, 0, 0, 0, 0]
    again = run(Config(out=made.out, retry=True, fetch=FETCH))
    assert (again.kept, again.reasons, origin.requests["/flaky/3/x"]) == (3, {"http_404": 3}, 4)
    (sample,) = [sample for batch in once(read_manifest(made.out), 1) for sample in batch]
    assert sample.labels == ("a", "b", "c")


def test_lines_that_give_other_hashes_are_asked_for_apart(tmp_path: Path, origin: Origin) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "url,md5\n" + "".join(f"{origin.url('/ok/a.jpg')},{cell}\n" for cell in ("", "0" * 32, "", "1" * 32))
    )
    result = run(Config(urls=str(path), out=str(tmp_path / "out"), fetch=FETCH, hash_column="md5"))
    assert (result.kept, result.reasons) == (2, {"hash_mismatch": 2})
    assert origin.requests["/ok/a.jpg"] == 3
