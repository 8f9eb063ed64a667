"""A run of `make bench-gpu`: its settings, the rows so far, and the handling of rows that fail."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from jobs.bench import result
from jobs.bench.gpu import bundle, step
from jobs.bench.gpu.floor import Ceilings
from jobs.bench.gpu.table import ratios
from xtra.model import SIZES

SECTIONS = ("kernels", "checks", "train", "profile", "loop", "data")
STAGES = {1: ("kernels", "checks", "train"), 2: ("profile",), 3: ("loop", "data")}
ARM = 120.0  # seconds that one row may take, including compilation,
SHARE = 1 / 3  # or this share of the seconds left, if that is more
AGAIN = 75  # exit status that asks for a restart: the next row needs a fresh process


@dataclass(frozen=True)
class Config:
    out: str = ""  # JSON file, rewritten after every row
    stage: int = 0  # 1, 2 or 3; 0: as given by --only
    seconds: float = 0.0  # time limit; rows without time left are listed. 0: 520, without a GPU 100
    sizes: tuple[str, ...] = ()  # names in xtra.model.SIZES; default: b16 h14, without a GPU tiny32
    only: tuple[str, ...] = ()  # some of kernels, checks, train, profile, loop, data; default: the stage's, or all
    images: int = 0  # per step, at first; 0: by the size
    arm_seconds: float = 2.5  # timed steps per variant
    drop_path: float = 0.2
    check_steps: int = 300  # training steps in each precision, without a GPU at most 30; 0: none
    vectors: str = ""  # folder of the official numbers; they need safetensors
    data: str = ""  # dataset, or folder or tar of JPEGs; default: synthetic pictures
    pictures: int = 2000  # in the synthetic dataset
    threads: int = 0  # decoding threads; 0: one per core
    device: str = "auto"  # "cpu", "cuda" or "auto"
    commit: str = ""  # of this source tree, if it is not a git checkout
    compile: bool = True  # --no-compile: compile no variant, as on a CPU
    watched: bool = True  # --no-watched: run in this process, without outside time limits; rows in --out are kept

    def __post_init__(self) -> None:
        for name, values, allowed in (("sizes", self.sizes, SIZES), ("only", self.only, SECTIONS)):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name} has {value!r}; each must be one of {', '.join(allowed)}")
        if self.stage not in (0, *STAGES):
            raise ValueError(f"stage is {self.stage}; it must be 1, 2 or 3")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is cuda, but torch {torch.__version__} sees no GPU here")


class StartAgain(BaseException):
    """The next row needs a fresh process."""


@dataclass
class Bench:
    """State shared by all sections: the device, the time left, and the rows so far."""

    config: Config
    device: torch.device
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    machine: Ceilings | None = None
    kept_back: float = 0.0  # seconds reserved for later sections
    ran: int = 0  # rows of this process, some of which affect later ones
    spoilt: bool = False
    about: dict[str, Any] = field(default_factory=lambda: result("gpu", [], {}) | {"torch": torch.__version__})

    def left(self) -> float:
        return self.config.seconds - self.kept_back - (time.monotonic() - self.begun)

    def has(self, section: str, name: str, size: str = "") -> bool:
        """Whether an earlier process of this bench measured this row, or rows of this group."""
        return any(
            row["section"] == section and name in (row["name"], row.get("group")) and row.get("size", "") == size
            for row in self.rows
        )

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.rows.append({"section": section, **row})
        self.write()

    def write(self) -> None:
        self._put("", json.dumps(self.result(), indent=1))

    def _put(self, end: str, text: str) -> None:
        """Write the file --out, or the one whose name has this end; an error must not end the measurement."""
        if self.config.out:
            try:
                written(f"{self.config.out}{end}", text)
            except OSError as why:
                print(f"  {self.config.out}{end} was not written: {why}", flush=True)

    def ratios(self) -> dict[str, float]:
        """None without a GPU: there, repeated work differs as much as any two variants do."""
        return ratios(self.rows) if self.device.type == "cuda" else {}

    def result(self) -> dict[str, Any]:
        return self.about | {
            "seconds": round(time.monotonic() - self.begun, 1),
            "rows": self.rows,
            "ratios": self.ratios(),
        }

    def failed(self, section: str, named: dict[str, Any], why: Exception) -> None:
        """Print and record an error as a row."""
        said = f"{type(why).__name__}: {' '.join(str(why).split())[:300]}"
        print(f"  {named['name']}: {said}", flush=True)
        self.add(section, named | {"failed": said})

    def doing(self, section: str, named: dict[str, Any], seconds: float) -> None:
        """Report to the watching process the current row and how long it may take."""
        self._put(".doing", json.dumps({"section": section, "seconds": seconds, **named}))

    def attempt(
        self,
        section: str,
        name: str,
        work: Callable[[], dict[str, Any]],
        needs: float = 5.0,
        alone: bool = False,
        **known: Any,
    ) -> None:
        """Add a row with `known` and the result of `work`, or with the reason why there is none. `alone`: run it in a
        fresh process, if a watching process can restart this one."""
        named = {"name": name} | known
        if self.has(section, name, known.get("size", "")):
            return
        if self.left() < needs:
            self.add(section, named | {"left_out": "no time"})
            return
        if not self.config.watched and self.config.out and (self.spoilt or (alone and self.ran)):
            raise StartAgain
        print(f"[{time.monotonic() - self.begun:5.0f} s] {name}", flush=True)
        self.ran, self.spoilt = self.ran + 1, alone
        limit = min(self.left(), max(ARM, SHARE * self.left()))
        self.doing(section, named, limit)
        try:
            with step.at_most(limit):
                row = work()
        except Exception as why:  # from a kernel, a compiler or a library: the other variants must still run
            self.failed(section, named, why)
            return
        self.add(section, named | row)


def written(out: str, text: str) -> None:
    """Write a file atomically. Raises OSError."""
    aside = Path(f"{out}.part")
    aside.write_text(text)
    aside.replace(out)


def settled(config: Config) -> Config:
    """The config with defaults for this machine, some of them from the bundle."""
    use_cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    sizes = config.sizes or (("b16", "h14") if use_cuda else ("tiny32",))
    carried = Path(bundle.FOLDER)
    vectors, photos, commit = carried / "vectors", carried / "photos.tar", carried / "commit"
    return replace(
        config,
        vectors=config.vectors or (str(vectors) if vectors.is_dir() else ""),
        data=config.data or (str(photos) if photos.is_file() else ""),
        commit=config.commit or (commit.read_text() if commit.is_file() and not Path(".git").exists() else ""),
        sizes=sizes,
        only=config.only or STAGES.get(config.stage, SECTIONS),
        seconds=config.seconds or (520.0 if use_cuda else 100.0),
        device="cuda" if use_cuda else "cpu",
        compile=config.compile and use_cuda,
    )


def rows_of(out: str) -> list[dict[str, Any]]:
    """The rows measured by an earlier process of this bench; empty if there was none."""
    try:
        return json.loads(Path(out).read_text())["rows"] if out else []
    except (OSError, ValueError, KeyError):
        return []
