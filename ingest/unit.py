"""The verdicts of one unit -> its tar, its index, its thumbnails and its commit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import thumbs
from ingest.journal import BODIES
from ingest.record import BadLine, Link, Reason, Verdict
from shards import store
from shards.dataset import INDEX_SCHEMA, KEPT, Commit, commit, table_bytes, unit_name
from shards.pixels import MAX_PIXELS
from shards.tar import BLOCK, END, segment
from shards.url_secrets import masked, without_secrets

PIECE = 4 << 20  # bytes of the spool read at once
HELD = 48 << 20  # bytes of a unit in memory, at most, that wait for their turn; less of one of several

# A row of the index before its member has a place in the tar.
_JUDGED = tuple(INDEX_SCHEMA.names[:-3])
assert INDEX_SCHEMA.names[-3:] == ["member", "offset", "length"]
_UNPICTURED = (None,) * (len(_JUDGED) - _JUDGED.index("sha256"))


class UnitWriter:
    """Takes the verdicts of a unit's links in any order; `seal` writes them in input order, so that the same bytes
    fetched give the same tar.

    What comes in its turn, or waits for it among at most HELD bytes in memory, goes to scratch as the tar that it will
    be. When more than that is early (one slow host is enough), the rest goes to scratch as it comes, and `seal` copies
    it into order. Object names carry an attempt that nobody else has: two writers of one unit are harmless, the first
    commit wins.
    """

    def __init__(
        self,
        dataset: str,
        unit: int,
        links: Sequence[Link | BadLine],
        scratch: Path,
        supersedes: Mapping[str, int] | None = None,
        judging: Callable[[int], AbstractContextManager[object]] = lambda row: contextlib.nullcontext(),
        max_pixels: int = MAX_PIXELS,
        others: int = 0,
    ) -> None:
        """`supersedes` counts the older verdicts that a retry's unit replaces; `judging` marks the row whose bytes are
        being decoded for a thumbnail, for pictures of at most `max_pixels`; `others` are the units in hand already: the
        k-th holds 1/k of HELD, so that a dozen that wait for slow hosts hold three times HELD together, not twelve."""
        self.dataset = dataset
        self.unit = unit
        self.links = links
        self.attempt = secrets.token_hex(6)
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self._supersedes = dict(supersedes or {})
        self._judging, self._max_pixels = judging, max_pixels
        self._scratch = scratch
        self._spool = _Spool(scratch / BODIES)
        self._shown = _Spool(scratch / "shown")
        self._at = {link.row: at for at, link in enumerate(links)}
        self._rows: list[tuple[Any, ...] | None] = [None] * len(links)
        # Of kept links: suffix, offset in the spool, length there, length of the body.
        self._places: list[tuple[str, int, int, int] | None] = [None] * len(links)
        self._turn = 0  # all links before this one are in the spool, or have nothing to put there
        self._early: dict[int, tuple[bytes, ...]] = {}  # members of links whose turn has not come
        self._held = 0  # bytes of those
        self._hold = HELD // (1 + others)
        self._choice = thumbs.Choice()
        for at, link in enumerate(links):
            if isinstance(link, BadLine):
                self._rows[at] = _bad_row(link)
                self.reasons[Reason.BAD_URL] += 1

    @property
    def done(self) -> int:
        return self.kept + self.reasons.total()

    @property
    def spooled(self) -> int:
        """Bytes on scratch."""
        return self._spool.size + self._shown.size

    def add(self, verdict: Verdict, show: bool = True) -> None:
        """One link's verdict; its body goes to scratch. Without `show` no thumbnail is made of it, whatever it is."""
        link = verdict.fetched.link
        at = self._at[link.row]
        assert self._rows[at] is None, f"{link.key}: two verdicts"
        self._rows[at] = judged_row(verdict)
        if verdict.picture is not None:
            self.kept += 1
            self._keep(at, verdict)
        else:
            assert verdict.reason is not None
            self.reasons[verdict.reason] += 1
        self._advance()
        if thumbs.wanted(verdict.reason):
            self._offer(verdict, show)

    def _keep(self, at: int, verdict: Verdict) -> None:
        """Take the link's two members as they will lie in the tar."""
        link, picture = verdict.fetched.link, verdict.picture
        assert picture is not None
        described = about(link, picture.sha256, picture.width, picture.height)
        members = (
            *segment(f"{link.key}.{picture.suffix}", picture.body),
            *segment(f"{link.key}.json", described),
        )
        size = sum(map(len, members))
        self._places[at] = (picture.suffix, -1, size, len(picture.body))
        if at != self._turn and self._held + size > self._hold:
            self._spool.ordered = False
            self._put(at, members)
        else:
            self._early[at] = members
            self._held += size

    def _advance(self) -> None:
        """Write what has its turn now."""
        while self._turn < len(self._rows) and self._rows[self._turn] is not None:
            members = self._early.pop(self._turn, None)
            if members is not None:
                self._put(self._turn, members)
                self._held -= sum(map(len, members))
            self._turn += 1

    def _put(self, at: int, members: tuple[bytes, ...]) -> None:
        place = self._places[at]
        assert place is not None
        suffix, _, span, length = place
        self._places[at] = (suffix, self._spool.size, span, length)
        self._spool.write(*members)

    def _offer(self, verdict: Verdict, show: bool) -> None:
        """Let the link be one of the few that are shown, if its key is among the lowest of its reason."""
        link = verdict.fetched.link
        reason = str(verdict.reason or KEPT)
        rank = self._choice.rank(link.key, reason)
        if rank is None:
            return
        body = thumbs.shown(verdict) if show else None
        span = None
        if body is not None and len(body) <= thumbs.LARGEST:
            span = (self._shown.size, len(body))
            self._shown.write(body)
        self._choice.take(thumbs.Sample(rank, link.key, link.row, reason, verdict.detail, span))

    def seal(self) -> Commit:
        """Write tar, index and thumbnails, then the commit; returns the commit that counts, ours or a faster one's."""
        assert self.done == len(self.links), f"unit {self.unit}: {self.done} of {len(self.links)} links have a verdict"
        name = f"{unit_name(self.unit)}-{self.attempt}"
        tar_url, index_url = (store.join(self.dataset, "shards", name + end) for end in (".tar", ".parquet"))
        thumbs_url = store.join(self.dataset, "thumbs", name + ".parquet")
        path, size, digest = self._tar()
        store.put_file(tar_url, path, move=True)
        path.unlink(missing_ok=True)
        index = table_bytes(self._index())
        store.put(index_url, index)
        samples = self._choice.samples()
        if samples:
            store.put(thumbs_url, thumbs.table(samples, self._body, self._judging, self._max_pixels))
        for url, size_put in ((tar_url, size), (index_url, len(index))):
            if store.size(url) != size_put:
                raise store.StoreError(f"{url}: is gone or another before its commit: see what removes objects there")
        winner = commit(
            self.dataset,
            Commit(
                unit=self.unit,
                attempt=self.attempt,
                tar=name + ".tar",
                tar_bytes=size,
                tar_sha256=digest,
                index=name + ".parquet",
                index_sha256=hashlib.sha256(index).hexdigest(),
                links=len(self.links),
                kept=self.kept,
                reasons={str(reason): n for reason, n in sorted(self.reasons.items())},
                supersedes=self._supersedes,
            ),
        )
        if winner.attempt != self.attempt:
            for url in (tar_url, index_url, thumbs_url):
                store.delete(url)
        return winner

    def place(self, row: int) -> tuple[int, int] | None:
        """Offset and length of a kept link's body in the spool; None while it is only in memory."""
        place = self._places[self._at[row]]
        return (place[1] + BLOCK, place[3]) if place is not None and place[1] >= 0 else None

    def spill(self) -> None:
        """Put what waits in memory for its turn into the spool, out of order: for a rerun, as this unit ends here."""
        self._spool.ordered = False
        for at in sorted(self._early):
            self._put(at, self._early.pop(at))

    def close(self) -> None:
        self._spool.close()
        self._shown.close()

    def _body(self, sample: thumbs.Sample) -> bytes | None:
        return self._shown.read(*sample.body) if sample.body is not None else None

    def _tar(self) -> tuple[Path, int, str]:
        """The file, size and sha256 of the tar: the spool itself, or its members copied into order."""
        self._advance()
        assert not self._early
        if self._spool.ordered:
            self._spool.write(END)
            return self._spool.path, self._spool.size, self._spool.digest.hexdigest()
        path = self._scratch / "unit.tar"
        return path, *self._assemble(path)

    def _assemble(self, path: Path) -> tuple[int, str]:
        """Copy the spooled members into a tar in input order; returns its size and sha256.

        All that is long here (reading, hashing, writing) runs without the interpreter's lock.
        """
        digest, size = hashlib.sha256(), 0
        buffer = memoryview(bytearray(PIECE))
        with path.open("wb", buffering=0) as out:
            for offset, length in self._runs():
                for at in range(offset, offset + length, PIECE):
                    piece = buffer[: min(PIECE, offset + length - at)]
                    self._spool.read_into(piece, at)
                    digest.update(piece)
                    _write_all(out.fileno(), piece)
                size += length
            digest.update(END)
            _write_all(out.fileno(), memoryview(END))
        return size + len(END), digest.hexdigest()

    def _runs(self) -> list[tuple[int, int]]:
        """(offset, length) in the spool of the members in input order; neighbours are one run."""
        runs: list[tuple[int, int]] = []
        for place in self._places:
            if place is None:
                continue
            _, offset, length, _ = place
            if runs and sum(runs[-1]) == offset:
                runs[-1] = (runs[-1][0], runs[-1][1] + length)
            else:
                runs.append((offset, length))
        return runs

    def _index(self) -> pa.Table:
        columns: list[Any] = list(zip(*(row for row in self._rows if row is not None)))
        members: list[str | None] = []
        offsets: list[int | None] = []
        lengths: list[int | None] = []
        at = 0
        for link, place in zip(self.links, self._places):
            if place is None:
                members.append(None)
                offsets.append(None)
                lengths.append(None)
                continue
            suffix, _, span, length = place
            members.append(f"{link.key}.{suffix}")
            offsets.append(at + BLOCK)
            lengths.append(length)
            at += span
        columns += [members, offsets, lengths]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA)]
        return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


class _Spool:
    """A file on scratch that is written on and on, and read anywhere."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.ordered = True  # nothing in it lies before what must come first
        self.digest = hashlib.sha256()  # of all, while that is so
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def write(self, *pieces: bytes) -> None:
        size = sum(map(len, pieces))
        if (written := os.writev(self._fd, pieces)) != size:
            # A short write is how a full disk says it first; writing the rest says it in words.
            _write_all(self._fd, memoryview(b"".join(pieces))[written:])
        self.size += size
        if self.ordered:
            for piece in pieces:
                self.digest.update(piece)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        read = os.preadv(self._fd, [buffer], offset)
        assert read == len(buffer), f"{self.path} is shorter than what was put in"

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _write_all(fd: int, piece: memoryview) -> None:
    while piece:
        piece = piece[os.write(fd, piece) :]


def about(link: Link, sha256: str, width: int, height: int) -> bytes:
    """KEY.json, byte for byte what json.dumps(…, sort_keys=True) gives, at a tenth of its cost."""
    labels = ", ".join(map(quoted, link.labels))
    also = f'"also": {link.also}, ' if link.also else ""
    columns = f'"columns": {link.columns}, ' if link.columns else ""
    text = (
        f'{{{also}{columns}"height": {height}, "labels": [{labels}], "sha256": "{sha256}", '
        f'"url": {quoted(link.url)}, "width": {width}}}'
    )
    return text.encode("ascii")


def _bad_row(link: BadLine) -> tuple[Any, ...]:
    row = dict.fromkeys(_JUDGED) | {"key": link.key, "url": link.url, "labels": list(link.labels), "row": link.row}
    row |= {"reason": Reason.BAD_URL, "detail": f"line {link.line}: {link.why}"}
    return tuple(row.values())


def judged_row(verdict: Verdict) -> tuple[Any, ...]:
    """The cells of the index in the order of its columns, up to those of the member's place."""
    fetched, picture = verdict.fetched, verdict.picture
    link = fetched.link
    row = (
        link.key,
        link.url,
        without_secrets(fetched.final_url),
        link.labels,
        link.row,
        KEPT if picture is not None else verdict.reason,
        masked(verdict.detail),
        fetched.status or None,
        fetched.attempts,
        round(1000 * fetched.at),
        fetched.ms,
        verdict.fetched_bytes,
        verdict.fetched_sha256,
        verdict.source_format,
        verdict.decode_checked,
    )
    if picture is None:
        return row + _UNPICTURED
    return (
        *row,
        picture.sha256,
        picture.phash or None,
        picture.width,
        picture.height,
        picture.mode,
        picture.orientation,
        picture.progressive,
        picture.subsampling,
        picture.icc,
    )
