from pathlib import Path

import pyarrow as pa
import pytest
from made_datasets import jpeg, make_dataset, rows_of, write_unit
from test_dataset_page import EVIL, Reader, crawl

from jobs.report import peek
from jobs.report.peek import Config
from shards import store
from shards.dataset import DatasetInfo, table_bytes, write_info
from shards.manifest import make_version
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


def test_under_each_picture_are_its_key_and_the_link_it_came_from(tmp_path: Path):
    crawl(tmp_path / "set")
    out = str(tmp_path / "kept.html")
    rows = peek.run(Config(str(tmp_path / "set"), out=out, samples=12)).rows
    html = Path(out).read_text()
    assert Reader(html).fetched == [row.url for row in rows]
    assert html.count('rel="noreferrer noopener nofollow"') == 12
    for row, figure in zip(rows, html.split("<figure")[1:]):
        caption = Reader(figure.split("<figcaption>")[1]).text
        assert row.key in caption
        assert row.url.removeprefix("http://") in caption
        assert row.labels[0] in caption
    peek.run(Config(str(tmp_path / "set"), out=out, samples=12, reason="timeout"))
    assert len(Reader(Path(out).read_text()).fetched) == 6, "those without a picture, too"


def test_what_nobody_should_click_on_is_no_link(tmp_path: Path):
    rows = rows_of(0, 3, bad=(1,))
    rows[1] |= {"reason": "blocked_address", "url": "http://169.254.169.254/latest"}
    write_unit(str(tmp_path), 0, rows)
    write_info(str(tmp_path), DatasetInfo("l", "0" * 64, 1, 3, "c", "t"))
    make_version(str(tmp_path), "ingest")
    out = str(tmp_path / "x.html")
    peek.run(Config(str(tmp_path), out=out, reason="blocked_address"))
    page = Reader(Path(out).read_text())
    assert page.fetched == []
    assert "169.254.169.254" in page.text


def test_a_contact_sheet_prefers_what_can_be_shown(tmp_path: Path):
    """Of what was not stored the ingest leaves a few pictures; rows on the terminal are a fair choice."""
    version = crawl(tmp_path / "set", units=1, each=200)
    rows = peek.run(Config(version.address, reason="undecodable", samples=99)).rows
    shown = [int(row.key[1:]) for row in rows[::4]]
    table = pa.table({"row": shown, "jpeg": [jpeg(1)] * len(shown)})
    store.put(store.join(version.dataset, "thumbs", version.shards[0].index), table_bytes(table))
    for seed in range(3):
        out = str(tmp_path / "x.html")
        config = Config(version.address, out=out, reason="undecodable", samples=len(shown), seed=seed)
        assert [int(row.key[1:]) for row in peek.run(config).rows] == shown
        assert "shown as far as they decode" in Path(out).read_text()
    assert keys(Config(version.address, reason="undecodable", samples=len(shown))) != [f"k{n:06d}" for n in shown]


def test_rows_fit_the_terminal_and_cannot_write_to_it(tmp_path: Path):
    crawl(tmp_path, evil=EVIL)
    text = peek.text(peek.run(Config(str(tmp_path), reason="http_404")).rows, 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text
    assert "http://host" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"reason": "robot"}, "reason is 'robot': it must be one of kept, dns"),
        ({"samples": 0}, "samples is 0: it must be at least 1"),
        ({"reason": "robots"}, "no robots links in the shards that were read: it has kept, http_404"),
        ({"label": "c9"}, "no kept links labelled c9"),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path: Path, flags: dict, said: str):
    make_dataset(tmp_path, [5], bad=(1,))
    with pytest.raises(ValueError, match=said):
        peek.run(Config(str(tmp_path), **flags))
