"""Which samples of a dataset a manifest selects: reading the selection, and making nested random subsets.

Selecting makes a new manifest, never a new tar (docs/design.md, "Manifest").
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import store
from shards.dataset import INDEX_SCHEMA, KEPT, read_table
from shards.manifest import Manifest, Subset, write_manifest
from shards.parallel import INDEXES, map_in_order
from shards.rules import read_rules


def key_hash(keys: list[str], seed: int) -> np.ndarray:
    """uint64 [n]: the hash of each key that is compared with a subset's threshold."""
    salt = seed.to_bytes(8, "little", signed=False)
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8, salt=salt).digest() for key in keys)
    return np.frombuffer(digests, "<u8")


def subset(manifest: Manifest, samples: int, seed: int = 0) -> Manifest:
    """Write and return the manifest of about `samples` random samples of this one; larger subsets contain smaller ones.

    Raises ValueError if `samples` is more than there are, or if `manifest` is a subset with another seed.
    """
    if not 0 < samples <= manifest.samples:
        raise ValueError(
            f"subset of {samples} samples: {manifest.dataset} has {manifest.samples}: give 1 to {manifest.samples}"
        )
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must be 0 or more, and fit 64 bits")
    if manifest.subset and manifest.subset.seed != seed:
        raise ValueError(
            f"{manifest.address} is a subset with seed {manifest.subset.seed}: use that seed to nest in it"
        )
    threshold = min((1 << 64) - 1, int((samples / manifest.samples) * (_ceiling(manifest) + 1)))
    result = below(manifest, Subset(samples, seed, threshold))
    write_manifest(result)
    return result


def below(manifest: Manifest, subset: Subset) -> Manifest:
    """The manifest with this subset: of the samples that its rules leave, those below the threshold. Not written."""
    chosen = dataclasses.replace(manifest, subset=subset)
    numbers = range(len(manifest.shards))
    counts = map_in_order(lambda number: len(selected_index(chosen, number, [])), numbers, INDEXES)
    shards = tuple(dataclasses.replace(shard, selected=n) for shard, n in zip(manifest.shards, counts))
    rules = {reason: n for reason, n in manifest.deselected.items() if reason != "subset"}
    left = manifest.kept - sum(rules.values()) - sum(shard.selected for shard in shards)
    return dataclasses.replace(chosen, shards=shards, deselected=rules | ({"subset": left} if left else {}))


def _ceiling(manifest: Manifest) -> int:
    return manifest.subset.threshold if manifest.subset else (1 << 64) - 1


def selected_index(manifest: Manifest, shard_number: int, columns: list[str] | None = None) -> pa.Table:
    """Index rows of the selected samples of one shard, in row order, with their labels in this version.

    Raises StoreError naming a damaged index or rules file.
    """
    shard = manifest.shards[shard_number]
    url = store.join(manifest.dataset, "shards", shard.index)
    columns = INDEX_SCHEMA.names if columns is None else columns
    table = read_table(url, list(dict.fromkeys([*columns, "key", "row", "reason"])))
    # A mask, not an expression, which would run a threaded query plan for each small index.
    kept = pc.equal(table["reason"], KEPT)
    if not pc.all(kept, skip_nulls=False, min_count=0).as_py():
        table = table.filter(kept)
    if manifest.rules:
        table = _ruled(table, read_rules(manifest.dataset, manifest.rules, shard.unit))
    if manifest.subset:
        below = key_hash(table["key"].to_pylist(), manifest.subset.seed) < np.uint64(manifest.subset.threshold)
        table = table.filter(pa.array(below))
    return table


def _ruled(table: pa.Table, rules: pa.Table) -> pa.Table:
    """Drop the rows that a rule takes out; give rows that replace others the labels of all of them."""
    out = rules.filter(pc.is_valid(rules["reason"]))["row"]
    table = table.filter(pc.invert(pc.is_in(table["row"], out.combine_chunks())))
    if "labels" in table.column_names:
        joined = rules.filter(pc.is_valid(rules["labels"]))
        new = joined["labels"].take(pc.index_in(table["row"], joined["row"].combine_chunks()))
        at = table.column_names.index("labels")
        field = table.schema.field(at)
        table = table.set_column(at, field, pc.coalesce(new.cast(field.type), table["labels"]))
    return table
