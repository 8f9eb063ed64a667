"""torchvision over the same tars: one process that makes passes over them on command, as decode.py does.

    python torchvision_crop.py '{"tars": [...], "views": "views.json", "size": 224, "batch": 64}'

Its `decode_jpeg`, then the cut resized as its `resize` does by default (uint8, bicubic, antialiased), by the operators
that both call, on one thread. Bodies lie in memory maps at known places: no reader's cost is counted against it, and no
body is copied. Its decoder is the compiled part alone: the wheel of the package index does not import with a torch
without CUDA, as its library names CUDA's. There, libraries of these names that contain nothing are loaded first.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from decode import Batches, serve  # type: ignore[missing-import]

CUDA = ("libc10_cuda.so", "libtorch_cuda.so")
DATA = "char _ZN3c104cuda20CUDACachingAllocator9allocatorE[64];\n"  # the one thing that is needed without a call
RGB = 3  # torchvision.io.ImageReadMode


def load_decoder() -> None:
    """torchvision's operators on pictures. Raises OSError if they cannot be loaded."""
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    library = os.fsencode(Path(spec.origin).with_name("image.so"))
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.restype, dlopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p, ctypes.c_int]
    if dlopen(library, os.RTLD_LAZY):
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.c"
        source.write_text(DATA)
        for name in CUDA:
            subprocess.run(
                ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", f"{folder}/{name}", str(source)], check=True
            )
            ctypes.CDLL(f"{folder}/{name}", ctypes.RTLD_GLOBAL)
    if not dlopen(library, os.RTLD_LAZY):
        raise OSError(f"{library.decode()} does not load")


def bodies_of(tars: list[str]) -> list[tuple[str, memoryview]]:
    found = []
    for path in tars:
        with open(path, "rb") as file:
            memory = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, kind = member.name.rpartition(".")
                if kind == "jpg":
                    found.append((key, memory[member.offset_data : member.offset_data + member.size]))
    return found


def batches(spec: dict[str, Any], bodies: list[tuple[str, memoryview]], views: dict[str, list[int]]) -> Batches:
    size = spec["size"]
    out_B3HW = torch.empty((spec["batch"], 3, size, size), dtype=torch.uint8)
    for group in _groups(bodies, spec["batch"]):
        for row, (key, body) in enumerate(group):
            x, y, width, height, mirrored = views[key]
            picture = torch.ops.image.decode_jpeg(torch.frombuffer(body, dtype=torch.uint8), RGB, False)
            cut = picture[None, :, y : y + height, x : x + width]
            shown = torch.nn.functional.interpolate(cut, (size, size), mode="bicubic", antialias=True)[0]
            out_B3HW[row] = shown.flip(-1) if mirrored else shown
        yield [key for key, _ in group], out_B3HW[: len(group)].numpy()


def _groups(bodies: list[tuple[str, memoryview]], size: int) -> Iterator[list[tuple[str, memoryview]]]:
    for at in range(0, len(bodies), size):
        yield bodies[at : at + size]


def main() -> None:
    spec = json.loads(sys.argv[1])
    wanted = json.loads(Path(spec["views"]).read_text())
    os.sched_setaffinity(0, {spec["core"]})
    torch.set_num_threads(1)
    load_decoder()
    print(json.dumps({"build": f"torchvision {version('torchvision')}"}), flush=True)
    bodies = bodies_of(spec["tars"])
    serve(lambda: batches(spec, bodies, wanted["views"]), wanted["compare"])


if __name__ == "__main__":
    main()
