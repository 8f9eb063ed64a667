"""Damaged and hostile files of every kind that strangers hand us, each a pure function of a random generator."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SIZES = ((17, 33), (64, 64), (100, 37), (8, 8), (1, 1), (250, 180))


def photo(width: int, height: int, number: int = 0) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 255, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def bytes_changed(body: bytes, rng: random.Random, most: int = 6, head: int = 700) -> bytes:
    """One to `most` changes: bits, bytes, stretches that move, cuts; often among the first `head` bytes."""
    changed = bytearray(body)
    for _ in range(rng.randint(1, most)):
        if len(changed) < 8:
            break
        at = rng.randrange(min(head, len(changed)) if rng.random() < 0.6 else len(changed))
        what = rng.randrange(6)
        if what == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            changed[at] = rng.choice((0, 1, 127, 128, 254, 255))
        elif what == 2:
            changed[at] = rng.randrange(256)
        elif what == 3:
            of, length = rng.randrange(len(changed)), rng.randrange(64)
            changed[at : at + length] = changed[of : of + length]
        elif what == 4 and rng.random() < 0.3:
            del changed[rng.randrange(4, len(changed)) :]
        else:
            changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice((0, 1, 0xFFFF, 1 << 31, 0xFFFFFFFF)))
    return bytes(changed)


# --- pictures ------------------------------------------------------------------------------------------------------


@cache
def jpegs() -> tuple[bytes, ...]:
    found = []
    for number, size in enumerate(SIZES):
        image = photo(*size, number)
        for sampling in (0, 1, 2):
            for more in ({}, {"progressive": True}, {"restart_marker_blocks": 2}, {"optimize": True}, {"quality": 100}):
                found.append(encode(image, "JPEG", subsampling=sampling, **more))
        found += [encode(image.convert(mode), "JPEG") for mode in ("L", "CMYK")]
        exif = Image.Exif()
        exif[0x0112] = 6
        found.append(encode(image, "JPEG", exif=exif, icc_profile=b"x" * 300))
    return tuple(found)


def jpeg(rng: random.Random) -> bytes:
    body = bytearray(bytes_changed(rng.choice(jpegs()), rng))
    marks = [at for at in range(2, len(body) - 9) if body[at] == 0xFF and body[at + 1] in (0xC0, 0xC1, 0xC2, 0xC4)]
    if marks and rng.random() < 0.4:  # a size, a sampling or a Huffman table
        body[rng.choice(marks) + rng.randrange(4, 9)] = rng.randrange(256)
    return bytes(body)


@cache
def other_pictures() -> tuple[bytes, ...]:
    found = []
    for number, size in enumerate(SIZES):
        image = photo(*size, number)
        found += [encode(image.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "1", "P", "I;16")]
        found += [
            encode(image, "WEBP"),
            encode(image, "WEBP", lossless=True),
            encode(image, "GIF"),
            encode(image, "BMP"),
        ]
        found += [encode(image, "TIFF", compression=how) for how in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
        found.append(encode(image, "GIF", save_all=True, append_images=[photo(*size, 9)]))
    return tuple(found)


def picture(rng: random.Random) -> bytes:
    return bytes_changed(rng.choice(other_pictures()), rng, head=200)


# --- tars ----------------------------------------------------------------------------------------------------------

_FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
_LENGTHS = (
    b"77777777777\0",
    b"\x80" + b"\0" * 3 + b"\xff" * 8,
    b"\xff" * 12,
    b"-0000000001\0",
    b"00000000000\0",
    b"0000000000x\0",
    b"\x80" + (2**62).to_bytes(11, "big"),
)


@cache
def _tars() -> tuple[bytes, ...]:
    found = []
    for format_ in _FORMATS:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=format_) as tar:
            for number, body in enumerate(jpegs()[:5]):
                deep = "d" * (number * (40 if format_ != tarfile.USTAR_FORMAT else 15))
                label = json.dumps({"label": number}).encode()
                for name, data in ((f"k{number}.jpg", body), (f"k{number}.json", label), (f"k{number}.cls", b"3")):
                    info = tarfile.TarInfo(f"{deep}/{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        found.append(out.getvalue())
    return tuple(found)


def tar(rng: random.Random) -> bytes:
    """Headers with wrong sizes, types and names, most of them with a checksum that is right."""
    body = bytearray(rng.choice(_tars()))
    heads = [at for at in range(0, len(body), 512) if body[at + 257 : at + 262] == b"ustar"]
    for _ in range(rng.randint(1, 4)):
        at, what = rng.choice(heads), rng.random()
        if at + 512 > len(body):
            break
        if what < 0.3:
            body[at + rng.randrange(512)] = rng.randrange(256)
        elif what < 0.55:
            body[at + 124 : at + 136] = rng.choice((*_LENGTHS, rng.randbytes(12)))
        elif what < 0.75:
            body[at + 156] = rng.choice(b"0123456LKxgSDV\0N7")
        elif what < 0.85:
            body[at : at + 100] = rng.randbytes(100)
        elif what < 0.9:
            del body[rng.randrange(len(body)) :]
            break
        else:
            body[rng.randrange(len(body))] = rng.randrange(256)
        if rng.random() < 0.8:
            body[at + 148 : at + 156] = b" " * 8
            body[at + 148 : at + 156] = b"%06o\0 " % sum(body[at : at + 512])
    return bytes(body)


# --- tables, JSON, pickles, robots.txt ------------------------------------------------------------------------------


def parquet(whole: bytes, rng: random.Random) -> bytes:
    """Changed bytes, more often than not in the footer, where types, offsets and counts are."""
    body = bytearray(whole)
    for _ in range(rng.randint(1, 5)):
        last = min(len(body), 3000)
        at = rng.randrange(len(body)) if rng.random() < 0.4 else len(body) - 1 - rng.randrange(last)
        body[at] = rng.choice((rng.randrange(256), body[at] ^ (1 << rng.randrange(8)), 0, 255))
    if rng.random() < 0.1:
        del body[rng.randrange(len(body)) :]
    return bytes(body)


WRONG = (None, [], {}, "x", "", -1, 0, 10**30, 1.5, 1e300, True, "../../../etc/passwd", float("nan"), [[]], {"a": {}})


def json_object(whole: bytes, rng: random.Random) -> bytes:
    """A wrong value somewhere in an object, or changed bytes."""
    if rng.random() < 0.2:
        return bytes_changed(whole, rng, 3)
    value = json.loads(whole)
    place, key = value, rng.choice(list(value))
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
        place = place[key]
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if rng.random() < 0.1:
        del place[key]
    else:
        place[key] = rng.choice(WRONG)
    return json.dumps(value).encode()


@cache
def _checkpoint() -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """A small file of torch.save: its pickle, and the other members."""
    import torch

    weights = OrderedDict((f"enc.blocks.{n}.mlp.fc1.weight", torch.ones(4, 2)) for n in range(3))
    state = {"state_dict": weights, "global_step": 7, "hyper_parameters": {"lr": 0.1, "layers": [1, 2, (3, "a")]}}
    out = io.BytesIO()
    torch.save(state, out)
    with zipfile.ZipFile(out) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    pickled = next(body for name, body in members if name.endswith("data.pkl"))
    return pickled, tuple((name, body) for name, body in members if not name.endswith("data.pkl"))


def checkpoint(rng: random.Random) -> bytes:
    pickled, members = _checkpoint()
    prefix = members[0][0].partition("/")[0]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(f"{prefix}/data.pkl", bytes_changed(pickled, rng, 4, len(pickled)))
        for name, body in members:
            archive.writestr(name, body)
    return out.getvalue() if rng.random() < 0.9 else bytes_changed(out.getvalue(), rng, 3)


_LINES = (
    "User-agent: *",
    "Disallow: /",
    "Allow: /a*b$",
    "Crawl-delay: 1e9",
    "Disallow: /*" + "*a" * 63,
    "\0",
    "#",
    "a:b",
)


def robots(rng: random.Random) -> bytes:
    lines = [rng.choice(_LINES) + "/%zz*" * rng.randrange(3) for _ in range(rng.randrange(400))]
    text = "\n".join(["User-agent: *", *lines]).encode() * rng.choice((1, 1, 1, 20))
    return bytes_changed(text, rng, 4)
