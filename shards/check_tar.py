"""One tar against the rows that its index keeps, read once from front to end at the speed of one sha256.

What vouches for what: the tar's sha256, which the manifest and the commit name, covers every byte; the json member
beside a picture holds the picture's own sha256, and must agree with the index. So while the tar is the one that was
committed, hashing each picture again would find nothing. Its own sha256 is computed where something else is at odds or
nothing else vouches: to name what changed in a tar that is not the committed one, or whose json members disagree with
the index (the tar is then read a second time), with `decode`, and for tars that we did not write.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from typing import NamedTuple

import pyarrow as pa

from shards import store, tar
from shards.pixels import image

JSON_FIELDS = ("url", "labels", "sha256", "width", "height")


class Kept(NamedTuple):
    """A row of the index whose picture was kept."""

    key: str
    url: str
    labels: list[str]
    sha256: str
    width: int
    height: int
    member: str
    offset: int
    length: int


Tell = Callable[[str, str | None], None]  # what is wrong, and the key


def kept_rows(index: pa.Table) -> list[Kept]:
    """Of an index table whose rows are all kept."""
    return [Kept(*row) for row in zip(*(index[name].to_pylist() for name in Kept._fields))]


def check_tar(url: str, ours: bool, sha256: str, size: int, rows: list[Kept], decode: bool, tell: Tell) -> int:
    """Tell each disagreement of the tar with the rows that its index keeps, its sha256 and its size; returns its size.

    A tar of ours holds what the index keeps and nothing else; another may hold more.
    """
    try:
        with closing(tar.pieces(url)) as body:
            source = tar.Source(body)
            agreed = _check_members(source, ours, rows, decode, decode or not ours, tell)
            source.drain()
        if source.size != size:
            tell(f"the tar has {source.size} bytes, the manifest says {size}", None)
        committed = source.sha256.hexdigest() == sha256
        if not committed:
            tell("the tar does not have the sha256 of the manifest", None)
        if ours and not decode and not (committed and agreed):
            with closing(tar.pieces(url)) as body:
                _check_digests(tar.Source(body), rows, tell)
    except (store.StoreError, OSError) as error:
        tell(f"the tar cannot be read: {error}", None)
        return 0
    return source.size


def _check_members(source: tar.Source, ours: bool, rows: list[Kept], decode: bool, hashing: bool, tell: Tell) -> bool:
    """The tar's members and the rows; returns whether every json member has the sha256 that the index has."""
    # In tars of others a name may stand more than once.
    pictures = {(row.member, None if ours else row.offset): row for row in rows}
    described = {f"{row.key}.json": row for row in rows} if ours else {}
    agreed = True
    try:
        for member in tar.walk(source):
            if row := pictures.pop((member.name, None if ours else member.offset), None):
                _check_picture(source, member, row, decode, hashing, tell)
            elif row := described.pop(member.name, None):
                agreed = _check_json(source.take(member.length), row, tell) and agreed
            elif ours:
                tell(f"the tar holds {member.name}, which the index does not keep", member.name.rpartition(".")[0])
    except store.StoreError:
        raise
    except ValueError as error:
        # A header was read last: if it is the damaged one, its row's picture begins where the source is now.
        tell(str(error), next((row.key for row in rows if row.offset == source.at), None))
    else:
        for (name, offset), row in pictures.items():
            tell(f"the tar lacks {name}" + (f" at byte {offset}" if offset is not None else ""), row.key)
        for name, row in described.items():
            tell(f"the tar lacks {name}", row.key)
    return agreed


def _check_picture(source: tar.Source, member: tar.Placed, row: Kept, decode: bool, hashing: bool, tell: Tell) -> None:
    if (row.offset, row.length) != (member.offset, member.length):
        tell(f"lies at {member.offset}+{member.length}, the index says {row.offset}+{row.length}", row.key)
    body = source.take(member.length) if decode else b""
    if hashing:
        _check_digest([memoryview(body)] if decode else source.views(member.length), row, tell)
    if decode:
        try:
            image.decode(body)
        except image.Undecodable as error:
            tell(f"does not decode: {error}", row.key)


def _check_digest(body: Iterable[memoryview], row: Kept, tell: Tell) -> None:
    digest = hashlib.sha256()
    for view in body:
        digest.update(view)
    if digest.hexdigest() != row.sha256:
        tell("its bytes do not have the sha256 of the index", row.key)


def _check_digests(source: tar.Source, rows: list[Kept], tell: Tell) -> None:
    """Of every picture, however much of the tar can be read: where it is torn has been told."""
    pictures = {row.member: row for row in rows}
    with suppress(ValueError):
        for member in tar.walk(source):
            if row := pictures.get(member.name):
                _check_digest(source.views(member.length), row, tell)


def _check_json(body: bytes, row: Kept, tell: Tell) -> bool:
    """Whether the json member has the sha256 that the index has."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        tell(f"its json member is not JSON: {error}", row.key)
        return False
    value = value if isinstance(value, dict) else {}
    for name in JSON_FIELDS:
        if value.get(name) != getattr(row, name):
            tell(f"its json member disagrees with the index in {name}", row.key)
    if value.get("key", row.key) != row.key:
        tell("its json member disagrees with the index in key", row.key)
    return value.get("sha256") == row.sha256
