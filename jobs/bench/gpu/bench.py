"""`make bench-gpu STAGE=1|2|3`: measure this code on one GPU: correctness, then speed, then feeding it with data.

    python -m jobs.bench.gpu --stage 1 --out 1.json [--sizes b16 h14] [--images N] [--vectors DIR] ...

1  attention's kernels one by one, checks, then training variants: the headline ones first, as time permits
2  one training step under torch's profiler: ms by kernel next to its floor, launches, elementwise time
3  `xtra.train.run` itself: compiled, eager, repeated, resumed and so on; decoding; shards -> steps, with the data wait

Needs torch, Pillow, numpy and pyarrow, and this source tree; nothing has to be installed. The contents of .gpu/ (from
`make gpu-bundle`) are used if present. Every row is written to --out at once; a failure is one line, and the rest
continues. A stage takes at most nine minutes. It runs in a separate process watched by another (watch.py), because
nothing inside can stop a compiler. Without a GPU it runs at a tiny size, which only shows that it works.
`python -m jobs.bench.gpu_table *.json` makes docs/perf.md's tables from the results.

Next to each measured time stands the floor (floor.py) at the speeds that large products and copies reach here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime
from typing import Any

import torch

from jobs.bench.gpu import checks, step, variants, watch
from jobs.bench.gpu.floor import Ceilings, Variant
from jobs.bench.gpu.record import AGAIN, Bench, Config, StartAgain, rows_of, settled, written
from jobs.bench.gpu.table import check_lines, tables
from xtra.model import SIZES


def run(config: Config) -> dict[str, Any]:
    """Run all sections in this process; if interrupted, show the rows so far. Raises ValueError for a bad setting."""
    config = settled(config)
    cuda = config.device == "cuda"
    bench = Bench(config, torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))
    bench.about |= {
        "config": asdict(config),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cudnn": torch.backends.cudnn.version(),
    }
    if config.commit:
        bench.about["commit"] = config.commit
    if not config.watched:
        bench.rows = rows_of(config.out)
    if config.out:
        try:
            written(config.out, json.dumps(bench.result(), indent=1))
        except OSError as why:
            raise ValueError(f"out is {config.out!r}, which cannot be written: {why.strerror or why}") from None
    try:
        _sections(bench)
    finally:
        bench.write()
        if not isinstance(sys.exception(), StartAgain):
            print("\n".join(tables(bench.rows, bench.ratios())), flush=True)
    return bench.result()


def _sections(bench: Bench) -> None:
    config = bench.config
    if not any(row["section"] == "machine" and "bf16" in row for row in bench.rows):
        bench.attempt("machine", "what large products and copies reach", lambda: asdict(step.ceilings(bench.device)))
    for row in bench.rows:
        if row["section"] == "machine" and "bf16" in row:
            bench.machine = Ceilings(**{each.name: row[each.name] for each in fields(Ceilings)})
    both = {"data", "loop"} <= set(config.only) or {"data", "train"} <= set(config.only)
    for name, section in (
        ("kernels", _kernels),
        ("checks", _checks),
        ("train", variants.run),
        ("profile", _profile),
        ("loop", _loop),
        ("data", _data),
    ):
        bench.kept_back = 0.4 * config.seconds if both and name != "data" else 0.0
        try:
            if name in config.only:
                section(bench)
        except Exception as why:  # the other sections' table must still be printed
            bench.failed(name, {"name": name, "size": ""}, why)


def _kernels(bench: Bench) -> None:
    from jobs.bench.gpu import kernels

    kernels.run(bench.device, bench.machine, lambda name, work: bench.attempt("kernels", name, work))


def _profile(bench: Bench) -> None:
    from jobs.bench.gpu import profiled

    for size in bench.config.sizes:
        base = Variant("", images=bench.config.images or variants.IMAGES.get(size, 8), compile="layers")
        for variant in profiled.variants(base if bench.config.compile else replace(base, compile="none")):
            bench.attempt(
                "profile",
                variant.name,
                lambda size=size, variant=variant: profiled.measure(size, variant, bench.device, bench.machine),
                20,
                size=size,
            )


def _loop(bench: Bench) -> None:
    from jobs.bench.gpu import loop

    with ExitStack() as stack:
        runs = loop.Loop(stack, bench.device, bench.config.compile, bench.config.pictures)
        for name in loop.RUNS:
            bench.attempt("loop", name, lambda name=name: runs.measure(name), 10)


# ---- checks --------------------------------------------------------------------------------------------------------


def _checks(bench: Bench) -> None:
    device, vectors, steps = bench.device, bench.config.vectors, bench.config.check_steps
    if vectors:
        _some(bench, "parity vectors", lambda: checks.official_numbers(vectors, device))
    else:
        print("  parity vectors are skipped: give --vectors DIR", flush=True)
    if device.type == "cuda":
        bench.attempt("checks", "device against CPU", lambda: checks.same_as_cpu(device))
    checks.implementations(device, lambda name, work: bench.attempt("checks", name, work))
    steps = steps if device.type == "cuda" else min(steps, 30)
    if steps:
        size, batch = ("small64", 64) if steps >= 100 else ("tiny32", 8)
        _some(bench, "bf16 against fp32", lambda: checks.precision_runs(device, steps, batch, size))
    print("\n".join(check_lines(bench.rows)), flush=True)


def _some(bench: Bench, name: str, rows: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Add checks one by one; an exception counts as a failed check."""
    if bench.has("checks", name):
        return
    limit = min(90.0, bench.left() / 3)
    bench.doing("checks", {"name": name}, limit)
    try:
        with step.at_most(limit):
            for row in rows():
                bench.add("checks", row | {"group": name})
    except Exception as why:
        bench.failed("checks", {"name": name}, why)


# ---- data ----------------------------------------------------------------------------------------------------------


def _data(bench: Bench) -> None:
    from jobs.bench.gpu import data
    from jobs.bench.gpu_decode import bodies_of

    config, device = bench.config, bench.device
    threads = config.threads or len(os.sched_getaffinity(0))
    seconds = config.arm_seconds
    size = config.sizes[0]
    best = variants.best_of(bench.rows, size)
    variant = best.variant if best else Variant("best known", images=config.images or variants.IMAGES.get(size, 8))
    variant = variant if config.compile else replace(variant, compile="none")
    with ExitStack() as stack:
        try:
            manifest = data.dataset(stack, config.data, config.pictures)
            bodies = bodies_of(manifest.address, 1024)
        except Exception as why:
            bench.failed("data", {"name": "dataset"}, why)
            return
        model_config = replace(SIZES[size], drop_path=config.drop_path, predict=1)
        for decoder in ("cpu", "gpu"):

            def work(decoder: str = decoder) -> dict[str, Any]:
                model = step.empty_model(model_config, device)
                with step.set_as(variant, model, device):
                    found = data.end_to_end(manifest, model, device, variant.images, 3 * seconds, threads, decoder)
                return {"size": size, "kb": round(sum(map(len, bodies)) / len(bodies) / 1e3, 1)} | found

            if decoder == "cpu" or device.type == "cuda":
                bench.attempt("data", f"end to end, {size}, {decoder} decodes", work, 20)
        data.decode_arms(
            bodies,
            model_config.image,
            device,
            seconds,
            threads,
            lambda name, work: bench.attempt("data", name, work),
        )


# ---- the command line: needs no installed library -------------------------------------------------------------------


def parse(words: list[str]) -> Config:
    parser = argparse.ArgumentParser(prog="python -m jobs.bench.gpu", description=(__doc__ or "").split("\n")[0])
    for each in fields(Config):
        flag, default = "--" + each.name.replace("_", "-"), each.default
        if isinstance(default, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        elif isinstance(default, tuple):
            parser.add_argument(flag, nargs="+", default=default)
        else:
            parser.add_argument(flag, type=type(default), default=default)
    given = vars(parser.parse_args(words)).items()
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in given}
    return Config(**values)


def main(words: list[str]) -> int:
    try:
        config = parse(words)
        found = watch.run(config, words) if config.watched and config.out else run(config)
    except ValueError as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return 2
    except StartAgain:
        return AGAIN
    except KeyboardInterrupt:
        return 130
    print(json.dumps({name: found[name] for name in ("subject", "hardware", "commit", "ratios")}))
    return 0
