"""Sweep a run: remove old remains of checkpoints and probes whose writers died; never anything that a COMMIT names.

Removed if older than `older_than` by the store's clock, and if its attempt has written nothing since:

    checkpoints/SAMPLES/ATTEMPT/     if SAMPLES has no COMMIT.json, or one that names another attempt
    probes-unfinished/DIGEST/        the state of a probe with results; tensors that no state names
    .aside-*, .write-test-*          half-written objects, in every folder of a run or of vectors
    multipart uploads                that were never completed (S3)

The state of a probe without results is always kept: the same command resumes from it.
"""

from __future__ import annotations

import re

from shards import store, sweep, typed_json
from shards.sweep import HALF_PUT, Config, Found, SweepResult
from xtra.probe import embedding, unneeded_states
from xtra.run import checkpoint, records

LEAST = 3600.0  # seconds: a checkpoint's first part waits half an hour for the others
_WRITTEN = ("attempts", "metrics", "events")  # objects there begin with the attempt's number
_FOLDERS = ("", *_WRITTEN, "checkpoints", "probes", "probes-unfinished", "killers/deaths", "killers/judged")
_ATTEMPT = re.compile(r"\d{6}")
_SAMPLES = re.compile(r"\d{12}")


def run(config: Config) -> SweepResult:
    """Sweep a run, a folder that probes or embeddings write to, or all of these directly in the folder.

    Raises ValueError if there is none, and StoreError if a COMMIT cannot be read; then nothing is removed.
    """
    runs = [""] if _is_run(config.url) else _runs_in(config.url)
    if not runs:
        raise ValueError(f"{config.url}: is neither a dataset nor a run: give the --out of xtra ingest, train or probe")
    if config.seconds < LEAST:
        raise ValueError(f"older_than is {config.older_than}: younger objects may belong to a running process; give 1h")
    before = config.before()
    beaten: Found = []
    undecided: Found = []
    for name in runs:
        url = store.join(config.url, name) if name else config.url
        lost, old = _checkpoints(url, before)
        for found, all_found in ((lost, beaten), (old + unneeded_states(url) + _half_put(url), undecided)):
            all_found += [(f"{name}/{below}" if name else below, entry) for below, entry in found]
    undecided = list({name: (name, entry) for name, entry in undecided}.values())
    return sweep.remove(config, beaten, undecided, before)


def _is_run(url: str) -> bool:
    names = set(store.names(url))
    return bool(names & {"config.json", "run.json", "probes", "probes-unfinished", embedding.ABOUT})


def _runs_in(url: str) -> list[str]:
    return [name for name in store.names(url) if _is_run(store.join(url, name))]


def _checkpoints(run: str, before: float) -> tuple[Found, Found]:
    """Files of attempts that lost to another's COMMIT, and of checkpoints without one, except for attempts that wrote
    anything since `before`."""
    alive = {
        entry.name[:6]
        for folder in _WRITTEN
        for entry in store.entries(store.join(run, folder))
        if _ATTEMPT.match(entry.name) and entry.modified >= before
    }
    beaten: Found = []
    undecided: Found = []
    for samples in filter(_SAMPLES.fullmatch, store.names(store.join(run, "checkpoints"))):
        folder = store.join(run, "checkpoints", samples)
        # Attempts are listed before the COMMIT is read: one that commits meanwhile wins.
        attempts = [name for name in store.names(folder) if _ATTEMPT.fullmatch(name)]
        found = {name: store.entries(store.join(folder, name)) for name in attempts}
        winner = None
        if store.exists(store.join(folder, checkpoint.COMMIT)):
            winner = f"{typed_json.read(records.Commit, store.join(folder, checkpoint.COMMIT)).attempt:06d}"
        for attempt, entries in found.items():
            young = any(entry.modified >= before for entry in entries)
            for entry in entries:
                name = f"checkpoints/{samples}/{attempt}/{entry.name}"
                if attempt == winner and not entry.name.startswith(HALF_PUT):
                    continue
                if attempt in alive or young:
                    undecided.append((name, store.Entry(entry.name, entry.bytes, float("inf"))))
                else:
                    (undecided if winner in (None, attempt) else beaten).append((name, entry))
    return beaten, undecided


def _half_put(run: str) -> Found:
    folders = [*_FOLDERS, *(f"checkpoints/{name}" for name in store.names(store.join(run, "checkpoints")))]
    return [
        (f"{folder}/{entry.name}" if folder else entry.name, entry)
        for folder in folders
        for entry in store.entries(store.join(run, folder) if folder else run)
        if entry.name.startswith(HALF_PUT)
    ]
