"""The only way to pixels on the CPU: a body's format, whether it is sound, and its pixels as RGB.

Every input may be hostile. A body is opened only by the decoder that its first bytes name; its pixel count is checked
before decoding; every failure is an `Undecodable` that says why. This decoder is the reference for what is damaged.

Policy: JPEG (of an MPO the first picture), PNG, WebP, GIF, BMP, TIFF, by content; of animations the first frame.
Pixels are 8-bit RGB, upright by EXIF orientation: gray is repeated, palettes are looked up, CMYK and YCCK are read in
Adobe's inverted sense, 16-bit samples keep their high byte (32-bit ones are unsupported), alpha is laid over white; ICC
profiles are not applied (the index says which samples have one). It is strict: a truncated file is refused even if most
of it could be shown, and so is a JPEG with damaged data, as far as `shards.pixels.jpeg` can detect it.
"""

from __future__ import annotations

import contextlib
import functools
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
from shards.pixels import jpeg, jpeg_header, png

IMAGE_BUILD = f"{'pillow-simd' if 'post' in PIL.__version__ else 'pillow'} {PIL.__version__}"

_PILLOW_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tiff": "TIFF"}
MAX_PIECES = 100_000  # strips or tiles of a TIFF; one a row is usual, and no picture within the pixel cap needs more
GLANCE = 32  # pixels of the short side
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
# Text chunks of a PNG are inflated when it is opened. Pillow's cap is 1 MiB for each; this is the cap for all together.
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
    """The properties in a picture's header, read before any pixel is decoded."""

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

    An MPO begins like any JPEG; only `header` distinguishes it.
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
    """A body whose header has been read. It can be decoded once: every decoding needs its own `Opened`."""

    header: Header
    body: bytes
    plain: jpeg_header.Plain | None = None  # of a JPEG that Pillow did not have to open for its header
    opened: Image.Image | None = None  # by Pillow, if it had to

    @functools.cached_property
    def pixels(self) -> Image.Image:
        """Pillow's picture, not decoded yet."""
        return self.opened if self.opened is not None else jpeg.opened(self.body)


def read(body: bytes, max_pixels: int = MAX_PIXELS) -> Opened:
    """Parse only the header. Raises Undecodable, Unsupported, TooManyPixels."""
    with _refusals():
        if body.startswith(_MAGIC["jpeg"]) and (plain := jpeg_header.plain(body)) is not None:
            _check_size(plain.width, plain.height, max_pixels)
            return Opened(_plain_header(plain), body, plain)
        image = _open(body, max_pixels)
        return Opened(_header(image), body, opened=image)


def header(body: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """The header of a body. Raises Undecodable, Unsupported, TooManyPixels."""
    return read(body, max_pixels).header


def decode(body: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture as RGB, upright, first frame. Raises Undecodable, Unsupported, TooManyPixels."""
    return upright(read(body, max_pixels))


def check(body: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Prove at lower cost that `decode` will work; see `glance`. Raises Undecodable, Unsupported, TooManyPixels."""
    return glance(read(body, max_pixels))


def upright(opened: Opened, short: int | None = None) -> Image.Image:
    """The picture as RGB, orientation applied. Raises Undecodable.

    With `short`, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size, at lower cost, if its short side keeps so many
    pixels.
    """
    with _refusals():
        rgb = _to_rgb(_load(opened, "RGB", short))
        how = turn(opened.header)
        return rgb.transpose(how) if how is not None else rgb


def glance(opened: Opened) -> Image.Image:
    """A small upright gray picture, as proof that all of the data can be decoded. Raises Undecodable.

    All entropy-coded data of a JPEG is read, but only an eighth of its side is reconstructed (more if that would be
    under 32 pixels), without colour. Other formats are decoded whole.
    """
    with _refusals():
        image = _load(opened, "L", GLANCE)
        gray = image if image.mode == "L" else _to_rgb(image).convert("L")
        how = turn(opened.header)
        return gray.transpose(how) if how is not None else gray


def repaired(body: bytes) -> bytes:
    """The body with the missing end marker of a JPEG, if nothing else is missing, or without damaged ancillary chunks
    of a PNG; any other body unchanged. Raises Undecodable."""
    if body.startswith(png.START):
        return png.repaired(body)
    if not body.startswith(_MAGIC["jpeg"]):
        return body
    with _refusals():
        return jpeg.repaired(body)


def shrink(image: Image.Image, short: int) -> Image.Image:
    """Reduced to a short side of `short` pixels, proportions kept, each pixel the average of the area that it covers.

    Not for enlarging. (These area averages are those of OpenCV's INTER_AREA. Pillow's bicubic filter costs 2.5 times as
    much, and pictures are resampled again when they are cropped for training.)
    """
    size = shrunk_size(image.width, image.height, short)
    return image if size == image.size else image.resize(size, Image.Resampling.BOX)


def shrunk_size(width: int, height: int, short: int) -> tuple[int, int]:
    """The (width, height) that `shrink` gives."""
    scale = short / min(width, height)
    assert scale <= 1, f"{width}x{height} is not larger than {short}"
    return max(short, round(width * scale)), max(short, round(height * scale))


def thumbnail(body: bytes, side: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture within side x side pixels, upright, as RGB; a JPEG is decoded at the smallest sufficient scale.

    Raises Undecodable, Unsupported, TooManyPixels.
    """
    picture = upright(read(body, max_pixels), side)
    picture.thumbnail((side, side))
    return picture


class View(NamedTuple):
    """A view of an upright picture, in pixels: a box is cut out, the cut is resized (bicubic, antialiased), and a
    square window is taken from that, perhaps mirrored. The side of the window is given separately."""

    x: int
    y: int
    width: int
    height: int
    to_width: int  # of the whole resized cut
    to_height: int
    left: int  # of the window in the resized cut
    top: int
    mirrored: bool = False


def crop_view(box: tuple[int, int, int, int], size: int, mirrored: bool = False) -> View:
    """The view of a box (x, y, width, height), resized to size x size."""
    return View(*box, size, size, 0, 0, mirrored)


def centre_view(width: int, height: int, resize: int, size: int) -> View:
    """The view of a picture of width x height resized to short side `resize`, then cropped to its central size x size
    (torchvision's Resize, CenterCrop). Raises ValueError if size > resize."""
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

    The box is cut out first, as in torchvision: nothing outside it affects the pixels.
    Raises TooManyPixels if the resized picture would be too large, as for a very narrow one.
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
    """Turn any exception of Pillow on hostile bytes into an Undecodable; keep its warnings off the user's terminal."""
    # Once per process, as catch_warnings is not thread-safe: what Pillow warns of is either harmless (unreadable EXIF)
    # or refused here. Tests reset the filters, hence the check in every call.
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
    """Raises Undecodable if the first picture of a TIFF lists too many strips or tiles: Pillow makes an object for
    each, needed or not, 2 GB from a file of 26 MB."""
    order = "<" if body[:2] == b"II" else ">"
    big = 43 in body[2:4]
    where, number, entry = ("Q", "Q", "HHQ8x") if big else ("I", "H", "HHI4x")
    with contextlib.suppress(struct.error):  # Pillow will report the damage
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


def _plain_header(plain: jpeg_header.Plain) -> Header:
    orientation = _ifd_value(plain.exif.removeprefix(b"Exif\0\0"), _ORIENTATION) if plain.exif else None
    return Header(
        format="jpeg",
        width=plain.width,
        height=plain.height,
        mode=plain.mode,
        orientation=orientation if orientation in _TRANSPOSE else 1,
        progressive=plain.progressive,
        subsampling=plain.subsampling,
        icc=plain.icc,
    )


def _is_ultra_hdr(photo: jpeg.Jpeg) -> bool:
    """Whether only a gain map for the picture (Ultra HDR), which readers may ignore, follows it."""
    return any(name == "APP1" and b' hdrgm:Version="' in data for name, data in photo.applist)


_PIECES = (273, 279, 324, 325)  # TIFF 6.0: StripOffsets, StripByteCounts, TileOffsets, TileByteCounts
_ORIENTATION = 0x0112  # Exif 2.3, 4.6.4
_PICTURES = 0xB001  # CIPA DC-007 (multi-picture format), 5.2.3
_INTEGERS = {3: "H", 4: "I"}


def _ifd_value(data: bytes, tag: int) -> int | None:
    """An integer in the first IFD of a TIFF structure, read directly: Pillow's parser copies all data it refers to."""
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
    """Decode, as strictly as each format allows. `mode` and `short` are hints that only JPEGs use, to save work."""
    body = opened.body
    if opened.plain is not None and mode == "L" and short and (known := jpeg.walked(opened.plain, body, short)):
        return known
    image = opened.pixels
    if isinstance(image, jpeg.Jpeg):
        return jpeg.load(image, body, mode, (short, short) if short else None)
    if image.format == "PNG":
        _check_png(body)
    if image.format == "WEBP" and len(body) < 8 + int.from_bytes(body[4:8], "little"):
        raise Undecodable("truncated: the webp says it is longer")
    image.load()
    return image


def turn(head: Header) -> Image.Transpose | None:
    """The transposition that makes a decoded picture upright."""
    # Pillow turns a TIFF upright itself while loading it.
    return _TRANSPOSE.get(head.orientation) if head.format != "tiff" else None


def _check_png(body: bytes) -> None:
    """Check the checksums of critical chunks, which Pillow ignores for picture data, and the end chunk."""
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
    for top in range(0, image.height, 256):  # in strips, as a large picture would otherwise be in memory four times
        box = (0, top, image.width, min(top + 256, image.height))
        rgba = image.crop(box).convert("RGBA")
        out.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), box)
    return out
