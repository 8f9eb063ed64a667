"""Checkpoints written in the background: tensors are copied, and a thread uploads and commits them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from shards import store
from xtra.distributed import world_of
from xtra.run import checkpoint
from xtra.run.folder import Attempt


class Saver:
    """Writes one checkpoint at a time. A context manager that waits for the last one, also after an error.

    Of several ranks, the first writes; if the optimiser's state is sharded (`parts` > 1), each writes its part.
    """

    def __init__(
        self,
        attempt: Attempt,
        keep: int,
        keep_every: int,
        parts: int,
        say: Callable[[dict], None],
        keep_at: Collection[int] = (),
    ) -> None:
        self.attempt, self.keep, self.keep_every, self.keep_at, self.say = attempt, keep, keep_every, keep_at, say
        self.rank = world_of()[0]
        self.part, self.parts = (self.rank, parts) if parts > 1 else (0, 1)
        self.thread: threading.Thread | None = None
        self.taken: checkpoint.Snapshot | None = None  # the last one: the next is copied into its memory
        self.saving = 0  # samples seen of the checkpoint being written
        self.committed = True
        self.saved_at: float | None = None  # when the newest checkpoint was committed (UNIX seconds)
        self.failed: BaseException | None = None

    def save(self, model: nn.Module, optimizer: Optimizer, state: dict[str, Any], samples_seen: int) -> bool:
        """Start writing a checkpoint; returns, on every rank, whether a later attempt has taken over instead.

        Raises StoreError if the previous one could not be written.
        """
        superseded = self.wait()
        if superseded and self.rank == 0:
            self.say({"event": "superseded", "samples_seen": samples_seen})
        if not superseded and (self.parts > 1 or self.rank == 0):
            self.taken = checkpoint.snapshot(model, optimizer, state, self.part, self.parts, copy=True, into=self.taken)
            self.saving = samples_seen
            self.thread = threading.Thread(target=self._write, args=(self.taken,), name="checkpoint", daemon=True)
            self.thread.start()
        return superseded

    def _write(self, taken: checkpoint.Snapshot) -> None:
        run, number = self.attempt.run, self.attempt.number
        try:
            checkpoint.write(run, number, self.saving, taken, self.attempt.is_newest)
            self.committed = self.attempt.is_newest()
            self.saved_at = time.time() if self.committed else self.saved_at
            if self.part == 0 and self.committed:
                checkpoint.prune(run, self.keep, self.keep_every, self.keep_at)
        except BaseException as error:  # for the thread that trains
            self.failed = error
            # A later attempt removes unfinished files of earlier ones.
            with contextlib.suppress(store.StoreError):
                if isinstance(error, store.StoreError) and not self.attempt.is_newest():
                    self.committed, self.failed = False, None

    def wait(self) -> bool:
        """Wait until writing is done; returns, on every rank, whether a later attempt has taken over."""
        self._join()
        superseded = [self.rank == 0 and not (self.committed and self.attempt.is_newest())]
        if dist.is_initialized():
            dist.broadcast_object_list(superseded, src=0)
        return bool(superseded[0])

    def _join(self) -> None:
        if self.thread is None:
            return
        self.thread.join()
        self.thread = None
        if self.failed is not None:
            raise self.failed
        if self.rank == 0 and self.committed:
            self.say({"event": "checkpoint", "samples_seen": self.saving})

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self.thread is not None:
            self.thread.join()
