"""Bodies that kill the process that judges them: `filter.judge` in a process of its own (see
`shards.pixels.isolate`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ingest.filter import FilterConfig, judge
from ingest.record import Fetched, Link, Picture, Reason, Verdict
from shards.pixels import Child, Killed

WORK = "ingest.isolate:answer"  # what the child is to do


def judge_apart(child: Child, fetched: Fetched, config: FilterConfig) -> Verdict:
    """As `filter.judge`, by a child whose work is WORK; what kills it is `undecodable`. Raises isolate.ChildBroken.

    The child has the memory that a picture at the pixel cap may need.
    """
    if fetched.body is None:
        return judge(fetched, config)
    if isinstance(fetched.body, Path):
        body = fetched.body.read_bytes()
        fetched.body.unlink()
    else:
        body = fetched.body
    light = dataclasses.replace(fetched, body=b"")
    memory = 20 * config.max_pixels + 8 * len(body) + (256 << 20)  # two RGBX copies, coefficients of a progressive JPEG
    try:
        words, stored = child.ask(dataclasses.asdict(config) | {"hash": fetched.link.hash}, body, memory)
    except Killed as why:
        return Verdict(light, None, Reason.UNDECODABLE, str(why), fetched_bytes=len(body), body=body)
    return _verdict(words, stored, light, body)


def _verdict(words: dict[str, Any], stored: bytes, fetched: Fetched, body: bytes) -> Verdict:
    about, same = words.pop("picture"), words.pop("same", False)
    picture = Picture(body=body if same else stored, **about) if about is not None else None
    reason = Reason(words.pop("reason")) if picture is None else words.pop("reason")
    return Verdict(fetched, picture, reason, **words, body=body if reason is not None else None)


# --- in the child --------------------------------------------------------------------------------------------------

_NOBODY = Fetched(Link("", "", (), 0), None, None, "", 0, "", 0, 0, 0.0)


def answer(config: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """The verdict on a body as JSON, and the picture to store where that differs from the body."""
    link = dataclasses.replace(_NOBODY.link, hash=config.pop("hash"))
    verdict = judge(dataclasses.replace(_NOBODY, link=link, body=body), FilterConfig(**config))
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
