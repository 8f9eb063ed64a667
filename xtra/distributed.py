"""Communication between ranks in a step: sums of gradients and numbers, and parameters from their owners.

torch's DistributedDataParallel regroups its buckets after the first step, so a resumed run adds in another order than
an uninterrupted one. Here the buckets always follow the parameters' order, and are sent in that order: a resumed run
repeats the uninterrupted one to the bit at the same number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 32 << 20


def world_of() -> tuple[int, int]:
    """(rank, world size) of the default group; (0, 1) without one."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


class GradientSum:
    """Sums gradients over the ranks in place, bucket by bucket, while the backward pass still computes earlier layers.

    arm() before the last backward pass of a step, finish() after it. A rank without images calls finish() alone.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], bucket_bytes: int = BUCKET_BYTES) -> None:
        self.buckets: list[list[nn.Parameter]] = []
        self._begin()
        if world_of()[1] == 1:
            return
        room = 0
        for p in reversed(parameters):  # roughly the order in which gradients become ready
            if room <= 0:
                self.buckets.append([])
                room = bucket_bytes
            self.buckets[-1].append(p)
            room -= p.numel() * p.element_size()
        self.bucket_of = {p: number for number, bucket in enumerate(self.buckets) for p in bucket}
        for p in parameters:
            p.register_post_accumulate_grad_hook(self._ready)
        self._begin()

    def _begin(self) -> None:
        self.missing = [len(bucket) for bucket in self.buckets]
        self.sent: list[tuple[Tensor, Any]] = []
        self.armed = False

    def arm(self) -> None:
        self.armed = True

    def _ready(self, p: Tensor) -> None:
        if not self.armed:
            return
        assert isinstance(p, nn.Parameter)
        self.missing[self.bucket_of[p]] -= 1
        while len(self.sent) < len(self.buckets) and self.missing[len(self.sent)] == 0:
            self._send()

    def _send(self) -> None:
        bucket = self.buckets[len(self.sent)]
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in bucket])
        self.sent.append((flat, dist.all_reduce(flat, async_op=True)))

    def finish(self) -> None:
        while len(self.sent) < len(self.buckets):
            self._send()
        for bucket, (flat, work) in zip(self.buckets, self.sent):
            work.wait()
            for p, grad in zip(bucket, flat.split([p.numel() for p in bucket])):
                p.grad = grad.view_as(p)
        self._begin()


def sum_numbers(numbers: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if world_of()[1] > 1:
        dist.all_reduce(numbers)
    return numbers


def least(number: int, device: torch.device) -> int:
    """The smallest of the ranks' numbers."""
    if world_of()[1] == 1:
        return number
    smallest = torch.tensor(number, device=device)
    dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
    return int(smallest)


class Owners:
    """Assigns parameters to ranks when the optimiser's state is sharded (ZeRO stage 1).

    AdamW is elementwise and every rank has the whole gradient, so the weights equal those of an unsharded optimiser to
    the bit. The assignment depends only on sizes and order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], shared: bool) -> None:
        self.rank, world = world_of()
        self.parts: list[list[nn.Parameter]] = [[] for _ in range(world if shared else 1)]
        load = [0] * len(self.parts)
        for p in sorted(parameters, key=lambda p: -p.numel()):  # sorting is stable: equal sizes stay in order
            least = load.index(min(load))
            self.parts[least].append(p)
            load[least] += p.numel()

    @property
    def own(self) -> list[nn.Parameter]:
        return self.parts[self.rank if len(self.parts) > 1 else 0]

    @torch.no_grad()
    def spread(self) -> None:
        """Broadcast updated parameters from their owners to every rank."""
        if len(self.parts) == 1:
            return
        flats = [torch.cat([p.detach().flatten() for p in part]) if part else None for part in self.parts]
        works = [dist.broadcast(flat, rank, async_op=True) for rank, flat in enumerate(flats) if flat is not None]
        for work in works:
            work.wait()  # pyrefly: ignore
        for rank, (part, flat) in enumerate(zip(self.parts, flats)):
            if flat is not None and rank != self.rank:
                for p, value in zip(part, flat.split([p.numel() for p in part])):
                    p.copy_(value.view_as(p))
