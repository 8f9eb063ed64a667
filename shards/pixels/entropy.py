"""The gray picture of a sound JPEG at an eighth of its size, at half the cost of decoding it at that size; and whether
the scans of a progressive one are damaged, which nothing else finds.

An optional accelerator: `make setup` compiles `entropy.c` if there is a C compiler (python -m shards.pixels.entropy).
It decodes only files that the reference decoder also accepts, with the same pixels; for every other file, or without
the compiled library, it returns None and the reference decoder is used.
"""

from __future__ import annotations

import ctypes
import threading
from pathlib import Path

from shards.pixels import native

SOURCE = Path(__file__).with_suffix(".c")
LARGEST = 8 << 20  # bytes; each thread keeps a buffer of the size of its largest body
FLAGS = ("-O3", "-std=c11")


Plane = tuple[tuple[int, int], bytes]  # (width, height), gray rows


def library() -> Path:
    """The path of the library compiled from this exact source, if it was built."""
    return native.library(SOURCE)


def build(target: Path | None = None) -> str:
    """Compile the library; returns why it could not be compiled, or ""."""
    return native.build(SOURCE, target or library(), FLAGS)


class Walker:
    """The library and its buffers; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when it cannot be loaded here."""
        loaded = ctypes.CDLL(str(path))
        self._walk, self._scans = loaded.entropy_plane, loaded.entropy_progressive
        self._walk.restype = self._scans.restype = ctypes.c_long
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._walk.argtypes = [pointer, ctypes.c_char_p, size, pointer, size, pointer, size]
        self._scans.argtypes = self._walk.argtypes[1:]
        loaded.entropy_context.restype = loaded.entropy_scratch.restype = size
        loaded.entropy_scratch.argtypes = [size]
        self._need = loaded.entropy_scratch
        self._context = ctypes.create_string_buffer(loaded.entropy_context())
        self._scratch = ctypes.create_string_buffer(self._need(0))

    def plane(self, body: bytes, width: int, height: int) -> Plane | None:
        """The plane of a picture of width x height pixels at an eighth of its size; or None."""
        if len(body) > LARGEST:
            return None
        size, plane = self._room(body, width, height)
        done = self._walk(self._context, body, len(body), self._scratch, len(self._scratch), plane, len(plane))
        return (size, plane.raw) if done and done == (size[0] << 16 | size[1]) else None

    def progressive(self, body: bytes, width: int, height: int) -> tuple[bool | None, Plane | None]:
        """Whether the scans of a progressive JPEG of width x height pixels are sound, None if that is not known; of a
        sound one also what `plane` gives, unless that takes more than mean values."""
        if len(body) > LARGEST:
            return None, None
        size, plane = self._room(body, width, height)
        done = self._scans(body, len(body), self._scratch, len(self._scratch), plane, len(plane))
        return (done > 0) if done else None, (size, plane.raw) if done == (size[0] << 16 | size[1]) else None

    def _room(self, body: bytes, width: int, height: int) -> tuple[tuple[int, int], ctypes.Array[ctypes.c_char]]:
        """The size of a plane, and memory for it; the scratch made large enough for the body."""
        need = self._need(len(body))
        if len(self._scratch) < need:
            self._scratch = ctypes.create_string_buffer(need + need // 4)
        size = ((width + 7) // 8, (height + 7) // 8)
        return size, ctypes.create_string_buffer(size[0] * size[1])


_threads = threading.local()


def plane(body: bytes, width: int, height: int) -> Plane | None:
    """`Walker.plane` of this thread's walker; None if the library was not built or does not load."""
    walker = _own()
    return walker.plane(body, width, height) if walker is not None else None


def progressive(body: bytes, width: int, height: int) -> tuple[bool | None, Plane | None]:
    """`Walker.progressive` of this thread's walker; nothing is known if the library was not built or does not load."""
    walker = _own()
    return walker.progressive(body, width, height) if walker is not None else (None, None)


def _own() -> Walker | None:
    if not hasattr(_threads, "walker"):
        _threads.walker = _load()
    return _threads.walker


def available() -> bool:
    return _load() is not None


def _load() -> Walker | None:
    try:
        return Walker(library())
    except OSError:
        return None


if __name__ == "__main__":
    why = build()
    print(f"JPEG checks: {f'Pillow alone ({why})' if why else 'entropy.c, and Pillow'}")
