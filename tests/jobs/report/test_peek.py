from pathlib import Path

import pyarrow as pa
import pytest
from made_datasets import jpeg, make_dataset
from test_dataset_page import EVIL, Reader, crawl

from jobs.report import peek
from jobs.report.peek import Config
from shards import store
from shards.dataset import table_bytes
from shards.selection import selected_index, subset


def keys(config: Config) -> list[str]:
    return [row.key for row in peek.run(config).rows]


def test_the_choice_is_random_and_repeatable(tmp_path: Path):
    make_dataset(tmp_path, [40, 40, 40])
    first = keys(Config(str(tmp_path), samples=10))
    assert first == keys(Config(str(tmp_path), samples=10))
    assert first == sorted(first)
    assert len(set(first)) == 10
    assert first != keys(Config(str(tmp_path), samples=10, seed=1))
    assert len(keys(Config(str(tmp_path), samples=500))) == 120


def test_only_links_of_the_reason_and_label_are_shown(tmp_path: Path):
    crawl(tmp_path)
    rows = peek.run(Config(str(tmp_path), reason="timeout", samples=100)).rows
    assert {row.reason for row in rows} == {"timeout"}
    assert len(rows) == 6
    labelled = peek.run(Config(str(tmp_path), label="c3", samples=100)).rows
    assert {row.labels for row in labelled} == {("c3",)}


def test_of_a_subset_only_its_samples_are_kept(tmp_path: Path):
    small = subset(make_dataset(tmp_path, [100]), 20)
    assert keys(Config(small.address, samples=500)) == selected_index(small, 0)["key"].to_pylist()


def test_a_large_dataset_costs_a_few_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_dataset(tmp_path, [3] * 40)
    read: set[str] = set()
    real = store.read
    monkeypatch.setattr(store, "read", lambda url: read.add(url) or real(url))
    peek.run(Config(str(tmp_path), samples=9))
    assert len([url for url in read if "/shards/" in url]) == peek.SHARDS


def test_a_contact_sheet_shows_pictures_and_lists_what_has_none(tmp_path: Path):
    version = crawl(tmp_path / "set", evil=EVIL)
    out = str(tmp_path / "kept.html")
    result = peek.run(Config(version.address, out=out, samples=12))
    page = Reader(Path(out).read_text())
    assert len(page.pictures) == len(result.rows) == 12
    assert (page.fetched, page.handlers, "script" in page.tags) == ([], [], False)
    rows = peek.run(Config(version.address, reason="undecodable", samples=99)).rows
    numbers = [int(row.key[1:]) for row in rows if row.shard == version.shards[0].tar]
    table = pa.table({"row": numbers, "jpeg": [jpeg(1), *[None] * (len(numbers) - 1)]})
    store.put(store.join(version.dataset, "thumbs", version.shards[0].index), table_bytes(table))
    peek.run(Config(version.address, out=out, reason="undecodable", samples=99))
    page = Reader(Path(out).read_text())
    assert len(page.pictures) == 1
    for row in rows[1:]:
        assert row.key in page.text
    assert (page.fetched, page.handlers, "script" in page.tags) == ([], [], False)


def test_rows_fit_the_terminal_and_cannot_write_to_it(tmp_path: Path):
    crawl(tmp_path, evil=EVIL)
    text = peek.text(peek.run(Config(str(tmp_path), reason="http_404")).rows, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "http://host" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"reason": "robot"}, "reason 'robot' is none: use kept, dns"),
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"reason": "robots"}, "no robots links in the shards that were read: it has kept, http_404"),
        ({"label": "c9"}, "no kept links labelled c9"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, flags: dict, said: str):
    make_dataset(tmp_path, [5], bad=(1,))
    with pytest.raises(ValueError, match=said):
        peek.run(Config(str(tmp_path), **flags))
