"""Views of plain JPEGs decoded straight into a batch, and whole ones made smaller: the reference's pixels for some
40 % of the CPU.

An optional accelerator: `make setup` compiles `crop.c` if there are a C compiler and libjpeg-turbo's headers
(python -m shards.pixels.crop). It decodes only files that the reference decoder (`shards.pixels.image`) also accepts,
with the same pixels; it refuses every other file, and without the compiled library all files. The reference decodes
what it refuses.

For views, decoding at 1/2 or less (DCT scaling) is left out: pixels stay within 50 dB of the reference only if the
scaled picture is still three times too large, so it would only help crops above 1,300 pixels (`xtra bench decode`).
"""

from __future__ import annotations

import ctypes
import functools
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.pixels import image, native
from shards.pixels.image import IMAGE_BUILD, View

Body = bytes | memoryview

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off")
LIBRARIES = ("-ljpeg", "-lm")


class Cropper:
    """The loaded library. Calls from several threads run in parallel."""

    def __init__(self, path: Path, own_huffman: bool = True) -> None:
        """Raises OSError when it cannot be loaded here. `own_huffman`: with our Huffman decoder, if it works here."""
        loaded = ctypes.CDLL(str(path))
        self._sizes, self._views, self._shrink = loaded.crop_sizes, loaded.crop_views, loaded.crop_shrink
        pointer, number = ctypes.c_void_p, ctypes.c_int
        self._sizes.argtypes = [number, pointer, pointer, pointer]
        self._views.argtypes = [number, pointer, pointer, pointer, number, pointer, pointer]
        self._shrink.argtypes = [pointer, ctypes.c_size_t, number, number, number, pointer]
        self._sizes.restype = self._views.restype = None
        loaded.crop_codec.restype = ctypes.c_char_p
        self.codec = loaded.crop_codec().decode()
        self.own_huffman = own_huffman and bool(loaded.crop_fast())

    def sizes(self, bodies: Sequence[Body]) -> list[tuple[int, int] | None]:
        """(width, height) by the header of each picture that can be decoded if its data is sound; None for others."""
        lent, places, lengths = _lent(bodies)
        found = np.empty((len(bodies), 2), np.int32)
        self._sizes(len(bodies), places.ctypes.data, lengths.ctypes.data, found.ctypes.data)
        del lent
        return [(width, height) if width else None for width, height in found.tolist()]

    def decode_batch(
        self, bodies: Sequence[Body], views: Sequence[View | None], size: int, out_B3HW: np.ndarray
    ) -> list[int]:
        """Decode into uint8 [B, 3, size, size]. Returns the indices that are refused (not plain, not sound, or without
        a view), whose pixels are undefined."""
        assert (out_B3HW.shape, out_B3HW.dtype) == ((len(bodies), 3, size, size), np.uint8), out_B3HW.shape
        assert out_B3HW.flags.c_contiguous
        lent, places, lengths = _lent(bodies)
        wanted = np.array([view or _NONE for view in views], np.int32).reshape(-1, len(View._fields))
        done = np.zeros(len(bodies), np.uint8)
        self._views(
            len(bodies),
            places.ctypes.data,
            lengths.ctypes.data,
            wanted.ctypes.data,
            size,
            out_B3HW.ctypes.data,
            done.ctypes.data,
        )
        del lent
        return np.flatnonzero(done == 0).tolist()

    def shrink(self, body: Body, short: int) -> Image.Image | None:
        """The picture as RGB with a short side of `short` pixels, the same as `image.upright` and `image.shrink` make.
        None if it is refused or is not larger than that."""
        stored_width, stored_height = self.sizes([body])[0] or (0, 0)
        smaller = min(stored_width, stored_height)
        if smaller <= short:
            return None
        part = next(part for part in (8, 4, 2, 1) if part <= smaller // short)  # as Pillow's draft decodes
        width, height = image.shrunk_size(-(-stored_width // part), -(-stored_height // part), short)
        out_3HW = np.empty((3, height, width), np.uint8)
        lent, places, lengths = _lent([body])
        done = self._shrink(int(places[0]), int(lengths[0]), part, width, height, out_3HW.ctypes.data)
        del lent
        return Image.merge("RGB", [Image.fromarray(plane_HW) for plane_HW in out_3HW]) if done else None


_NONE = (0,) * len(View._fields)


def _lent(bodies: Sequence[Body]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Arrays over the bodies' memory, to be kept while it is read; their addresses; their lengths."""
    lent = [np.frombuffer(body, np.uint8) for body in bodies]
    places = np.array([array.ctypes.data for array in lent], np.uintp)
    return lent, places, np.array([len(array) for array in lent], np.uintp)


def sizes(bodies: Sequence[Body]) -> list[tuple[int, int] | None]:
    """`Cropper.sizes`; all None if the library was not built or does not load."""
    cropper = loaded()
    return cropper.sizes(bodies) if cropper is not None else [None] * len(bodies)


def decode_batch(bodies: Sequence[Body], views: Sequence[View | None], size: int, out_B3HW: np.ndarray) -> list[int]:
    """`Cropper.decode_batch`; refuses all if the library was not built or does not load."""
    cropper = loaded()
    return cropper.decode_batch(bodies, views, size, out_B3HW) if cropper is not None else list(range(len(bodies)))


def shrink(body: Body, short: int) -> Image.Image | None:
    """`Cropper.shrink`; None for all if the library was not built, does not load, or differs from this Pillow."""
    cropper = loaded()
    return cropper.shrink(body, short) if cropper is not None and _shrinks_as_pillow() else None


@functools.cache
def _shrinks_as_pillow() -> bool:
    """Whether the library's pixels are those of the Pillow installed: others round in another order, or to fewer bits,
    and what is stored must not depend on whether there was a compiler."""
    cropper = loaded()
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (150, 233, 3), np.uint8)
    for pixels_HW3, short in itertools.product((noise_HW3, noise_HW3[:, :160], noise_HW3[:90]), (31, 50, 77)):
        out = io.BytesIO()
        Image.fromarray(pixels_HW3).save(out, "JPEG", quality=90)
        wanted = image.shrink(image.upright(image.read(out.getvalue()), short), short)
        ours = cropper.shrink(out.getvalue(), short) if cropper is not None else None
        if ours is None or ours.tobytes() != wanted.tobytes():
            return False
    return True


def build_name() -> str:
    """The name of the decoder for training, for the record of a run."""
    cropper = loaded()
    return IMAGE_BUILD if cropper is None else f"crop.c with {cropper.codec}, and {IMAGE_BUILD}"


@functools.cache
def loaded() -> Cropper | None:
    try:
        return Cropper(library())
    except OSError:
        return None


def library() -> Path:
    """The path of the library compiled from this exact source, if it was built."""
    return native.library(SOURCE)


def build(target: Path | None = None) -> str:
    """Compile the library; returns why it could not be compiled, or ""."""
    return native.build(SOURCE, target or library(), FLAGS, LIBRARIES)


if __name__ == "__main__":
    why = build()
    print(f"training crops: {f'Pillow alone ({why})' if why else 'crop.c, and Pillow'}")
