"""What `xtra status`, `doctor`, `report` and `peek` may be asked.

They stand here, and not beside what does it, because the words of a command are read into them: this file loads none of
numpy, Arrow and torch, so that help and mistakes take no time. `jobs.status.Config` and the others are these.
"""

from __future__ import annotations

from dataclasses import dataclass

from shards.config import KEPT


@dataclass(frozen=True)
class StatusConfig:
    url: str  # a dataset, a run, the --out of a probe, or a folder of these
    watch: bool = False  # read and show it again, until all is done
    every: float = 5.0  # seconds between two looks
    price: float | None = None  # an hour of a run's device, or of all machines of an ingest: what it has cost so far

    def __post_init__(self) -> None:
        if not self.every >= 1:
            raise ValueError(f"every is {self.every:g}: it must be at least 1 second")
        if self.price is not None and not self.price >= 0:
            raise ValueError(f"price is {self.price:g}: it must be 0 or more")


@dataclass(frozen=True)
class DoctorConfig:
    url: str = ""  # a folder to write to, on the store that runs will use; a tiny object is made there and removed
    cluster: bool = False  # also ask every node of the cluster at RAY_ADDRESS whether it is like this machine


@dataclass(frozen=True)
class ReportConfig:
    runs: str  # folder of run folders, or one run
    out: str | None = None  # the page; RUNS/report.html if not given
    note: str | None = None  # a paragraph to put on top
    primary: tuple[str, ...] = ()  # declared before the runs: ARM AGAINST SET HEAD SAMPLES; study.json's if not given
    pictures: bool = True  # predictions, and test images got wrong, where checkpoints and datasets can be opened


@dataclass(frozen=True)
class PeekConfig:
    dataset: str  # DATASET, DATASET@VERSION or DATASET@DIGEST
    out: str | None = None  # a contact sheet as one HTML file; without it rows are printed
    samples: int = 16  # how many links
    reason: str = KEPT  # show links that ended so: kept, or a reason such as undecodable or duplicate
    label: str | None = None  # only links with this label
    seed: int = 0  # another choice

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}: it must be at least 1")
