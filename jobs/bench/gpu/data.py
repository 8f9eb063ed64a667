"""Decoding on a device, and end to end: shards -> decoded batches -> training steps, with the wait for data."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from jobs.bench import gpu_decode as decoding, stream_data
from jobs.bench.gpu import step
from shards import store
from shards.manifest import Manifest, read_manifest
from shards.pixels import crop, image
from shards.stream import Order, Stream
from xtra import drop_path, gpu_decode
from xtra.blocks import target_blocks
from xtra.data import Augment, decode_batch, normalise, train_batches
from xtra.loss import next_block_loss
from xtra.model import Xtra
from xtra.optim import OptimConfig, make_optimizer

WARM = 8  # warm-up batches: all forms of the layers are compiled, and buffers fill
AHEAD = 4  # steps that the host may be ahead of the device, so that measuring never stalls it

Row = dict[str, Any]
Run = Callable[[str, Callable[[], Row]], None]  # gets a name and a function that computes a row


def dataset(stack: ExitStack, data: str, images: int) -> Manifest:
    """A dataset; or one made from a folder's or a tar's JPEGs, or from synthetic ones of about 110 KB if `data` is
    empty, in a folder that is removed when the stack exits."""
    if data and (store.exists(store.join(data, "dataset.json")) or "@" in data):
        return read_manifest(data)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "set"
    stream_data.written(folder, images, stream_data.pool(data or None))
    return read_manifest(str(folder))


def decode_arms(
    bodies: Sequence[bytes], size: int, device: torch.device, seconds: float, threads: int, run: Run
) -> None:
    """The CPU with its threads, then everything that can decode on the device, for crops and whole pictures."""
    run("decode on the CPU, crops", lambda: on_cpu(bodies, size, seconds, threads))
    run("decode torchvision, whole", lambda: torchvision(bodies, device, seconds))
    for library in gpu_decode.LIBRARIES:
        try:
            gpu_decode.library(device, threads, [library])
        except ValueError as why:
            print(f"  {library} is skipped: {why}", flush=True)
            continue
        for shown in ("crop", "whole"):
            for callers in (1, 2):
                variant = decoding.Variant(library, shown, min(256, len(bodies)), callers)
                run(
                    f"decode {library}, {shown}, {callers} callers",
                    lambda variant=variant: decoding.measure(variant, bodies, device, size, seconds, threads),
                )


def on_cpu(bodies: Sequence[bytes], size: int, seconds: float, threads: int) -> Row:
    """Images/s of training crops on CPU threads, as in training."""
    from concurrent.futures import ThreadPoolExecutor

    views = decoding.views_of(bodies, "crop", size)
    begun, cpu = time.perf_counter(), time.process_time()

    def work(thread: int) -> int:
        out_B3HW, done = np.empty((8, 3, size, size), np.uint8), 0
        while not done or time.perf_counter() - begun < seconds:
            at = (thread * 8 + done) % max(1, len(bodies) - 8)
            part = slice(at, at + 8)
            for i in decode_batch(bodies[part], views[part], size, out_B3HW):
                image.show(image.decode(bodies[at + i]), views[at + i], out_B3HW[i])
            done += len(bodies[part])
        return done

    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    took, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "library": f"CPU, {threads} threads, {crop.build_name()}",
        "shown": "crop",
        "images_per_s": round(done / took, 1),
        "cpu_us_per_image": round(1e6 * cpu / done, 1),
    }


def torchvision(bodies: Sequence[bytes], device: torch.device, seconds: float) -> Row:
    """torchvision's decode_jpeg, whole pictures, not resized. Raises ImportError without torchvision."""
    from torchvision.io import ImageReadMode, decode_jpeg  # pyrefly: ignore

    encoded = [torch.frombuffer(bytearray(body), dtype=torch.uint8) for body in bodies[:256]]
    begun, done = 0.0, 0
    for turn in range(1 << 30):
        if turn == 1:  # the first turn is a warm-up
            begun = time.perf_counter()
        decoded = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
        step.wait_for(device)
        done += len(decoded) if turn else 0
        if turn and time.perf_counter() - begun > seconds:
            break
    return {
        "library": "torchvision",
        "shown": "whole, not resized",
        "images_per_s": round(done / (time.perf_counter() - begun), 1),
    }


def end_to_end(
    manifest: Manifest, model: Xtra, device: torch.device, batch: int, seconds: float, threads: int, decoder: str
) -> Row:
    """Train from the shards for `seconds`; measure the share of time that the device waited between steps, by its own
    clock: the host may wait for data while the device still computes. Raises ValueError if the decoder is unavailable.
    """
    on_gpu = gpu_decode.GpuDecoder(device, gpu_decode.library(device, threads)) if decoder == "gpu" else None
    c, size = model.config, model.config.image
    optimizer = make_optimizer(model, OptimConfig(lr=1e-6))
    clock, samples, begun = step.Clock(device), 0, 0.0
    with closing(Stream(manifest, Order(), batch, 0, 1 << 40)) as stream:
        for number, decoded in enumerate(train_batches(stream, size, Augment(), 0, threads, device=on_gpu)):
            clock.mark()
            images = normalise(decoded.images_B3HW.to(device, non_blocking=True))
            decoded.release()
            drop_LSB = (
                drop_path.scales(c.drop_path, c.depth, 0, decoded.epoch_B, decoded.sample_B) if c.drop_path else None
            )
            with torch.autocast(device.type, torch.bfloat16):
                predictions = model(images, drop_LSB)
            next_block_loss(predictions, target_blocks(images, c.side)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            clock.mark()
            if device.type == "cuda" and number >= AHEAD:
                clock.marks[-1 - 2 * AHEAD].synchronize()
            if number < WARM:
                begun = time.perf_counter()
            else:
                samples += len(decoded)
                if time.perf_counter() - begun > seconds:
                    break
        step.wait_for(device)
    del clock.marks[: 2 * WARM - 1]  # from the end of the last warm-up step
    spent = clock.seconds()  # wait, step, wait, step ...
    waits, took = spent[::2], sum(spent)
    done = on_gpu.report() if on_gpu else {"decoder": "cpu", "gpu": 0, "cpu": {}}
    by_cpu = sum(done["cpu"].values())
    return {
        "decoder": f"{done['decoder']}, {threads} threads",
        "batch": batch,
        "images_per_s": round(samples / took, 1),
        "wait_share": round(sum(waits) / took, 4),
        "wait_median_ms": round(1e3 * statistics.median(waits), 2),
        "cpu_fallback_share": round(by_cpu / max(1, by_cpu + done["gpu"]), 4) if on_gpu else None,
    }
