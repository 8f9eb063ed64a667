"""Pretraining: one Config, one run(), one loop.

The only clock is samples seen: batches are global, steps are derived, and the whole state of the data is one number.
All ranks hold the whole model and sum their gradients in one flat buffer, in a fixed order, so that a run continued
from a checkpoint repeats the uninterrupted one to the bit at the same world size, and to rounding at another.

Shapes: B this rank's images, L encoder layers, K blocks.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from shards.order import Order
from shards.stream import Cursor, Stream
from xtra import checkpoint
from xtra.blocks import block_orders, pick_order, target_blocks
from xtra.data import Augment, Batch, normalise, train_batches
from xtra.loss import LossConfig, next_block_loss
from xtra.model import ModelConfig, Xtra, build, drop_path_scales
from xtra.optim import OptimConfig, learning_rate, make_optimizer
from xtra.run_folder import Attempt, Opened, Parts, now, open_run

FLUSH_SECONDS = 30.0


@dataclass(frozen=True)
class Config:
    """One pretraining run. Counts are samples; the batch is global."""

    model: ModelConfig
    samples: int  # to see in total; the last batch is cut to it
    batch: int
    data: str = ""  # dataset: URL, URL@VERSION or URL@DIGEST
    out: str = ""  # run folder
    recipe: str = "custom"
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    augment: Augment = field(default_factory=Augment)
    order: Order = field(default_factory=Order)
    precision: str = "fp32"  # or "bf16": autocast
    decoder_fp32: bool = True  # under bf16, keep the decoder in fp32 as the official code does
    micro: int = 0  # most images in one forward pass of a rank; 0 means all at once
    device: str = "auto"  # "cpu", "cuda" or "auto"
    threads: int = 2  # decoding threads a rank
    checkpoint_every: int = 1_000_000  # samples
    keep: int = 2  # newest checkpoints that stay
    max_bad: float = 0.01  # stop when a larger share of samples had to be replaced
    other_manifest: bool = False  # go on with a checkpoint of another manifest

    def __post_init__(self) -> None:
        for name in ("samples", "batch", "checkpoint_every", "keep", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.micro < 0:
            raise ValueError(f"micro is {self.micro}; it must be 0 (all at once) or more")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}; it must be fp32 or bf16")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")


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
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = _device(config)
    opened = _join_run(config, rank, world)
    attempt, manifest = opened.attempt, opened.manifest
    for remark in opened.remarks:
        progress({"remark": remark})
    model = build(config.model, config.seed, device, config.decoder_fp32)
    optimizer = make_optimizer(model, config.optim)
    seen = 0
    if opened.checkpoint is not None:
        seen = int(checkpoint.load(opened.checkpoint, model, optimizer)["cursor"]["samples_seen"])
    stream = Stream(manifest, config.order, config.batch, seen, config.samples, rank, world)
    orders_KK = block_orders(config.model.blocks, config.seed).to(device) if config.model.order == "random" else None
    sync_every = 1 if device.type == "cpu" else 16  # steps between looks at what the device computed
    pending: list[tuple[dict[str, Any], Tensor, Tensor]] = []
    loss, halted, superseded, replaced, resumed_at = None, False, False, 0, seen
    begun = since = time.perf_counter()

    with closing(stream), Parts(attempt, "metrics") as metrics, Parts(attempt, "events", rank, world) as events:
        if rank == 0:
            events.add({"at": now(), "event": "resume" if seen else "start", "samples_seen": seen, "world": world})
        for batch in train_batches(stream, config.model.image, config.augment, config.seed, config.threads):
            waited = time.perf_counter() - since
            total = min(config.batch, config.samples - seen)
            perm_K = pick_order(orders_KK, config.seed, seen) if orders_KK is not None else None
            lr = learning_rate(config.optim, seen, config.samples, config.batch)
            for group in optimizer.param_groups:
                group["lr"] = lr

            loss_sum = _forward_backward(model, batch, config, total, device, perm_K)
            told = _sum_ranks(model, loss_sum, len(batch.events), stop())
            grad_norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen += total

            since = time.perf_counter()
            for event in batch.events:
                events.add({"at": now(), "samples_seen": seen, **event})
            rate = (seen - resumed_at) / (since - begun)
            row = {"samples_seen": seen, "lr": lr, "seconds": since - begun, "samples_per_s": rate, "data_wait": waited}
            pending.append((row, told, grad_norm))
            due = seen // config.checkpoint_every > (seen - total) // config.checkpoint_every or seen >= config.samples
            if due or len(pending) >= sync_every:
                on_rank_0 = metrics.add if rank == 0 else lambda row: None
                loss, replaced, halted = _look(config, pending, replaced, seen - resumed_at, on_rank_0)
                pending.clear()
                progress({"samples": config.samples, "loss": loss, **row})
            if due or halted or time.monotonic() - events.flushed_at > FLUSH_SECONDS:
                metrics.flush()  # before the checkpoint: a resumed run's record has no gap
                events.flush()
            if due or halted:
                superseded = _save(config, attempt, model, optimizer, manifest.digest, seen, rank, events)
            if halted or superseded:
                break
        stopped = seen < config.samples
        if rank == 0:
            events.add({"at": now(), "event": "stop" if stopped else "done", "samples_seen": seen})
    return TrainResult(config.out, attempt.number, seen, loss, time.perf_counter() - begun, stopped, superseded)


def _device(config: Config) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here: use --device cpu or run xtra doctor")
    use_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


def _join_run(config: Config, rank: int, world: int) -> Opened:
    """Rank 0 opens the run folder; the others are told what it found, or the error it met."""
    told: list[Any] = [None]
    if rank == 0:
        try:
            told = [open_run(config.out, dataclasses.asdict(config), world)]
        except ValueError as error:
            told = [error]
    if world > 1:
        dist.broadcast_object_list(told, src=0)
    if isinstance(told[0], ValueError):
        raise told[0]
    return told[0]


def _forward_backward(
    model: Xtra, batch: Batch, config: Config, total: int, device: torch.device, perm_K: Tensor | None
) -> Tensor:
    """Add this rank's share of the global mean loss's gradient; returns that share of the loss (no host sync)."""
    share = torch.zeros((), device=device)
    step = config.micro or max(len(batch), 1)
    for start in range(0, len(batch), step):
        part = slice(start, start + step)
        images = normalise(batch.images_B3HW[part].to(device, non_blocking=True))
        drop_LSB = None
        if config.model.drop_path:
            drop_LSB = drop_path_scales(config.model, config.seed, batch.epoch_B[part], batch.sample_B[part])
        targets_BKP = target_blocks(images, config.model.side)
        if perm_K is not None:
            targets_BKP = targets_BKP[:, perm_K]
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            predictions = model(images, drop_LSB, perm_K=perm_K)
        loss = next_block_loss(predictions, targets_BKP, config.loss) * (len(images) / total)
        loss.backward()
        share += loss.detach()
    return share


def _sum_ranks(model: nn.Module, loss_share: Tensor, replaced: int, stop: bool) -> Tensor:
    """Sum gradients, in place, and (loss, replaced samples, wish to stop) [3] over the ranks.

    One flat buffer in parameter order: the order of additions does not depend on timing or on a restart.
    """
    told = torch.tensor([0.0, replaced, stop], dtype=torch.float64).to(loss_share.device)
    told[0] = loss_share
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return told
    parameters = list(model.parameters())
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    dist.all_reduce(told)
    for p, grad in zip(parameters, flat.split([p.numel() for p in parameters])):
        p.grad = grad.view_as(p)
    return told


def _look(
    config: Config,
    pending: list[tuple[dict[str, Any], Tensor, Tensor]],
    replaced: int,
    samples: int,
    record: Callable[[dict[str, Any]], None],
) -> tuple[float, int, bool]:
    """Bring the pending steps' numbers to the host, record them, and judge: (last loss, replaced so far, stop?)."""
    loss, halt = float("nan"), False
    for row, told, grad_norm in pending:
        loss, bad, stop = told.tolist()
        norm = float(grad_norm)
        record(row | {"loss": loss, "grad_norm": norm})
        replaced, halt = replaced + int(bad), halt or stop > 0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise ValueError(
                f"{config.out}: the loss is {loss} and the gradient norm {norm} at {row['samples_seen']} samples seen "
                f"(lr {row['lr']:.3g}): "
                "lower --optim.lr or use --precision fp32; the newest checkpoint is from before that"
            )
    if replaced > config.max_bad * max(samples, 1000):  # a share of a few samples says nothing yet
        raise ValueError(
            f"{config.data}: {replaced} of {samples} samples did not decode, more than --max-bad {config.max_bad}: "
            "run xtra check on the dataset, or raise --max-bad"
        )
    return loss, replaced, halt


def _save(
    config: Config,
    attempt: Attempt,
    model: Xtra,
    optimizer: torch.optim.Optimizer,
    manifest_digest: str,
    seen: int,
    rank: int,
    events: Parts,
) -> bool:
    """Commit a checkpoint on rank 0; returns, on every rank, whether a later attempt has taken over instead."""
    superseded = [False]
    if rank == 0:
        state = {"cursor": dataclasses.asdict(Cursor(manifest_digest, config.order, seen))}
        if attempt.is_newest():
            checkpoint.save(attempt.run, attempt.number, seen, model, optimizer, state, attempt.is_newest)
        superseded[0] = not attempt.is_newest()
        if not superseded[0]:
            checkpoint.prune(attempt.run, config.keep)
        events.add({"at": now(), "event": "superseded" if superseded[0] else "checkpoint", "samples_seen": seen})
    if dist.is_initialized():
        dist.broadcast_object_list(superseded, src=0)
    return bool(superseded[0])
