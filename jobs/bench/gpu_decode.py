"""Decoding on a GPU: images/s by library, whole pictures or training crops, and the distance from the CPU reference.

`xtra bench gpu-decode --data DATASET`, on a machine with a GPU and the extra `gpu`. Images/s are by the wall clock:
from encoded bodies in memory to a checked uint8 batch on the device. Refused pictures are counted, not decoded. The
ratios: the best rate of each library, and its median PSNR on crops.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from jobs.bench import result
from shards.manifest import read_manifest
from shards.pixels import View, image
from shards.stream import once
from xtra import gpu_decode
from xtra.data import Augment, crop_box


@dataclass(frozen=True)
class Config:
    data: str = ""  # dataset whose first images are decoded
    images: int = 2048  # kept in memory and decoded repeatedly
    size: int = 224  # side of the output square, pixels
    batches: tuple[int, ...] = (64, 256, 1024)
    callers: tuple[int, ...] = (1, 2)  # concurrent threads, each with its own decoder
    libraries: tuple[Literal["nvimgcodec", "torchcodec"], ...] = ("nvimgcodec", "torchcodec")
    seconds: float = 5.0  # per variant
    threads: int = 4  # of the library, for its work on the host
    device: str = "cuda"  # "cpu": nvImageCodec's own CPU decoder, which only shows that the bench works

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is missing: give --data DATASET, whose images are decoded")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"no GPU to measure: torch {torch.__version__} sees none here (see xtra doctor)")


@dataclass(frozen=True)
class Variant:
    library: str
    shown: Literal["crop", "whole"]  # training crops, or all of each picture
    batch: int
    callers: int


def run(config: Config) -> dict[str, Any]:
    """Measure every variant. Raises ValueError without a GPU, or without any of the libraries."""
    device = torch.device("cuda", torch.cuda.current_device()) if config.device == "cuda" else torch.device("cpu")
    bodies = bodies_of(config.data, config.images)
    rows: list[dict[str, Any]] = []
    for library in config.libraries:
        try:
            gpu_decode.library(device, config.threads, [library])
        except ValueError as why:
            print(f"{library} is skipped: {why}", flush=True)
            continue
        shown: tuple[Literal["crop", "whole"], ...] = ("crop", "whole")
        for variant in itertools.starmap(Variant, itertools.product([library], shown, config.batches, config.callers)):
            rows.append(measure(variant, bodies, device, config.size, config.seconds, config.threads))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if not rows:
        raise ValueError("no library to measure: install the extra gpu (see xtra doctor)")
    ratios = {}
    for library in sorted({row["library"] for row in rows}):
        own = [row for row in rows if row["library"] == library]
        ratios[f"{library}_images_per_s"] = max(row["images_per_s"] for row in own)
        ratios[f"{library}_psnr_db"] = statistics.median(row["psnr_db"] for row in own if row["shown"] == "crop")
    return result("gpu-decode", rows, ratios)


def bodies_of(data: str, images: int) -> list[bytes]:
    """The first encoded images of a dataset."""
    bodies: list[bytes] = []
    for batch in once(read_manifest(data), 256):
        bodies += [bytes(sample.body) for sample in batch]
        batch.release()
        if len(bodies) >= images:
            break
    return bodies[:images]


def views_of(bodies: Sequence[bytes], shown: Literal["crop", "whole"], size: int) -> list[View]:
    """The view of each body: its first epoch's training crop, or the whole picture squeezed into the square."""
    views = []
    for i, body in enumerate(bodies):
        head = image.header(body)
        whole = (0, 0, head.width, head.height)
        box = crop_box(head.width, head.height, Augment(), 0, 0, i) if shown == "crop" else whole
        views.append(image.crop_view(box, size))
    return views


def measure(
    variant: Variant, bodies: Sequence[bytes], device: torch.device, size: int, seconds: float, threads: int
) -> dict[str, Any]:
    """One row: images per wall-clock and per CPU second, the number refused, PSNR against the reference."""
    views = views_of(bodies, variant.shown, size)
    decoders = [
        gpu_decode.GpuDecoder(device, gpu_decode.library(device, threads, [variant.library]))
        for _ in range(variant.callers)
    ]
    psnrs = list(
        _psnrs(decoders[0], bodies[: variant.batch], views[: variant.batch], size)
    )  # also warms up the first decoder
    for decoder in decoders[1:]:
        decoder(bodies[: variant.batch], views[: variant.batch], size)
    for decoder in decoders:
        decoder.counts.clear()
    begun, cpu = time.perf_counter(), time.process_time()
    until = begun + seconds

    def call(decoder: gpu_decode.GpuDecoder) -> None:
        for start in itertools.cycle(range(0, max(1, len(bodies) - variant.batch + 1), variant.batch)):
            decoder(bodies[start : start + variant.batch], views[start : start + variant.batch], size)
            if time.perf_counter() >= until:
                return

    with ThreadPoolExecutor(variant.callers) as pool:
        list(pool.map(call, decoders))
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    on_gpu, seen = sum(d.counts["gpu"] for d in decoders), sum(sum(d.counts.values()) for d in decoders)
    return {
        "library": variant.library,
        "shown": variant.shown,
        "batch": variant.batch,
        "callers": variant.callers,
        "images_per_s": round(on_gpu / took, 1),
        "cpu_us_per_image": round(1e6 * cpu / max(on_gpu, 1), 1),
        "refused": round(1 - on_gpu / max(seen, 1), 4),
        "psnr_db": round(statistics.median(psnrs), 2) if psnrs else math.nan,
        "psnr_p5_db": round(float(np.percentile(psnrs, 5)), 2) if psnrs else math.nan,
    }


def _psnrs(
    decoder: gpu_decode.GpuDecoder, bodies: Sequence[bytes], views: Sequence[View], size: int
) -> Iterator[float]:
    """PSNR of every decoded picture against the reference, dB; equal ones count as 99."""
    images_B3SS, refused = decoder(bodies, views, size)
    found_B3SS = images_B3SS.cpu().numpy().astype(np.float64)
    wanted_3SS = np.empty((3, size, size), np.uint8)
    for i in sorted({*range(len(bodies))} - {*refused}):
        image.show(image.decode(bodies[i]), views[i], wanted_3SS)
        error = float(((found_B3SS[i] - wanted_3SS) ** 2).mean())
        yield min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0
