"""Rules: what selecting did to single rows, read shard by shard, the same however it was written."""

import hashlib

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from made_datasets import make_dataset, rule

from shards import rules, store
from shards.manifest import read_manifest
from shards.selection import selected_index, subset
from shards.stream.stream import once

WORDS = st.text(st.characters(codec="utf-8"), max_size=3)
RULE = st.tuples(st.none() | WORDS, st.none() | st.lists(WORDS, max_size=3))
RULES = st.dictionaries(st.tuples(st.integers(0, 5), st.integers(0, 99)), RULE, max_size=30)


def table_of(found):
    rows = [{"unit": u, "row": r, "reason": why, "labels": labels} for (u, r), (why, labels) in sorted(found.items())]
    return pa.Table.from_pylist(rows, rules.SCHEMA)


@settings(max_examples=60, deadline=None)
@given(found=RULES, cut=st.integers(1, 7), group=st.integers(1, 40))
def test_rules_are_read_back_unit_by_unit_and_their_digest_does_not_depend_on_the_file(
    tmp_path_factory, found, cut, group
):
    base, table = str(tmp_path_factory.mktemp("rules")), table_of(found)
    whole = rules.write_rules(base, [table], {}, tmp_path_factory.mktemp("scratch"))
    pieces = [table.filter(pa.compute.field("unit") == unit) for unit in range(6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rules, "_GROUP", group)
        apart = rules.write_rules(base, pieces, {}, tmp_path_factory.mktemp("scratch"))
    assert (apart.sha256, apart.rows) == (whole.sha256, whole.rows) == (whole.sha256, len(found))
    for unit, piece in enumerate(pieces):
        assert rules.read_rules(base, apart, unit).equals(piece)
    assert list(rules.verify(base, apart)) == list(rules.verify(base, whole)) == []


@settings(max_examples=60, deadline=None)
@given(one=RULES, other=RULES)
def test_other_rules_have_another_digest(tmp_path_factory, one, other):
    base, scratch = str(tmp_path_factory.mktemp("rules")), tmp_path_factory.mktemp("scratch")
    digests = [rules.write_rules(base, [table_of(found)], {}, scratch).sha256 for found in (one, other)]
    assert (digests[0] == digests[1]) == (one == other)


def test_rules_take_rows_out_and_join_labels(base):
    manifest = make_dataset(base, [6, 4], bad=(2,))
    ruled = rule(manifest, {0: [(0, None, ["c0", "c9"]), (1, "duplicate", None), (4, "placeholder", None)]})
    assert (ruled.samples, ruled.deselected) == (7, {"duplicate": 1, "placeholder": 1})
    assert selected_index(ruled, 0, ["labels"]).select(["row", "labels"]).to_pylist() == [
        {"row": 0, "labels": ["c0", "c9"]},
        {"row": 3, "labels": ["c3"]},
        {"row": 5, "labels": ["c0"]},
    ]
    assert selected_index(ruled, 0).schema.equals(selected_index(manifest, 0).schema)
    assert selected_index(ruled, 1).equals(selected_index(manifest, 1))
    assert read_manifest(ruled.address) == ruled
    assert ruled.digest not in (manifest.digest, rule(manifest, {0: [(1, "duplicate", None)]}).digest)
    assert rule(manifest, {0: [(1, "duplicate", None)]}).digest == rule(manifest, {0: [(1, "duplicate", None)]}).digest
    streamed = [sample for batch in once(ruled, 3) for sample in batch]
    assert [(s.row, s.labels) for s in streamed[:2]] == [(0, ("c0", "c9")), (3, ("c3",))]
    assert len(streamed) == 7


def test_a_subset_of_a_ruled_version_balances(tmp_path):
    manifest = rule(
        make_dataset(tmp_path, [80, 80]), {1: [(100, None, ["x"]), *((r, "class", None) for r in (120, 131))]}
    )
    chosen = subset(manifest, 60)
    assert read_manifest(chosen.address) == chosen
    assert chosen.samples == chosen.kept - sum(chosen.deselected.values())
    assert chosen.deselected["class"] == 2
    rows = [row for shard in range(2) for row in selected_index(chosen, shard)["row"].to_pylist()]
    assert len(rows) == chosen.samples
    assert not {120, 131} & set(rows)
    everything = subset(manifest, manifest.samples)
    assert selected_index(everything, 1).filter(pa.compute.field("row") == 100)["labels"].to_pylist() == [["x"]]


def test_one_shards_rules_are_read_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "_GROUP", 100)
    base = str(tmp_path)
    tables = [table_of({(unit, row): ("duplicate", None) for row in range(100)}) for unit in range(50)]
    written = rules.write_rules(base, tables, {}, tmp_path)
    reads, read_range = [], store.read_range
    monkeypatch.setattr(store, "read_range", lambda url, at, n: reads.append(n) or read_range(url, at, n))
    assert len(rules.read_rules(base, written, 30)) == 100
    footer = sum(reads)
    assert len(rules.read_rules(base, written, 31)) == 100
    assert sum(reads) - footer < written.bytes / 20
    assert len(reads) < 8
    assert len(rules.read_rules(base, written, 50)) == 0


def test_damaged_rules_are_named(tmp_path):
    manifest = rule(make_dataset(tmp_path, [6]), {0: [(1, "duplicate", None)]})
    file = tmp_path / "manifests" / manifest.rules.file
    assert file.name.startswith(hashlib.sha256(file.read_bytes()).hexdigest())
    file.write_bytes(b"x" * manifest.rules.bytes)
    with pytest.raises(store.StoreError, match=manifest.rules.file):
        selected_index(manifest, 0)
    assert [manifest.rules.file in problem for problem in rules.verify(str(tmp_path), manifest.rules)] == [True]
    file.unlink()
    with pytest.raises(store.StoreError, match=manifest.rules.file):
        selected_index(manifest, 0)


def test_rules_that_were_changed_are_found(tmp_path):
    bare = make_dataset(tmp_path, [6])
    manifest, other = (rule(bare, {0: [(row, "duplicate", None)]}) for row in (1, 2))
    file = tmp_path / "manifests" / manifest.rules.file
    file.write_bytes((tmp_path / "manifests" / other.rules.file).read_bytes())
    swapped = rules.Rules(manifest.rules.sha256, 1, {}, file.name, file.stat().st_size)
    assert ["are not those" in problem for problem in rules.verify(str(tmp_path), swapped)] == [True]
    double = pa.concat_tables([table_of({(0, 1): ("duplicate", None)})] * 2)
    written = rules.write_rules(str(tmp_path), [double], {}, tmp_path)
    assert ["out of order" in problem for problem in rules.verify(str(tmp_path), written)] == [True]
