"""The one door to pixels on the CPU: what a byte string is, whether it is sound, and its pixels as RGB.

Every input is hostile. A body is opened only by the decoder its first bytes name; its pixel count is checked before
anything is decoded; every failure is an `Undecodable` that says why. This decoder is the reference for what is bad.

Policy: JPEG (of an MPO the first picture), PNG, WebP, GIF, BMP, TIFF, told by content; of animations the first frame.
Pixels are 8-bit RGB, upright by EXIF orientation: gray is repeated, palettes are looked up, CMYK and YCCK are read in
Adobe's inverted sense, 16-bit samples keep their high byte (32-bit ones are unsupported), alpha is laid over white; ICC
profiles are not applied (the index says which samples have one). It is strict: a truncated file is refused even if most
of it could be shown, and so is a JPEG whose data is damaged, as far as `shards.pixels.jpeg` can tell.
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
from typing import NamedTuple

import numpy as np
import PIL
from PIL import Image, PngImagePlugin

from shards.config import MAX_PIXELS
from shards.pixels import jpeg, png

IMAGE_BUILD = f"{'pillow-simd' if 'post' in PIL.__version__ else 'pillow'} {PIL.__version__}"

_PILLOW_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
MAX_PIECES = 100_000  # strips or tiles of a TIFF; one a row is usual, and the cap of pixels has no use for more
GLANCE = 32  # pixels, of the short side
FORMATS = frozenset({*_PILLOW_NAMES, "mpo"})
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Text chunks of a PNG are inflated when it is opened: 1 MiB each is Pillow's own cap, this is the one for all together.
PngImagePlugin.MAX_TEXT_MEMORY = 8 << 20  # type: ignore[bad-assignment]
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


@dataclass(frozen=True)
class Opened:
    """A body whose header has been read. Its pixels can be had once: every decoding needs an `Opened` of its own."""

    header: Header
    body: bytes
    pixels: Image.Image  # not decoded yet


def read(body: bytes, max_pixels: int = MAX_PIXELS) -> Opened:
    """Parse the header alone. Raises Undecodable, Unsupported, TooManyPixels."""
    with _refusals():
        image = _open(body, max_pixels)
        return Opened(_header(image), body, image)


def header(body: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """What `read` says of a body. Raises Undecodable, Unsupported, TooManyPixels."""
    return read(body, max_pixels).header


def decode(body: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture as RGB, upright, first frame. Raises Undecodable, Unsupported, TooManyPixels."""
    return upright(read(body, max_pixels))


def check(body: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Prove that `decode` will work, for less; see `glance`. Raises Undecodable, Unsupported, TooManyPixels."""
    return glance(read(body, max_pixels))


def upright(opened: Opened, short: int | None = None) -> Image.Image:
    """The picture as RGB, orientation applied. Raises Undecodable.

    With `short`, a JPEG comes at 1/2, 1/4 or 1/8 of its size, decoded for less, if its short side keeps so many pixels.
    """
    with _refusals():
        rgb = _to_rgb(_load(opened, "RGB", short))
        how = turn(opened.header)
        return rgb.transpose(how) if how is not None else rgb


def glance(opened: Opened) -> Image.Image:
    """A small upright gray picture, as proof that all of the data can be decoded. Raises Undecodable.

    All entropy-coded data of a JPEG is read, but only an eighth of its side is reconstructed (more where that would be
    under 32 pixels), and no colour. Other formats are decoded whole.
    """
    with _refusals():
        image = _load(opened, "L", GLANCE)
        gray = image if image.mode == "L" else _to_rgb(image).convert("L")
        how = turn(opened.header)
        return gray.transpose(how) if how is not None else gray


def mended(body: bytes) -> bytes:
    """The same bytes; or, of a JPEG that provably lacks nothing but its end marker, with it, and of a PNG without
    damaged chunks that no picture needs. Raises Undecodable."""
    if body.startswith(png.START):
        return png.mended(body)
    if not body.startswith(_MAGIC["jpeg"]):
        return body
    with _refusals():
        return jpeg.mended(body)


def shrink(image: Image.Image, short: int) -> Image.Image:
    """Reduced to a short side of `short` pixels, proportions kept, each pixel the average of the area that it covers.

    Never for enlarging. (Area averages are what OpenCV's INTER_AREA gives; Pillow's bicubic filter costs 2.5 times as
    much, and pictures are resampled once more when they are cropped for training.)
    """
    scale = short / min(image.size)
    assert scale <= 1, f"{image.size} is not larger than {short}"
    size = (max(short, round(image.width * scale)), max(short, round(image.height * scale)))
    return image if size == image.size else image.resize(size, Image.Resampling.BOX)


def thumbnail(body: bytes, side: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture within side x side pixels, upright, as RGB; of a JPEG no more is reconstructed than that takes.

    Raises Undecodable, Unsupported, TooManyPixels.
    """
    picture = upright(read(body, max_pixels), side)
    picture.thumbnail((side, side))
    return picture


class View(NamedTuple):
    """What is shown of an upright picture, all in pixels: a box is cut out of it, the cut is resized (bicubic,
    antialiased), and of that a square window is taken, perhaps mirrored. The window's side is said beside it."""

    x: int
    y: int
    width: int
    height: int
    to_width: int  # of the whole cut, resized
    to_height: int
    left: int  # of the window in that
    top: int
    mirrored: bool = False


def crop_view(box: tuple[int, int, int, int], size: int, mirrored: bool = False) -> View:
    """A box (x, y, width, height), resized to size x size."""
    return View(*box, size, size, 0, 0, mirrored)


def centre_view(width: int, height: int, resize: int, size: int) -> View:
    """Of a picture of width x height: its short side to `resize`, the central size x size of that (torchvision's
    Resize, CenterCrop). Raises ValueError when that is too small."""
    if size > resize:
        raise ValueError(f"crop {size} is larger than the resized short side {resize}: ask for at most {resize}")
    if width <= height:
        to_width, to_height = resize, int(resize * height / width)
    else:
        to_width, to_height = int(resize * width / height), resize
    left, top = round((to_width - size) / 2.0), round((to_height - size) / 2.0)
    return View(0, 0, width, height, to_width, to_height, left, top)


def show(picture: Image.Image, view: View, out_3HW: np.ndarray) -> None:
    """Write the view of an upright RGB picture into uint8 [3, size, size].

    The box is cut out first, as torchvision does: nothing outside it has any part in the pixels.
    Raises TooManyPixels where the resized picture would be that large, as a very narrow one may.
    """
    size = out_3HW.shape[-1]
    if view.to_width * view.to_height > MAX_PIXELS:
        raise TooManyPixels(f"resized to {view.to_width}x{view.to_height} it is more than {MAX_PIXELS} pixels")
    if view[:4] != (0, 0, *picture.size):
        picture = picture.crop((view.x, view.y, view.x + view.width, view.y + view.height))
    picture = picture.resize((view.to_width, view.to_height), Image.Resampling.BICUBIC)
    if picture.size != (size, size):
        picture = picture.crop((view.left, view.top, view.left + size, view.top + size))
    pixels_HW3 = np.asarray(picture)
    out_3HW[:] = (pixels_HW3[:, ::-1] if view.mirrored else pixels_HW3).transpose(2, 0, 1)


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
    except Image.DecompressionBombError:
        raise TooManyPixels(f"more than {MAX_PIXELS} pixels") from None
    except Exception as error:
        raise Undecodable(" ".join(str(error).split())[:200] or type(error).__name__) from None


def _open(body: bytes, max_pixels: int) -> Image.Image:
    kind = sniff(body)
    if kind is None:
        raise Undecodable("no picture format begins like this")
    if kind not in _PILLOW_NAMES:
        raise Unsupported(f"{kind} is not a format we take")
    if kind == "tiff":
        _check_pieces(body)
    try:
        if kind == "jpeg":
            image = jpeg.opened(body)
        else:
            image = Image.open(io.BytesIO(body), formats=(_PILLOW_NAMES[kind],))
    except (SyntaxError, PIL.UnidentifiedImageError):
        raise Undecodable(f"damaged {kind} header") from None
    _check_size(image.width, image.height, max_pixels)
    if image.mode in ("I", "F"):
        raise Unsupported(f"{kind} with 32-bit samples")
    return image


def _check_pieces(body: bytes) -> None:
    """Of how many strips or tiles the first picture of a TIFF is made: Pillow builds an object for each that is listed,
    needed or not, 2 GB from a file of 26 MB."""
    order = "<" if body[:2] == b"II" else ">"
    big = 43 in body[2:4]
    where, number, entry = ("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")
    with contextlib.suppress(struct.error):  # Pillow says what is wrong with it
        (start,) = struct.unpack_from(order + where, body, 8 if big else 4)
        (entries,) = struct.unpack_from(order + number, body, start)
        at = start + struct.calcsize("<" + number)
        for _ in range(min(entries, 65_536)):
            tag, _, count = struct.unpack_from(order + entry, body, at)
            if tag in _PIECES and count > MAX_PIECES:
                raise Undecodable(f"tiff in {count} pieces, more than {MAX_PIECES}")
            at += struct.calcsize("<" + entry)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(f"{width}x{height} is more than {max_pixels} pixels")
    if width * height == 0:
        raise Undecodable("a picture without pixels")


def _header(image: Image.Image) -> Header:
    kind = str(image.format).lower()
    photo = image if isinstance(image, jpeg.Jpeg) else None
    if kind == "tiff":
        orientation = image.tag_v2.get(_ORIENTATION)  # type: ignore[attr-defined]
    else:
        orientation = _ifd_value(image.info.get("exif", b"").removeprefix(b"Exif\0\0"), _ORIENTATION)
    if photo is not None and (_ifd_value(photo.info.get("mp", b""), _PICTURES) or 0) > 1 and not _is_ultra_hdr(photo):
        kind = "mpo"
    return Header(
        format=kind,
        width=image.width,
        height=image.height,
        mode=image.mode,
        orientation=orientation if orientation in _TRANSPOSE else 1,
        progressive=bool(image.info.get("progressive")) if photo is not None else None,
        subsampling=jpeg.sampling(photo) if photo is not None else None,
        icc=bool(image.info.get("icc_profile")),
    )


def _is_ultra_hdr(photo: jpeg.Jpeg) -> bool:
    """Whether what follows the picture is only a gain map for it (Ultra HDR), which every reader may ignore."""
    return any(name == "APP1" and b' hdrgm:Version="' in data for name, data in photo.applist)


_PIECES = (273, 279, 324, 325)  # TIFF 6.0: StripOffsets, StripByteCounts, TileOffsets, TileByteCounts
_ORIENTATION = 0x0112  # Exif 2.3, 4.6.4
_PICTURES = 0xB001  # CIPA DC-007 (multi-picture format), 5.2.3
_INTEGERS = {3: "H", 4: "I"}


def _ifd_value(data: bytes, tag: int) -> int | None:
    """An integer in the first IFD of a TIFF structure, read directly: Pillow's parser copies all it points to."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    with contextlib.suppress(struct.error):
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        for entry in range(min(count, 512)):
            at = start + 2 + 12 * entry
            found, kind, _ = struct.unpack_from(order + "HHI", data, at)
            if found == tag and kind in _INTEGERS:
                return struct.unpack_from(order + _INTEGERS[kind], data, at + 8)[0]
    return None


# --- decoding ------------------------------------------------------------------------------------------------------


def _load(opened: Opened, mode: str, short: int | None) -> Image.Image:
    """Decode, as strictly as each format allows. Only a JPEG saves work by `mode` and `short`, and may ignore them."""
    image, body = opened.pixels, opened.body
    if isinstance(image, jpeg.Jpeg):
        return jpeg.load(image, body, mode, (short, short) if short else None)
    if image.format == "PNG":
        _check_png(body)
    if image.format == "WEBP" and len(body) < 8 + int.from_bytes(body[4:8], "little"):
        raise Undecodable("truncated: the webp says it is longer")
    image.load()
    return image


def turn(head: Header) -> Image.Transpose | None:
    """What makes a decoded picture upright."""
    # Pillow turns a TIFF upright itself while loading it.
    return _TRANSPOSE.get(head.orientation) if head.format != "tiff" else None


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
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    out = Image.new("RGB", image.size)
    for top in range(0, image.height, 256):  # in strips: a large picture would otherwise be in memory four times
        box = (0, top, image.width, min(top + 256, image.height))
        rgba = image.crop(box).convert("RGBA")
        out.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), box)
    return out
