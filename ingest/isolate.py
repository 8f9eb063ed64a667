"""`filter.judge` in a separate process, for bodies that kill the process that judges them or need too much memory (see
`shards.pixels.isolate`)."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from ingest.filter import FilterConfig, judge, taken
from ingest.record import Fetched, Link, Picture, Reason, Verdict
from shards.pixels import HEAD, Child, ChildBroken, Killed, is_costly

WORK = "ingest.isolate:answer"  # the function that the child calls


def judge_apart(child: Child, fetched: Fetched, config: FilterConfig) -> Verdict:
    """`filter.judge` in a child whose work is WORK; a body that kills it is `undecodable`. Raises isolate.ChildBroken.

    The child gets the memory that a picture at the pixel cap may need.
    """
    if fetched.body is None:
        return judge(fetched, config)
    body = taken(fetched.body)
    light = dataclasses.replace(fetched, body=b"")
    memory = 20 * config.max_pixels + 8 * len(body) + (256 << 20)  # two RGBX copies, coefficients of a progressive JPEG
    try:
        words, stored = child.ask(dataclasses.asdict(config) | {"hash": fetched.link.hash}, body, memory)
    except Killed as why:
        return Verdict(light, None, Reason.UNDECODABLE, str(why), fetched_bytes=len(body), body=body, poison=True)
    return _verdict(words, stored, light, body)


class Judge:
    """`filter.judge` for any number of threads. Bodies that may cost seconds or gigabytes are judged in a child
    process, one at a time; so are bodies for which this process ran out of memory."""

    def __init__(self) -> None:
        self._child = Child(WORK)
        self._one_at_a_time = threading.Lock()

    def __call__(self, fetched: Fetched, config: FilterConfig) -> Verdict:
        if fetched.body is None:
            return judge(fetched, config)
        if costly(fetched):
            return self.apart(fetched, config)
        fetched = dataclasses.replace(fetched, body=taken(fetched.body))  # needed again if memory runs out
        try:
            return judge(fetched, config)
        except MemoryError:
            return self.starved(fetched, config)

    def apart(self, fetched: Fetched, config: FilterConfig) -> Verdict:
        """The verdict from the child process. Raises isolate.ChildBroken."""
        with self._one_at_a_time:
            return judge_apart(self._child, fetched, config)

    def starved(self, fetched: Fetched, config: FilterConfig) -> Verdict:
        """The verdict, from the child process, on a body for which this process has too little memory."""
        try:
            return self.apart(fetched, config)
        except (MemoryError, ChildBroken):
            assert isinstance(fetched.body, bytes)
            light, why = dataclasses.replace(fetched, body=b""), "needs more memory than there is to decode"
            return Verdict(light, None, Reason.UNDECODABLE, why, fetched_bytes=len(fetched.body), poison=True)

    def close(self) -> None:
        self._child.close()


def costly(fetched: Fetched) -> bool:
    """Whether judging the body here would block everything else; see `shards.pixels.is_costly`."""
    body = fetched.body
    if isinstance(body, Path):
        with body.open("rb") as file:
            return is_costly(file.read(HEAD), body.stat().st_size)
    return body is not None and is_costly(body[:HEAD], len(body))


def _verdict(words: dict[str, Any], stored: bytes, fetched: Fetched, body: bytes) -> Verdict:
    about, same = words.pop("picture"), words.pop("same", False)
    picture = Picture(body=body if same else stored, **about) if about is not None else None
    reason = Reason(words.pop("reason")) if picture is None else words.pop("reason")
    return Verdict(fetched, picture, reason, **words, body=body if reason is not None else None)


# --- in the child --------------------------------------------------------------------------------------------------

_EMPTY = Fetched(Link("", "", (), 0), None, None, "", 0, "", 0, 0, 0.0)


def answer(config: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The verdict on a body as JSON, and the bytes to store if they differ from the body."""
    link = dataclasses.replace(_EMPTY.link, hash=config.pop("hash"))
    verdict = judge(dataclasses.replace(_EMPTY, link=link, body=body), FilterConfig(**config))
    picture = verdict.picture
    words: dict[str, Any] = {
        "reason": verdict.reason,
        "detail": verdict.detail,
        "source_format": verdict.source_format,
        "fetched_bytes": verdict.fetched_bytes,
        "fetched_sha256": verdict.fetched_sha256,
        "decode_checked": verdict.decode_checked,
        "picture": None,
    }
    if picture is None:
        return words, b""
    about = {field.name: getattr(picture, field.name) for field in dataclasses.fields(picture) if field.name != "body"}
    same = picture.body == body
    return words | {"picture": about, "same": same}, b"" if same else picture.body
