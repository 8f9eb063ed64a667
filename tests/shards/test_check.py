"""Every kind of damage that a dataset can suffer is found and named by shard and key."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import made_datasets
import pyarrow as pa
import pytest
from buckets import bucket

from shards import check, manifest, selection, store, tar as tar_module
from shards.dataset import (
    FORMAT,
    PLAIN,
    PLAN_SCHEMA,
    DatasetInfo,
    read_info,
    read_table,
    table_bytes,
    unit_name,
    write_info,
    write_plan,
)
from shards.tar import Member, header


@pytest.fixture(params=[PLAIN, FORMAT], ids=["plain", "newest"])
def dataset(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    made_datasets.make_dataset(tmp_path / "d", [12, 9], bad=(3, 15), side=16, format_=request.param)
    return tmp_path / "d"


def shard_file(dataset: Path, ending: str, unit: int = 0) -> Path:
    return dataset / "shards" / f"{unit_name(unit)}-a1.{ending}"


def problems(dataset: Path, decode: bool = False) -> list[str]:
    return [str(problem) for problem in check.run(check.Config(str(dataset), decode=decode)).problems]


def test_a_sound_dataset_has_no_problems_on_every_store(base: str) -> None:
    made = made_datasets.make_dataset(base, [12, 9], bad=(3, 15), side=16)
    seen: list[tuple[int, int]] = []
    result = check.run(check.Config(base, decode=True), lambda done, total: seen.append((done, total)))
    assert result.ok, result.problems
    assert seen == [(1, 2), (2, 2)]
    assert (result.links, result.kept, result.samples, result.shards) == (21, 19, 19, 2)
    assert result.digest == made.digest
    assert result.bytes == sum(shard.tar_bytes for shard in made.shards)


def test_subsets_and_named_versions_are_checked_too(dataset: Path) -> None:
    part = selection.subset(manifest.read_manifest(str(dataset)), 8)
    result = check.run(check.Config(part.address))
    assert result.ok, result.problems
    assert result.samples == part.samples < result.kept == 19


def test_a_version_with_rules_is_checked_against_them(dataset: Path) -> None:
    whole = manifest.read_manifest(str(dataset))
    ruled = made_datasets.rule(
        whole, {0: [(1, "duplicate", None), (2, None, ["x", "y"])], 1: [(12, "placeholder", None)]}
    )
    result = check.run(check.Config(ruled.address))
    assert result.ok, result.problems
    assert (result.kept, result.samples) == (19, 17)
    part = selection.subset(ruled, 8)
    assert check.run(check.Config(part.address)).ok


def test_rules_that_do_not_fit_are_named(dataset: Path) -> None:
    whole = manifest.read_manifest(str(dataset))
    wrong = made_datasets.rule(
        whole, {0: [(3, None, ["of a row that is not kept"]), (4, "both", ["x"]), (5, None, None)]}
    )
    found = [str(problem) for problem in check.run(check.Config(wrong.address)).problems]
    assert found == [
        "000000-a1.tar: a rule is about row 3, which the index does not keep",
        "000000-a1.tar: the rule about row 4 neither takes it out nor joins labels",
        "000000-a1.tar: the rule about row 5 neither takes it out nor joins labels",
    ]
    right = made_datasets.rule(whole, {0: [(1, "duplicate", None)]})
    assert right.rules is not None
    (dataset / "manifests" / right.rules.file).unlink()
    found = [str(problem) for problem in check.run(check.Config(right.address)).problems]
    assert any(p.startswith("000000-a1.tar: ") and right.rules.file in p for p in found)
    assert any(p.startswith("manifest: ") and right.rules.file in p for p in found)
    assert "manifest: deselects 1 as duplicate, its rules 0" in found


def test_a_link_that_was_asked_for_again_counts_once(dataset: Path) -> None:
    first = manifest.read_manifest(str(dataset))
    again = made_datasets.retry(made_datasets.retry(first, [3, 15], bad=(15,)), [15])
    result = check.run(check.Config(str(dataset)))
    assert result.ok, result.problems
    assert (result.links, result.kept, again.reasons) == (21, 21, {})


def test_a_retry_that_replaces_other_verdicts_than_it_says_is_named(dataset: Path) -> None:
    first = manifest.read_manifest(str(dataset))
    made_datasets.retry(first, [3])
    commit = dataset / "commits" / "000002.json"
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"supersedes": {"timeout": 1}}))
    assert "000002-a1.tar: replaces {'http_404': 1} of older units, its commit says {'timeout': 1}" in problems(dataset)
    made_datasets.retry(manifest.read_manifest(str(dataset)), [4, 99])
    found = problems(dataset)
    assert "000003-a1.tar: asks again for 1 links that older units kept" in found
    assert "000003-a1.tar: asks again for 1 links that no older unit has" in found


def test_a_flipped_bit_in_a_picture_is_named_by_key(dataset: Path) -> None:
    row = index_rows(dataset)[2]
    flip(shard_file(dataset, "tar"), row["offset"] + row["length"] // 2)
    found = problems(dataset)
    assert f"000000-a1.tar: {row['key']}: its bytes do not have the sha256 of the index" in found
    assert "000000-a1.tar: the tar does not have the sha256 of the manifest" in found
    assert not [p for p in found if not p.startswith("000000-a1.tar")]


def test_a_flipped_bit_in_a_header_is_named_by_place(dataset: Path) -> None:
    row = index_rows(dataset)[1]
    flip(shard_file(dataset, "tar"), row["offset"] - 512 + 10)
    place = f"the tar has no valid header at byte {row['offset'] - 512}"
    assert any(p.startswith(f"000000-a1.tar: {row['key']}: {place}") for p in problems(dataset))


@pytest.mark.parametrize("where", ["header", "body", "padding", "json", "json padding", "first zeros", "last zeros"])
def test_a_flipped_bit_anywhere_in_a_tar_is_found(dataset: Path, where: str) -> None:
    tar, row = shard_file(dataset, "tar"), index_rows(dataset)[4]
    end, size = row["offset"] + row["length"], tar.stat().st_size
    json_at = end + -end % 512 + 512
    places = {"header": row["offset"] - 212, "body": end - 1, "padding": end, "json": json_at + 3}
    places |= {"json padding": json_at + 511, "first zeros": size - 1000, "last zeros": size - 1}
    assert (-end % 512, tar.read_bytes()[places["json padding"]]) > (0, -1)
    flip(tar, places[where])
    found = problems(dataset)
    assert "000000-a1.tar: the tar does not have the sha256 of the manifest" in found
    assert {problem.partition(": ")[0] for problem in found} == {"000000-a1.tar"}


def test_a_commit_of_another_format_is_named(dataset: Path) -> None:
    path, format_ = dataset / "commits" / "000000.json", read_info(str(dataset)).format
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 3 - format_}))
    assert problems(dataset) == [f"000000-a1.tar: the manifest has format {format_}, the commit {3 - format_}"]


@pytest.mark.parametrize("left", [0, 700, -600])
def test_a_torn_tar_is_a_problem_and_not_a_crash(dataset: Path, left: int) -> None:
    tar = shard_file(dataset, "tar", unit=1)
    tar.write_bytes(tar.read_bytes()[:left])
    found = problems(dataset)
    assert any("000001-a1.tar: the tar ends" in p for p in found)
    assert any("bytes, the manifest says" in p for p in found)


def test_what_is_missing_is_named(dataset: Path) -> None:
    shard_file(dataset, "tar", 0).unlink()
    shard_file(dataset, "parquet", 1).unlink()
    (dataset / "commits" / "000000.json").unlink()
    found = problems(dataset)
    assert any(p.startswith("000000-a1.tar: the tar cannot be read") for p in found)
    assert any(p.startswith("000000-a1.tar: its commit cannot be read") for p in found)
    assert any(p.startswith("000001-a1.tar: the index cannot be read") for p in found)
    assert any(p.startswith("manifest: says 19 kept, the indexes hold 11") for p in found)


def test_damaged_json_files_are_problems_and_not_crashes(dataset: Path) -> None:
    (dataset / "commits" / "000000.json").write_text("{}")
    (dataset / "commits" / "000001.json").write_text("[")
    shard_file(dataset, "parquet", 1).write_bytes(b"PAR1")
    (dataset / "links" / "000000.parquet").write_bytes(b"no")
    found = problems(dataset)
    assert sum("its commit cannot be read" in p for p in found) == 2
    assert any("000001-a1.tar: the index cannot be read" in p for p in found)
    assert any("000000-a1.tar: the plan cannot be read" in p for p in found)


def rewrite_index(dataset: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Another index under the same name, with a commit that fits it: only its content is wrong."""
    path = shard_file(dataset, "parquet")
    path.write_bytes(table_bytes(change(read_table(str(path)))))
    commit = dataset / "commits" / "000000.json"
    value = json.loads(commit.read_text()) | {"index_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    commit.write_text(json.dumps(value))


def with_column(table: pa.Table, name: str, values: pa.ChunkedArray | pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)


def test_an_index_that_points_elsewhere(dataset: Path) -> None:
    rewrite_index(
        dataset, lambda t: with_column(t, "offset", pa.array([at and at + 512 for at in t["offset"].to_pylist()]))
    )
    found = problems(dataset)
    assert sum(", the index says " in p for p in found) == 11
    assert "k000000: is at 512+" in found[0]


def test_an_index_that_says_other_digests_than_a_sound_tar(dataset: Path) -> None:
    def lie(t: pa.Table) -> pa.Table:
        digests = t["sha256"].to_pylist()
        return with_column(t, "sha256", pa.array([*(d and d[::-1] for d in digests[:3]), *digests[3:]]))

    rewrite_index(dataset, lie)
    assert sorted(problems(dataset)) == [
        f"000000-a1.tar: k00000{row}: its {what}"
        for row in range(3)
        for what in (
            "bytes do not have the sha256 of the index",
            "json member disagrees with the index in sha256",
        )
    ]


def test_decode_also_doubts_a_digest_in_which_index_json_and_tar_agree(dataset: Path) -> None:
    """Only the writer itself can have done this: the tar is the one that it committed. Since format 2 the digest is
    always compared."""
    tar, wrong = shard_file(dataset, "tar"), "0" * 64
    row = index_rows(dataset)[4]
    tar.write_bytes(tar.read_bytes().replace(row["sha256"].encode(), wrong.encode()))
    rewrite_index(
        dataset,
        lambda t: with_column(
            t, "sha256", pa.array([wrong if d == row["sha256"] else d for d in t["sha256"].to_pylist()])
        ),
    )
    commit = dataset / "commits" / "000000.json"
    format_ = read_info(str(dataset)).format
    digest = made_datasets.sha256_of(tar.read_bytes(), format_)
    commit.write_text(json.dumps(json.loads(commit.read_text()) | {"tar_sha256": digest}))
    (dataset / "manifests").rename(dataset / "old")
    (dataset / "versions").rename(dataset / "older")
    manifest.make_version(str(dataset), "test")
    doubted = [f"000000-a1.tar: {row['key']}: its bytes do not have the sha256 of the index"]
    assert problems(dataset) == ([] if format_ == PLAIN else doubted)
    assert problems(dataset, decode=True) == doubted


def test_all_that_changed_in_a_damaged_tar_is_named_and_nothing_else(dataset: Path, monkeypatch) -> None:
    monkeypatch.setattr(tar_module, "PIECE", 1000)  # bodies and headers lie across pieces
    rows = index_rows(dataset)
    for number in (0, 5, 11):
        flip(shard_file(dataset, "tar"), rows[number]["offset"] + rows[number]["length"] - 1)
    whole = ["000000-a1.tar: the tar does not have the sha256 of the manifest"]
    each = [
        f"000000-a1.tar: {rows[number]['key']}: its bytes do not have the sha256 of the index" for number in (0, 5, 11)
    ]
    second_pass = read_info(str(dataset)).format == PLAIN
    assert problems(dataset) == (whole + each if second_pass else each + whole)


def test_remote_tars_are_read_by_ranges(on_moto: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_module, "RANGE", 1500)
    base = bucket() + "/data"
    made = made_datasets.make_dataset(base, [12, 9], side=16)
    whole = store.read(store.join(base, "shards", made.shards[1].tar))
    asked: list[int] = []
    read_range = store.read_range
    monkeypatch.setattr(
        store, "read_range", lambda url, offset, length: asked.append(length) or read_range(url, offset, length)
    )
    assert check.run(check.Config(base)).ok
    assert sum(asked) == sum(shard.tar_bytes for shard in made.shards)
    assert set(asked) - {1500} == {shard.tar_bytes % 1500 for shard in made.shards}
    damaged = bytearray(whole)
    damaged[700] ^= 1
    store.put(store.join(base, "shards", made.shards[1].tar), bytes(damaged[:-1024]))
    found = [str(problem) for problem in check.run(check.Config(base)).problems]
    assert "000001-a1.tar: k000012: its bytes do not have the sha256 of the index" in found
    assert any("without its end mark" in p for p in found)


def test_an_index_whose_rows_are_not_the_plan(dataset: Path) -> None:
    rewrite_index(dataset, lambda t: t.slice(1))
    found = problems(dataset)
    assert any("the index has 11 rows, the plan 12 links" in p for p in found)
    assert any("k000000: the tar holds k000000.jpg, which the index does not keep" in p for p in found)
    assert any("the index counts" in p for p in found)
    assert any("manifest: says 21 links, the indexes hold 20" in p for p in found)


def test_an_index_of_other_columns(dataset: Path) -> None:
    rewrite_index(dataset, lambda t: t.drop_columns(["url"]))
    assert any("does not have the columns of an index" in p for p in problems(dataset))


def test_an_index_that_keeps_what_the_tar_lacks(dataset: Path) -> None:
    def keep(t: pa.Table) -> pa.Table:
        t = with_column(t, "reason", pa.array(["kept"] * 12))
        return with_column(t, "member", pa.array([f"{key}.jpg" for key in t["key"].to_pylist()]))

    rewrite_index(dataset, keep)
    found = problems(dataset)
    assert "000000-a1.tar: k000003: the tar lacks k000003.jpg" in found
    assert "000000-a1.tar: k000003: the tar lacks k000003.json" in found
    assert any("the manifest selects 11 samples, its rules 12" in p for p in found)


def test_a_json_member_that_disagrees(dataset: Path) -> None:
    tar = shard_file(dataset, "tar")
    tar.write_bytes(tar.read_bytes().replace(b"http://example.org/5.jpg", b"http://example.com/5.jpg"))
    assert "000000-a1.tar: k000005: its json member disagrees with the index in url" in problems(dataset)


def test_a_json_member_that_is_too_deep_to_parse(dataset: Path) -> None:
    tar, name = shard_file(dataset, "tar"), "k000005.json"
    with tarfile.open(tar) as read:
        members = [(info.name, read.extractfile(info).read()) for info in read]  # type: ignore[union-attr]
    with tar.open("wb") as out:
        bodies = (Member(found, b"[" * 200_000 if found == name else body) for found, body in members)
        assert len(list(tar_module.write_tar(out, bodies))) == len(members)
    assert any(p.startswith("000000-a1.tar: k000005: its json member is not JSON: ") for p in problems(dataset))


def test_a_foreign_member(dataset: Path) -> None:
    tar = shard_file(dataset, "tar")
    stray = Member("stray.jpg", b"x" * 512)
    tar.write_bytes(header(stray.name, 512) + b"x" * 512 + tar.read_bytes())
    found = problems(dataset)
    assert any("stray: the tar holds stray.jpg" in p for p in found)
    assert sum(", the index says " in p for p in found) == 11, "everything after it has moved"
    few = check.run(check.Config(str(dataset), problems_per_shard=5)).problems
    assert [str(p) for p in few] == [*found[:5], f"000000-a1.tar: and {len(found) - 5} more problems"]


def test_decode_finds_pictures_that_hash_right_but_do_not_decode(tmp_path: Path) -> None:
    rows = made_datasets.rows_of(0, 4, side=16)
    rows[2]["body"] = rows[2]["body"][:-40]
    plan = [{name: row.get(name) for name in PLAN_SCHEMA.names} for row in rows]
    dataset = str(tmp_path / "d")
    write_plan(dataset, 0, pa.Table.from_pylist(plan, PLAN_SCHEMA))
    made_datasets.write_unit(dataset, 0, rows)
    write_info(dataset, DatasetInfo("t", "0" * 64, 1, 4, "c", "t"))
    manifest.make_version(dataset, "test")
    assert problems(tmp_path / "d") == []
    (found,) = problems(tmp_path / "d", decode=True)
    assert found.startswith("000000-a1.tar: k000002: does not decode: truncated")


def test_a_commit_of_another_attempt(dataset: Path) -> None:
    path = dataset / "commits" / "000000.json"
    path.write_text(path.read_text().replace("000000-a1.tar", "000000-b2.tar"))
    assert "000000-a1.tar: the manifest has tar 000000-a1.tar, the commit 000000-b2.tar" in problems(dataset)


def test_what_is_no_dataset_is_the_users_mistake(tmp_path: Path, dataset: Path) -> None:
    with pytest.raises(ValueError, match="is not a dataset"):
        check.run(check.Config(str(tmp_path / "nothing")))
    with pytest.raises(ValueError, match="has no version 7"):
        check.run(check.Config(f"{dataset}@7"))
    with pytest.raises(ValueError, match="jobs is 0"):
        check.run(check.Config(str(dataset), jobs=0))


@pytest.mark.parametrize("damage", ["{}", "[", '{"kept": 5}'])
def test_a_damaged_manifest_is_said_in_one_line(dataset: Path, damage: str) -> None:
    (path,) = (dataset / "manifests").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | json.loads(damage)) if "kept" in damage else damage)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        check.run(check.Config(str(dataset)))


def index_rows(dataset: Path) -> list[dict]:
    return read_table(str(shard_file(dataset, "parquet"))).to_pylist()


def flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(bytes(body))


def test_objects_are_read_through_the_store(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that fails is a problem of the shard, not the end of the check."""

    def fail(url: str) -> object:
        raise store.StoreError(f"{url}: cannot read: the store does not answer")

    monkeypatch.setattr(store, "open_read", fail)
    assert [p.split(": ")[1] for p in problems(dataset)] == ["the tar cannot be read"] * 2


def test_objects_that_a_version_names_and_the_store_lacks_are_listed(base):
    manifest = made_datasets.make_dataset(base, [6, 6, 6])
    assert check.absent(manifest) == []
    one, two, three = manifest.shards
    store.delete(store.join(base, "shards", one.tar))
    store.delete(store.join(base, "shards", two.index))
    store.put(store.join(base, "shards", three.tar), b"short")
    assert check.absent(manifest) == sorted([one.tar, two.index, three.tar])
