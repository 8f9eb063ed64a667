"""The gray picture of a sound baseline JPEG at an eighth of its size, at half the cost of decoding it at that size.

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
FLAGS = ("-O2", "-std=c11")


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
        self._walk = loaded.entropy_plane
        self._walk.restype = ctypes.c_long
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self._walk.argtypes = [pointer, ctypes.c_char_p, size, pointer, size, pointer, size]
        loaded.entropy_context.restype = loaded.entropy_overrun.restype = size
        self._overrun = loaded.entropy_overrun()
        self._context = ctypes.create_string_buffer(loaded.entropy_context())
        self._scratch = ctypes.create_string_buffer(self._overrun)

    def plane(self, body: bytes, width: int, height: int) -> tuple[tuple[int, int], bytes] | None:
        """((width, height), gray rows) of a picture of width x height pixels at an eighth of its size; or None."""
        if len(body) > LARGEST:
            return None
        need = len(body) + self._overrun
        if len(self._scratch) < need:
            self._scratch = ctypes.create_string_buffer(need + need // 4)
        size = ((width + 7) // 8, (height + 7) // 8)
        plane = ctypes.create_string_buffer(size[0] * size[1])
        done = self._walk(self._context, body, len(body), self._scratch, len(self._scratch), plane, len(plane))
        return (size, plane.raw) if done and done == (size[0] << 16 | size[1]) else None


_threads = threading.local()


def plane(body: bytes, width: int, height: int) -> tuple[tuple[int, int], bytes] | None:
    """`Walker.plane` of this thread's walker; None if the library was not built or does not load."""
    walker = getattr(_threads, "walker", _threads)
    if walker is _threads:
        walker = _threads.walker = _load()
    return walker.plane(body, width, height) if walker is not None else None


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
