"""The block-size study at 10M samples a run on one GPU: blocks 1, 2, 4 x five seeds, from `make study-bundle`'s file.

    python -m tarfile -e study-bundle.tar.xz . && cd xtra-study
    python -m jobs.lab.gpu_study --minutes 9        # exit 75: incomplete, the same command continues; 0: complete

Needs Python 3.11 to 3.13 with torch (CUDA), numpy, pyarrow, Pillow, pycurl, fsspec, safetensors, msgspec and tqdm; the
bundle may contain wheels for missing ones. Needs no network. Several runs share the GPU, one process each: kernels of
such small models fill only part of it. RUNS has the run folders, ROWS the ledger and the bits of every probe.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.bench import rounds

if TYPE_CHECKING:
    from jobs.lab.study import Config, StudyResult

NEEDED = ("torch", "numpy", "pyarrow", "PIL", "pycurl", "fsspec", "safetensors", "msgspec", "tqdm")
PACKAGES = {"PIL": "pillow"}
SETS = ("tin-train", "tin-val", "cifar10-train", "cifar10-test")
PREPARED = "XTRA_STUDY_PREPARED"  # set in the process that has the bundle's croppers and wheels
WIND_DOWN = 45.0  # seconds at the end of --minutes in which runs save and probes end
SAY_SECONDS = 15.0
SAMPLES = (100_000, 1_000_000, 10_000_000)  # a branch for each count, all from one trunk
NOT_WHOLE = "gpu-study: not complete yet: the same command continues"
BATCH = 256  # larger than on a CPU, where batches of 16 make the best use of few samples


def parsed(words: Sequence[str]) -> argparse.Namespace:
    flags: dict[str, dict[str, Any]] = {
        "--tars": {"default": "tars", "help": "the bundle's pictures"},
        "--work": {"default": "work", "help": "folder for datasets, runs and rows"},
        "--minutes": {"type": float, "default": 0.0, "help": "stop after this long, to continue later; 0: never"},
        "--samples": {
            "type": int,
            "nargs": "+",
            "default": SAMPLES,
            "help": "counts; the largest is a run's length",
        },
        "--seeds": {"type": int, "default": 5},
        "--batch": {"type": int, "default": BATCH},
        "--at-once": {"type": int, "default": 0, "help": "runs side by side; default: one for 3 cores, at most 15"},
        "--device": {"choices": ("cuda", "cpu"), "default": "cuda"},
    }
    return rounds.parsed(words, flags, prog="python -m jobs.lab.gpu_study", description=(__doc__ or "").split("\n")[0])


def settings(values: argparse.Namespace) -> Config:
    """The study's settings: as in docs/study, except for size and machine."""
    from jobs.lab import study

    counts, cores = sorted({*values.samples}), len(os.sched_getaffinity(0))
    if values.seeds < 1 or values.batch < 1 or values.minutes < 0:
        raise ValueError("--seeds and --batch must be at least 1, and --minutes 0 or more")
    if counts[0] < 2 * values.batch:
        raise ValueError(f"--samples has {counts[0]}; a count must be at least two batches of {values.batch}")
    n = counts[-1]
    at_once = values.at_once or max(1, min(15, cores // 3))
    return study.Config(
        data=str(Path(values.work, "data").absolute()),
        out=str(Path(values.work, "runs").absolute()),
        rows=str(Path(values.work, "rows").absolute()),
        samples=tuple(counts),
        stages=(n,),
        seeds=tuple(range(values.seeds)),
        sweep_samples=max(n // 25, 1),
        head_images=0,  # all in the bundle, which has the study's own subsets
        held_out_images=0,
        few_images=0,
        at_once=at_once,
        arms=("block4", "block1", "block2"),
        secondary=(),
        batch=values.batch,
        warmup=max(n // 200, 1),
        device=values.device,
        threads=max(1, cores // at_once - 1),
    )


def run(values: argparse.Namespace, stop: threading.Event) -> StudyResult:
    """Import the bundle's pictures once, and run what is missing. Raises ValueError for missing pictures, if torch sees
    no GPU, and for a study that was begun with other settings."""
    import torch

    from jobs.lab import study

    config = settings(values)
    if values.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch sees no GPU here: --device cpu is for a trial at tiny size")
    _import(values.tars, config.data, stop)
    if stop.is_set():  # the import may be incomplete
        return study.StudyResult(config.out, {}, 0, 0, True)
    said = time.monotonic()

    def show(row: dict[str, Any]) -> None:
        nonlocal said
        if "remark" not in row and time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            print(row["run"].rpartition("/")[2], _words(row), sep=": ", file=sys.stderr, flush=True)

    return study.run(config, show, stop)


def _words(row: dict[str, Any]) -> str:
    if "samples_per_s" in row:
        return f"{row['samples_seen']:,} of {row['samples']:,} samples, {row['samples_per_s']:,.0f}/s"
    return row.get("note") or "probed"


def _import(tars: str, data: str, stop: threading.Event) -> None:
    from ingest.sets import folders, in_place

    for name in SETS:
        if stop.is_set():
            return
        source = f"{tars}/{name}-*.tar"
        if not list(Path(tars).glob(f"{name}-*.tar")):
            raise ValueError(f"{source}: no such tars: run this in the folder where the bundle was unpacked")
        if not Path(data, name, "latest.json").exists():
            where = str(Path(tars).absolute() / f"{name}-*.tar")
            in_place.run(folders.Config(where, str(Path(data, name)), name=name, in_place=True), None, stop.is_set)


def _cut_off() -> None:
    """Exit when the minutes are over and runs have saved: only a probe can still be running, and is repeated next time.
    The runs' processes end with this one."""
    print(NOT_WHOLE, file=sys.stderr, flush=True)
    os._exit(os.EX_TEMPFAIL)


def main(words: Sequence[str]) -> int:
    values = parsed(words)
    from jobs.bench.gpu import FOLDER, environment

    if Path(FOLDER).is_dir() and PREPARED not in os.environ:
        env = os.environ | environment(Path(FOLDER)) | {PREPARED: "1"}
        os.execve(sys.executable, [sys.executable, "-m", "jobs.lab.gpu_study", *words], env)
    missing = [PACKAGES.get(name, name) for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"gpu-study: this Python has no {', '.join(missing)}: pip install them, or pack wheels of them (--wheels)",
            file=sys.stderr,
        )
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if values.minutes:
        seconds = 60 * values.minutes
        for when, what in ((max(seconds - WIND_DOWN, seconds / 2), stop.set), (seconds, _cut_off)):
            timer = threading.Timer(when, what)
            timer.daemon = True
            timer.start()
    try:
        result = run(values, stop)
    except ValueError as error:
        print(f"gpu-study: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{result.trained} runs trained and {result.probed} probed now; rates {result.rates}: {result.out}")
    if result.stopped:
        print(NOT_WHOLE, file=sys.stderr)
    return os.EX_TEMPFAIL if result.stopped else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
