"""Every object of a dataset, damaged or gone: what is rebuilt is what was there, and what cannot be is named."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from made_datasets import make_dataset, plan_unit, retry, rows_of, write_unit
from places import TESTS

from ingest.select import SelectConfig, select, settings
from shards import check, manifest, repair, selection, store
from shards.dataset import FORMAT, PLAIN, DatasetInfo, read_generations, read_table, table_bytes, write_info
from shards.manifest import read_manifest
from shards.repair.unit import LOST_COLUMNS, Line
from shards.stream import once

USUAL = [settings(SelectConfig())]


@pytest.fixture(params=[PLAIN, FORMAT], ids=["plain", "newest"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """Two units, a selection, a retry, a selection of its version, and a subset of that."""
    base = str(tmp_path / "d")
    for unit, rows in enumerate((rows_of(0, 12, bad=(3,), side=16), rows_of(12, 9, bad=(15, 16), side=16))):
        rows[5]["body"] = rows[2]["body"]  # duplicates, so that selecting takes something out
        plan_unit(base, unit, rows)
        write_unit(base, unit, rows, format_=request.param)
    write_info(base, DatasetInfo("test", "0" * 64, 2, 12, "c", "t", format=request.param))
    first = select(manifest.make_version(base, "test"), SelectConfig())
    last = select(retry(first, [3, 15], bad=(15,)), SelectConfig(duplicates=False))
    selection.subset(last, 6)
    assert [v["why"] for v in versions(base)] == ["test", "select", "retry", "select"]
    return base


def versions(dataset: str) -> list[dict[str, Any]]:
    return [
        store.read_json(store.join(dataset, "versions", name)) for name in store.names(store.join(dataset, "versions"))
    ]


def snapshot(dataset: str) -> dict[str, bytes]:
    root = Path(dataset)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def keys(dataset: str) -> list[str]:
    return [sample.key for batch in once(read_manifest(dataset), 16) for sample in batch]


def lines(found: tuple[Line, ...]) -> list[str]:
    return [str(line) for line in found]


def flipped(body: bytes) -> bytes:
    return body[:-5] + bytes([body[-5] ^ 1]) + body[-4:]


DAMAGE: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda body: None,
    "empty": lambda body: b"",
    "cut": lambda body: body[: len(body) // 2],
    "flipped": flipped,
}
EXACT = ("commits/", "links/", "latest.json", "manifests/", "versions/000004.json")


@pytest.mark.parametrize("how", DAMAGE)
def test_what_other_objects_still_say_is_rebuilt_to_the_byte(dataset: str, how: str) -> None:
    """Of each kind every object, one at a time; a subset's head alone says which subset it was."""
    before, order = snapshot(dataset), keys(dataset)
    subset = next(name for name, body in before.items() if name.endswith(".json") and b'"subset": {' in body)
    tried = 0
    for name, body in before.items():
        damaged = DAMAGE[how](body)
        if not name.startswith(EXACT) or name.endswith(".rules.parquet") or name == subset:
            continue
        if how == "flipped" and name.endswith(".json"):
            continue  # below
        path = Path(dataset, name)
        path.unlink() if damaged is None else path.write_bytes(damaged)
        would = repair.run(dataset, dry_run=True, settings=USUAL)
        assert snapshot(dataset) == {n: b for n, b in (before | {name: damaged}).items() if b is not None}
        done = repair.run(dataset, jobs=2, settings=USUAL)
        assert [line.name for line in done.rebuilt] == [name], done
        assert (would.rebuilt, would.lost, done.lost) == (done.rebuilt, (), ())
        assert snapshot(dataset) == before, name
        tried += 1
    assert tried >= 8
    assert keys(dataset) == order
    assert check.run(check.Config(dataset)).ok


def test_a_sound_dataset_is_not_written_to_on_any_store(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(base, [6, 6], bad=(2,))
    monkeypatch.setattr(store, "put", lambda *_: pytest.fail("written"))
    monkeypatch.setattr(store, "put_if_absent", lambda *_: pytest.fail("written"))
    assert repair.run(base) == repair.RepairResult(base, (), (), False)


def test_everything_that_can_be_rebuilt_at_once_on_every_store(base: str) -> None:
    made = select(make_dataset(base, [12, 9], bad=(3,), side=16), SelectConfig())
    before = keys(base)
    gone = [f"commits/{unit:06d}.json" for unit in range(2)] + [f"manifests/{made.digest}.parquet"]
    gone += ["versions/000002.json"]
    bodies = {name: store.read(store.join(base, name)) for name in gone}
    for name in gone:
        store.delete(store.join(base, name))
    done = repair.run(f"{base}@1", settings=USUAL)
    assert (sorted(line.name for line in done.rebuilt), done.lost) == (sorted(gone), ())
    assert {name: store.read(store.join(base, name)) for name in gone} == bodies
    assert keys(base) == before
    assert repair.run(base).rebuilt == ()


@pytest.mark.parametrize("field", ["tar_sha256", "links", "kept", "reasons", "attempt"])
def test_a_commit_that_reads_well_and_says_something_else(dataset: str, field: str) -> None:
    before = snapshot(dataset)
    path = Path(dataset, "commits/000000.json")
    value = json.loads(path.read_text())
    value[field] = {"reasons": {"timeout": 1}, "attempt": "b2", "tar_sha256": "0" * 64}.get(field, 7)
    path.write_text(json.dumps(value))
    done = repair.run(dataset)
    assert ([line.name for line in done.rebuilt], done.lost) == (["commits/000000.json"], ())
    assert snapshot(dataset) == before


def test_a_retry_that_says_it_replaced_other_verdicts(dataset: str) -> None:
    before = snapshot(dataset)
    path = Path(dataset, "commits/000002.json")
    path.write_text(path.read_text().replace('"http_404": 2', '"http_504": 2'))
    assert [line.name for line in repair.run(dataset).rebuilt] == ["commits/000002.json"]
    assert snapshot(dataset) == before
    plan = Path(dataset, "links/000002.parquet")
    table = read_table(str(plan))
    other = table.set_column(table.schema.get_field_index("why"), "why", pa.array(["dns"] * len(table)))
    plan.write_bytes(table_bytes(other))
    assert [line.name for line in repair.run(dataset).rebuilt] == ["links/000002.parquet"]
    assert snapshot(dataset) == before


def test_an_index_is_rebuilt_from_its_tar_and_the_columns_that_are_lost_are_named(dataset: str) -> None:
    before, order, counts = snapshot(dataset), keys(dataset), read_manifest(dataset)
    name = "shards/000000-a1.parquet"
    old = read_table(str(Path(dataset, name)))
    Path(dataset, name).write_bytes(b"PAR1")
    would = repair.run(dataset, dry_run=True)
    assert snapshot(dataset) == before | {name: b"PAR1"}
    done = repair.run(dataset)
    assert (would.rebuilt, would.lost) == (done.rebuilt, done.lost)
    assert [line.name for line in done.rebuilt] == [name + ".damaged", name, "commits/000000.json"]
    (lost,) = done.lost
    assert lost.name == name
    assert lost.what.endswith("are null: " + ", ".join(LOST_COLUMNS))
    new = read_table(str(Path(dataset, name)))
    assert new.drop_columns(LOST_COLUMNS).equals(old.drop_columns(LOST_COLUMNS))
    assert all(new[column].null_count == len(new) for column in LOST_COLUMNS)
    assert Path(dataset, name + ".damaged").read_bytes() == b"PAR1"
    assert (keys(dataset), read_manifest(dataset)) == (order, counts)
    assert check.run(check.Config(dataset, decode=True)).ok
    assert repair.run(dataset).rebuilt == ()
    changed = {n for n, body in snapshot(dataset).items() if before.get(n) != body}
    assert changed == {name, name + ".damaged", "commits/000000.json"}


def test_a_repair_that_was_killed_is_finished_by_another(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(dataset)
    gone = ["commits/000001.json", "links/000002.parquet", "shards/000000-a1.parquet", "versions/000002.json"]
    gone += ["latest.json", f"manifests/{versions(dataset)[3]['digest']}.json"]

    def damage() -> None:
        for name in snapshot(dataset):
            Path(dataset, name).unlink()
        for name, body in before.items():
            if name not in gone:
                Path(dataset, name).write_bytes(body)

    damage()
    done = repair.run(dataset, settings=USUAL)
    assert {line.name for line in done.rebuilt} == {*gone, "commits/000000.json"}
    whole = snapshot(dataset)
    for writes in range(len(done.rebuilt)):
        damage()
        left = iter(range(writes))
        with monkeypatch.context() as patch:
            for verb in ("put", "put_if_absent"):
                patch.setattr(store, verb, killed_after(left, getattr(store, verb)))
            with pytest.raises(Killed):
                repair.run(dataset, settings=USUAL)
        repair.run(dataset, settings=USUAL)
        assert snapshot(dataset) == whole, writes
        assert repair.run(dataset).rebuilt == ()


class Killed(BaseException):
    pass


def killed_after(left: Iterator[int], write: Callable[[str, bytes], Any]) -> Callable[[str, bytes], Any]:
    def put(url: str, body: bytes) -> Any:
        if next(left, None) is None:
            raise Killed
        return write(url, body)

    return put


def test_a_repair_of_an_index_that_was_killed_before_its_commit_is_finished_by_another(dataset: str) -> None:
    commit = Path(dataset, "commits/000000.json")
    old = commit.read_bytes()
    Path(dataset, "shards/000000-a1.parquet").unlink()
    first = repair.run(dataset)
    after = snapshot(dataset)
    commit.write_bytes(old)
    second = repair.run(dataset)
    assert [line.name for line in second.rebuilt] == ["commits/000000.json"]
    assert second.lost == first.lost
    assert snapshot(dataset) == after


def test_an_index_whose_verdicts_are_nowhere_else_is_not_made_up(tmp_path: Path) -> None:
    base = str(tmp_path / "d")
    rows = rows_of(0, 6, bad=(1, 4))
    rows[1]["reason"] = "dns"
    plan_unit(base, 0, rows)
    write_unit(base, 0, rows)
    write_info(base, DatasetInfo("t", "0" * 64, 1, 6, "c", "t"))
    manifest.make_version(base, "test")
    path = tmp_path / "d/shards/000000-a1.parquet"
    path.unlink()
    left = snapshot(base)
    done = repair.run(base)
    why = "which of its links ended as dns (1), http_404 (1) is not known: restore it from a copy"
    assert lines(done.lost) == [f"shards/000000-a1.parquet: is gone, and cannot be rebuilt: {why}"]
    assert (done.rebuilt, snapshot(base)) == ((), left)


def test_an_index_that_only_its_commit_doubts_is_left_alone(dataset: str) -> None:
    """All that can be compared agrees: whether the index or its commit is wrong is unknown."""
    path = Path(dataset, "commits/000001.json")
    path.write_text(path.read_text().replace('"index_sha256": "', '"index_sha256": "0')[:-1])
    left = snapshot(dataset)
    done = repair.run(dataset)
    assert [line.name for line in done.lost] == ["shards/000001-a1.parquet"]
    assert "whether it or the commit is wrong is unknown" in done.lost[0].what
    assert (done.rebuilt, snapshot(dataset)) == ((), left)


def test_a_plan_with_other_links_is_that_of_the_index_again(dataset: str) -> None:
    before = snapshot(dataset)
    Path(dataset, "links/000002.parquet").write_bytes(before["links/000000.parquet"])
    done = repair.run(dataset)
    assert lines(done.rebuilt) == ["links/000002.parquet: has other links: rebuilt from the index"]
    assert snapshot(dataset) == before


@pytest.mark.parametrize(("number", "exact"), [(1, False), (2, False), (3, False), (4, True)])
def test_a_lost_version_has_its_digest_from_its_neighbours(dataset: str, number: int, exact: bool) -> None:
    old = versions(dataset)
    order = [keys(f"{dataset}@{n}") for n in range(1, 5)]
    Path(dataset, f"versions/{number:06d}.json").unlink()
    done = repair.run(dataset)
    assert [keys(f"{dataset}@{n}") for n in range(1, 5)] == order
    new = versions(dataset)
    name = f"versions/{number:06d}.json"
    assert [line.name for line in done.rebuilt] == [name]
    assert lines(done.lost) == ([] if exact else [f"{name}: rebuilt, but why and when it was made is lost"])
    if not exact:
        assert (new[number - 1].pop("why"), new[number - 1].pop("made_at")) == ("repair", None)
        del old[number - 1]["why"], old[number - 1]["made_at"]
    assert new == old


def test_versions_that_nothing_names_any_more_are_listed(dataset: str) -> None:
    for number in (1, 2):
        Path(dataset, f"versions/{number:06d}.json").unlink()
    left = snapshot(dataset)
    done = repair.run(dataset)
    assert [line.name for line in done.lost] == ["versions/000002.json", "versions/000001.json"]
    assert (done.rebuilt, snapshot(dataset)) == ((), left)
    for name in ("versions/000003.json", "versions/000004.json", "latest.json"):
        Path(dataset, name).unlink()
    done = repair.run(dataset)
    assert [line.name for line in done.lost] == ["versions/"]
    assert "was the newest is not known" in done.lost[0].what
    assert done.rebuilt == ()


def test_the_only_version_is_made_again(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "d", [6])
    for name in ("versions/000001.json", "latest.json"):
        Path(tmp_path / "d", name).unlink()
    done = repair.run(str(tmp_path / "d"))
    assert [line.name for line in done.rebuilt] == ["versions/000001.json", "latest.json"]
    assert read_manifest(str(tmp_path / "d")) == made


def test_a_lost_retry_is_found_by_its_units(dataset: str) -> None:
    before = read_generations(dataset)
    name = "generations/000001.json"
    Path(dataset, name).write_bytes(b"{}")
    done = repair.run(dataset)
    assert [line.name for line in done.rebuilt] == [name]
    assert lines(done.lost) == [f"{name}: rebuilt, but which of the versions 1, 2 it was planned from is lost"]
    assert read_generations(dataset) == before
    Path(dataset, name).unlink()
    Path(dataset, "manifests", versions(dataset)[0]["digest"] + ".json").unlink()
    assert name in [line.name for line in repair.run(dataset).rebuilt]
    assert read_generations(dataset) == before


def test_what_is_nowhere_else_is_listed_and_nothing_is_written(dataset: str) -> None:
    whole = snapshot(dataset)
    subset = next(name for name, body in whole.items() if name.endswith(".json") and b'"subset": {' in body)
    rules = next(name for name in whole if name.endswith(".rules.parquet"))
    Path(dataset, subset).unlink()
    Path(dataset, rules).unlink()
    Path(dataset, "shards/000001-a1.tar").unlink()
    path = Path(dataset, "shards/000000-a1.tar")
    path.write_bytes(path.read_bytes()[:-7])
    left = snapshot(dataset)
    done = repair.run(dataset, settings=USUAL)
    assert {line.name for line in done.lost} == {subset, rules, "shards/000001-a1.tar", "shards/000000-a1.tar"}
    assert (done.rebuilt, snapshot(dataset)) == ((), left)


def test_rules_that_were_lost_come_back_as_their_line_says(dataset: str) -> None:
    before = snapshot(dataset)
    last = read_manifest(dataset)
    assert last.rules
    Path(dataset, "manifests", last.rules.file).unlink()
    (lost,) = {line.what.partition(": xtra select ")[2].split()[0] for line in repair.run(dataset).lost}
    assert select(read_manifest(lost), SelectConfig(duplicates=False)).digest == last.digest
    assert snapshot(dataset) == before


def test_a_dataset_of_others_does_not_say_where_to_write(tmp_path: Path) -> None:
    """Its manifest and commit name an index outside of it, with all that is needed to rebuild that one."""
    base = str(tmp_path / "d")
    made = make_dataset(base, [6], side=16)
    outside = "../../000000-a1.parquet"
    path = Path(base, "commits/000000.json")
    path.write_text(path.read_text().replace(made.shards[0].index, outside))
    shutil.rmtree(Path(base, "versions"))
    shutil.rmtree(Path(base, "manifests"))
    assert manifest.make_version(base, "test").shards[0].index == outside
    left = snapshot(base)
    for _ in range(2):
        done = repair.run(base)
        assert "outside shards/" in " ".join(lines(done.lost))
        assert (done.rebuilt, snapshot(base), [each.name for each in tmp_path.iterdir()]) == ((), left, ["d"])
        path.unlink(missing_ok=True)
        left.pop("commits/000000.json", None)


def test_dataset_json_is_never_made_up(dataset: str) -> None:
    Path(dataset, "dataset.json").write_text("{")
    Path(dataset, "commits/000000.json").unlink()
    left = snapshot(dataset)
    done = repair.run(dataset)
    assert [line.name for line in done.lost] == ["dataset.json"]
    assert (done.rebuilt, snapshot(dataset)) == ((), left)
    with pytest.raises(ValueError, match="is not a dataset"):
        repair.run(dataset + "/shards")


def test_a_dataset_of_an_older_build(tmp_path: Path) -> None:
    """With every column of a real ingest: commits, plans, manifests and versions come back to the byte."""
    archive = next((TESTS / "older_builds").glob("*.tar.gz"))
    with tarfile.open(archive) as files:
        files.extractall(tmp_path, filter="data")
    dataset = str(tmp_path / "ingested")
    before = snapshot(dataset)
    assert repair.run(dataset).rebuilt == ()
    how = [settings(SelectConfig(near_distance=-1))]
    for name in before:
        if not name.startswith(("commits/", "links/", "manifests/", "latest.json")) or ".rules." in name:
            continue
        Path(dataset, name).unlink()
        done = repair.run(dataset, settings=how)
        assert ([line.name for line in done.rebuilt], done.lost) == ([name], ())
        after = snapshot(dataset)
        if name.endswith(".json"):
            assert after == before, name


def test_a_store_that_does_not_answer_is_no_damage(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = snapshot(dataset)
    real = store.read

    def fail(url: str) -> bytes:
        if "/commits/" in url:
            raise store.StoreError(f"{url}: cannot read: the store does not answer")
        return real(url)

    monkeypatch.setattr(store, "read", fail)
    with pytest.raises(store.StoreError, match="does not answer"):
        repair.run(dataset)
    assert snapshot(dataset) == left
