"""The fields of a run folder's JSON objects that are read (docs/design.md, "Run folder").

`shards.typed_json` checks them: fields that older builds did not write have defaults; fields not named here stay in the
object as read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from shards import store, typed_json
from shards.typed_json import Count

NUMBERED = re.compile(r"\d{6,}\.json")  # attempts
PART = re.compile(r"(\d{6,})-\d{6,}\.jsonl")  # segments of metrics and events; the group is the attempt
DEATH = re.compile(r"\d+-\d+\.json")  # also verdicts on poison samples
MOST = 2**31 - 1  # largest size in a model config


@dataclass(frozen=True)
class MixedPart:
    """One dataset of a mixture, in `run.json`."""

    dataset: str
    manifest: str
    of_4096: Count
    samples: Count | None = None


@dataclass(frozen=True)
class Seed:
    seed: Count = 0


@dataclass(frozen=True)
class Decay:
    decay: float = 0.0


@dataclass(frozen=True)
class Settings:
    """`config.json`. The settings that shape the run are compared one by one when an attempt begins."""

    model: dict[str, Any]
    data: str = ""
    samples: Count = 0
    batch: Count = 0
    seed: int = 0
    recipe: str | None = None
    arm: str | None = None
    branch: str | None = None
    mix: tuple[str, ...] = ()
    order: Seed = Seed()
    optim: Decay = Decay()
    keep_every: Count = 0

    def __post_init__(self) -> None:
        for name, value in self.model.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not 0 <= value <= MOST:
                raise ValueError(f"field 'model.{name}' is {value}, which is impossible")


@dataclass(frozen=True)
class Facts:
    """`run.json`."""

    manifest: str
    dataset: str = ""
    manifest_samples: Count = 0
    mixture: tuple[MixedPart, ...] | None = None
    recipe: str | None = None
    world: Count | None = None
    threads: Count | None = None
    image_build: str | None = None
    git: str | None = None
    versions: dict[str, str] | None = None
    hardware: str | None = None


@dataclass(frozen=True)
class Driver:
    """Identifies one process, so that a later one with the same pid is not mistaken for it."""

    host: str
    pid: Count
    boot: str = ""  # its machine's boot id; "" if the system has none
    started: Count = 0  # clock ticks since boot
    cluster: str = ""  # the Ray session of its groups of workers
    job: str = ""  # its Ray job id

    def is_process(self, other: Driver) -> bool:
        return all(getattr(self, name) == getattr(other, name) for name in ("host", "pid", "boot", "started"))


@dataclass(frozen=True)
class File:
    bytes: Count
    sha256: str


@dataclass(frozen=True)
class Commit:
    """`checkpoints/SAMPLES/COMMIT.json`."""

    attempt: Count
    samples_seen: Count
    files: dict[str, File]
    manifest: str | None = None


@dataclass(frozen=True)
class Begun:
    """`attempts/000002.json`."""

    attempt: Count | None = None
    host: str | None = None
    pid: Count | None = None
    since: str | None = None
    world: Count | None = None
    driver: Driver | None = None


@dataclass(frozen=True)
class Happened:
    """A line of `events/`."""

    event: str
    at: str | None = None  # ISO 8601 with its zone

    def __post_init__(self) -> None:
        if self.at is not None and datetime.fromisoformat(self.at).tzinfo is None:
            raise ValueError(f"field 'at' is {self.at[:40]!r}, a time without a time zone")


@dataclass(frozen=True)
class Death:
    """`killers/deaths/ATTEMPT-RANK.json`."""

    manifest: str
    attempt: Count
    samples: tuple[Count, ...] = field(default=())


@dataclass(frozen=True)
class Judged:
    """`killers/judged/SAMPLE-ATTEMPT.json`."""

    manifest: str
    attempt: Count
    sample: Count
    verdict: Literal["bad", "careful", "cleared"]
    why: str = ""


def read_settings(run: str) -> dict[str, Any]:
    """A run's config.json. Raises Missing, StoreError."""
    return typed_json.read_object(Settings, store.join(run, "config.json"))


def read_facts(run: str) -> dict[str, Any]:
    """A run's run.json. Raises Missing, StoreError."""
    return typed_json.read_object(Facts, store.join(run, "run.json"))


def ours(names: list[str], pattern: re.Pattern[str]) -> list[str]:
    """The names in a listing that match; others (.DS_Store, .nfs0001, notes) are ignored."""
    return [name for name in names if pattern.fullmatch(name)]
