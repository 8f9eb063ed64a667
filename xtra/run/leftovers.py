"""Remove files that killed attempts left in a run's folder, when the run's work is done."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection

from shards import store
from xtra.run import checkpoint
from xtra.run.folder import Attempt

FOLDERS = ("", "attempts", "metrics", "events", "probes")


def remove_leftovers(attempt: Attempt, keep: int, keep_every: int, keep_at: Collection[int] = ()) -> None:
    """Prune, then remove checkpoint files of attempts that lost to another's COMMIT or are older than the newest, and
    half-written files. Does nothing once a later attempt has taken over. Raises StoreError.

    A checkpoint set aside as damaged is kept until it is due to be pruned.
    """
    if not attempt.is_newest():
        return
    checkpoint.prune(attempt.run, keep, keep_every, keep_at)
    base = store.join(attempt.run, "checkpoints")
    newest = max(checkpoint.committed(attempt.run), default=0)
    folders = [store.join(base, name) for name in store.names(base) if re.fullmatch(r"\d{12}", name)]
    for folder in folders:
        there = store.names(folder)
        alive = None  # without a COMMIT, a process may still be writing it
        if checkpoint.COMMIT in there:
            with contextlib.suppress(checkpoint.Damaged, store.Missing):
                alive = f"{checkpoint.read_commit(folder)['attempt']:06d}"
        elif int(folder[-12:]) < newest:
            alive = ""
        if alive is None or any(name.startswith("COMMIT-damaged-") for name in there):
            continue
        for name in there:
            if re.fullmatch(r"\d{6}", name) and name != alive:
                for file in store.entries(store.join(folder, name)):
                    store.delete(store.join(folder, name, file.name))
    if store.is_local(attempt.run):
        own = [store.join(attempt.run, name) if name else attempt.run for name in FOLDERS]
        attempts = [store.join(folder, name) for folder in folders for name in store.names(folder)]
        for folder in (*own, *folders, *attempts):
            store.remove_left_aside(folder)
