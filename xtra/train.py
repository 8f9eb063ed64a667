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
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards import roles
from shards.manifest import Manifest, read_manifest
from shards.stream import Cursor, Mixture, Order, ReadConfig, Stream
from xtra import compiled, drop_path, fit, gpu_decode, prefix
from xtra.attention import ARMS, Arm
from xtra.batch_memory import Lease
from xtra.blocks import block_orders, pick_order
from xtra.data import Augment, Batch, RandomCrop, normalise, train_batches
from xtra.device import decoding_threads, sent
from xtra.distributed import GradientSum, Owners, least, sum_numbers, world_of
from xtra.loss import LossConfig
from xtra.model import ModelConfig, Xtra, build, float32_products
from xtra.optim import OptimConfig, decay_start, learning_rate, make_optimizer
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
from xtra.validation import Validation, validation_loss

FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Config:
    """One pretraining run. Counts are samples; the batch is global."""

    model: ModelConfig = field(metadata=roles.role("law"))
    # to see in total; the last batch is cut to it
    samples: int = field(metadata=roles.role("trial", unless={"optim.schedule": "constant", "optim.decay": 0.0}))
    batch: int = field(metadata=roles.role("law", resumed=True))
    data: str = roles.data("")  # dataset: URL, URL@VERSION or URL@DIGEST
    # other datasets and their shares of the samples seen, URL=SHARE; data has the rest
    mix: tuple[str, ...] = roles.data(())
    out: str = roles.machine("")  # run folder
    recipe: str = roles.trial("custom")
    arm: str = roles.machine("")  # what comparisons call it; the recipe's name if empty
    # a run at a constant rate to begin from, at its checkpoint where this run's decay begins
    branch: str = roles.data("")
    seed: int = roles.trial(0)
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=roles.role("law"))
    loss: LossConfig = field(default_factory=LossConfig, metadata=roles.role("law"))
    augment: Augment = field(default_factory=Augment, metadata=roles.role("law"))
    order: Order = field(default_factory=Order, metadata=roles.role("law"))
    precision: str = roles.law("fp32")  # or "bf16": autocast
    # under bf16, keep the decoder in fp32, as the official code does
    decoder_fp32: bool = roles.law(False, unless={"precision": "fp32"})
    # on a GPU, round the operands of float32 matrix products to TF32: several times the speed
    tf32: bool = roles.law(False)
    # Most images in one forward pass of a rank, gradients added up; 0: on a CPU all at once, on a GPU what its free
    # memory holds (xtra/fit.py).
    micro: int = roles.machine(0)
    # Residual branches that drop path zeroes: computed all the same (official); skipped (the same numbers, in a few
    # shapes); or a fixed number of each micro-batch is skipped (as DINOv2).
    dropped: Literal["compute", "skip", "subset"] = roles.law("compute")
    compile: Literal["auto", "on", "off"] = roles.machine("auto")  # torch.compile layers, head and loss; auto: on a GPU
    attention: Arm = roles.machine("auto")  # how it is computed (xtra/attention.py): the same numbers, to rounding
    shard_optimizer: bool = roles.machine(False)  # each rank keeps its share of the optimiser's state (ZeRO 1)
    device: str = roles.machine("auto")  # "cpu", "cuda" or "auto"
    threads: int = roles.machine(0)  # decoding threads a rank; 0: on a GPU its share of the cores, on a CPU 2
    read: ReadConfig = field(default_factory=ReadConfig, metadata=roles.role("machine"))
    # JPEGs: "gpu" needs the extra `gpu`; "auto" takes it where it can. What a GPU refuses, the CPU decodes.
    decoder: Literal["cpu", "gpu", "auto"] = roles.machine("cpu")
    checkpoint_every: int = roles.machine(1_000_000)  # samples
    keep: int = roles.machine(2)  # newest checkpoints that stay
    keep_every: int = roles.machine(0)  # samples; the first checkpoint at or after each multiple stays as well; 0: none
    # samples after which there is a checkpoint that stays, so that runs may branch there
    keep_at: tuple[int, ...] = roles.machine(())
    val: Validation = field(default_factory=Validation, metadata=roles.role("machine"))
    # where metrics also go, beside the run folder
    sinks: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = roles.machine(())
    max_bad: float = roles.machine(0.01)  # stop when a larger share of samples had to be replaced
    other_manifest: bool = roles.machine(False)  # go on with a checkpoint of another manifest

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name, nought in (("micro", "what fits"), ("keep_every", "none"), ("threads", "by the cores")):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 ({nought}) or more")
        if not 0 <= self.max_bad <= 1:
            raise ValueError(f"max_bad is {self.max_bad}; it must be a share, 0 to 1")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; it must be fp32 or bf16")
        if self.attention not in ("auto", *ARMS):
            raise ValueError(f"attention is {self.attention!r}; it must be auto or one of {', '.join(ARMS)}")
        if self.compile not in ("auto", "on", "off"):
            raise ValueError(f"compile is {self.compile!r}; it must be auto, on or off")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.model.prefix and (self.dropped != "compute" or self.attention.startswith("flex")):
            raise ValueError(
                f"dropped is {self.dropped} and attention {self.attention}; with model.prefix every image has a mask "
                "of its own: use --dropped compute and an attention other than flex"
            )
        if self.branch and (self.optim.schedule != "constant" or not self.optim.decay):
            raise ValueError("branch is of runs that decay a constant rate: use --optim.schedule constant, decay 0.2")
        if off := [at for at in self.keep_at if at < 1 or at % self.batch]:
            raise ValueError(f"keep_at has {off[0]}; each must be a multiple of the batch, which is {self.batch}")
        if self.decoder == "gpu" and self.augment.randaugment:
            raise ValueError("augment.randaugment works on pixels that the CPU decodes, but decoder is gpu: use cpu")
        if self.augment.erase:
            raise ValueError(
                f"augment.erase is {self.augment.erase}; pretraining predicts pixels: only probes erase them"
            )


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

    `stop` is asked after every step; True on any rank ends the run with a checkpoint. `progress` is given rows of
    numbers, and {"remark": text} for what the user should know.

    Runs on every rank of the default torch.distributed group, or alone without one. Raises ValueError for what the user
    can mend: a run begun with other settings, a non-finite loss, too many undecodable samples.
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
    with fit.in_one_line(config.out, config.micro or 1):
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
    slots = config.batch + 16 * config.threads  # of a batch that a device decodes, and of the threads' samples
    steps, superseded = Steps(config.out, config.data, config.max_bad, seen, machine, device), False

    def lost(event: dict[str, Any]) -> None:
        events.tell(event)
        progress({"remark": f"the run goes on without {event['sink']}, which failed: {event['error']}"})

    with (
        fit.in_one_line(config.out, config.micro),
        float32_products("high" if config.tf32 else "highest"),
        closing(stream),
        poison.Guard(known, attempt, rank, manifest.digest, crop, stream.reader.tar_url, slots) as guard,
        Parts(attempt, "metrics") as metrics,
        Parts(attempt, "events", rank, world) as events,
        Saver(attempt, config.keep, config.keep_every, len(owners.parts), events.tell, config.keep_at) as saver,
        Recorder(metrics, config.sinks if rank == 0 else (), dataclasses.asdict(config), lost) as recorder,
    ):
        if rank == 0:
            events.tell({"event": "resume" if seen else "start", "samples_seen": seen, "world": world})
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
            batch.release()  # where that was a GPU's, it has been released when its copy was begun
            gradients.finish()
            summed = sum_numbers(_to_sum(loss_share, len(batch.events), stop()))
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step()
            owners.spread()
            model.zero_grad(set_to_none=True)  # what other ranks own, too
            seen += total

            # --- record
            row = steps.done(seen, lr, summed, grad_norm, batch.keys)
            for event in batch.events:
                events.tell({"samples_seen": seen, **event})
            if opened.val is not None and crossed(config.val.every, seen, total, config.samples):
                row["val_loss"] = _validate(model, opened.val, config, device, orders_KK)
            due = crossed(config.checkpoint_every, seen, total, config.samples, config.keep_at)
            if due or steps.are_due():
                steps.look(seen, recorder.add if rank == 0 else lambda row: None, events.tell)
                progress({"samples": config.samples, "loss": steps.loss, "saved_at": saver.saved_at, **row})
            due = due or steps.halted
            if due or time.monotonic() - events.flushed_at > FLUSH_SECONDS:
                if on_gpu is not None:
                    events.tell({"event": "decoded", "samples_seen": seen, **on_gpu.told()})
                recorder.flush()  # before the checkpoint: a resumed run's record has no gap
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
            events.tell({"event": "stop" if stopped else "done", "samples_seen": seen})
    if rank == 0:
        remove_leftovers(attempt, config.keep, config.keep_every, config.keep_at)
    return TrainResult(
        config.out, attempt.number, seen, steps.loss, time.perf_counter() - steps.begun, stopped, superseded
    )


def _plan(config: Config, manifest: Manifest | Mixture, world: int) -> str:
    """The steps, epochs and passes that follow from counts of samples."""
    steps, share = math.ceil(config.samples / config.batch), math.ceil(config.batch / world)
    passes = math.ceil(share / (config.micro or share))
    mixed = f"; mixed of {manifest.shares}" if isinstance(manifest, Mixture) else ""
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
    """Rank 0 opens the run folder; the others are told what it found, or the error it met."""
    told: list[Any] = [None]
    if rank == 0:
        try:
            val = read_manifest(config.val.data) if config.val.data else None
            require(config.sinks, config.out)  # before the attempt is announced, which ends one that is at work
            begin = _trunk(config)  # before anything is written
            opened = open_run(config.out, config, world)
            if begin and not opened.checkpoints:
                opened = dataclasses.replace(opened, checkpoints=(begin,))
            remarks = (*opened.remarks, *gaps(config.out, config.sinks))
            told = [dataclasses.replace(opened, val=val, remarks=remarks)]
        except ValueError as error:
            told = [error]
    if world > 1:
        dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], ValueError):
        raise told[0]
    return told[0]


def _trunk(config: Config) -> str:
    """The trunk's checkpoint that a branch without one of its own begins from; "" for other runs."""
    if not config.branch or checkpoint.latest(config.out):
        return ""
    manifest, _ = terms(config.out, config)
    return require_trunk(config, manifest.digest, decay_start(config.optim, config.samples, config.batch))


def _compile(config: Config, model: Xtra, device: torch.device) -> tuple[str, ...]:
    """Compile the model if the config says so; remarks for the user."""
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
    free = None if config.micro else fit.free_bytes(device)
    if free is None:
        return config.micro or share
    missing = 0 if optimizer.state else sum(p.numel() for p in own)
    free -= fit.fixed_bytes(sum(p.numel() for p in model.parameters()), world, missing)
    fits = fit.images_that_fit(config.model, config.precision == "bf16", config.decoder_fp32, free)

    def once(images: int) -> None:
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

    return least(fit.tried(fit.even_parts(share, fits), once), device)


def _forward_backward(
    model: Xtra,
    batch: Batch,
    config: Config,
    total: int,
    device: torch.device,
    perm_K: Tensor | None,
    gradients: GradientSum | None,
) -> Tensor:
    """Add this rank's share of the global mean loss's gradient; returns that share of the loss (no host sync)."""
    share = torch.zeros((), device=device)
    step = config.micro or max(len(batch), 1)
    pixels_B3HW = batch.images_B3HW.to(device, non_blocking=True)
    if device.type == "cuda":
        batch.release()  # now: what waits for this memory waits for the copy, and not for the whole step
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
