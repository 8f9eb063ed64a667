"""Datasets, commits and versions: nothing counted twice, nothing lost, immutable versions, nested subsets."""

import dataclasses
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_datasets import make_dataset, retry, rows_of, rule, write_unit

from shards import store
from shards.dataset import (
    FORMAT,
    INDEX_SCHEMA,
    Commit,
    DatasetInfo,
    Generation,
    commit,
    committed_units,
    planned_units,
    read_commits,
    read_generations,
    read_info,
    read_plan,
    read_table,
    table_bytes,
    write_generation,
    write_info,
    write_plan,
)
from shards.manifest import Manifest, Shard, add_version, make_version, read_manifest, write_manifest
from shards.selection import selected_index, subset


def test_a_version_counts_every_link(base):
    manifest = make_dataset(base, [30, 20, 7], bad=(3, 4, 45))
    assert (manifest.links, manifest.kept, manifest.reasons) == (57, 54, {"http_404": 3})
    assert manifest.counts.tolist() == [28, 19, 7]
    assert read_manifest(base) == manifest
    assert read_manifest(f"{base}@1") == manifest
    assert read_manifest(manifest.address) == manifest
    assert planned_units(base) == committed_units(base) == [0, 1, 2]
    assert read_plan(base, 2)["row"].to_pylist() == list(range(50, 57))


def test_the_index_of_a_shard_gives_its_selected_rows_in_order(tmp_path):
    manifest = make_dataset(tmp_path, [10, 10], bad=(2, 11))
    assert selected_index(manifest, 0)["row"].to_pylist() == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert selected_index(manifest, 1, ["offset"]).column_names == ["offset", "key", "row", "reason"]
    assert selected_index(manifest, 1).schema.equals(INDEX_SCHEMA)


@pytest.mark.parametrize("left", [b"an older one", None])
def test_a_rerun_writes_the_hint_that_a_killed_writer_did_not(tmp_path, left):
    base = str(tmp_path)
    made, hint = make_dataset(base, [10]), tmp_path / "latest.json"
    for again in (lambda: make_version(base, "nothing new"), lambda: add_version(made, "select")):
        hint.write_bytes(left) if left else hint.unlink()
        again()
        assert hint.read_bytes() == (tmp_path / "versions" / "000001.json").read_bytes()
    before = hint.stat().st_mtime_ns
    make_version(base, "nothing new")
    assert hint.stat().st_mtime_ns == before
    assert len(store.names(f"{base}/versions")) == 1


def test_new_commits_make_a_new_version_and_the_old_one_stays(tmp_path):
    base = str(tmp_path)
    first = make_dataset(base, [10])
    assert make_version(base, "nothing new") == first
    write_unit(base, 1, rows_of(10, 5, bad=(11,)))
    second = make_version(base, "more")
    assert (second.links, second.kept, read_manifest(base).digest) == (15, 14, second.digest)
    assert read_manifest(f"{base}@1") == first
    assert store.read_json(f"{base}/versions/000002.json")["parent"] == first.digest


def test_a_retried_row_counts_once_with_its_newest_verdict(tmp_path):
    first = make_dataset(tmp_path, [10, 10], bad=(2, 3, 14))
    once_more = retry(first, [2, 3, 14], bad=(3, 14))
    assert (once_more.links, once_more.kept, once_more.reasons) == (20, 18, {"http_404": 2})
    twice_more = retry(once_more, [3, 14], bad=(14,))
    assert (twice_more.links, twice_more.kept, twice_more.reasons) == (20, 19, {"http_404": 1})
    assert [g.first_unit for g in read_generations(str(tmp_path))] == [2, 3]
    selected = [row for shard in range(4) for row in selected_index(twice_more, shard)["row"].to_pylist()]
    assert sorted(selected) == [row for row in range(20) if row != 14]


def test_a_new_version_drops_the_rules_of_the_old_one(tmp_path):
    ruled = rule(make_dataset(tmp_path, [6, 4]), {1: [(3, "duplicate", None)]})
    assert add_version(ruled, "select")
    write_unit(str(tmp_path), 2, rows_of(10, 5))
    more = make_version(str(tmp_path), "more")
    assert (more.rules, more.samples, more.deselected) == (None, 15, {})


def test_the_newest_version_never_loses_links(tmp_path):
    first = make_dataset(tmp_path, [6])
    write_unit(str(tmp_path), 1, rows_of(6, 5))
    second = make_version(str(tmp_path), "more")
    old = rule(first, {0: [(3, "duplicate", None)]})
    assert not add_version(old, "of an old version")
    assert read_manifest(str(tmp_path)) == second
    assert read_manifest(old.address) == old
    new = rule(second, {0: [(3, "duplicate", None)]})
    assert add_version(new, "rules")
    assert add_version(new, "again")
    assert read_manifest(f"{tmp_path}@3") == new
    assert store.names(f"{tmp_path}/versions") == ["000001.json", "000002.json", "000003.json"]


def test_manifests_of_before_rules_had_a_file_are_read(tmp_path):
    manifest = make_dataset(tmp_path, [5])
    table = read_table(f"{tmp_path}/manifests/{manifest.digest}.parquet")
    empty = pa.array([[]], pa.list_(pa.struct([("row", pa.int64()), ("reason", pa.string())])))
    store.put(f"{tmp_path}/manifests/{manifest.digest}.parquet", table_bytes(table.append_column("deselected", empty)))
    assert read_manifest(str(tmp_path)) == manifest


def test_the_digest_is_that_of_canonical_json_whatever_the_names():
    shards = (
        Shard(0, '/tars/caf\u00e9 "1"\\.tar', "000000-a1.parquet", 10**12, "0" * 64, 12, 10, 9),
        Shard(1, "s3://bucket/\u2603\x7f.tar", "000001-a1.parquet", 0, "f" * 64, 0, 0, 0),
    )
    manifest = Manifest("here", "list", "1" * 64, shards, 12, 10, {"http_404": 2}, {"subset": 1})
    rows = [{**dataclasses.asdict(shard), "deselected": []} for shard in shards]
    content = {
        "format": FORMAT,
        "list_name": "list",
        "list_sha256": "1" * 64,
        "shards_sha256": hashlib.sha256(json.dumps(rows, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
        "links": 12,
        "kept": 10,
        "samples": 9,
        "reasons": {"http_404": 2},
        "deselected": {"subset": 1},
        "subset": None,
        "classes": None,
    }
    whole = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert manifest.digest == hashlib.sha256(whole.encode()).hexdigest()


def test_many_commits_are_read_in_the_order_asked_for(base):
    made = [
        commit(base, Commit(unit, "a", "t", 1, "x", "i", "y", links=unit, kept=unit, reasons={})) for unit in range(40)
    ]
    assert read_commits(base, range(39, -1, -1)) == made[::-1]
    with pytest.raises(store.Missing, match="000040"):
        read_commits(base, [0, 40])


def test_what_a_file_manager_leaves_in_a_folder_is_not_ours(tmp_path):
    manifest = make_dataset(str(tmp_path), [3, 2])
    for folder in ("links", "commits", "versions"):
        for name in (".DS_Store", "._000001.json", "._000001.parquet", ".nfs000001"):
            (tmp_path / folder / name).write_text("")
    assert committed_units(str(tmp_path)) == planned_units(str(tmp_path)) == [s.unit for s in manifest.shards]
    assert read_manifest(str(tmp_path)).digest == manifest.digest
    assert make_version(str(tmp_path), "again").digest == manifest.digest


def test_a_retry_is_planned_once(base):
    assert read_generations(base) == []
    first = Generation(number=1, parent="d" * 64, first_unit=3, units=2)
    write_generation(base, first)
    write_generation(base, first)
    with pytest.raises(ValueError, match="another retry was planned here meanwhile"):
        write_generation(base, dataclasses.replace(first, units=1))
    second = Generation(number=2, parent="e" * 64, first_unit=5, units=1)
    write_generation(base, second)
    assert read_generations(base) == [first, second]


def test_a_dataset_of_before_classes_were_chosen_is_read(tmp_path):
    make_dataset(tmp_path, [5])
    value = store.read_json(f"{tmp_path}/dataset.json")
    assert value.pop("not_chosen") == 0
    assert (value.pop("not_chosen_by"), value.pop("columns"), value.pop("hash_column")) == ({}, [], None)
    store.put_json(f"{tmp_path}/dataset.json", value)
    assert (read_info(str(tmp_path)).not_chosen, read_info(str(tmp_path)).columns) == (0, ())
    store.put_json(f"{tmp_path}/dataset.json", value | {"not_chosen": 7})
    assert read_info(str(tmp_path)).left_out == {"classes": 7}


def test_only_one_attempt_at_a_unit_wins_and_both_see_who(base):
    one, two = (
        Commit(0, name, f"{name}.tar", 1, "x", f"{name}.parquet", "y", links=1, kept=1, reasons={}) for name in "ab"
    )
    assert commit(base, one) == one
    assert commit(base, two) == one


def test_an_unbalanced_commit_cannot_be_made():
    with pytest.raises(AssertionError, match="do not balance"):
        Commit(0, "a", "t", 1, "x", "i", "y", links=3, kept=1, reasons={"dns": 1})


def test_subsets_nest_and_balance(base):
    manifest = make_dataset(base, [150, 150], bad=(7,))
    keys = {}
    for n in (20, 80, 200):
        chosen = subset(manifest, n, seed=4)
        rows = [selected_index(chosen, shard)["key"].to_pylist() for shard in range(2)]
        assert [len(r) for r in rows] == chosen.counts.tolist()
        assert abs(chosen.samples - n) < 4 * n**0.5
        keys[n] = {key for shard in rows for key in shard}
        assert read_manifest(chosen.address) == chosen
        assert subset(manifest, n, seed=4).digest == chosen.digest
    assert keys[20] < keys[80] < keys[200]
    assert subset(manifest, 80, seed=5).digest != subset(manifest, 80, seed=4).digest
    assert read_manifest(base) == manifest, "a subset is not the dataset's newest version"


def test_a_subset_of_a_subset_nests_in_both(tmp_path):
    manifest = make_dataset(tmp_path, [200])
    middle = subset(manifest, 100, seed=1)
    inner = subset(middle, middle.samples // 2, seed=1)
    assert set(selected_index(inner, 0)["key"].to_pylist()) < set(selected_index(middle, 0)["key"].to_pylist())
    with pytest.raises(ValueError, match="use that seed"):
        subset(middle, 5, seed=2)
    with pytest.raises(ValueError, match="seed is -1"):
        subset(manifest, 9, seed=-1)
    with pytest.raises(ValueError, match="subset of 900 samples"):
        subset(manifest, 900)


def test_a_rerun_with_other_input_is_refused_by_name(tmp_path):
    info = DatasetInfo("list.txt", "a" * 64, 2, 10, "cfg", "pillow")
    write_info(str(tmp_path), info)
    write_info(str(tmp_path), dataclasses.replace(info, image_build="another pillow"))
    assert read_info(str(tmp_path)) == info
    for change in ({"list_sha256": "b" * 64}, {"config_digest": "x"}, {"unit": 5}, {"classes": ("a",)}):
        with pytest.raises(ValueError, match=f"another {next(iter(change))}"):
            write_info(str(tmp_path), dataclasses.replace(info, **change))


def test_a_plan_of_other_links_is_refused(base):
    manifest = make_dataset(base, [5])
    write_plan(base, 0, read_plan(base, 0))
    with pytest.raises(ValueError, match="plans other links than this list gives"):
        write_plan(base, 0, read_plan(base, 0).slice(1))
    assert read_plan(base, 0)["row"].to_pylist() == list(range(manifest.links))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="is not a dataset"):
        read_manifest(str(tmp_path))
    manifest = make_dataset(tmp_path, [5])
    with pytest.raises(ValueError, match="has no version 7: it has versions 1"):
        read_manifest(f"{tmp_path}@7")
    with pytest.raises(ValueError, match="0 manifests start with abcdef0123"):
        read_manifest(f"{tmp_path}@abcdef0123")
    head = f"{tmp_path}/manifests/{manifest.digest}.json"
    store.put_json(head, store.read_json(head) | {"deselected": {"x": 0}})
    with pytest.raises(ValueError, match="content its name promises"):
        read_manifest(str(tmp_path))
    store.put_json(head, store.read_json(head) | {"links": 99})
    with pytest.raises(ValueError, match=r"is damaged .*links do not balance"):
        read_manifest(str(tmp_path))


def test_a_future_format_is_refused(tmp_path):
    make_dataset(tmp_path, [5])
    store.put_json(f"{tmp_path}/dataset.json", store.read_json(f"{tmp_path}/dataset.json") | {"format": 9})
    with pytest.raises(ValueError, match="has format 9, this build reads 2"):
        read_manifest(str(tmp_path))


def test_somebody_elses_dataset_json_is_not_ours(tmp_path):
    (tmp_path / "dataset.json").write_text('{"labels": []}')
    with pytest.raises(ValueError, match="is not one of ours"):
        read_manifest(str(tmp_path))


def test_a_damaged_index_is_named(tmp_path):
    manifest = make_dataset(tmp_path, [5])
    store.put(f"{tmp_path}/shards/{manifest.shards[0].index}", b"not parquet at all")
    with pytest.raises(ValueError, match=manifest.shards[0].index):
        selected_index(manifest, 0)


@pytest.mark.parametrize("field", ["tar", "index", "tar_sha256"])
def test_a_manifest_of_others_names_no_file_outside_of_its_dataset(tmp_path, field):
    """A cache names its files by a tar's sha256, and a repair writes indexes: neither may be led elsewhere."""
    made = make_dataset(tmp_path / "d", [5])
    wrong = dataclasses.replace(made, shards=(dataclasses.replace(made.shards[0], **{field: "../../etc/x"}),))
    write_manifest(wrong)
    with pytest.raises(ValueError, match=r"is damaged .*unit 0: its"):
        read_manifest(f"{tmp_path / 'd'}@{wrong.digest}")


@pytest.mark.parametrize(("folder", "column"), [("manifests", "selected"), ("shards", "reason"), ("links", "url")])
def test_a_table_without_one_of_its_columns_is_named(tmp_path, folder, column):
    make_dataset(tmp_path / "d", [2])
    (path,) = (tmp_path / "d" / folder).glob("*.parquet")
    pq.write_table(pq.read_table(path).drop_columns(column), path)

    def read() -> None:
        read_plan(str(tmp_path / "d"), 0)
        selected_index(read_manifest(str(tmp_path / "d")), 0)

    with pytest.raises(store.StoreError, match=rf"{path.name}: is damaged \(.*lacks the column '{column}'"):
        read()
