"""The cost of checkpoints: bytes, seconds that training waits, seconds of writing in the background and of loading.

The state is a real one (a model and AdamW's moments), saved as the trainer does: copied while training waits
(`xtra.run.checkpoint_writer`), then written, hashed and put in the background. One copy at a time; the needed memory
and disk are printed first, and the bench refuses to run with less. With --rounds 0 it is written without a copy, in
half the memory, for loading alone.

Loading begins, as when a run continues, with a model and an optimiser without state. `load` finds the files in the
page cache, as far as they fit; for `load, from disk` they were dropped from it. The two take turns.

A checkpoint is due every `every` samples, so its share of the time depends on the rate. Three rates are used: that of
one H100 at its peak in the required FLOPs (a bound: no machine reaches it, and a slower one loses less), that of a
training step measured here, and --rate. `waiting` counts a copy into the memory of an earlier one (only a run's first
allocates memory) and any writing that is unfinished when the next one is due; on CPUs, `contended` also counts the CPU
time that writing takes from training.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from jobs.bench import result
from jobs.bench.rounds import require_at_least
from shards import store
from xtra.blocks import target_blocks
from xtra.loss import next_block_loss
from xtra.model import SIZES, Xtra, build
from xtra.optim import OptimConfig, make_optimizer
from xtra.run import checkpoint

T = TypeVar("T")
IDEAL_H100 = {"b16": 4251.0, "h14": 979.0}
"""Images/s at 989 TFLOP/s, for the FLOPs of a step without the last block and without masked pairs."""
GB = 1e9
LOADS = ("load", "load, from disk")


@dataclass(frozen=True)
class Config:
    size: str = "b16"  # a name in xtra.model.SIZES; h14 needs 22 GB of memory, 12 with --rounds 0
    out: str = (
        ""  # folder (any store) to write into, in a subfolder that is emptied afterwards; default: a temporary one
    )
    every: int = 1_000_000  # samples between checkpoints
    rate: float = 0.0  # an additional rate in samples/s; 0: none
    images: int = 2  # in the training step that is timed for the measured rate; 0: no step
    rounds: int = 2  # copies after the first; 0: no copy
    loads: int = 1  # times that it is loaded from the page cache, and from the disk
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"size is {self.size!r}; it must be one of {', '.join(SIZES)}")
        require_at_least(self, every=1, rate=0, images=0, rounds=0, loads=1)


@dataclass(frozen=True)
class Timed:
    seconds: float
    cpu_seconds: float


def run(config: Config) -> dict[str, Any]:
    """Measure and print. Raises ValueError if memory or disk do not suffice."""
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Xtra(SIZES[config.size]).parameters())
    _require_room(config, parameters)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="xtra-bench-") as scratch:
        # An existing checkpoint, from an earlier run or the user, would not be written again.
        root = store.join(config.out, f"bench-{uuid.uuid4().hex[:12]}") if config.out else scratch
        try:
            step = _measure(config, root, rows.append)
        finally:
            if config.out and store.is_local(root):
                shutil.rmtree(store.local_path(root), ignore_errors=True)
    for row in rows:
        spent = f"{row['seconds']:8.2f} s  {row['cpu_seconds']:7.2f} s of CPU" if "seconds" in row else " " * 28
        print(f"{row['what']:<20} {spent}  {_gb(row['bytes']) if 'bytes' in row else ''}".rstrip())
    ratios: dict[str, float] = {}
    for what, name in zip(LOADS, ("load_s", "load_from_disk_s")):
        each = [row["seconds"] for row in rows if row["what"] == what]
        ratios |= {name: statistics.median(each), f"{name}_least": min(each), f"{name}_most": max(each)}
    measured = {"measured": config.images / step.seconds} if step else {}
    ideal = {"h100_ideal": IDEAL_H100[config.size]} if config.size in IDEAL_H100 else {}
    given = {"given": config.rate} if config.rate else {}
    for name, rate in (ideal | measured | given).items() if config.rounds else ():
        for kind, share in shares(rows, config.every, rate).items():
            if kind == "waiting" or (name == "measured" and config.device == "cpu"):
                ratios[f"{kind}_share_{name}"] = share
        rows.append({"what": f"rate {name}", "samples_per_s": rate})
        print(f"at {rate:,.2f} samples/s ({name}): a checkpoint every {config.every / rate:,.0f} s")
    return result("checkpoint", [{"size": config.size, "parameters": parameters}, *rows], ratios)


def shares(rows: list[dict[str, Any]], every: int, rate: float) -> dict[str, float]:
    """The shares of a run's time that checkpoints take, at a rate in samples/s."""
    copy = statistics.median(row["seconds"] for row in rows if row["what"] == "copy")
    (write,) = [row for row in rows if row["what"] == "write, hash, put"]
    interval = every / rate
    waiting = copy + max(0.0, write["seconds"] - interval)
    contended = waiting + write["cpu_seconds"] / len(os.sched_getaffinity(0))
    return {"waiting": waiting / (interval + waiting), "contended": contended / (interval + contended)}


def _measure(config: Config, root: str, report: Callable[[dict[str, Any]], None]) -> Timed | None:
    """Every phase in turn; returns the training step's time, if one was requested."""
    device = torch.device(config.device)
    model = build(SIZES[config.size], 0, device)
    optimizer = make_optimizer(model, OptimConfig())
    step = None
    if config.images:
        _step(model, optimizer, config.images)  # warm up
        _, step = _timed(device, lambda: _step(model, optimizer, config.images))
        report({"what": f"step of {config.images} images", **asdict(step)})
    else:
        for p in model.parameters():  # free the gradients' memory, as after a step
            optimizer.state[p] = {
                "step": torch.ones(()),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.ones_like(p),
            }
    state = {"cursor": {"manifest": ""}}
    taken = None if config.rounds else checkpoint.snapshot(model, optimizer, state)
    for turn in range(1 + config.rounds if config.rounds else 0):
        taken, copy = _timed(device, partial(checkpoint.snapshot, model, optimizer, state, copy=True, into=taken))
        held = sum(t.nbytes for t in (*taken.weights.values(), *taken.optim.values()))
        report({"what": "copy" if turn else "first copy", **asdict(copy), "bytes": held})
    assert taken is not None
    written, write = _timed(device, partial(checkpoint.write, root, 1, 0, taken))
    assert written
    del taken
    folder = checkpoint.checkpoint_folder(root, 0)
    files = store.read_json(store.join(folder, checkpoint.COMMIT))["files"]
    total = sum(file["bytes"] for file in files.values())
    report({"what": "write, hash, put", **asdict(write), "bytes": total})
    for name, file in files.items():
        report({"what": name.rpartition("/")[2], "bytes": file["bytes"]})
    for turn in range(2 * config.loads):
        what = LOADS[turn % 2]
        optimizer.state.clear()  # it may map the files, whose pages would stay
        if what == LOADS[1]:
            for name in files if store.is_local(folder) else ():
                _drop(store.join(folder, name))
        _, load = _timed(device, partial(checkpoint.load, folder, model, optimizer))
        report({"what": what, **asdict(load), "bytes": total})
    for name in (*files, checkpoint.COMMIT):
        store.delete(store.join(folder, name))
    return step


def _drop(url: str) -> None:
    """Drop a local file from the page cache."""
    with store.local_path(url).open("rb") as file:
        os.fsync(file.fileno())  # pages that are not on the disk yet stay
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _step(model: Xtra, optimizer: torch.optim.Optimizer, images: int) -> None:
    c = model.config
    x = torch.randn(images, 3, c.image, c.image, device=next(model.parameters()).device)
    next_block_loss(model(x), target_blocks(x, c.side)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _timed(device: torch.device, work: Callable[[], T]) -> tuple[T, Timed]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return done, Timed(time.perf_counter() - wall, time.process_time() - cpu)


def _require_room(config: Config, parameters: int) -> None:
    """Print what is needed; raise ValueError if there is less."""
    state = 12 * parameters  # float32 weights and AdamW's two moments
    held = 0 if config.device == "cuda" else state
    gradients = 4 * parameters + config.images * 2 * GB if config.images and config.device == "cpu" else 0
    memory = held + max(state if config.rounds else 0, gradients) + GB  # the copy follows once the gradients are freed
    free = available_memory()
    local = store.local_path(config.out) if config.out and store.is_local(config.out) else Path(tempfile.gettempdir())
    while not local.exists():
        local = local.parent
    disk = shutil.disk_usage(local).free
    print(
        f"{config.size}: needs {_gb(memory)} of memory (free: {_gb(free)}) "
        f"and {_gb(state)} on {local} (free: {_gb(disk)})"
    )
    if free is not None and free < memory:
        raise ValueError(
            f"size {config.size} needs {_gb(memory)} of memory, but {_gb(free)} are free: take a smaller --size"
        )
    if disk < state:
        raise ValueError(f"{config.size} needs {_gb(state)} on {local}, but {_gb(disk)} are free: give another --out")


def available_memory() -> int | None:
    """Bytes that a process may still allocate; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _gb(count: float | None) -> str:
    return "unknown" if count is None else f"{count / GB:.3f} GB"
