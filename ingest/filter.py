"""Bytes -> verdict: is it a picture, is it sound, is it kept, and what is stored.

The type is detected by content, never by name. Cheap rules come first: the header's size before any decoding. JPEG,
PNG and WebP keep their fetched bytes unless `resize` asks for smaller pictures; other formats become PNG (first frame,
upright RGB).
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from ingest import checksum
from ingest.criteria import FilterConfig
from ingest.record import Fetched, Picture, Reason, Verdict
from shards.pixels import crop, image, phash, promises_too_much

NOTICE_BYTES = 0.03  # a picture that shows only a notice has at most so many bytes a pixel
NOTICE_AREA = 0.97  # and at least this share of it is empty
MAX_PROFILE = 1 << 20  # bytes of a colour profile that a re-encoded picture keeps
_SUFFIX = {"jpeg": "jpg", "png": "png", "webp": "webp"}

# Placeholder images that servers send with status 200 for pictures that are gone: sha256 of the bytes.
PLACEHOLDERS = {
    # 11 % of the URLs of a fall11 subset, byte for byte the same (github.com/dusty-nv/jetson-inference, issue 124).
    "6f38049c08670c05cf14fc02d1fbcc84d80fc91f8178c86c7cecb588cc1b6f88": "flickr: this photo is no longer available",
    # 503 bytes, 161x81: i.imgur.com's answer for removed pictures (many downloaders know it by this hash).
    "9b5936f4006146e4e1e9025b474c02863c0b5614132ad40db4b925a10e8bfbb9": "imgur: this image is removed",
}
# Where servers redirect requests for a picture that is gone: i.imgur.com/removed.png, Flickr's
# s.yimg.com/pw/images/en-us/photo_unavailable.png, Photobucket's bwe.png, and pictures of error pages.
_GONE = re.compile(
    r"/(?:removed|(?:photo|image)[_-]?(?:unavailable|not[_-]?available|not[_-]?found|removed)(?:_[a-z])?|bwe|404|not[_-]?found)"
    r"\.(?:png|gif|jpe?g|webp)$",
    re.IGNORECASE,
)


class _Rejected(Exception):
    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason, self.detail = reason, detail


def judge(fetched: Fetched, config: FilterConfig) -> Verdict:
    """The verdict on a fetched link. A body that is a file on scratch is read and removed."""
    if fetched.body is None:
        return Verdict(fetched, None, fetched.reason, fetched.detail)
    body = taken(fetched.body)
    digest = hashlib.sha256(body).hexdigest()
    case = _Case(body, digest, image.sniff(body))
    picture = reason = None
    detail = ""
    try:
        if wrong := checksum.difference(body, digest, fetched.link.hash):
            raise _Rejected(Reason.HASH_MISMATCH, wrong)
        _check_redirect(fetched)
        picture = _picture(case, config)
    except _Rejected as rejected:
        reason, detail = rejected.reason, rejected.detail
    except image.TooManyPixels as error:
        reason, detail = Reason.TOO_MANY_PIXELS, str(error)
    except image.Unsupported as error:
        reason, detail = Reason.UNSUPPORTED, str(error)
    except image.Undecodable as error:
        reason, detail = Reason.UNDECODABLE, str(error)
    return Verdict(
        replace(fetched, body=b""),  # so that the verdict does not keep bytes that are no longer needed
        picture,
        reason,
        detail,
        source_format=case.format,
        fetched_bytes=len(body),
        fetched_sha256=digest,
        decode_checked=case.decoded,
        body=body if reason is not None else None,
    )


def taken(body: bytes | Path) -> bytes:
    """A body's bytes; if it is a file on scratch, the file is removed."""
    if isinstance(body, bytes):
        return body
    whole = body.read_bytes()
    body.unlink()
    return whole


@dataclass
class _Case:
    """What is known of a body so far; it goes into the verdict even if the body is rejected."""

    body: bytes  # as fetched, or as `image.repaired` returns it
    digest: str
    format: str | None
    decoded: bool = False


def _picture(case: _Case, config: FilterConfig) -> Picture:
    """The picture to store. Raises _Rejected, image.Undecodable."""
    if case.digest in PLACEHOLDERS:
        raise _Rejected(Reason.PLACEHOLDER, PLACEHOLDERS[case.digest])
    if case.format is None:
        raise _Rejected(Reason.NOT_AN_IMAGE, _looks_like(case.body))
    if config.decode_check and case.format == "png":  # a repair may be needed to read its header
        _repair(case)
    opened = image.read(case.body, config.max_pixels)
    head = opened.header
    case.format = head.format
    _check_sides(head, config)
    if promises_too_much(head.width, head.height, len(case.body)):
        raise _Rejected(Reason.PLACEHOLDER, f"{head.width}x{head.height} in {len(case.body)} bytes: not decoded")
    if config.decode_check and case.format != "png" and _repair(case):
        opened = image.read(case.body, config.max_pixels)
    shrink = config.resize is not None and min(head.width, head.height) > config.resize
    if head.format in _SUFFIX and not shrink:
        return _as_fetched(case, opened, config)
    return _reencoded(case, opened, config.resize if shrink else None, config)


def _repair(case: _Case) -> bool:
    """Apply `image.repaired` to the body; returns whether it changed."""
    whole = image.repaired(case.body)
    if whole is case.body:
        return False
    case.body, case.digest = whole, hashlib.sha256(whole).hexdigest()
    return True


def _check_redirect(fetched: Fetched) -> None:
    """Reject a body from a URL to which servers redirect requests for pictures that are gone."""
    if fetched.final_url in ("", fetched.link.url):
        return
    path = urlsplit(fetched.final_url).path
    if _GONE.search(path) and not _GONE.search(urlsplit(fetched.link.url).path):
        raise _Rejected(Reason.PLACEHOLDER, f"redirected to {path[-100:]}")


def _check_sides(head: image.Header, config: FilterConfig) -> None:
    short, long = sorted((head.width, head.height))
    if short < config.min_side:
        raise _Rejected(Reason.TOO_SMALL, f"{head.width}x{head.height}")
    if long > config.max_aspect * short:
        raise _Rejected(Reason.BAD_ASPECT, f"{head.width}x{head.height}")


def _looks_like(body: bytes) -> str:
    if not body:
        return "empty"
    start = body[:256].lstrip().lower()
    return "html" if start.startswith((b"<!doctype", b"<html", b"<head", b"<script")) else "not a picture"


def _as_fetched(case: _Case, opened: image.Opened, config: FilterConfig) -> Picture:
    """The picture with its bytes unchanged."""
    head, likeness = opened.header, 0
    if config.decode_check:
        case.decoded = True
        small = image.glance(opened)
        likeness = phash.phash(small)
        # Colours, and fine texture at an eighth of the size, can average to one gray: decode fully before rejecting.
        if likeness == 0 and _flat(image.decode(case.body, config.max_pixels)):
            raise _Rejected(Reason.PLACEHOLDER, "one flat colour")
        _check_emptiness(len(case.body), head, small)
    return _described(case.body, _SUFFIX[head.format], case.digest, head, likeness)


def _reencoded(case: _Case, opened: image.Opened, short: int | None, config: FilterConfig) -> Picture:
    """A JPEG with short side `short`, or a PNG of the same size; upright RGB, decoded once."""
    case.decoded = True
    pixels = _shrunk(case.body, opened.header, short) if short is not None else None
    if pixels is None:
        pixels = image.upright(opened, short)
        if _flat(pixels):
            raise _Rejected(Reason.PLACEHOLDER, "one flat colour")
        _check_emptiness(len(case.body), opened.header, pixels)
        pixels = image.shrink(pixels, short) if short is not None else pixels
    # An RGB profile still describes the decoded pixels; one for CMYK or gray does not. No other metadata is kept.
    coloured = opened.header.icc and opened.header.mode in ("RGB", "RGBA", "P")
    profile = opened.pixels.info.get("icc_profile") if coloured else None
    if profile is not None and len(profile) > MAX_PROFILE:
        profile = None
    pixels.info.clear()
    out = io.BytesIO()
    if short is not None:
        pixels.save(out, "JPEG", quality=config.quality, icc_profile=profile)
    else:
        pixels.save(out, "PNG", icc_profile=profile)
    stored = out.getvalue()
    digest = hashlib.sha256(stored).hexdigest()
    return _described(stored, "png" if short is None else "jpg", digest, image.header(stored), phash.phash(pixels))


def _shrunk(body: bytes, head: image.Header, short: int) -> Image.Image | None:
    """The picture made smaller by the accelerator; None where it does not take it, or where the pixels of the whole
    picture decide whether it is a placeholder."""
    if len(body) <= NOTICE_BYTES * head.width * head.height:
        return None
    pixels = crop.shrink(body, short)
    return None if pixels is None or _flat(pixels) else pixels


def _check_emptiness(size: int, head: image.Header, picture: Image.Image) -> None:
    """Reject notices such as "this photo is no longer available": nearly all of one gray level, in very few bytes.

    Both must hold. Of 121,000 photographs the emptiest that is not tiny is 92 % of one level and takes 0.08 bytes a
    pixel; three such notices are 97.7 to 99.4 % and take 0.011 to 0.019. At 64x64 the tables of a JPEG alone take 0.1.
    """
    if size > NOTICE_BYTES * head.width * head.height:
        return
    gray = picture if picture.mode == "L" else picture.convert("L")
    levels = [0, *gray.histogram(), 0]
    most = max(map(sum, zip(levels, levels[1:], levels[2:])))  # pixels of a level and its two neighbours
    if most >= NOTICE_AREA * gray.width * gray.height:
        raise _Rejected(Reason.PLACEHOLDER, "a notice on an empty ground")


def _flat(picture: Image.Image) -> bool:
    return picture.getcolors(1) is not None


def _described(body: bytes, suffix: str, digest: str, head: image.Header, likeness: int) -> Picture:
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
        phash=likeness,
    )
