"""Sweeping: what a commit has beaten goes, what is old and undecided goes, what a version names never does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from made_datasets import make_dataset, rows_of, rule, write_unit

from shards import check, store, sweep
from shards.manifest import read_manifest


def put(base: str, *names: str, body: bytes = b"left") -> None:
    for name in names:
        store.put(store.join(base, name), body)


def everything(base: str) -> set[str]:
    folders = ("shards", "thumbs", "manifests", "commits", "versions", "links")
    return {f"{folder}/{entry.name}" for folder in folders for entry in store.entries(store.join(base, folder))}


def age(base: Path, *names: str, days: float = 8) -> None:
    for name in names:
        os.utime(base / name, (time.time() - 86_400 * days,) * 2)


def test_attempts_that_a_commit_beat_go_on_every_store(base):
    make_dataset(base, [6, 6], bad=(2,))
    before = everything(base)
    losers = ("shards/000000-b2.tar", "shards/000000-b2.parquet", "thumbs/000001-b2.parquet")
    put(base, *losers)
    would = sweep.run(sweep.Config(base, dry_run=True))
    assert everything(base) == before | set(losers)
    result = sweep.run(sweep.Config(base))
    assert result.objects == would.objects == tuple(sorted(losers))
    assert (result.beaten, result.stale, result.young, result.bytes) == (3, 0, 0, 12)
    assert everything(base) == before
    assert check.run(check.Config(base)).ok
    assert sweep.run(sweep.Config(base)).objects == ()


def test_attempts_at_a_unit_without_a_commit_go_by_age(tmp_path):
    make_dataset(tmp_path, [6])
    old, young = "shards/000001-b2.tar", "shards/000001-c3.tar"
    put(str(tmp_path), old, young)
    age(tmp_path, old)
    result = sweep.run(sweep.Config(str(tmp_path)))
    assert (result.objects, result.stale, result.young) == ((old,), 1, 1)
    assert young in everything(str(tmp_path))
    age(tmp_path, young, days=0.1)
    assert sweep.run(sweep.Config(str(tmp_path), older_than="2h")).objects == (young,)


def test_what_a_version_names_stays_however_old_and_though_its_commit_is_lost(tmp_path):
    make_dataset(tmp_path, [6, 6])
    (tmp_path / "commits" / "000001.json").unlink()
    for path in tmp_path.rglob("*.*"):
        age(path.parent, path.name, days=99)
    before = everything(str(tmp_path))
    assert sweep.run(sweep.Config(str(tmp_path), older_than="1h")).objects == ()
    assert everything(str(tmp_path)) == before
    # A commit that came to name another attempt does not take away what the version has either.
    write_unit(str(tmp_path), 1, rows_of(6, 6), attempt="b2")
    assert sweep.run(sweep.Config(str(tmp_path), older_than="1h")).objects == ()
    assert check.run(check.Config(str(tmp_path))).links == 12


def test_committed_units_that_no_version_has_yet_stay(tmp_path):
    make_dataset(tmp_path, [6])
    write_unit(str(tmp_path), 1, rows_of(6, 6))
    names = [f"shards/000001-a1.{ending}" for ending in ("tar", "parquet")]
    age(tmp_path, *names)
    assert sweep.run(sweep.Config(str(tmp_path))).objects == ()


def test_rules_and_halves_that_nothing_names_go_by_age(tmp_path):
    manifest = rule(make_dataset(tmp_path, [6]), {0: [(1, "duplicate", None)]})
    assert manifest.rules is not None
    left = (f"manifests/{'0' * 64}.rules.parquet", ".probe-1-2", "shards/.aside-xyz")
    put(str(tmp_path), *left)
    foreign = ("shards/notes.txt", "shards/000000-b2.csv", "thumbs/mine.parquet")
    put(str(tmp_path), *foreign)
    age(tmp_path, *left, *foreign, f"manifests/{manifest.rules.file}")
    result = sweep.run(sweep.Config(str(tmp_path)))
    assert set(result.objects) == set(left)
    assert set(foreign) <= everything(str(tmp_path))
    assert read_manifest(manifest.address) == manifest
    assert check.run(check.Config(manifest.address)).ok


@pytest.mark.parametrize("wrong", ["7", "d", "7 d", "-1d", "9m", "0h"])
def test_ages_that_cannot_be_meant_are_refused(wrong):
    with pytest.raises(ValueError, match="older_than"):
        sweep.Config("x", older_than=wrong)


def test_a_damaged_manifest_stops_the_sweep(tmp_path):
    manifest = make_dataset(tmp_path, [6])
    put(str(tmp_path), "shards/000000-b2.tar")
    put(str(tmp_path), f"manifests/{manifest.digest}.parquet", body=b"not parquet")
    with pytest.raises(store.StoreError, match=manifest.digest):
        sweep.run(sweep.Config(str(tmp_path)))
    assert "shards/000000-b2.tar" in everything(str(tmp_path))
    with pytest.raises(ValueError, match="is not a dataset"):
        sweep.run(sweep.Config(str(tmp_path / "nothing")))


def test_age_is_by_the_stores_clock_and_not_by_this_machines(base, monkeypatch):
    """A machine that is 8 days ahead must not take a living writer's objects for a dead one's."""
    make_dataset(base, [6])
    put(base, "shards/000007-b2.tar", "shards/000007-b2.parquet")
    before = everything(base)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 8 * 86_400)
    result = sweep.run(sweep.Config(base))
    assert (result.objects, result.young) == ((), 2)
    assert everything(base) == before
