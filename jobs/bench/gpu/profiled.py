"""One training step under torch's profiler: ms by kernel, launches and elementwise time, next to the floor's parts."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from jobs.bench.gpu import step
from jobs.bench.gpu.floor import Ceilings, Variant, floor
from xtra.model import SIZES
from xtra.run import attention_ends, shape_of

STEPS = 3  # profiled
KERNELS = 40  # slowest kernels shown
# Kind of a kernel by a part of its name, the first match; without a match it is elementwise.
KINDS = (
    ("attention", ("flash", "fmha", "sdpa", "attention", "flex")),
    ("products", ("gemm", "cutlass", "cublas", "nvjet", "addmm", "mm_", "::mm", "bmm", "s16816", "wgmma")),
    ("copies", ("memcpy", "memset", "copy_")),
    ("optimiser", ("adam", "multi_tensor", "foreach")),
)


def variants(base: Variant) -> list[Variant]:
    """The variants worth profiling: the base with each attention kernel, and pruned."""
    found = [replace(base, name="dense"), replace(base, name="dense-cudnn", attention="dense-cudnn")]
    if base.compile != "none":
        found.append(replace(base, name="flex64", attention="flex64"))
    return [*found, replace(base, name="pruned", dropped="skip")]


def kind(kernel: str) -> str:
    name = kernel.lower()
    return next((kind for kind, parts in KINDS if any(part in name for part in parts)), "elementwise")


def measure(size: str, variant: Variant, device: torch.device, machine: Ceilings | None) -> dict[str, Any]:
    """Profile one training variant of `make bench-gpu`. Raises what torch raises if it cannot be computed."""
    config = replace(SIZES[size], drop_path=0.2, predict=1)
    model = step.empty_model(config, device)
    cuda = device.type == "cuda"
    with step.set_as(variant, model, device):
        take = step.stepper(variant, model, device)
        for number in range(4):
            take(number)
        step.wait_for(device)
        begun = time.perf_counter()
        for number in range(4, 12):
            take(number)
        step.wait_for(device)
        seconds = (time.perf_counter() - begun) / 8
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
        with profile(activities=activities) as profiled:
            for number in range(12, 12 + STEPS):
                take(number)
            step.wait_for(device)
        kernels = step.kernels_of(model, device, False, False)
    ms, calls = _by_name(profiled, cuda)
    kinds: Counter[str] = Counter()
    for name, spent in ms.items():
        kinds[kind(name)] += spent
    shape = shape_of(config)
    parts = floor(shape, variant, machine, attention_ends(config, device, variant.attention), 0.2) if machine else {}
    return {
        "arm": asdict(variant),
        "kernels": kernels,
        "cudnn": torch.backends.cudnn.version(),
        "step_ms": 1e3 * seconds,
        "device_ms": sum(ms.values()),
        "launches": sum(calls.values()) / STEPS,
        "kinds_ms": dict(kinds),
        "floor_parts_ms": {name: 1e3 * spent for name, spent in parts.items()},
        "by_kernel": [[name, round(spent, 4), calls[name] / STEPS] for name, spent in ms.most_common(KERNELS)],
    }


def _by_name(profiled: Any, cuda: bool) -> tuple[Counter[str], Counter[str]]:
    """Milliseconds per step, and calls over all steps, by kernel; without a GPU by torch operation."""
    ms: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiled.events():
        if not cuda or event.device_type == torch.autograd.DeviceType.CUDA:
            spent = event.time_range.elapsed_us() if cuda else event.self_cpu_time_total
            ms[event.name[:110]] += spent / 1e3 / STEPS
            calls[event.name[:110]] += 1
    return ms, calls
