"""A whole ingest against an origin on loopback: counts balance, tars repeat, and nothing is lost or done twice."""

from __future__ import annotations

import io
import json
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from ingesting import FETCH, MIXED, balance, rows_of, tars_of, write_list
from origin import Origin, picture

from ingest import plan
from ingest.config import Config
from ingest.filter import FilterConfig
from ingest.record import Reason
from ingest.run import Progress, run
from ingest.select.apply import SelectConfig
from ingest.wordnet import ClassConfig
from shards import store
from shards.dataset import (
    PLAN_SCHEMA,
    planned_units,
    read_commit,
    read_info,
    write_plan,
)
from shards.tar import read_tar


def test_every_link_ends_with_its_verdict(base: str, origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, list(MIXED))
    result = run(Config(urls, base, unit=15, fetch=FETCH, scratch=str(tmp_path / "scratch")))
    balance(result, len(MIXED))
    assert result.units == 3
    rows = rows_of(base)
    assert {path: row["reason"] for path, row in zip(MIXED, rows)} == MIXED
    assert result.reasons == {r: n for r, n in Counter(MIXED.values()).items() if r != "kept"}
    assert all(row["detail"] for row in rows if row["reason"] != "kept")
    assert list((tmp_path / "scratch").iterdir()) == []

    (tars, kept) = tars_of(base), [row for row in rows if row["reason"] == "kept"]
    members = [member for tar in tars for member in read_tar(io.BytesIO(tar))]
    assert [name for name, _, _ in members] == [name for row in kept for name in (row["member"], row["key"] + ".json")]
    bodies = {name: body for name, _, body in members}
    for row in kept:
        body = bodies[row["member"]]
        assert tars[row["row"] // 15][row["offset"] : row["offset"] + row["length"]] == body
        about = json.loads(bodies[row["key"] + ".json"])
        assert about == {name: row[name] for name in ("url", "labels", "sha256", "width", "height")}
        assert row["labels"] == [row["key"].split("_")[0]]
    assert bodies["n00000003_3.jpg"] == picture("/ok/3.jpg")
    first = rows[0]
    assert (first["http_status"], first["attempts"], first["width"], first["height"]) == (200, 1, 64, 48)
    assert (first["source_format"], first["mode"], first["decode_checked"]) == ("jpeg", "RGB", True)
    assert abs(first["fetched_at"].timestamp() - time.time()) < 60


def test_the_same_bytes_give_the_same_tars(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/slow/{(n * 7) % 5 / 50}/{n}.jpg" for n in range(40)]  # complete in another order each time
    urls = write_list(tmp_path / "list.txt", origin, paths)
    outs = [str(tmp_path / f"out{n}") for n in range(3)]
    for out, connections in zip(outs, (3, 16, 4)):
        fetch = replace(FETCH, connections=connections)
        balance(run(Config(urls, out, unit=16, fetch=fetch)), 40)
    assert tars_of(outs[0]) == tars_of(outs[1]) == tars_of(outs[2])
    assert read_commit(outs[0], 0).tar != read_commit(outs[1], 0).tar


def test_a_rerun_asks_for_nothing_and_changes_nothing(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, [f"/ok/{n}.jpg" for n in range(10)])
    config = Config(urls, str(tmp_path / "out"), unit=4, fetch=FETCH)
    first = run(config)
    asked = origin.requests.total()
    again = run(replace(config, fetch=replace(FETCH, retries=7, per_host=1)))
    assert origin.requests.total() == asked == 10
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert store.names(str(tmp_path / "out" / "versions")) == ["000001.json", "000002.json"]  # all, then selected
    other = run(replace(config, select=SelectConfig(near_distance=0)))
    assert "was selected by other rules and stays: xtra select" in other.note
    assert replace(other, seconds=0, note="") == replace(first, seconds=0)


def test_a_rerun_with_other_words_is_refused_by_name(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg", "/ok/2.jpg"])
    config = Config(urls, str(tmp_path / "out"), fetch=FETCH)
    run(config)
    with pytest.raises(ValueError, match="another unit "):
        run(replace(config, unit=7))
    with pytest.raises(ValueError, match="another config_digest"):
        run(replace(config, filter=FilterConfig(min_side=50)))
    with pytest.raises(ValueError, match="another config_digest"):
        run(replace(config, fetch=replace(FETCH, max_bytes=5)))
    with pytest.raises(ValueError, match="another list_sha256"):
        run(replace(config, urls=write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg"])))


def test_stop_ends_cleanly_and_a_rerun_does_the_rest(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/slow/0.05/{n}.jpg" for n in range(60)]
    urls = write_list(tmp_path / "list.txt", origin, paths)
    config = Config(urls, str(tmp_path / "out"), unit=10, fetch=FETCH, scratch=str(tmp_path / "scratch"))
    done = 0

    def progress(now: Progress) -> None:
        nonlocal done
        assert now.links == 60
        assert now.done == now.kept + sum(now.reasons.values())
        done = max(done, now.done)

    stopped = run(config, progress, lambda: done >= 20)
    assert stopped.stopped
    assert 1 <= stopped.units_done < 6
    assert stopped.kept == 10 * stopped.units_done
    assert list((tmp_path / "scratch").iterdir()) == []
    names = store.names(str(tmp_path / "out" / "shards"))
    assert len(names) == 2 * stopped.units_done  # nothing half-written
    before = Counter(origin.requests)
    balance(run(config, progress), 60)
    assert done == 60
    again = {path for path, n in (origin.requests - before).items() if n}
    assert again == set(paths[10 * stopped.units_done :])


def test_only_chosen_classes_are_planned_and_the_rest_is_counted(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/ok/{n}.jpg" for n in range(21)]
    (tmp_path / "classes.txt").write_text("n00000001\nn00000003\n")
    classes = ClassConfig(file=str(tmp_path / "classes.txt"))
    config = Config(
        write_list(tmp_path / "list.txt", origin, paths), str(tmp_path / "out"), 4, fetch=FETCH, classes=classes
    )
    result = run(config)
    assert (result.links, result.not_chosen, result.units) == (6, 15, 2)
    assert [row["row"] for row in rows_of(config.out)] == [n for n in range(21) if n % 7 in (1, 3)]
    assert read_info(config.out).classes == ("n00000001", "n00000003")
    assert replace(run(config), seconds=0) == replace(result, seconds=0)
    with pytest.raises(ValueError, match="another config_digest"):
        run(replace(config, classes=ClassConfig(min_count=2)))
    (tmp_path / "classes.txt").write_text("n00000009\n")
    with pytest.raises(ValueError, match=r"holds no links: none of its 21 lines has a chosen class: check --classes"):
        run(replace(config, out=str(tmp_path / "new")))


def test_the_plan_of_a_driver_that_was_faster_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its list was longer: this one's had not come whole when it was read."""
    urls, out = tmp_path / "list.txt", str(tmp_path / "out")
    config = Config(str(urls), out, unit=2, fetch=FETCH)
    lines = [f"http://127.0.0.1:9/{n}.jpg\n" for n in range(10)]
    planned = planned_units

    def beaten(dataset: str) -> list[int]:
        monkeypatch.setattr(plan, "planned_units", planned)
        urls.write_text("".join(lines))
        plan.make(config)
        return planned(dataset)

    monkeypatch.setattr(plan, "planned_units", beaten)
    urls.write_text("".join(lines[:4]))
    with pytest.raises(ValueError, match="was made with another list_sha256"):
        plan.make(config)
    assert planned(out) == list(range(5))


def test_an_interrupted_plan_is_finished_and_that_of_another_list_refused(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg", "/ok/2.jpg"])
    out, other = str(tmp_path / "out"), str(tmp_path / "other")
    stale = pa.Table.from_pylist([{"key": "x", "url": "http://x/", "labels": [], "row": 0}], PLAN_SCHEMA)
    write_plan(other, 0, stale)
    with pytest.raises(ValueError, match="plans other links than this list gives"):
        run(Config(urls, other, unit=1, fetch=FETCH))
    balance(run(Config(urls, out, unit=1, fetch=FETCH)), 2)
    for lost in ("dataset.json", "links/000001.parquet", "commits/000001.json", "versions/000001.json"):
        store.delete(store.join(out, lost))  # as if it had been killed while planning its second unit
    balance(run(Config(urls, out, unit=1, fetch=FETCH)), 2)
    assert planned_units(out) == [0, 1]


def test_large_bodies_pass_through_scratch(origin: Origin, tmp_path: Path) -> None:
    origin.files["large"] = picture("large", "bmp", 300)
    urls = write_list(tmp_path / "list.txt", origin, ["/file/large", "/ok/1.jpg"])
    result = run(Config(urls, str(tmp_path / "out"), fetch=replace(FETCH, in_memory=1000)))
    assert result.kept == 2
    assert rows_of(result.dataset)[0]["source_format"] == "bmp"


@pytest.mark.parametrize(
    ("text", "options", "why"),
    [
        (None, {}, r"list.txt: there is no such list: check --urls"),
        ("", {}, r"list.txt: holds no links: check --urls"),
        ("\n\n", {}, r"list.txt: holds no links: check --urls"),
        ("http://a/1.jpg\n" * 1001, {}, r"more than 1000 links .* set --fetch.contact"),
        ("http://a/1.jpg\n", {"out": "/etc/hostname"}, r"/etc/hostname.*: cannot write"),
        ("http://a/1.jpg\n", {"scratch": "/proc/none"}, r"/proc/none: cannot hold scratch files"),
        ("http://a/1.jpg\n", {"url_column": "x", "format": "csv"}, r"has no column 'x'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str | None, options: dict[str, str], why: str) -> None:
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=why) as raised:
        run(Config(**{"urls": str(tmp_path / "list.txt"), "out": str(tmp_path / "out"), **options}))
    assert re.fullmatch(r"[^\n]+", str(raised.value))
    assert not (tmp_path / "out" / "dataset.json").exists() or "scratch" in options


def test_without_a_contact_nothing_is_written(tmp_path: Path) -> None:
    """Half a plan would refuse the next try, if that has other settings."""
    (tmp_path / "list.txt").write_text("http://a/1.jpg\n" * 1001)
    with pytest.raises(ValueError, match=r"set --fetch.contact"):
        run(Config(str(tmp_path / "list.txt"), str(tmp_path / "out"), unit=100))
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_allow_private_frees_only_what_it_names_from_the_contact_rule(tmp_path: Path) -> None:
    own, others = "http://127.0.0.1:9/1.jpg\n", "http://a.example/1.jpg\n"
    urls, out = tmp_path / "list.txt", str(tmp_path / "out")
    urls.write_text(own * 1001 + others * 1001)
    config = Config(str(urls), out, unit=100, fetch=FETCH)
    with pytest.raises(ValueError, match=r"set --fetch.contact"):
        plan.make(config)
    assert planned_units(out) == []
    urls.write_text(own * 1500 + others * 1000)
    assert plan.make(config).links == 2500
    assert plan.make(config).links == 2500  # as planned before


def test_a_full_scratch_is_one_line(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    urls = write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg"])
    monkeypatch.setattr("ingest.unit.UnitWriter.add", full)
    with pytest.raises(ValueError, match=r"cannot hold a unit \(No space left on device\): free space"):
        run(Config(urls, str(tmp_path / "out"), fetch=FETCH))


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="unit is 0"):
        Config("a", "b", unit=0)
    with pytest.raises(ValueError, match="scratch_bytes is 0"):
        Config("a", "b", scratch_bytes=0)
    with pytest.raises(ValueError, match="dry_run is -1"):
        Config("a", "b", dry_run=-1)


def test_reasons_of_a_run_are_of_the_closed_list() -> None:
    assert set(MIXED.values()) - {"kept"} <= {str(reason) for reason in Reason}
