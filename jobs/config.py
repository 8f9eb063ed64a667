"""The Configs of `xtra status`, `doctor`, `report` and `peek`.

A file of their own, because a command's flags are parsed into them: it loads none of numpy, Arrow and torch, so that
help and error messages are quick. `jobs.status.Config` and the others are these.
"""

from __future__ import annotations

from dataclasses import dataclass

from shards.config import KEPT


@dataclass(frozen=True)
class StatusConfig:
    url: str  # a dataset, a run, the --out of a probe, or a folder of these
    watch: bool = False  # refresh until all is done
    every: float = 5.0  # seconds between updates
    # price of one device-hour of a run, or of one hour of an ingest's machines; shows the cost so far
    price: float | None = None

    def __post_init__(self) -> None:
        if not self.every >= 1:
            raise ValueError(f"every is {self.every:g}: it must be at least 1 second")
        if self.price is not None and not self.price >= 0:
            raise ValueError(f"price is {self.price:g}: it must be 0 or more")


@dataclass(frozen=True)
class DoctorConfig:
    url: str = ""  # a folder on the store that runs will use; a tiny object is written there and removed
    cluster: bool = False  # also check that every node of the cluster at RAY_ADDRESS matches this machine


@dataclass(frozen=True)
class ReportConfig:
    runs: str  # folder of run folders, or one run; or a folder of recorded rows, or one ledger's CSV
    out: str | None = None  # the page; RUNS/report.html if not given
    note: str | None = None  # a paragraph to put on top
    # the comparison declared before the runs: ARM AGAINST SET HEAD SAMPLES; study.json's if not given
    primary: tuple[str, ...] = ()
    pictures: bool = True  # show predictions and misclassified test images, if checkpoints and datasets can be opened
    text: bool = False  # print every comparison and the cost, and write nothing


@dataclass(frozen=True)
class PeekConfig:
    dataset: str  # DATASET, DATASET@VERSION or DATASET@DIGEST
    out: str | None = None  # write a contact sheet as one HTML file; without it, rows are printed
    samples: int = 16  # how many links
    reason: str = KEPT  # show links with this outcome: kept, or a reason such as undecodable or duplicate
    label: str | None = None  # only links with this label
    seed: int = 0  # another seed chooses other links

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}: it must be at least 1")
