"""The verdicts of one unit -> its tar, its index, its thumbnails and its commit."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any

import pyarrow as pa

from ingest import thumbs
from ingest.record import BadLine, Link, Picture, Reason, Verdict
from ingest.unit_tar import Spool, UnitTar
from shards import store
from shards.dataset import FORMAT, INDEX_SCHEMA, KEPT, Commit, commit, table_bytes, unit_name
from shards.pixels import MAX_PIXELS
from shards.tar import BLOCK, segment
from shards.url_secrets import masked, without_secrets

HELD = 48 << 20  # bytes of a unit that wait in memory for their turn, at most; less if several units are open

# A row of the index before its member has a place in the tar.
_JUDGED = tuple(INDEX_SCHEMA.names[:-3])
assert INDEX_SCHEMA.names[-3:] == ["member", "offset", "length"]
_UNPICTURED = (None,) * (len(_JUDGED) - _JUDGED.index("sha256"))


class UnitWriter:
    """Takes the verdicts of a unit's links in any order; `seal` writes them in input order, so that the same bytes
    fetched give the same tar. Object names carry a unique attempt: two writers of one unit are harmless, the first
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
        format_: int = FORMAT,
    ) -> None:
        """`supersedes` counts the older verdicts that a retry's unit replaces; `judging` marks the row whose bytes are
        being decoded for a thumbnail, for pictures of at most `max_pixels`; `others` counts the units already open: the
        k-th holds 1/k of HELD, so that a dozen that wait for slow hosts hold three times HELD together, not twelve;
        `format_` is that of dataset.json."""
        self.dataset = dataset
        self.unit = unit
        self.links = links
        self.attempt = secrets.token_hex(6)
        self.kept = 0
        self.reasons: Counter[str] = Counter()
        self._supersedes = dict(supersedes or {})
        self._judging, self._max_pixels = judging, max_pixels
        self._format = format_
        self._tar = UnitTar(scratch, len(links), HELD // (1 + others), format_)
        self._shown = Spool(scratch / "shown")
        self._at = {link.row: at for at, link in enumerate(links)}
        self._rows: list[tuple[Any, ...] | None] = [None] * len(links)
        self._choice = thumbs.Choice()
        for at, link in enumerate(links):
            if isinstance(link, BadLine):
                self._rows[at] = _bad_row(link)
                self._tar.settle(at)
                self.reasons[Reason.BAD_URL] += 1

    @property
    def done(self) -> int:
        return self.kept + self.reasons.total()

    @property
    def spooled(self) -> int:
        """Bytes on scratch."""
        return self._tar.size + self._shown.size

    def add(self, verdict: Verdict, show: bool = True) -> None:
        """One link's verdict; its body goes to scratch. Without `show` no thumbnail is made of it."""
        link = verdict.fetched.link
        at = self._at[link.row]
        assert self._rows[at] is None, f"{link.key}: two verdicts"
        self._rows[at] = judged_row(verdict)
        if verdict.picture is not None:
            self.kept += 1
            self._tar.keep(at, verdict.picture.suffix, verdict.picture.sha256, _members(link, verdict.picture))
        else:
            assert verdict.reason is not None
            self.reasons[verdict.reason] += 1
        self._tar.settle(at)
        if thumbs.wanted(verdict.reason):
            self._offer(verdict, show)

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
        """Write tar, index and thumbnails, then the commit; returns the winning commit, ours or another writer's."""
        assert self.done == len(self.links), f"unit {self.unit}: {self.done} of {len(self.links)} links have a verdict"
        name = f"{unit_name(self.unit)}-{self.attempt}"
        tar_url, index_url = (store.join(self.dataset, "shards", name + end) for end in (".tar", ".parquet"))
        thumbs_url = store.join(self.dataset, "thumbs", name + ".parquet")
        path, size, digest = self._tar.finish()
        store.put_file(tar_url, path, move=True)
        path.unlink(missing_ok=True)
        index = table_bytes(self._index())
        store.put(index_url, index)
        samples = self._choice.samples()
        if samples:
            store.put(thumbs_url, thumbs.table(samples, self._body, self._judging, self._max_pixels))
        for url, size_put in ((tar_url, size), (index_url, len(index))):
            if store.size(url) != size_put:
                raise store.StoreError(f"{url}: was removed or changed before its commit: check what removes objects")
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
                format=self._format,
            ),
        )
        if winner.attempt != self.attempt:
            for url in (tar_url, index_url, thumbs_url):
                store.delete(url)
        return winner

    def place(self, row: int) -> tuple[int, int] | None:
        """Offset and length of a kept link's body in the spool, after the next `flush`; None while its turn has not
        come."""
        return self._tar.body_at(self._at[row])

    def flush(self) -> None:
        """Write to scratch what has a `place` there."""
        self._tar.flush()

    def spill(self) -> None:
        """Write what waits in memory to scratch as well: for a rerun, as this unit ends here."""
        self._tar.spill()

    def close(self) -> None:
        self._tar.close()
        self._shown.close()

    def _body(self, sample: thumbs.Sample) -> bytes | None:
        return self._shown.read(*sample.body) if sample.body is not None else None

    def _index(self) -> pa.Table:
        columns: list[Any] = list(zip(*(row for row in self._rows if row is not None)))
        members: list[str | None] = []
        offsets: list[int | None] = []
        lengths: list[int | None] = []
        at = 0
        for link, place in zip(self.links, self._tar.places):
            if place is None:
                members.append(None)
                offsets.append(None)
                lengths.append(None)
                continue
            members.append(f"{link.key}.{place.suffix}")
            offsets.append(at + BLOCK)
            lengths.append(place.length)
            at += place.span
        columns += [members, offsets, lengths]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, INDEX_SCHEMA)]
        return pa.Table.from_arrays(arrays, schema=INDEX_SCHEMA)


def _members(link: Link, picture: Picture) -> tuple[bytes, bytes, bytes]:
    """A link's two members as they will be in the tar: the picture's header, its body, and the rest."""
    header, body, padding = segment(f"{link.key}.{picture.suffix}", picture.body)
    described = about(link, picture.sha256, picture.width, picture.height)
    return header, body, b"".join((padding, *segment(f"{link.key}.json", described)))


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
    """The cells of the index in the order of its columns, up to the member's place."""
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
