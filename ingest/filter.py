"""Bytes -> verdict: is it a picture, is it sound, do we keep it, and what is stored.

The type is told by content, never by name. Cheap rules come first: the header's size before any decoding. JPEG, PNG
and WebP keep their fetched bytes, untouched, unless `resize` asks for smaller ones; other formats become PNG (first
frame, upright RGB).
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from ingest.record import Fetched, Picture, Reason, Verdict
from shards import image

_SUFFIX = {"jpeg": "jpg", "png": "png", "webp": "webp"}

# Pictures that servers send, with status 200, in place of one that is gone: sha256 of the bytes.
PLACEHOLDERS = {
    # 11 % of the URLs of a fall11 subset, byte for byte the same (github.com/dusty-nv/jetson-inference, issue 124).
    "6f38049c08670c05cf14fc02d1fbcc84d80fc91f8178c86c7cecb588cc1b6f88": "flickr: this photo is no longer available",
}


@dataclass(frozen=True)
class FilterConfig:
    """What is kept."""

    min_side: int = 32  # pixels
    max_pixels: int = 89_478_485  # of the header, before decoding; at most 178,956,970
    max_aspect: float = 20.0  # long side over short side
    decode_check: bool = True  # decode every picture once; without it only headers are looked at
    resize: int | None = None  # short side, in pixels, that larger pictures are reduced to, as JPEG; None keeps bytes
    quality: int = 95  # of those JPEGs

    def __post_init__(self) -> None:
        if not 1 <= self.max_pixels <= image.MAX_PIXELS:
            raise ValueError(f"filter.max_pixels is {self.max_pixels}: it must be 1 to {image.MAX_PIXELS}")
        if self.min_side < 1:
            raise ValueError(f"filter.min_side is {self.min_side}: it must be at least 1")
        if self.max_aspect < 1:
            raise ValueError(f"filter.max_aspect is {self.max_aspect}: it must be at least 1 (long side over short)")
        if self.resize is not None and self.resize < self.min_side:
            raise ValueError(f"filter.resize is {self.resize}: it must be at least min_side, {self.min_side}")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"filter.quality is {self.quality}: it must be 1 to 100")


def judge(fetched: Fetched, config: FilterConfig) -> Verdict:
    """The verdict on what the network gave. Takes over a body that lies on scratch and removes its file."""
    if fetched.body is None:
        return Verdict(fetched, None, fetched.reason, fetched.detail)
    if isinstance(fetched.body, Path):
        body = fetched.body.read_bytes()
        fetched.body.unlink()
    else:
        body = fetched.body
    digest = hashlib.sha256(body).hexdigest()
    blank = Verdict(
        replace(fetched, body=b""),  # the verdict must not hold bytes that nobody needs
        None,
        None,
        "",
        source_format=image.sniff(body),
        fetched_bytes=len(body),
        fetched_sha256=digest,
    )
    if digest in PLACEHOLDERS:
        return replace(blank, reason=Reason.PLACEHOLDER, detail=PLACEHOLDERS[digest])
    return _judge_body(body, blank, config)


def _judge_body(body: bytes, verdict: Verdict, config: FilterConfig) -> Verdict:
    if verdict.source_format is None:
        return replace(verdict, reason=Reason.NOT_AN_IMAGE, detail=_looks_like(body))
    try:
        head = image.header(body, config.max_pixels)
        verdict = replace(verdict, source_format=head.format)
        refused = _refused(head, config)
        if refused is not None:
            return replace(verdict, reason=refused[0], detail=refused[1])
        if config.decode_check:
            verdict = replace(verdict, decode_checked=True)
            # A check may look at an eighth of the size, where fine texture averages out: look closely before refusing.
            flat = image.check(body, config.max_pixels).getcolors(1) is not None
            if flat and image.decode(body, config.max_pixels).getcolors(1) is not None:
                return replace(verdict, reason=Reason.PLACEHOLDER, detail="one flat colour")
        return replace(verdict, picture=_store(body, head, verdict.fetched_sha256 or "", config))
    except image.TooManyPixels as error:
        return replace(verdict, reason=Reason.TOO_MANY_PIXELS, detail=str(error))
    except image.Unsupported as error:
        return replace(verdict, reason=Reason.UNSUPPORTED, detail=str(error))
    except image.Undecodable as error:
        return replace(verdict, reason=Reason.UNDECODABLE, detail=str(error))


def _refused(head: image.Header, config: FilterConfig) -> tuple[Reason, str] | None:
    short, long = sorted((head.width, head.height))
    if short < config.min_side:
        return Reason.TOO_SMALL, f"{head.width}x{head.height}"
    if long > config.max_aspect * short:
        return Reason.BAD_ASPECT, f"{head.width}x{head.height}"
    return None


def _looks_like(body: bytes) -> str:
    if not body:
        return "empty"
    start = body[:256].lstrip().lower()
    return "html" if start.startswith((b"<!doctype", b"<html", b"<head", b"<script")) else "not a picture"


def _store(body: bytes, head: image.Header, digest: str, config: FilterConfig) -> Picture:
    """The bytes to keep and what the index says of them."""
    shrink = config.resize is not None and min(head.width, head.height) > config.resize
    if head.format in _SUFFIX and not shrink:
        return _picture(body, _SUFFIX[head.format], digest, head)
    pixels = image.decode(body, config.max_pixels)
    # An RGB profile still describes the decoded pixels; one for CMYK or gray does not. Nothing else is carried over.
    profile = pixels.info.get("icc_profile") if head.mode in ("RGB", "RGBA", "P") else None
    pixels.info.clear()
    out = io.BytesIO()
    if shrink:
        assert config.resize is not None
        scale = config.resize / min(pixels.size)
        size = (max(config.resize, round(pixels.width * scale)), max(config.resize, round(pixels.height * scale)))
        small = pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
        small.save(out, "JPEG", quality=config.quality, icc_profile=profile)
    else:
        pixels.save(out, "PNG", icc_profile=profile)
    stored = out.getvalue()
    return _picture(stored, "jpg" if shrink else "png", hashlib.sha256(stored).hexdigest(), image.header(stored))


def _picture(body: bytes, suffix: str, digest: str, head: image.Header) -> Picture:
    return Picture(
        body=body,
        suffix=suffix,
        sha256=digest,
        width=head.width,
        height=head.height,
        mode=head.mode,
        orientation=head.orientation,
        progressive=head.progressive,
        subsampling=head.subsampling,
        icc=head.icc,
    )
