"""Which samples of a dataset a manifest selects: reading the selection, and making random subsets that nest.

Selecting makes a new manifest, never a new tar (design section 3).
"""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards import store
from shards.manifest import KEPT, Manifest, Subset, read_table, write_manifest


def key_hash(keys: list[str], seed: int) -> np.ndarray:
    """uint64 [n]: the number a subset's threshold is compared with."""
    salt = seed.to_bytes(8, "little", signed=False)
    digests = b"".join(hashlib.blake2b(key.encode(), digest_size=8, salt=salt).digest() for key in keys)
    return np.frombuffer(digests, "<u8")


def subset(manifest: Manifest, samples: int, seed: int = 0) -> Manifest:
    """Write and return the manifest of about `samples` random samples of this one; smaller subsets nest in larger.

    Raises ValueError when more are asked for than there are, or a subset is taken of a subset with another seed.
    """
    if not 0 < samples <= manifest.samples:
        raise ValueError(f"subset of {samples} samples: {manifest.dataset} has {manifest.samples}; ask for 1 to that")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed is {seed}; it must be 0 or more, and fit 64 bits")
    if manifest.subset and manifest.subset.seed != seed:
        raise ValueError(
            f"{manifest.address} is a subset with seed {manifest.subset.seed}: use that seed to nest in it"
        )
    threshold = min((1 << 64) - 1, int((samples / manifest.samples) * (_ceiling(manifest) + 1)))
    chosen = dataclasses.replace(manifest, subset=Subset(samples, seed, threshold))
    shards = tuple(
        dataclasses.replace(shard, selected=len(selected_index(chosen, number)))
        for number, shard in enumerate(manifest.shards)
    )
    rules = {reason: n for reason, n in manifest.deselected.items() if reason != "subset"}
    left = manifest.kept - sum(rules.values()) - sum(shard.selected for shard in shards)
    result = dataclasses.replace(chosen, shards=shards, deselected=rules | ({"subset": left} if left else {}))
    write_manifest(result)
    return result


def _ceiling(manifest: Manifest) -> int:
    return manifest.subset.threshold if manifest.subset else (1 << 64) - 1


def selected_index(manifest: Manifest, shard_number: int, columns: list[str] | None = None) -> pa.Table:
    """Index rows of the selected samples of one shard, in row order. Raises StoreError naming a damaged index."""
    shard = manifest.shards[shard_number]
    url = store.join(manifest.dataset, "shards", shard.index)
    wanted = None if columns is None else list(dict.fromkeys([*columns, "key", "row", "reason"]))
    table = read_table(url, wanted).filter(pc.field("reason") == KEPT)
    if shard.deselected:
        table = table.filter(~pc.field("row").isin([row for row, _ in shard.deselected]))
    if manifest.subset:
        below = key_hash(table["key"].to_pylist(), manifest.subset.seed) < np.uint64(manifest.subset.threshold)
        table = table.filter(pa.array(below))
    return table
