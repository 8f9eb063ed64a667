"""Our stream and decoder in a separate process, for `xtra bench decode`; peers/decode.py documents the commands."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from jobs.bench.peers import Batches, serve
from shards.manifest import read_manifest
from shards.pixels import crop, image
from shards.stream import Order, Stream
from xtra.data import Augment, train_batches


def stream_batches(spec: dict[str, Any]) -> Batches:
    """One epoch in the default shuffled order, as in training."""
    manifest = read_manifest(spec["data"])
    with closing(Stream(manifest, Order(), spec["batch"], stop_at=manifest.samples)) as stream:
        for batch in train_batches(stream, spec["size"], Augment(), seed=spec["seed"], threads=1):
            yield batch.keys, batch.images_B3HW.numpy()
            batch.release()


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {spec["core"]})
    if not spec["accelerator"]:
        crop.loaded = lambda: None  # type: ignore[assignment]
    print(json.dumps({"build": image.IMAGE_BUILD, "accelerator": crop.loaded() is not None}), flush=True)
    serve(lambda: stream_batches(spec), json.loads(Path(spec["views"]).read_text())["compare"])
