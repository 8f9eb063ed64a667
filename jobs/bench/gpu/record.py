"""A run of `make bench-gpu`: its settings, the rows so far, and what becomes of a row that fails."""

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
ARM = 120.0  # seconds that one row may take, with what is compiled for it
SHARE = 1 / 3  # of the seconds left, which it may take if that is more
AGAIN = 75  # exit status of a process that is to be started again: what comes next needs one of its own


@dataclass(frozen=True)
class Config:
    out: str = ""  # JSON file, written anew after every row
    stage: int = 0  # 1, 2 or 3; 0: what --only says
    seconds: float = 0.0  # for all of it; what has no time left is named. 0: 520, without a GPU 100
    sizes: tuple[str, ...] = ()  # of xtra.model.SIZES; default: b16 h14, without a GPU tiny32
    only: tuple[str, ...] = ()  # of kernels, checks, train, profile, loop, data; default: those of the stage, or all
    images: int = 0  # a step, to begin with; 0: by the size
    arm_seconds: float = 2.5  # of timed steps, an arm
    drop_path: float = 0.2
    check_steps: int = 300  # of training in each precision, without a GPU at most 30; 0: none
    vectors: str = ""  # folder of the official numbers; they need safetensors
    data: str = ""  # dataset, or folder or tar of JPEGs; default: made pictures
    pictures: int = 2000  # in the dataset that is made
    threads: int = 0  # that decode; 0: one a core
    device: str = "auto"  # "cpu", "cuda" or "auto"
    commit: str = ""  # of this source tree, where it is no git checkout
    compile: bool = True  # --no-compile: no arm is compiled, as none is on a CPU
    watched: bool = True  # --no-watched: in this process, with no time limit from outside; what is in --out is kept

    def __post_init__(self) -> None:
        for name, values, allowed in (("sizes", self.sizes, SIZES), ("only", self.only, SECTIONS)):
            for value in values:
                if value not in allowed:
                    raise ValueError(f"{name} has {value!r}; it must be of {', '.join(allowed)}")
        if self.stage not in (0, *STAGES):
            raise ValueError(f"stage is {self.stage}; it must be 1, 2 or 3")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is cuda, but torch {torch.__version__} sees no GPU here")


class StartAgain(BaseException):
    """What comes next needs a process of its own."""


@dataclass
class Bench:
    """What all sections share: the device, the time that is left, and the rows so far."""

    config: Config
    device: torch.device
    begun: float = field(default_factory=time.monotonic)
    rows: list[dict[str, Any]] = field(default_factory=list)
    machine: Ceilings | None = None
    kept_back: float = 0.0  # seconds for the sections to come
    ran: int = 0  # rows of this process, some of which leave their mark on what follows
    spoilt: bool = False
    about: dict[str, Any] = field(default_factory=lambda: result("gpu", [], {}) | {"torch": torch.__version__})

    def left(self) -> float:
        return self.config.seconds - self.kept_back - (time.monotonic() - self.begun)

    def has(self, section: str, name: str, size: str = "") -> bool:
        """Whether an earlier process of this bench has this row, or rows of this group."""
        return any(
            row["section"] == section and name in (row["name"], row.get("group")) and row.get("size", "") == size
            for row in self.rows
        )

    def add(self, section: str, row: dict[str, Any]) -> None:
        self.rows.append({"section": section, **row})
        self.write()

    def write(self) -> None:
        if self.config.out:
            try:
                written(self.config.out, json.dumps(self.result(), indent=1))
            except OSError as why:
                print(f"  {self.config.out} was not written: {why}", flush=True)

    def ratios(self) -> dict[str, float]:
        """None without a GPU: there the same work twice differs by as much as any two arms."""
        return ratios(self.rows) if self.device.type == "cuda" else {}

    def result(self) -> dict[str, Any]:
        seconds = round(time.monotonic() - self.begun, 1)
        return self.about | {"seconds": seconds, "rows": self.rows, "ratios": self.ratios()}

    def failed(self, section: str, named: dict[str, Any], why: Exception) -> None:
        """A line and a row that say what went wrong."""
        said = f"{type(why).__name__}: {' '.join(str(why).split())[:300]}"
        print(f"  {named['name']}: {said}", flush=True)
        self.add(section, named | {"failed": said})

    def doing(self, section: str, named: dict[str, Any], seconds: float) -> None:
        """For the process that watches this one: what is being done, and how long it may take."""
        if self.config.out:
            try:
                written(f"{self.config.out}.doing", json.dumps({"section": section, "seconds": seconds, **named}))
            except OSError as why:
                print(f"  {self.config.out}.doing was not written: {why}", flush=True)

    def attempt(
        self,
        section: str,
        name: str,
        work: Callable[[], dict[str, Any]],
        needs: float = 5.0,
        alone: bool = False,
        **known: Any,
    ) -> None:
        """Add what is `known` and what `work` gives; or a row and a line that say why there is nothing. `alone`: in a
        process in which nothing else runs, where one watches that starts it again."""
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
        except Exception as why:  # whatever a kernel, a compiler or a library throws: the other arms are to run
            self.failed(section, named, why)
            return
        self.add(section, named | row)


def written(out: str, text: str) -> None:
    """Never half of it. Raises OSError."""
    aside = Path(f"{out}.part")
    aside.write_text(text)
    aside.replace(out)


def settled(config: Config) -> Config:
    """The config with its defaults for this machine, of which the bundle has some."""
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
    """What an earlier process of this bench has measured; nothing where it has not begun."""
    try:
        return json.loads(Path(out).read_text())["rows"] if out else []
    except (OSError, ValueError, KeyError):
        return []
