"""The run folder: a run's settings, its attempts, and its metrics (docs/design.md, "Run folder").

A bucket cannot append and attempts may overlap, so every file here is put if absent, or an immutable log segment named
by its attempt; readers take the highest attempt. A writer that sees a higher attempt than its own must stop.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from shards import folder_kind, roles, store
from shards.dataset import numbers
from shards.manifest import Manifest, read_manifest
from shards.pixels import crop
from shards.stream import Mixture, read_mixture
from xtra.run import checkpoint, live, records

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

ENDED = 800_000  # number of the segment in which a driver records how an attempt ended
STALLED = 900_000  # first number of segments about stalled ranks, above any that a rank reaches


@dataclass(frozen=True)
class Attempt:
    """One process group's try at a run, numbered from 1."""

    run: str
    number: int

    def is_newest(self) -> bool:
        """Whether no later attempt has started; otherwise this one must not commit any more."""
        return max(attempts(self.run), default=self.number) <= self.number


def attempts(run: str) -> list[int]:
    return numbers(run, "attempts", ".json")


@dataclass(frozen=True)
class Opened:
    """State that all ranks of an attempt share; rank 0 determines and broadcasts it."""

    attempt: Attempt
    manifest: Manifest | Mixture
    checkpoints: tuple[str, ...]  # committed ones to resume from, newest first
    remarks: tuple[str, ...]  # for the user
    val: Manifest | None = None  # the held-out dataset, if any


def terms(run: str, settings: DataclassInstance) -> tuple[Manifest | Mixture, tuple[str, ...]]:
    """The manifest or mixture that a run with this config must read, and remarks for the user; writes nothing.

    A setting missing from an older run's config counts as its current default.

    Raises ValueError naming what is missing, the field in which the config differs from the run's, or the manifests
    that differ: the run's, its newest checkpoint's and that of --data.
    """
    config = asdict(settings)
    for name, what in (("data", "the dataset to read"), ("out", "the run folder")):
        if not config[name]:
            raise ValueError(f"--{name} is missing: give {what}")
    mixed = {f"mix {number}": part for number, part in enumerate(config.get("mix", ()), 1)}
    store.require(data=config["data"], out=config["out"], **mixed)
    folder_kind.require(run, "a run", "run")
    remarks = []
    before, recorded = _if_there(records.read_settings, run), _if_there(records.read_facts, run)
    if before is not None:
        for name, old, new in differences(settings, before, config):
            raise ValueError(f"{run}: was begun with {name} = {old!r}, now {new!r}: use the old value or another --out")
        if before.get("batch") != config["batch"]:
            remarks.append(f"{run}: the batch is now {config['batch']}; the run began with {before.get('batch')}")
    named = (config["data"], list(config.get("mix", ())))
    if before is not None and recorded is not None and (before.get("data"), before.get("mix", [])) == named:
        # A restart reads the versions that the run began with, even if DATASET has a newer one.
        manifest = _recorded(recorded)
    else:
        manifest = read_mixture(*named)
    newest = checkpoint.latest(run)
    others = {recorded["manifest"]} if recorded else set()
    if newest:
        with contextlib.suppress(checkpoint.Damaged):  # the run then resumes from an older one
            others |= {checkpoint.read_commit(newest)["manifest"]}
    for other in sorted(others - {manifest.digest}):
        if not config["other_manifest"]:
            raise ValueError(
                f"{run}: was begun on manifest {other[:16]}, --data {config['data']} is {manifest.digest[:16]}: "
                "use that version, another --out, or --other-manifest to go on regardless"
            )
        remarks.append(f"{run}: goes on with manifest {manifest.digest[:16]}, begun on {other[:16]}")
    return manifest, tuple(remarks)


def _recorded(info: dict[str, Any]) -> Manifest | Mixture:
    """The manifest or mixture that run.json names."""
    if not info.get("mixture"):
        return read_manifest(f"{info['dataset']}@{info['manifest']}")
    manifests = tuple(read_manifest(f"{part['dataset']}@{part['manifest']}") for part in info["mixture"])
    return Mixture(manifests, tuple(part["of_4096"] for part in info["mixture"]))


def open_run(run: str, settings: DataclassInstance, world: int) -> Opened:
    """Start a run, or an attempt to continue it. Raises what `terms` raises, before writing anything."""
    manifest, remarks = terms(run, settings)
    config = asdict(settings)
    facts = _facts(manifest, config, world)
    begun = store.exists(store.join(run, "run.json"))
    ours = store.put_json_if_absent(store.join(run, "config.json"), config)
    ours = store.put_json_if_absent(store.join(run, "run.json"), facts) and ours
    if not (begun or ours):
        return open_run(run, settings, world)  # another process has just begun this run: continue it
    number = max(attempts(run), default=0) + 1
    while not store.put_json_if_absent(
        store.join(run, "attempts", f"{number:06d}.json"), facts | {"attempt": number, **_who()}
    ):
        number += 1
    # Looked up after the attempt is announced: from here on, earlier attempts commit nothing.
    found = tuple(checkpoint.checkpoint_folder(run, samples) for samples in reversed(checkpoint.committed(run)))
    return Opened(Attempt(run, number), manifest, found, remarks)


def _if_there(read: Callable[[str], dict[str, Any]], run: str) -> dict[str, Any] | None:
    try:
        return read(run)
    except store.Missing:
        return None


def _plain(values: Any) -> Any:
    """The value as JSON returns it: without tuples."""
    return json.loads(json.dumps(values))


def differences(
    settings: DataclassInstance, before: Mapping[str, Any], now: Mapping[str, Any], resumed: bool = True
) -> Iterator[tuple[str, Any, Any]]:
    """The fields in which two configs of a run differ and may not: (name, before, now). A branch is no resumed run."""
    kind, given = type(settings), _plain(now)
    kept, wanted = (roles.chosen(kind, of, "law", "trial", under=given, resumed=resumed) for of in (before, given))
    yield from _differences("", _plain(roles.defaults(kind)), kept, wanted)


def _differences(path: str, defaults: Any, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted({*before, *now}):
        new, default = now.get(name), defaults.get(name)
        old = before.get(name, default)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(f"{path}{name}.", default or {}, old, new)
        elif old != new:
            yield f"{path}{name}", old, new


def _facts(manifest: Manifest | Mixture, config: Mapping[str, Any], world: int) -> dict[str, Any]:
    packages = ("torch", "numpy", "pyarrow", "safetensors", "fsspec")
    mixed = manifest if isinstance(manifest, Mixture) else Mixture((manifest,), (1.0,))
    parts = [
        {
            "dataset": store.absolute(part.dataset),
            "manifest": part.digest,
            "of_4096": quota,
            "samples": part.samples,
        }
        for part, quota in zip(mixed.manifests, mixed.quotas)
    ]
    return {
        "dataset": " + ".join(part["dataset"] for part in parts),
        "manifest": manifest.digest,
        **({"mixture": parts} if isinstance(manifest, Mixture) else {}),
        "manifest_samples": manifest.samples,
        "recipe": config["recipe"],
        "world": world,
        "threads": torch.get_num_threads(),
        "image_build": crop.build_name(),
        "git": _git(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "hardware": _hardware(),
    }


def _hardware() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}"


def _git() -> str | None:
    """The commit of this source tree; outside a checkout (an image, a bundle) that of XTRA_COMMIT, or None."""
    here = Path(__file__)
    # The second name fails where this file is no part of the repository around it, such as in somebody's .venv.
    command = ["git", "-C", here.parent, "rev-parse", "HEAD", f"HEAD:./{here.name}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        if done.returncode == 0:
            return done.stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired):
        pass
    return os.environ.get("XTRA_COMMIT") or None


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": now(), "driver": asdict(live.driver())}


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@dataclass
class Parts:
    """Rows of one kind (metrics or events) of one rank, flushed as immutable segments; a context flushes at its end."""

    attempt: Attempt
    kind: str
    part: int = 0  # segment number: starts at the rank and steps by the world size, so ranks share no name
    stride: int = 1
    rows: list[dict[str, Any]] = field(default_factory=list)
    flushed_at: float = field(default_factory=time.monotonic)

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def add_event(self, event: dict[str, Any]) -> None:
        """Add an event with the time."""
        self.add({"at": now(), **event})

    def flush(self) -> None:
        self.flushed_at = time.monotonic()
        if not self.rows:
            return
        body = "".join(json.dumps(row) + "\n" for row in self.rows)
        name = f"{self.attempt.number:06d}-{self.part:06d}.jsonl"
        store.put(store.join(self.attempt.run, self.kind, name), body.encode())
        self.rows, self.part = [], self.part + self.stride

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self.kind == "events":
            self.add_event({"event": "failed", "error": f"{type(error).__name__}: {error}"[:300]})
        self.flush()


def stalled(run: str, rank: int, stack: str) -> None:
    """Record that a rank hangs, with its stack; called from outside the training."""
    number = max(attempts(run), default=0)
    if number:
        event = {"at": now(), "event": "stalled", "rank": rank, "stack": stack}
        name = f"{number:06d}-{STALLED + rank:06d}.jsonl"
        store.put(store.join(run, "events", name), (json.dumps(event) + "\n").encode())


def ended(run: str, number: int, how: str, why: str) -> None:
    """Record the driver's reason for an attempt's end; the first record is kept."""
    body = (json.dumps({"at": now(), "event": how, "why": why}) + "\n").encode()
    store.put_if_absent(store.join(run, "events", f"{number:06d}-{ENDED:06d}.jsonl"), body)
