"""Pretraining: one Config, one run(), one loop.

The only clock is samples seen: batches are global, steps are derived, and the whole state of the data is one number.
All ranks hold the whole model and sum their gradients in a fixed order (xtra/distributed.py), so that on CPUs a run
continued from a checkpoint repeats the uninterrupted one to the bit at the same world size, and to rounding at another.

Shapes: B this rank's images, L encoder layers, K blocks.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.manifest import Manifest, read_manifest
from shards.stream import Cursor, Mixture, Stream
from xtra import compiled, drop_path, gpu_decode, micro_batch, prefix
from xtra.batch_memory import Lease
from xtra.blocks import block_orders, pick_order
from xtra.config import TrainConfig as Config
from xtra.data import Batch, RandomCrop, normalise, train_batches
from xtra.device import decoding_threads, sent
from xtra.distributed import GradientSum, Owners, least, sum_numbers, world_of
from xtra.model import Xtra, build, float32_products
from xtra.optim import decay_start, learning_rate, make_optimizer
from xtra.run import (
    Opened,
    Parts,
    Recorder,
    Saver,
    Steps,
    checkpoint,
    cost,
    crossed,
    gaps,
    load_newest,
    open_run,
    poison,
    remove_leftovers,
    require,
    require_trunk,
    terms,
)
from xtra.validation import validation_loss

FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class TrainResult:
    run: str
    attempt: int
    samples_seen: int
    loss: float | None  # of the last step; None when there was nothing left to do
    seconds: float
    stopped: bool  # before its last sample, by a signal or by a later attempt
    superseded: bool = False  # by a later attempt, which goes on with the run


def run(
    config: Config,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[dict[str, Any]], None] = lambda row: None,
) -> TrainResult:
    """Train until `config.samples`, resuming from the run folder's newest checkpoint.

    `stop` is called after every step; True on any rank ends the run with a checkpoint. `progress` receives rows of
    numbers, and {"remark": text} for what the user should know.

    Runs on every rank of the default torch.distributed group, or alone without one. Raises ValueError for what the user
    can correct: a run that was started with other settings, a non-finite loss, too many undecodable samples.
    """
    # --- set up
    rank, world = world_of()
    device = _device(config)
    threads = config.threads or decoding_threads(device)
    on_gpu = gpu_decode.chosen("cpu" if config.augment.randaugment else config.decoder, device, threads)
    opened = _join_run(config, rank, world)
    attempt, manifest = opened.attempt, opened.manifest
    known = poison.find(attempt, manifest.digest, device)
    model = build(config.model, config.seed, device, config.decoder_fp32)
    model.encoder.skip_dropped = config.dropped != "compute"
    model.encoder.attention = model.decoder.attention = config.attention
    owners = Owners(list(model.parameters()), config.shard_optimizer)
    optimizer = make_optimizer(model, config.optim, owners.own)
    seen, remarks = load_newest(attempt, opened.checkpoints, model, optimizer)
    remarks = (*opened.remarks, *remarks, *_compile(config, model, device))
    with micro_batch.in_one_line(config.out, config.micro or 1):
        micro = _micro(config, model, optimizer, owners.own, device)
    config = dataclasses.replace(config, micro=micro, threads=threads)
    for remark in (*remarks, _plan(config, manifest, world)):
        progress({"remark": remark})
    gradients = GradientSum(list(model.parameters()))
    stream = Stream(manifest, config.order, config.batch, seen, config.samples, rank, world, config.read)
    if stream.reader.memory:
        progress({"remark": f"up to {stream.reader.memory / 1e6:,.0f} MB of samples wait in memory, on every rank"})
    orders_KK = block_orders(config.model.blocks, config.seed).to(device) if config.model.order == "random" else None
    machine = cost(config.model, device, world, config.dropped != "compute", config.attention)
    crop = RandomCrop(config.model.image, config.augment, config.seed)
    slots = config.batch + 16 * config.threads  # a batch that a device decodes, and the threads' samples
    steps, superseded = Steps(config.out, config.data, config.max_bad, seen, machine, device), False

    def lost(event: dict[str, Any]) -> None:
        events.add_event(event)
        progress({"remark": f"the run goes on without {event['sink']}, which failed: {event['error']}"})

    with (
        micro_batch.in_one_line(config.out, config.micro),
        float32_products("high" if config.tf32 else "highest"),
        closing(stream),
        poison.Guard(known, attempt, rank, manifest.digest, crop, stream.reader.tar_url, slots) as guard,
        Parts(attempt, "metrics") as metrics,
        Parts(attempt, "events", rank, world) as events,
        Saver(attempt, config.keep, config.keep_every, len(owners.parts), events.add_event, config.keep_at) as saver,
        Recorder(metrics, config.sinks if rank == 0 else (), dataclasses.asdict(config), lost) as recorder,
    ):
        if rank == 0:
            events.add_event({"event": "resume" if seen else "start", "samples_seen": seen, "world": world})
        for batch in train_batches(
            stream, config.model.image, config.augment, config.seed, config.threads, device=on_gpu, guard=guard
        ):
            steps.has_batch()
            total = min(config.batch, config.samples - seen)
            perm_K = pick_order(orders_KK, config.seed, seen) if orders_KK is not None else None
            lr = learning_rate(config.optim, seen, config.samples, config.batch)
            for group in optimizer.param_groups:
                group["lr"] = lr

            # --- step
            loss_share = _forward_backward(model, batch, config, total, device, perm_K, gradients)
            batch.release()  # on a GPU it was already released when its copy began
            gradients.finish()
            summed = sum_numbers(_to_sum(loss_share, len(batch.events), stop()))
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step()
            owners.spread()
            model.zero_grad(set_to_none=True)  # also the parameters that other ranks own
            seen += total

            # --- record
            row = steps.done(seen, lr, summed, grad_norm, batch.keys)
            for event in batch.events:
                events.add_event({"samples_seen": seen, **event})
            if opened.val is not None and crossed(config.val.every, seen, total, config.samples):
                row["val_loss"] = _validate(model, opened.val, config, device, orders_KK)
            due = crossed(config.checkpoint_every, seen, total, config.samples, config.keep_at)
            if due or steps.are_due():
                steps.look(seen, recorder.add if rank == 0 else lambda row: None, events.add_event)
                progress({"samples": config.samples, "loss": steps.loss, "saved_at": saver.saved_at, **row})
            due = due or steps.halted
            if due or time.monotonic() - events.flushed_at > FLUSH_SECONDS:
                if on_gpu is not None:
                    events.add_event({"event": "decoded", "samples_seen": seen, **on_gpu.report()})
                recorder.flush()  # before the checkpoint, so that a resumed run's log has no gap
                events.flush()

            # --- save
            if due:
                cursor = dataclasses.asdict(Cursor(manifest.digest, config.order, seen))
                superseded = saver.save(model, optimizer, {"cursor": cursor}, seen)
            if steps.halted or superseded:
                break
            steps.over()
        superseded = saver.wait() or superseded
        stopped = seen < config.samples or superseded
        if rank == 0:
            events.add_event({"event": "stop" if stopped else "done", "samples_seen": seen})
    if rank == 0:
        remove_leftovers(attempt, config.keep, config.keep_every, config.keep_at)
    return TrainResult(
        config.out, attempt.number, seen, steps.loss, time.perf_counter() - steps.begun, stopped, superseded
    )


def _plan(config: Config, manifest: Manifest | Mixture, world: int) -> str:
    """The steps, epochs and passes that follow from counts of samples."""
    steps, share = math.ceil(config.samples / config.batch), math.ceil(config.batch / world)
    passes = math.ceil(share / (config.micro or share))
    mixed = f"; mixed from {manifest.shares}" if isinstance(manifest, Mixture) else ""
    return (
        f"{config.samples:,} samples are {steps:,} steps of {config.batch:,}, {config.samples / manifest.samples:.3g} "
        f"epochs of {manifest.samples:,}; a step is {world} x {share:,} images, in {passes} pass{'es' * (passes > 1)}"
        + mixed
    )


def _device(config: Config) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here: use --device cpu or run xtra doctor")
    use_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    if config.attention.startswith("flex") and not use_cuda:
        raise ValueError(f"attention is {config.attention}, which torch trains with on GPUs only: use auto")
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def _join_run(config: Config, rank: int, world: int) -> Opened:
    """Rank 0 opens the run folder; the others receive what it found, or its error."""
    shared: list[Any] = [None]
    if rank == 0:
        try:
            val = read_manifest(config.val.data) if config.val.data else None
            require(config.sinks, config.out)  # before the attempt is announced, which would end a running one
            begin = _trunk(config)  # before anything is written
            opened = open_run(config.out, config, world)
            if begin and not opened.checkpoints:
                opened = dataclasses.replace(opened, checkpoints=(begin,))
            remarks = (*opened.remarks, *gaps(config.out, config.sinks))
            shared = [dataclasses.replace(opened, val=val, remarks=remarks)]
        except ValueError as error:
            shared = [error]
    if world > 1:
        dist.broadcast_object_list(shared, src=0)
    if isinstance(shared[0], ValueError):
        raise shared[0]
    return shared[0]


def _trunk(config: Config) -> str:
    """The trunk's checkpoint from which a branch without own checkpoints starts; "" for other runs."""
    if not config.branch or checkpoint.latest(config.out):
        return ""
    manifest, _ = terms(config.out, config)
    return require_trunk(config, manifest.digest, decay_start(config.optim, config.samples, config.batch))


def _compile(config: Config, model: Xtra, device: torch.device) -> tuple[str, ...]:
    """Compile the model if the config says so; returns remarks for the user."""
    if config.compile == "off" or (config.compile == "auto" and device.type != "cuda"):
        return ()
    why = compiled.unavailable() if config.compile == "auto" else ""
    if why:
        return (f"nothing is compiled, which makes training slower: {why}",)
    compiled.compile_model(model)
    return ()


def _micro(
    config: Config, model: Xtra, optimizer: torch.optim.Optimizer, own: list[nn.Parameter], device: torch.device
) -> int:
    """The images of one pass, the same on all ranks: `config.micro`, or what fits in the memory of the smallest GPU."""
    world = world_of()[1]
    share = math.ceil(config.batch / world)
    free = None if config.micro else micro_batch.free_bytes(device)
    if free is None:
        return config.micro or share
    missing = 0 if optimizer.state else sum(p.numel() for p in own)
    free -= micro_batch.fixed_bytes(sum(p.numel() for p in model.parameters()), world, missing)
    fits = micro_batch.images_that_fit(config.model, config.precision == "bf16", config.decoder_fp32, free)

    def one_pass(images: int) -> None:
        moments = torch.empty(8 * missing, dtype=torch.uint8, device=device)
        side, nothing = config.model.image, np.zeros(images, np.int64)
        pixels = torch.zeros(images, 3, side, side, dtype=torch.uint8)
        batch = Batch(Lease(pixels), ("",) * images, ((),) * images, nothing, nothing)
        perm_K = torch.arange(config.model.blocks, device=device) if config.model.order == "random" else None
        try:
            _forward_backward(model, batch, dataclasses.replace(config, micro=images), images, device, perm_K, None)
        finally:
            model.zero_grad(set_to_none=True)
            del moments

    return least(micro_batch.tried(micro_batch.even_parts(share, fits), one_pass), device)


def _forward_backward(
    model: Xtra,
    batch: Batch,
    config: Config,
    total: int,
    device: torch.device,
    perm_K: Tensor | None,
    gradients: GradientSum | None,
) -> Tensor:
    """Add this rank's share of the gradient of the global mean loss; returns its share of that loss (no host sync)."""
    share = torch.zeros((), device=device)
    step = config.micro or max(len(batch), 1)
    pixels_B3HW = batch.images_B3HW.to(device, non_blocking=True)
    if device.type == "cuda":
        batch.release()  # now: who needs this memory next waits for the copy only, not for the whole step
    loss_of = compiled.compiled_loss() if model.compiled else compiled.loss_of
    for start in range(0, len(batch), step):
        part = slice(start, start + step)
        images, weight_B = normalise(pixels_B3HW[part]), None
        count, epoch_B, sample_B = len(images), batch.epoch_B[part], batch.sample_B[part]
        if model.compiled:
            weight_B = compiled.weights(count, step, total, device)
            images = compiled.filled(images, step)
            epoch_B, sample_B = compiled.filled_numbers(epoch_B, step), compiled.filled_numbers(sample_B, step)
        drop_LSB = None
        if config.model.drop_path:
            draw = drop_path.subset_scales if config.dropped == "subset" else drop_path.scales
            drop_LSB = draw(config.model.drop_path, config.model.depth, config.seed, epoch_B, sample_B)
        prefix_B = None
        if config.model.prefix:
            prefix_B = sent(prefix.draws(config.model.blocks, config.seed, epoch_B, sample_B), device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            predictions = model(images, drop_LSB, perm_K=perm_K, prefix_B=prefix_B)
        loss = loss_of(predictions, images, config.model.side, perm_K, weight_B, config.loss, prefix_B)
        if weight_B is None:
            loss = loss * (count / total)
        if gradients is not None and start + step >= len(batch):
            gradients.arm()
        loss.backward()
        share += loss.detach()
    return share


def _to_sum(loss_share: Tensor, replaced: int, stop: bool) -> Tensor:
    """[3]: the values that are all-reduced in each step, besides gradients."""
    values = sent(torch.tensor([0.0, replaced, stop], dtype=torch.float64), loss_share.device)
    values[0] = loss_share
    return values


def _validate(model: Xtra, manifest: Manifest, config: Config, device: torch.device, orders_KK: Tensor | None) -> float:
    perm_K = None if orders_KK is None else orders_KK[0]
    bf16 = config.precision == "bf16"
    return validation_loss(model, manifest, config.val, config.loss, device, bf16, config.threads, perm_K)
