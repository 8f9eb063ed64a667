"""The verdicts of one unit -> its tar, its index and its commit."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from ingest.record import BadLine, Link, Reason, Verdict
from shards import manifest, store
from shards.tar import Member, write_tar


class UnitWriter:
    """Takes the verdicts of a unit's links in any order; `seal` writes them in input order, so that the same bytes
    fetched give the same tar. Bodies wait in one file on scratch; memory holds only what becomes the index.

    Object names carry an attempt that nobody else has: two writers of one unit are harmless, the first commit wins.
    """

    def __init__(self, dataset: str, unit: int, links: Sequence[Link | BadLine], scratch: Path) -> None:
        self.dataset = dataset
        self.unit = unit
        self.links = links
        self.attempt = secrets.token_hex(6)
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self._scratch = scratch
        self._spool: BinaryIO = (scratch / "bodies").open("w+b")
        self._at = {link.row: at for at, link in enumerate(links)}
        self._rows: list[dict[str, Any] | None] = [None] * len(links)
        self._bodies: list[tuple[int, int]] = [(0, 0)] * len(links)  # offset and length in the spool
        for at, link in enumerate(links):
            if isinstance(link, BadLine):
                self._rows[at] = _row(link) | {"reason": Reason.BAD_URL, "detail": f"line {link.line}: {link.why}"}
                self.reasons[Reason.BAD_URL] += 1

    @property
    def done(self) -> int:
        return self.kept + self.reasons.total()

    def add(self, verdict: Verdict) -> None:
        """One link's verdict; its body goes to scratch."""
        at = self._at[verdict.fetched.link.row]
        assert self._rows[at] is None, f"{verdict.fetched.link.key}: two verdicts"
        self._rows[at] = _judged_row(verdict)
        if verdict.picture is None:
            assert verdict.reason is not None
            self.reasons[verdict.reason] += 1
            return
        self.kept += 1
        self._bodies[at] = (self._spool.tell(), len(verdict.picture.body))
        self._spool.write(verdict.picture.body)

    def seal(self) -> manifest.Commit:
        """Write the tar, then the index, then the commit; returns the commit that counts, ours or a faster one's."""
        assert self.done == len(self.links), f"unit {self.unit}: {self.done} of {len(self.links)} links have a verdict"
        name = f"{manifest.unit_name(self.unit)}-{self.attempt}"
        tar_url, index_url = (store.join(self.dataset, "shards", name + end) for end in (".tar", ".parquet"))
        rows = {row["key"]: row for row in self._rows if row is not None}
        path = self._scratch / "unit.tar"
        with path.open("wb") as file:
            out = _Hashing(file)
            for placed in write_tar(out, self._members()):  # type: ignore[arg-type]
                key, _, suffix = placed.name.rpartition(".")
                if suffix != "json":
                    rows[key] |= {"member": placed.name, "offset": placed.offset, "length": placed.length}
        store.put_file(tar_url, path)
        path.unlink()
        index = manifest.table_bytes(pa.Table.from_pylist(self._rows, manifest.INDEX_SCHEMA))
        store.put(index_url, index)
        winner = manifest.commit(
            self.dataset,
            manifest.Commit(
                unit=self.unit,
                attempt=self.attempt,
                tar=name + ".tar",
                tar_bytes=out.size,
                tar_sha256=out.digest.hexdigest(),
                index=name + ".parquet",
                index_sha256=hashlib.sha256(index).hexdigest(),
                links=len(self.links),
                kept=self.kept,
                reasons={str(reason): n for reason, n in sorted(self.reasons.items())},
            ),
        )
        if winner.attempt != self.attempt:
            store.delete(tar_url)
            store.delete(index_url)
        return winner

    def close(self) -> None:
        self._spool.close()

    def _members(self) -> Iterator[Member]:
        for row, (offset, length) in zip(self._rows, self._bodies):
            assert row is not None
            if row["reason"] != manifest.KEPT:
                continue
            self._spool.seek(offset)
            yield Member(f"{row['key']}.{row.pop('suffix')}", self._spool.read(length))
            about = {name: row[name] for name in ("url", "labels", "sha256", "width", "height")}
            yield Member(f"{row['key']}.json", json.dumps(about, sort_keys=True).encode())


class _Hashing:
    """A file that is hashed and measured while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._file = file

    def write(self, piece: bytes) -> int:
        self.digest.update(piece)
        self.size += len(piece)
        return self._file.write(piece)


def _row(link: Link | BadLine) -> dict[str, Any]:
    return {"key": link.key, "url": link.url, "labels": list(link.labels), "row": link.row}


def _judged_row(verdict: Verdict) -> dict[str, Any]:
    fetched, picture = verdict.fetched, verdict.picture
    row = _row(fetched.link) | {
        "final_url": fetched.final_url,
        "reason": manifest.KEPT if picture is not None else verdict.reason,
        "detail": verdict.detail,
        "http_status": fetched.status or None,
        "attempts": fetched.attempts,
        "fetched_at": round(1000 * fetched.at),
        "elapsed_ms": fetched.ms,
        "fetched_bytes": verdict.fetched_bytes,
        "fetched_sha256": verdict.fetched_sha256,
        "source_format": verdict.source_format,
        "decode_checked": verdict.decode_checked,
    }
    if picture is not None:
        names = ("sha256", "width", "height", "mode", "orientation", "progressive", "subsampling", "icc", "suffix")
        row |= {name: getattr(picture, name) for name in names}
    return row
