"""The one door to pixels on the CPU: what a byte string is, whether it is sound, and its pixels as RGB.

Every input is hostile. A body is opened only by the decoder its first bytes name; its pixel count is checked before
anything is decoded; every failure is an `Undecodable` that says why. This decoder is the reference for what is bad.

Policy: 8-bit RGB, EXIF orientation applied, the first frame; alpha is laid over white; 16-bit samples keep their high
byte; ICC profiles are not applied (the index says which samples have one). It is strict: a truncated file is refused
even if most of it could be shown, and so is a JPEG whose entropy-coded data runs out early or late (see `_Gauge`).
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import PIL
from PIL import Image, JpegImagePlugin

MAX_PIXELS = 178_956_970  # Pillow refuses more than this itself; a lower cap can be asked for
IMAGE_BUILD = f"{'pillow-simd' if 'post' in PIL.__version__ else 'pillow'} {PIL.__version__}"

_PILLOW_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
FORMATS = frozenset({*_PILLOW_NAMES, "mpo"})
_SUBSAMPLING = {0: "4:4:4", 1: "4:2:2", 2: "4:2:0"}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SILENT = re.compile(r"PIL\.")


class Undecodable(ValueError):
    """The body is not a sound picture; the message says why."""


class Unsupported(Undecodable):
    """A picture, but of a format or sample type that we do not take."""


class TooManyPixels(Undecodable):
    """The header claims more pixels than the cap."""


@dataclass(frozen=True)
class Header:
    """What a picture's header says, before any pixel is decoded."""

    format: str  # one of FORMATS
    width: int  # as stored
    height: int
    mode: str  # Pillow's name: "RGB", "L", "P", "CMYK", "I;16", ...
    orientation: int  # EXIF, 1..8; anything else in the file counts as 1
    progressive: bool | None  # JPEG only
    subsampling: str | None  # JPEG with chroma only: "4:2:0", or "HxV" of the first component if unusual
    icc: bool
    frames: int  # 1 for GIF and TIFF, whose headers do not say


def sniff(body: bytes) -> str | None:
    """The format by content: one of FORMATS, the name of a picture format we do not take, or None for anything else.

    An MPO begins like any JPEG and is told apart by `header`.
    """
    for name, starts in _MAGIC.items():
        if body.startswith(starts):
            return name
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "webp"
    if body[:2] == b"BM" and body[14:18] in _BMP_HEADERS:
        return "bmp"
    if body[4:8] == b"ftyp":
        brand = body[8:12]
        return "avif" if brand in (b"avif", b"avis") else "heif" if brand[:2] in (b"he", b"mi", b"ms") else None
    return None


_MAGIC: dict[str, bytes | tuple[bytes, ...]] = {
    "jpeg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "gif": (b"GIF87a", b"GIF89a"),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "jpeg2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "jpegxl": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "psd": b"8BPS",
    "ico": b"\0\0\1\0",
}
_BMP_HEADERS = {struct.pack("<I", size) for size in (12, 40, 52, 56, 64, 108, 124)}


def header(body: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Parse the header alone. Raises Undecodable, Unsupported, TooManyPixels."""
    with _refusals():
        return _header(_open(body, max_pixels))


def decode(body: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture as RGB, upright, first frame. Raises Undecodable, Unsupported, TooManyPixels."""
    with _refusals():
        image = _open(body, max_pixels)
        head = _header(image)
        _load(image, body)
        # Pillow turns a TIFF upright itself while loading it.
        turn = _TRANSPOSE.get(head.orientation) if head.format != "tiff" else None
        rgb = _to_rgb(image)
        return rgb.transpose(turn) if turn is not None else rgb


def check(body: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Prove that `decode` will work, for less: all entropy-coded data of a JPEG is read, but only an eighth of its
    side is reconstructed. Returns that small picture (other formats: the full one) as RGB, not turned.

    Raises Undecodable, Unsupported, TooManyPixels.
    """
    with _refusals():
        image = _open(body, max_pixels)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(image.mode, (max(1, image.width // 8), max(1, image.height // 8)))
        _load(image, body)
        return _to_rgb(image)


def thumbnail(body: bytes, side: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture within side x side pixels, upright, as RGB; of a JPEG no more is reconstructed than that takes.

    Raises Undecodable, Unsupported, TooManyPixels.
    """
    with _refusals():
        image = _open(body, max_pixels)
        head = _header(image)
        if isinstance(image, JpegImagePlugin.JpegImageFile):
            image.draft(image.mode, (side, side))
        _load(image, body)
        turn = _TRANSPOSE.get(head.orientation) if head.format != "tiff" else None
        rgb = _to_rgb(image)
        rgb.thumbnail((side, side))
        return rgb.transpose(turn) if turn is not None else rgb


def crop_resize(image: Image.Image, box: tuple[float, float, float, float], size: int) -> np.ndarray:
    """The box (x, y, width, height; pixels, fractions allowed) as uint8 [size, size, 3]: bicubic, antialiased."""
    x, y, width, height = box
    return np.array(image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + width, y + height)))


def resize_center(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """Short side to `resize`, then the central crop, as uint8 [size, size, 3] (torchvision's Resize, CenterCrop)."""
    if size > resize:
        raise ValueError(f"crop {size} is larger than the resized short side {resize}: ask for at most {resize}")
    width, height = image.size
    if width <= height:
        width, height = resize, int(resize * height / width)
    else:
        width, height = int(resize * width / height), resize
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.array(resized.crop((left, top, left + size, top + size)))


# --- opening -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever Pillow raises on hostile bytes into an Undecodable; keep its warnings off the user's terminal."""
    # Once per process (not catch_warnings, which is not safe among threads): what Pillow warns of is either harmless
    # (unreadable EXIF) or refused here. Tests reset the filters, hence the look before every call.
    if not warnings.filters or warnings.filters[0][3] != _SILENT:
        warnings.filterwarnings("ignore", module=_SILENT.pattern)
    try:
        yield
    except (Undecodable, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from None
    except Exception as error:
        raise Undecodable(" ".join(f"{error or type(error).__name__}".split())[:200]) from None


def _open(body: bytes, max_pixels: int) -> Image.Image:
    kind = sniff(body)
    if kind is None:
        raise Undecodable("no picture format begins like this")
    if kind not in _PILLOW_NAMES:
        raise Unsupported(f"{kind} is not a format we take")
    try:
        image = Image.open(io.BytesIO(body), formats=(_PILLOW_NAMES[kind],))
    except PIL.UnidentifiedImageError:
        raise Undecodable(f"damaged {kind} header") from None
    if image.width * image.height > max_pixels:
        raise TooManyPixels(f"{image.width}x{image.height} is more than {max_pixels} pixels")
    if image.mode in ("I", "F"):
        raise Unsupported(f"{kind} with 32-bit samples")
    return image


def _header(image: Image.Image) -> Header:
    kind = str(image.format).lower()
    jpeg = image if isinstance(image, JpegImagePlugin.JpegImageFile) else None
    sampling = None
    if jpeg is not None and jpeg.layers > 1:
        sampling = _SUBSAMPLING.get(JpegImagePlugin.get_sampling(jpeg)) or f"{jpeg.layer[0][1]}x{jpeg.layer[0][2]}"
    if kind == "tiff":
        orientation = image.tag_v2.get(_ORIENTATION)  # type: ignore[attr-defined]
    else:
        orientation = _exif_orientation(image.info.get("exif", b""))
    return Header(
        format=kind,
        width=image.width,
        height=image.height,
        mode=image.mode,
        orientation=orientation if orientation in _TRANSPOSE else 1,
        progressive=bool(image.info.get("progressive")) if jpeg is not None else None,
        subsampling=sampling,
        icc=bool(image.info.get("icc_profile")),
        # GIF and TIFF would have to walk the whole file, which a hostile one makes long.
        frames=getattr(image, "n_frames", 1) if kind in ("mpo", "webp", "png") else 1,
    )


_ORIENTATION = 0x0112


def _exif_orientation(exif: bytes) -> int | None:
    """Tag 0x0112 of IFD0 (Exif 2.3, 4.6.4), read directly: Pillow's parser warns on damage and may decode a PNG."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(min(count, 512)):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * entry)
            if tag == _ORIENTATION and kind == 3:
                return value
    return None


# --- decoding ------------------------------------------------------------------------------------------------------


def _load(image: Image.Image, body: bytes) -> None:
    """Decode in place, as strictly as each format allows. The image may be of any supported format."""
    if image.format == "PNG":
        _check_png(body)
    if image.format == "WEBP" and len(body) < 8 + int.from_bytes(body[4:8], "little"):
        raise Undecodable("truncated: the webp says it is longer")
    if not isinstance(image, JpegImagePlugin.JpegImageFile):
        image.load()
        return
    first, end, scans = _scans(body)
    if scans != 1:
        image.load()
        return
    gauge = image.fp = _Gauge(body, first, end)
    image.load()
    if gauge.pieces < 2:
        raise Undecodable("damaged jpeg data: the picture is complete before its data ends")


class _Gauge(io.BytesIO):
    """A sequential JPEG with one scan, as a file that notices how much of its data the decoder needs.

    libjpeg only warns, and Pillow says nothing, when entropy-coded data is damaged; but damage shifts the code, so the
    decoder then finishes before the data ends, or runs out of it. The file is handed out in two pieces: all but the
    last bytes of the scan, then these with a few zeros in place of the end marker. A sound picture needs the second
    piece and nothing after it (Pillow raises when it asks for more). Progressive files have no such check.
    """

    SLACK = 16  # bytes; more than libjpeg reads ahead (8), less than damage usually leaves over

    def __init__(self, body: bytes, first: int, end: int) -> None:
        super().__init__()
        cut = max(first, end - self.SLACK)
        self._todo = [body[cut:end] + bytes(self.SLACK), body[:cut]]
        self.pieces = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self.pieces += 1
        return self._todo.pop() if self._todo else b""


_NEXT_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)  # as libjpeg: junk between segments is skipped
_SCAN_STOP = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]", re.DOTALL)  # not a stuffed zero, a fill byte or a restart


def _scans(body: bytes) -> tuple[int, int, int]:
    """(first byte of the first scan's data, offset of the end marker, number of scans) of the first JPEG in a body."""
    at, first, scans = 2, 0, 0
    while marker := _NEXT_MARKER.search(body, at):
        code, at = marker[1][0], marker.end()
        if code == 0xD9:
            return first, at - 2, scans
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        at += int.from_bytes(body[at : at + 2], "big")
        if code == 0xDA:
            scans, first = scans + 1, first or at
            stop = _SCAN_STOP.search(body, at)
            at = stop.start() if stop else len(body)
    raise Undecodable("truncated: the jpeg has no end marker")


def _check_png(body: bytes) -> None:
    """Checksums of the critical chunks, which Pillow does not look at for picture data, and the end chunk."""
    at = 8
    while at + 12 <= len(body):
        length = int.from_bytes(body[at : at + 4], "big")
        kind = body[at + 4 : at + 8]
        data, at = memoryview(body)[at + 4 : at + 8 + length], at + 12 + length
        if at > len(body):
            break
        if kind[:1].isupper() and zlib.crc32(data) != int.from_bytes(body[at - 4 : at], "big"):
            raise Undecodable(f"damaged png: chunk {kind!r} fails its checksum")
        if kind == b"IEND":
            return
    raise Undecodable("truncated: the png has no end chunk")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # convert() would clip everything above 255 to white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
