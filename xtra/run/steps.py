"""The rows of a run's steps: read when the device has computed them, recorded, and checked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xtra.device import mark
from xtra.run.meter import Cost, memory_bytes


@dataclass(frozen=True)
class Step:
    """The numbers of a step that are read later."""

    row: dict[str, Any]
    summed: Tensor  # loss, replaced samples, requests to stop; over all ranks
    grad_norm: Tensor
    keys: tuple[str, ...]  # this rank's samples
    gap: tuple[Any, Any]  # device events: end of the previous step, and arrival of this one's batch; None on CPUs


class Steps:
    """The steps of one attempt. Every step calls `has_batch`, `done` and `over`, in this order, and `look` when it is
    due."""

    def __init__(self, run: str, data: str, max_bad: float, seen: int, machine: Cost, device: torch.device) -> None:
        self.run, self.data, self.max_bad = run, data, max_bad
        self.machine, self.device, self.resumed_at = machine, device, seen
        self.most = 1 if device.type == "cpu" else 16  # steps between looks at what the device computed
        self.loss: float | None = None  # of the last step that was read
        self.replaced, self.halted = 0, False
        self.pending: list[Step] = []
        self._ended: Any = None
        self._gap: tuple[Any, Any] = (None, None)
        self.begun = self._since = time.perf_counter()
        self._began_cpu, self._waited = time.process_time(), 0.0

    def has_batch(self) -> None:
        self._waited, self._gap = time.perf_counter() - self._since, (self._ended, mark(self.device))

    def done(self, seen: int, lr: float, summed: Tensor, grad_norm: Tensor, keys: tuple[str, ...]) -> dict[str, Any]:
        """The row of the step, to which more may be added until `look`."""
        self._since = time.perf_counter()
        seconds = self._since - self.begun
        rate = (seen - self.resumed_at) / seconds
        row = {"samples_seen": seen, "lr": lr, "seconds": seconds, "samples_per_s": rate, "data_wait": self._waited}
        row |= self.machine.utilisation(rate) | {"memory_bytes": memory_bytes(self.device)}
        row["cpu_seconds"] = time.process_time() - self._began_cpu
        self.pending.append(Step(row, summed, grad_norm, keys, self._gap))
        return row

    def are_due(self) -> bool:
        return len(self.pending) >= self.most

    def over(self) -> None:
        self._ended = mark(self.device)

    def look(self, seen: int, record: Callable[[dict[str, Any]], None], emit: Callable[[dict[str, Any]], None]) -> None:
        """Bring the pending steps' numbers to the host, record and check them. Raises ValueError for a loss or
        gradient that is not finite, and for too many replaced samples."""
        self.halted = False
        for step in self.pending:
            self.loss, bad, stop = step.summed.tolist()
            norm = float(step.grad_norm)
            if None not in step.gap:  # the device's wait: the host may wait for data while the device still computes
                step.row["data_wait"] = step.gap[0].elapsed_time(step.gap[1]) / 1e3
            record(step.row | {"loss": self.loss, "grad_norm": norm})
            self.replaced, self.halted = self.replaced + int(bad), self.halted or stop > 0
            self._require_finite(step, norm, emit)
        self.pending.clear()
        samples = seen - self.resumed_at
        if self.replaced > self.max_bad * max(samples, 1000):  # a share of a few samples means nothing yet
            raise ValueError(
                f"{self.data}: {self.replaced} of {samples} samples did not decode, more than --max-bad "
                f"{self.max_bad}: run xtra check on the dataset, or raise --max-bad"
            )

    def _require_finite(self, step: Step, norm: float, emit: Callable[[dict[str, Any]], None]) -> None:
        assert self.loss is not None
        if math.isfinite(self.loss) and math.isfinite(norm):
            return
        seen = step.row["samples_seen"]
        emit({"event": "not finite", "samples_seen": seen, "loss": str(self.loss), "keys": step.keys})
        some = ", ".join(step.keys[:8]) + ", …" * (len(step.keys) > 8)
        raise ValueError(
            f"{self.run}: the loss is {self.loss} and the gradient norm {norm} at {seen} samples seen "
            f"(lr {step.row['lr']:.3g}): lower --optim.lr or use --precision fp32; the newest checkpoint is from "
            f"before that; this rank's {len(step.keys)} samples of the step, all in the events: {some}"
        )


def crossed(every: int, seen: int, step: int, samples: int, also: Collection[int] = ()) -> bool:
    """Whether a multiple of `every`, one of `also` or the end of the run was reached in the last step."""
    return seen // every > (seen - step) // every or seen >= samples or seen in also
