"""webdataset and Pillow over the same tars: one process that makes passes over them on command.

    python decode.py '{"tars": [...], "views": "views.json", "setting": "crop", "size": 224, "batch": 64}'

It runs in its own environment, so it imports none of our modules; ours (../decode.py) imports `serve` from it, so
that both are measured by the same code. Commands on stdin, one per line; answers on stdout, one JSON object per line:

pass           a pass over all images, batch after batch: {"cpu": s, "wall": s, "images": n}
pixels FILE    the same, and the pixels of the images that views.json lists under "compare", as a .npy in that order
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Batches = Iterator[tuple[Any, np.ndarray]]  # keys and uint8 [B, 3, size, size], which the next batch may overwrite


def serve(batches: Callable[[], Batches], compare: list[str]) -> None:
    for line in sys.stdin:
        command, _, path = line.strip().partition(" ")
        kept: dict[str, np.ndarray] = {}
        wanted = set(compare) if command == "pixels" else set()
        images, cpu, wall = 0, time.process_time(), time.perf_counter()
        for keys, pixels_B3HW in batches():
            images += len(keys)
            if wanted:
                kept |= {key: pixels_B3HW[i].copy() for i, key in enumerate(keys) if key in wanted}
        answer = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "images": images}
        if command == "pixels":
            np.save(path, np.stack([kept[key] for key in compare]))
        print(json.dumps(answer), flush=True)


def transform(body: bytes, picture: Any, view: list[int], setting: str, size: int) -> np.ndarray:
    """A view (x, y, width, height, mirrored) of a picture, as users write it with Pillow: uint8 [3, size, size].

    crop: cut out, then resize (torchvision's RandomResizedCrop). box: Pillow's `resize(box=...)`. draft: the same,
    after libjpeg decodes at 1/2, 1/4 or 1/8, if the box then still has `size` pixels.
    """
    from PIL import Image

    x, y, width, height, mirrored = view
    if setting == "crop":
        shown = picture.crop((x, y, x + width, y + height)).resize((size, size), Image.Resampling.BICUBIC)
    else:
        picture, scale = Image.open(io.BytesIO(body)), 1
        if setting == "draft":
            scale = max(s for s in (1, 2, 4, 8) if s == 1 or min(width, height) >= s * size)
            picture.draft("RGB", (picture.width // scale, picture.height // scale))
        box = (x / scale, y / scale, (x + width) / scale, (y + height) / scale)
        shown = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)
    if mirrored:
        shown = shown.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.ascontiguousarray(np.asarray(shown).transpose(2, 0, 1))


def webdataset_batches(spec: dict[str, Any], views: dict[str, list[int]]) -> Batches:
    import webdataset

    setting, size = spec["setting"], spec["size"]
    samples: Any = webdataset.WebDataset(spec["tars"], shardshuffle=False, empty_check=False)
    if setting == "crop":
        samples = samples.decode("pil")
    shown = (
        (key, transform(body, body, views[key], setting, size)) for key, body in samples.to_tuple("__key__", "jpg")
    )
    group: list[tuple[str, np.ndarray]] = []
    for one in shown:
        group.append(one)
        if len(group) == spec["batch"]:
            yield [key for key, _ in group], np.stack([pixels for _, pixels in group])
            group = []
    if group:
        yield [key for key, _ in group], np.stack([pixels for _, pixels in group])


def main() -> None:
    import PIL

    spec = json.loads(sys.argv[1])
    with open(spec["views"]) as file:
        wanted = json.load(file)
    os.sched_setaffinity(0, {spec["core"]})
    print(json.dumps({"build": f"pillow{'-simd' * ('post' in PIL.__version__)} {PIL.__version__}"}), flush=True)
    serve(lambda: webdataset_batches(spec, wanted["views"]), wanted["compare"])


if __name__ == "__main__":
    main()
