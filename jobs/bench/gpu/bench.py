"""`make bench-gpu`: what one GPU makes of this code, in one go: right first, then fast, then fed.

    python -m jobs.bench.gpu --out gpu.json [--seconds 540] [--sizes b16 h14] [--only train] [--data DATASET] ...

Needs torch, Pillow, numpy and pyarrow, and this source tree; nothing has to be installed. The most important arms come
first; every row is written to --out as soon as it is there; what does not work is one line, and the rest goes on; the
table comes last. Without a GPU it runs at a tiny size, which shows only that it works.

Training arms change one thing at a time of the best that is known so far; what is faster and computes the same is kept
for the arms after it. Beside each measured time stands the floor (jobs/bench/gpu/floor.py) at the speeds that large
products and copies reach on this very machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from jobs.bench import result
from jobs.bench.gpu import checks, step
from jobs.bench.gpu.floor import Arm, Ceilings
from jobs.bench.gpu.step import Timing
from jobs.bench.gpu.table import check_lines, ratios, row_of, short, tables
from xtra.attention import ARMS
from xtra.model import SIZES, ModelConfig, Xtra

SECTIONS = ("checks", "train", "data")
IMAGES = {"b16": 256, "h14": 96}  # a step, to begin with; other sizes: 8
LONG = 90.0  # seconds that must be left for max-autotune
ARM = 120.0  # seconds that one arm may take, with what is compiled for it; a third of those left, if that is more
BETTER = 0.99  # of the best time: what is at most this is kept


@dataclass(frozen=True)
class Config:
    out: str = ""  # JSON file, written anew after every row
    seconds: float = 0.0  # for all of it; what has no time left is named. 0: 540, without a GPU 100
    sizes: tuple[str, ...] = ()  # of xtra.model.SIZES; default: b16 h14, without a GPU tiny32
    only: tuple[str, ...] = SECTIONS
    images: int = 0  # a step, to begin with; 0: by the size
    arm_seconds: float = 2.5  # of timed steps, an arm
    drop_path: float = 0.2
    check_steps: int = 300  # of training in each precision, without a GPU at most 30; 0: none
    vectors: str = ""  # folder of the official numbers; they need safetensors
    data: str = ""  # dataset, or folder or tar of JPEGs; default: made pictures
    pictures: int = 2000  # in the dataset that is made
    threads: int = 0  # that decode; 0: one a core
    device: str = "auto"  # "cpu", "cuda" or "auto"
    commit: str = ""  # of this source tree, where it is no git checkout
    compile: bool = True  # --no-compile: no arm is compiled, as none is on a CPU

    def __post_init__(self) -> None:
        for name, values, allowed in (("sizes", self.sizes, SIZES), ("only", self.only, SECTIONS)):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name} has {value!r}; it must be of {', '.join(allowed)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is cuda, but torch {torch.__version__} sees no GPU here")


@dataclass
class Bench:
    """What all sections share: the device, the time that is left, and the rows so far."""

    config: Config
    device: torch.device
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    machine: Ceilings | None = None
    best: dict[str, Timing] = field(default_factory=dict)  # of our arms, by size
    kept_back: float = 0.0  # seconds for the sections to come
    about: dict[str, Any] = field(default_factory=lambda: result("gpu", [], {}) | {"torch": torch.__version__})

    def left(self) -> float:
        return self.config.seconds - self.kept_back - (time.monotonic() - self.begun)

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.rows.append({"section": section, **row})
        self.write()

    def write(self) -> None:
        if self.config.out:
            try:
                _written(self.config.out, json.dumps(self.result(), indent=1))
            except OSError as why:
                print(f"  {self.config.out} was not written: {why}", flush=True)

    def ratios(self) -> dict[str, float]:
        """None without a GPU: there the same work twice differs by as much as any two arms."""
        return ratios(self.rows) if self.device.type == "cuda" else {}

    def result(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self.begun, 1)
        return self.about | {"seconds": seconds, "rows": self.rows, "ratios": self.ratios()}

    def failed(self, section: str, named: dict[str, Any], why: Exception) -> None:
        """A line and a row that say what went wrong."""
        said = f"{type(why).__name__}: {' '.join(str(why).split())[:300]}"
        print(f"  {named['name']}: {said}", flush=True)
        self.add(section, named | {"failed": said})

    def attempt(
        self, section: str, name: str, work: Callable[[], dict[str, Any]], needs: float = 5.0, **known: Any
    ) -> None:
        """Add what is `known` and what `work` gives; or a row and a line that say why there is nothing."""
        named = {"name": name} | known
        if self.left() < needs:
            self.add(section, named | {"left_out": "no time"})
            return
        print(f"[{time.monotonic() - self.begun:5.0f} s] {name}", flush=True)
        try:
            with step.at_most(min(self.left(), max(ARM, self.left() / 3))):
                row = work()
        except Exception as why:  # whatever a kernel, a compiler or a library throws: the other arms are to run
            self.failed(section, named, why)
            return
        self.add(section, named | row)


def _written(out: str, text: str) -> None:
    """Never half of it. Raises OSError."""
    aside = Path(f"{out}.part")
    aside.write_text(text)
    aside.replace(out)


def run(config: Config) -> dict[str, Any]:
    """All sections; interrupted, it shows what was measured. Raises ValueError for a bad setting only."""
    use_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    sizes = config.sizes or (("b16", "h14") if use_cuda else ("tiny32",))
    seconds = config.seconds or (540.0 if use_cuda else 100.0)
    config = replace(config, sizes=sizes, seconds=seconds, compile=config.compile and use_cuda)
    bench = Bench(config, device)
    bench.about |= {"config": asdict(bench.config), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    if config.commit:
        bench.about["commit"] = config.commit
    if config.out:
        try:
            _written(config.out, json.dumps(bench.result(), indent=1))
        except OSError as why:
            raise ValueError(f"out is {config.out!r}, which cannot be written: {why.strerror or why}") from None
    try:
        _sections(bench)
    finally:
        bench.write()
        print("\n".join(tables(bench.rows, bench.ratios())), flush=True)
    return bench.result()


def _sections(bench: Bench) -> None:
    config = bench.config
    bench.attempt("machine", "what large products and copies reach", lambda: _machine(bench))
    bench.kept_back = 0.2 * config.seconds if {"data", "train"} <= set(config.only) else 0.0
    for name, section in (("checks", _checks), ("train", _train), ("data", _data)):
        if name == "data":
            bench.kept_back = 0.0
        try:
            if name in config.only:
                section(bench)
        except Exception as why:  # the table of the others is to come
            bench.failed(name, {"name": name, "size": ""}, why)


def _machine(bench: Bench) -> dict[str, Any]:
    bench.machine = step.ceilings(bench.device)
    return asdict(bench.machine)


# ---- checks --------------------------------------------------------------------------------------------------------


def _checks(bench: Bench) -> None:
    device, vectors, steps = bench.device, bench.config.vectors, bench.config.check_steps
    if vectors:
        _some(bench, "parity vectors", lambda: checks.official_numbers(vectors, device))
    else:
        print("  parity vectors are left out: --vectors DIR names none", flush=True)
    if device.type == "cuda":
        bench.attempt("checks", "device against CPU", lambda: checks.same_as_cpu(device))
    checks.attention_arms(device, lambda name, work: bench.attempt("checks", name, work))
    steps = steps if device.type == "cuda" else min(steps, 30)
    if steps:
        size, batch = ("small64", 64) if steps >= 100 else ("tiny32", 8)
        _some(bench, "bf16 against fp32", lambda: checks.precision_runs(device, steps, batch, size))
    print("\n".join(check_lines(bench.rows)), flush=True)


def _some(bench: Bench, name: str, rows: Callable[[], Iterable[dict[str, Any]]]) -> None:
    """Checks that come one after the other; one that breaks off is a check that does not hold."""
    try:
        with step.at_most(min(90.0, bench.left() / 3)):
            for row in rows():
                bench.add("checks", row)
    except Exception as why:
        bench.failed("checks", {"name": name}, why)


# ---- training ------------------------------------------------------------------------------------------------------


def _train(bench: Bench) -> None:
    """For each size the best known arm and the official shape first; then, size by size, one change after the other."""
    plans = [_plan(bench, name) for name in bench.config.sizes]
    for plan in plans:
        next(plan)
    while plans:
        for plan in list(plans):
            if next(plan, "done") == "done":
                plans.remove(plan)


def _plan(bench: Bench, size: str) -> Iterator[str]:
    """The arms of one size, a group at a time; the model is made anew for each, as two sizes need not fit at once."""
    config = replace(SIZES[size], drop_path=bench.config.drop_path, predict=1)
    base = Arm("best known", images=bench.config.images or IMAGES.get(size, 8))
    if not bench.config.compile:
        base = replace(base, compile="none")
    official = replace(base, shape="official", compile="none", fused=False, drop_last=False)
    first = [
        base,
        replace(official, name="official shape, fp32 decoder", decoder="fp32"),
        replace(official, name="official shape, TF32 decoder", decoder="tf32"),
        replace(official, name="official shape, bf16 decoder"),
    ]
    base = _group(bench, size, config, first, base)
    yield "first"
    if (
        size not in bench.best and base.compile != "none"
    ):  # perhaps nothing compiles here: the rest is to run all the same
        base = _group(bench, size, config, [replace(base, name="not compiled", compile="none")], base)
        yield "not compiled"
    for group in groups(base.images, bench.device, bench.config.compile):
        base = _group(bench, size, config, [replace(base, **change) for change in group], base)
        yield "group"


def groups(images: int, device: torch.device, compiled: bool) -> list[list[dict[str, Any]]]:
    """Changes to try, one group after the other, each against what is best by then."""
    cuda = device.type == "cuda"
    kernels = ("cudnn", "efficient") if cuda else ()
    arms = [arm for arm in ARMS if arm != "dense" and (cuda or not arm.startswith("flex"))]
    found: list[list[dict[str, Any]]] = [
        [{"name": "TF32 decoder", "decoder": "tf32"}, {"name": "fp32 decoder", "decoder": "fp32"}],
        [{"name": f"{n} images", "images": n} for n in (images * 2, images // 2) if n],
    ]
    if compiled:
        found.append([{"name": "not compiled", "compile": "none"}])
    # Each of these is compiled anew, which takes long: what the goals are told by came before.
    found.append([{"name": f"attention {arm}", "attention": arm} for arm in (*kernels, *arms)])
    if compiled:
        found.append([{"name": "layers and loss compiled", "compile": "layers+loss"}])
    found += [
        [
            {"name": "dropped branches skipped", "dropped": "skip"},
            {"name": "a fixed number of branches skipped", "dropped": "subset"},
        ],
        [{"name": "all blocks computed", "drop_last": False}],
        [{"name": "optimiser not fused", "fused": False}],
    ]
    if compiled:
        found.append([{"name": "official shape, bf16 decoder, compiled", "shape": "official", "dropped": "compute"}])
        found.append([{"name": "max-autotune", "compile": "max-autotune"}])
    return found


def _group(bench: Bench, size: str, config: ModelConfig, arms: list[Arm], base: Arm) -> Arm:
    """Measure some arms; the best of ours so far, those that compute the same, is returned to go on with."""
    if bench.left() < 10:
        for arm in arms:
            bench.add("train", {"size": size, "name": arm.name, "left_out": "no time"})
        return base
    try:
        model = step.empty_model(config, bench.device)
    except Exception as why:
        print(f"  {size}: no model could be made: {type(why).__name__}: {why}", flush=True)
        return base
    for arm in arms:
        timing = _measured(bench, size, config, arm, model)
        if timing and arm.shape == "ours" and arm.dropped != "subset" and arm.drop_last and arm.decoder == "bf16":
            best = bench.best.get(size)
            if best is None or timing.step / timing.arm.images < BETTER * best.step / best.arm.images:
                bench.best[size] = timing
    del model
    if bench.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    best = bench.best.get(size)
    return base if best is None else replace(best.arm, name="best known")


def _measured(bench: Bench, size: str, config: ModelConfig, arm: Arm, model: Xtra) -> Timing | None:
    timings: list[Timing] = []

    def work() -> dict[str, Any]:
        timings.append(step.fitting(arm, model, bench.device, bench.config.arm_seconds, _say))
        return row_of(config, timings[-1], bench.device, bench.machine)

    bench.attempt("train", arm.name, work, LONG if arm.compile == "max-autotune" else 10.0, size=size)
    if not timings:
        return None
    print(f"  {short(bench.rows[-1])}", flush=True)
    return timings[0]


def _say(line: str) -> None:
    print(line, flush=True)


# ---- data ----------------------------------------------------------------------------------------------------------


def _data(bench: Bench) -> None:
    from jobs.bench.gpu import data
    from jobs.bench.gpu_decode import bodies_of

    config, device = bench.config, bench.device
    threads = config.threads or len(os.sched_getaffinity(0))
    seconds = config.arm_seconds
    size = config.sizes[0]
    best = bench.best.get(size)
    arm = best.arm if best else Arm("best known", images=config.images or IMAGES.get(size, 8))
    arm = arm if config.compile else replace(arm, compile="none")
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
                with step.as_arm_says(arm, model, device):
                    found = data.end_to_end(manifest, model, device, arm.images, 3 * seconds, threads, decoder)
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


# ---- the command line: no library is asked for here -----------------------------------------------------------------


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
    values: dict[str, Any] = vars(parser.parse_args(words))
    for name, value in values.items():
        values[name] = tuple(value) if isinstance(value, list) else value
    return Config(**values)


def main(words: list[str]) -> int:
    try:
        found = run(parse(words))
    except ValueError as error:
        print(f"bench-gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps({name: found[name] for name in ("subject", "hardware", "commit", "ratios")}))
    return 0
