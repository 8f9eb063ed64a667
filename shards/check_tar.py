"""Check one tar against the rows that its index keeps, read once from front to end at the speed of one sha256.

Since format 2 the sha256 of each picture is computed on the way to the tar's, and compared with the index. In format 1
the tar's is that of its bytes, in the manifest and the commit, and each picture's json member holds the picture's
sha256, which must agree with the index. So if the tar is the committed one, hashing each picture again would find
nothing. There, pictures are hashed only where that does not hold: to name what changed in a tar that is not the
committed one or whose json members disagree with the index (the tar is then read a second time), with `decode`, and for
foreign tars.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from typing import NamedTuple

import msgspec
import pyarrow as pa

from shards import store, tar
from shards.dataset import PLAIN
from shards.manifest import Manifest, Shard
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


Report = Callable[[str, str | None], None]  # what is wrong, and the key


def kept_rows(index: pa.Table) -> list[Kept]:
    """The rows of an index table that contains only kept rows."""
    return [Kept(*row) for row in zip(*(index[name].to_pylist() for name in Kept._fields))]


def check_tar(version: Manifest, shard: Shard, rows: list[Kept], decode: bool, report: Report) -> int:
    """Report where the tar disagrees with the rows that its index keeps, and with its sha256 and size in the manifest;
    returns its size.

    If the tar is ours, it must hold what the index keeps and nothing else; a foreign one may hold more.
    """
    url, ours = shard.tar_url(version.dataset), not shard.foreign
    plain = shard.foreign or version.format == PLAIN
    try:
        with closing(tar.pieces(url)) as body:
            source = tar.Source(body)
            agreed = _check_members(source, ours, plain, rows, decode, report)
            source.drain()
        if source.size != shard.tar_bytes:
            report(f"the tar has {source.size} bytes, the manifest says {shard.tar_bytes}", None)
        committed = source.sha256.hexdigest() == shard.tar_sha256
        if not committed:
            report("the tar does not have the sha256 of the manifest", None)
        if plain and ours and not decode and not (committed and agreed):
            with closing(tar.pieces(url)) as body:
                _check_digests(tar.Source(body), rows, report)
    except (store.StoreError, OSError) as error:
        report(f"the tar cannot be read: {error}", None)
        return 0
    return source.size


def _check_members(source: tar.Source, ours: bool, plain: bool, rows: list[Kept], decode: bool, report: Report) -> bool:
    """Check the tar's members against the rows; returns whether every json member has the sha256 that the index has."""
    # Foreign tars may repeat a name.
    pictures = {row.member if ours else (row.member, row.offset): row for row in rows}
    described = {f"{row.key}.json": row for row in rows} if ours else {}
    agreed = True
    try:
        for member in tar.walk(source):
            if row := pictures.pop(member.name if ours else (member.name, member.offset), None):
                _check_picture(source, member, row, plain, decode, decode or not (plain and ours), report)
            elif row := described.pop(member.name, None):
                agreed = _check_json(source.take(member.length), row, report) and agreed
            elif ours:
                report(f"the tar holds {member.name}, which the index does not keep", member.name.rpartition(".")[0])
                if not plain and tar.is_picture(member.name):
                    source.picture(member.length)
    except store.StoreError:
        raise
    except ValueError as error:
        # A header was read last: if it is the damaged one, its row's picture begins where the source is now.
        report(str(error), next((row.key for row in rows if row.offset == source.at), None))
    else:
        for row in pictures.values():
            report(f"the tar lacks {row.member}" + ("" if ours else f" at byte {row.offset}"), row.key)
        for name, row in described.items():
            report(f"the tar lacks {name}", row.key)
    return agreed


def _check_picture(
    source: tar.Source, member: tar.Placed, row: Kept, plain: bool, decode: bool, hashing: bool, report: Report
) -> None:
    if (row.offset, row.length) != (member.offset, member.length):
        report(f"is at {member.offset}+{member.length}, the index says {row.offset}+{row.length}", row.key)
    if not plain:
        body, digest = source.picture(member.length, keep=decode)
    else:
        body = source.take(member.length) if decode else b""
        digest = _digest([memoryview(body)] if decode else source.views(member.length)) if hashing else row.sha256
    if digest != row.sha256:
        report("its bytes do not have the sha256 of the index", row.key)
    if decode:
        try:
            image.decode(body)
        except image.Undecodable as error:
            report(f"does not decode: {error}", row.key)


def _digest(body: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()
    for view in body:
        digest.update(view)
    return digest.hexdigest()


def _check_digests(source: tar.Source, rows: list[Kept], report: Report) -> None:
    """Check the digest of every picture up to where the tar is torn, which was already reported."""
    pictures = {row.member: row for row in rows}
    with suppress(ValueError):
        for member in tar.walk(source):
            row = pictures.get(member.name)
            if row and _digest(source.views(member.length)) != row.sha256:
                report("its bytes do not have the sha256 of the index", row.key)


class _Described(msgspec.Struct):
    """A json member, as `JSON_FIELDS`."""

    url: str
    labels: list[str]
    sha256: str
    width: int
    height: int
    key: str | None = None


_DESCRIBED = msgspec.json.Decoder(_Described)


def _check_json(body: bytes, row: Kept, report: Report) -> bool:
    """Whether the json member has the sha256 that the index has."""
    with suppress(msgspec.MsgspecError):
        said = _DESCRIBED.decode(body)
        same = (said.url, said.labels, said.sha256, said.width, said.height) == row[1:6] and said.key in (None, row.key)
        if same and body.isascii():
            return True
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        report(f"its json member is not JSON: {error}", row.key)
        return False
    value = value if isinstance(value, dict) else {}
    for name in JSON_FIELDS:
        if value.get(name) != getattr(row, name):
            report(f"its json member disagrees with the index in {name}", row.key)
    if value.get("key", row.key) != row.key:
        report("its json member disagrees with the index in key", row.key)
    return value.get("sha256") == row.sha256
