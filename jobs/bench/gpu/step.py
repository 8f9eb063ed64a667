"""One variant of `make bench-gpu`: training steps timed part by part, with their memory.

The step is that of xtra/train.py, on one device and without logging: pinned uint8 pixels to the device, preprocessed
there, forward, backward, clipping, fused AdamW. Weights are random numbers made on the device, and hardly change.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jobs.bench.gpu.floor import Ceilings, Variant
from jobs.bench.train import official_shape
from xtra import drop_path
from xtra.attention import causal_of, kernel_names
from xtra.compiled import compile_model, compiled_loss, loss_of, uncompile
from xtra.data import normalise
from xtra.flops import peak_flops
from xtra.loss import LossConfig
from xtra.model import ModelConfig, Xtra, float32_products, made_constant
from xtra.optim import OptimConfig, make_optimizer

PARTS = ("data", "forward", "backward", "clip", "optimiser")
ALONE = 4  # steps timed one by one, each on an idle device
AGAIN = 5.0  # seconds until `at_most` raises again, if the block still runs
WARM = 3  # warm-up steps; more where shapes change from step to step, and each may be compiled


@dataclass(frozen=True)
class Timing:
    """The time of some steps of a variant; seconds are medians over steps, by the device's clock on a GPU."""

    variant: Variant  # as it ran, perhaps with fewer images
    step: float
    parts: dict[str, float]
    host: float  # for the host to submit one step to an idle device: above `step`, the device waits for it
    kernels: dict[str, str]  # torch's names of the attention kernels: encoder, decoder
    memory: int  # peak bytes; 0 on a CPU
    warm: float  # before the first timed step, including compilation
    steps: int
    loss: float


class Clock:
    """Marks on the device's own clock."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds between successive marks; the device must have finished."""
        return [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in zip(self.marks, self.marks[1:])]


def wait_for(device: torch.device) -> None:
    """Until it has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ceilings(device: torch.device) -> Ceilings:
    """Measure large products and copies on this device."""
    cuda = device.type == "cuda"
    side, count = (8192, 10) if cuda else (512, 3)

    def fastest(work: Callable[[], Any]) -> float:
        """Seconds of the fastest of a few calls, after a first one."""
        times = []
        for _ in range(count):
            clock = Clock(device)
            clock.mark()
            work()
            clock.mark()
            wait_for(device)
            times += clock.seconds()
        return min(times[1:])

    def products(dtype: torch.dtype, precision: str = "highest") -> float:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        with float32_products(precision):
            return 2 * side**3 / fastest(lambda: a @ b)

    numbers = 1 << (28 if cuda else 22)
    source = torch.ones(numbers, device=device)
    target, host = torch.empty_like(source), torch.ones(numbers // 4)
    host = host.pin_memory() if cuda else host
    there = target[: numbers // 4]
    return Ceilings(
        name=torch.cuda.get_device_name(device) if cuda else "CPU",
        bf16=products(torch.bfloat16),
        tf32=products(torch.float32, "high"),
        fp32=products(torch.float32),
        bandwidth=8 * numbers / fastest(lambda: target.copy_(source)),
        host=numbers / fastest(lambda: there.copy_(host, non_blocking=True)),
        peak=(peak_flops(torch.cuda.get_device_name(device)) if cuda else None) or 0.0,
    )


def empty_model(config: ModelConfig, device: torch.device) -> Xtra:
    """A model with random weights, made on the device: the official initialisation of H/14 takes a CPU ten seconds."""
    with torch.device("meta"):
        model = Xtra(config)
    model.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not made_constant(name, p):
                p.normal_(0.0, 0.02, generator=generator)
    return model


def fitting(
    variant: Variant, model: Xtra, device: torch.device, seconds: float, say: Callable[[str], None] = print
) -> Timing:
    """`measure`, halving the images until they fit in the device's memory."""
    while True:
        try:
            return measure(variant, model, device, seconds)
        except torch.OutOfMemoryError:
            if variant.images <= 1:
                raise
        # Outside the handler: its traceback keeps the step's tensors alive.
        say(f"  {variant.name}: {variant.images} images do not fit in memory, trying {variant.images // 2}")
        variant = replace(variant, images=variant.images // 2)
        forget(device, model)


def measure(variant: Variant, model: Xtra, device: torch.device, seconds: float) -> Timing:
    """Time steps for about `seconds`. Raises what torch raises if a variant cannot be computed."""
    with set_as(variant, model, device):
        return _timed(variant, model, device, seconds)


def forget(device: torch.device, model: Xtra) -> None:
    """Free the memory of a finished variant."""
    model.zero_grad(set_to_none=True)
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def set_as(variant: Variant, model: Xtra, device: torch.device) -> Iterator[None]:
    """Configure the model and torch for the variant; restore them afterwards."""
    model.decoder_fp32 = variant.decoder != "bf16"
    model.encoder.skip_dropped = variant.dropped != "compute"
    model.encoder.attention = model.decoder.attention = variant.attention
    if variant.compile != "none":
        compile_model(model, "max-autotune-no-cudagraphs" if variant.compile == "max-autotune" else None)
    try:
        with float32_products("high" if variant.decoder == "tf32" else "highest"):
            yield
    finally:
        if model.compiled:
            uncompile(model)  # shapes and flags change: the next variant must not search this one's compiled code
        forget(device, model)


def kernels_of(model: Xtra, device: torch.device, official: bool, last_block: bool) -> dict[str, str]:
    """The kernels that compute attention in training under autocast, for encoder and decoder."""
    c, found = model.config, {}
    tokens = c.tokens - (0 if last_block else c.per_block)
    sides = (("encoder", model.encoder, c.width, c.heads), ("decoder", model.decoder, c.dec_width, c.dec_heads))
    for name, part, width, heads in sides:
        how = "dense-cudnn" if official else part.attention
        kind = torch.float32 if name == "decoder" and model.decoder_fp32 else torch.bfloat16
        x = torch.zeros(2, tokens, 3, heads, width // heads, device=device, dtype=kind, requires_grad=True)
        q, k, v = x.permute(2, 0, 3, 1, 4).unbind(0)
        found[name] = kernel_names(q, k, v, causal_of(tokens, c.per_block, width // heads, device, how))
    return found


def _noise(images: int, side: int, seed: int, pinned: bool) -> Tensor:
    """uint8 [B, 3, side, side]."""
    random = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, side, side), dtype=torch.uint8, generator=random)
    return pixels.pin_memory() if pinned else pixels


Step = tuple[Clock, float, Tensor]  # marks, the host's seconds, the loss


def stepper(variant: Variant, model: Xtra, device: torch.device) -> Callable[[int], Step]:
    """A function that runs the step with a given number, without waiting for the device."""
    c = model.config
    optimizer = make_optimizer(model, OptimConfig(lr=1e-6))
    if not variant.fused:
        for group in optimizer.param_groups:
            group["fused"] = None  # torch's own choice, in several passes over lists of tensors
    pixels = [_noise(variant.images, c.image, seed, pinned=device.type == "cuda") for seed in (0, 1)]
    error = compiled_loss() if model.compiled else loss_of
    draw = drop_path.subset_scales if variant.dropped == "subset" else drop_path.scales

    def step(number: int) -> Step:
        """Returns the clock, the host's seconds and the loss."""
        clock, begun = Clock(device), time.perf_counter()
        clock.mark()
        images = normalise(pixels[number % 2].to(device, non_blocking=True))
        epochs, samples = np.full(variant.images, number), np.arange(variant.images)
        drop_LSB = draw(c.drop_path, c.depth, 0, epochs, samples) if c.drop_path else None
        clock.mark()
        with torch.autocast(device.type, torch.bfloat16):
            if variant.shape == "official":
                ones = torch.ones(c.depth, 2, variant.images)
                loss = official_shape(model, images, ones if drop_LSB is None else drop_LSB, variant.decoder != "bf16")
            else:
                predictions = model(images, drop_LSB, last_block=not variant.drop_last)
                with torch.autocast(device.type, enabled=False):
                    loss = error(predictions, images, c.side, None, None, LossConfig())
        clock.mark()
        loss.backward()
        clock.mark()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        clock.mark()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        clock.mark()
        return clock, time.perf_counter() - begun, loss.detach()

    return step


def _timed(variant: Variant, model: Xtra, device: torch.device, seconds: float) -> Timing:
    cuda = device.type == "cuda"
    step = stepper(variant, model, device)
    begun = time.perf_counter()
    warm = WARM + (5 if variant.dropped == "skip" and variant.compile != "none" else 0)
    one = 0.0  # seconds of the last step
    for number in range(warm):
        since = time.perf_counter()
        float(step(number)[2])
        one = time.perf_counter() - since
    warmed = time.perf_counter() - begun
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    steps = int(min(max(seconds / one, 3), 200))
    hosts = []
    for number in range(ALONE):
        wait_for(device)
        hosts.append(step(number)[1])
    wait_for(device)
    taken = [step(warm + number) for number in range(steps)]
    loss = float(taken[-1][2])  # waits for all steps
    wait_for(device)
    by_part = [statistics.median(column) for column in zip(*(clock.seconds() for clock, _, _ in taken))]
    # From one step's start to the next one's, including gaps.
    ends = Clock(device)
    ends.marks = [taken[0][0].marks[0], taken[-1][0].marks[-1]]
    return Timing(
        variant=variant,
        step=ends.seconds()[0] / steps,
        parts=dict(zip(PARTS, by_part)),
        host=statistics.median(hosts),
        kernels=kernels_of(
            model, device, variant.shape == "official", not variant.drop_last or variant.shape == "official"
        ),
        memory=torch.cuda.max_memory_allocated(device) if cuda else 0,
        warm=warmed,
        steps=steps,
        loss=loss,
    )


@contextlib.contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`: endless compilation must not take the other variants' time."""

    def ring(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    # It fires repeatedly: a library may swallow the first error, but not all of them.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1.0), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
