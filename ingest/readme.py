"""A dataset's README.md: what its folder holds, for people and for Hugging Face's `load_dataset(FOLDER)`, which without
it would load the tables of links as the data.

The front matter lists the tars of the newest version one by one, since a writer that died may have left others, and
the fields of a sample: otherwise pictures of a rarer type would be lost there. A README that somebody wrote or edited
is left alone.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from shards import store
from shards.dataset import read_columns, read_info, read_table
from shards.manifest import Manifest, Shard
from shards.parallel import INDEXES, map_in_order

NAME = "README.md"
READ = 48  # shards that are read; with more shards, every type of picture is declared
SUFFIXES = ("jpg", "png", "webp")
_MARK = re.compile(
    r"<!-- Written by xtra \(sha256 ([0-9a-f]{64})\)\. Edit it as you like: then it stays as it is\. -->\n"
)


def write(version: Manifest) -> str:
    """Write or update it after an ingest, an import or a retry. Returns a remark if the store fails, else "": the
    dataset is complete without it."""
    url = store.join(version.dataset, NAME)
    shards = [shard for shard in version.shards if shard.kept]
    if not shards:
        return ""
    try:
        try:
            there = store.read(url).decode("utf-8", "replace")
        except store.Missing:
            store.put_if_absent(url, text(version, shards).encode())
            return ""
        if not is_ours(there) or all(_path(shard) in there for shard in shards):
            return ""
        store.put(url, text(version, shards).encode())
    except store.StoreError as error:
        return f"{NAME} was not written: {error}"
    return ""


def is_ours(readme: str) -> bool:
    """Whether it was written by `write` and not edited since."""
    mark = _MARK.search(readme)
    return mark is not None and mark[1] == _digest(readme.replace(mark[0], "", 1))


def _digest(readme: str) -> str:
    return hashlib.sha256(readme.encode()).hexdigest()


def text(version: Manifest, shards: Sequence[Shard]) -> str:
    """The README's text. Raises StoreError naming a damaged index or table of columns."""
    suffixes = list(_suffixes(version, shards))
    front = "\n".join(["---", *_configs(shards), *_features(version, shards, suffixes), "---"]) + "\n"
    name = "".join(c if c.isprintable() and c != "`" else " " for c in version.list_name)[:200]
    kept, tars = sum(shard.kept for shard in shards), len(shards)
    others = f"  # a picture is in one of {', '.join(suffixes)}" if len(suffixes) > 1 else ""
    body = _BODY.format(
        name=name,
        pictures=f"{kept:,} picture{'s' if kept > 1 else ''}",
        tars=f"{tars:,} tar{'s' if tars > 1 else ''}",
        first=suffixes[0] if suffixes else "jpg",
        others=others,
    )
    mark = f"<!-- Written by xtra (sha256 {_digest(front + body)}). Edit it as you like: then it stays as it is. -->\n"
    assert _MARK.fullmatch(mark)
    return front + mark + body


_BODY = """
# `{name}`

{pictures} in {tars}, made by `xtra ingest` or `xtra import`.

```python
from datasets import load_dataset

pictures = load_dataset("path/to/this/folder", split="train")
pictures[0]["{first}"], pictures[0]["json"]["labels"]{others}
```

- `shards/*.tar`: the pictures, for any reader of WebDataset: `KEY.jpg` (or png, webp), and `KEY.json` with url, labels,
  sha256, width and height
- `shards/*.parquet`: one row for every link that was asked for, kept or not, and why
- `links/`, `commits/`, `versions/`, `manifests/`: what makes it whole and repeatable; `xtra check` reads all of it
- `ingest.html`: where every link went, with pictures

The tars hold everything that was kept. A version of the dataset leaves some of it out, such as duplicates, and
`load_dataset` knows nothing of versions; `xtra train`, `xtra probe` and `shards.stream` do.

The pictures belong to their makers. This folder says where each one came from, not what you may do with it.
"""


def _path(shard: Shard) -> str:
    """A tar as `data_files` takes it: relative to the README, or the place of a foreign tar, with escaped stars."""
    return json.dumps(glob.escape(shard.tar), ensure_ascii=False) if shard.foreign else f"shards/{shard.tar}"


def _configs(shards: Sequence[Shard]) -> list[str]:
    paths = [f"    - {_path(shard)}" for shard in shards]
    return ["configs:", "- config_name: default", "  data_files:", "  - split: train", "    path:", *paths]


def _features(version: Manifest, shards: Sequence[Shard], suffixes: Sequence[str]) -> list[str]:
    """The fields of a sample; for foreign tars none, so that the reader infers them."""
    if any(shard.foreign for shard in shards):
        return []
    lines = ["dataset_info:", "  features:"]
    for suffix in suffixes:
        lines += [f"  - name: {suffix}", "    dtype: image"]
    lines += ["  - name: json", "    struct:"]
    fields = {"url": "dtype: string", "labels": "sequence: string", "sha256": "dtype: string"}
    for name, kind in (fields | {"width": "dtype: int64", "height": "dtype: int64"}).items():
        lines += [f"    - name: {name}", f"      {kind}"]
    columns = _columns(version, shards)
    if columns:
        lines += ["    - name: columns", "      struct:"]
    for name, kind in columns.items():
        lines += [f"      - name: {json.dumps(name, ensure_ascii=False)}", f"        dtype: {kind}"]
    for name in ("__key__", "__url__"):
        lines += [f"  - name: {name}", "    dtype: string"]
    return lines


def _suffixes(version: Manifest, shards: Sequence[Shard]) -> Iterable[str]:
    """The picture types among the members."""
    if len(shards) > READ:
        return SUFFIXES

    def of_shard(shard: Shard) -> set[str]:
        members = read_table(store.join(version.dataset, "shards", shard.index), ["member"])["member"].drop_null()
        return {suffix for suffix in SUFFIXES if pc.any(pc.ends_with(members, f".{suffix}")).as_py()}

    found = set().union(*map_in_order(of_shard, shards, INDEXES))
    return [suffix for suffix in SUFFIXES if suffix in found]


def _columns(version: Manifest, shards: Sequence[Shard]) -> dict[str, str]:
    """The type of each column of the list in a sample's json, if it is a single value."""
    if not read_info(version.dataset).columns:
        return {}
    some = shards[:: -(-len(shards) // READ)]
    schemas = map_in_order(lambda shard: read_columns(version.dataset, shard.unit).schema, some, INDEXES)
    kinds: dict[str, set[str]] = {}
    for schema in schemas:
        for at in range(2, len(schema)):  # after key and row
            kinds.setdefault(schema.names[at], set()).add(_kind(schema.field(at).type))
    return {name: _common(found) for name, found in sorted(kinds.items()) if "" not in found}


def _kind(kind: pa.DataType) -> str:
    """The type of the JSON value; "" for lists and objects."""
    if pa.types.is_nested(kind):
        return ""
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_integer(kind):
        return "int64" if pa.types.is_signed_integer(kind) else "uint64"
    return "float64" if pa.types.is_floating(kind) else "string"


def _common(kinds: set[str]) -> str:
    if len(kinds) == 1:
        return next(iter(kinds))
    return "float64" if kinds <= {"int64", "uint64", "float64"} else "string"
