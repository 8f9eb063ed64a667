"""Several imports of the same data, taken as one where a study's study.json declares so.

A manifest's digest covers where its tars are, so the same tars, imported in place on two machines, have two digests.
Rows cannot prove that the contents are the same: a person declares it, and the page names it. What rows can contradict,
a name or a number of images, is refused.

    "same_data": [["23ec7615…", "51e9110a…"], …]   whole digests, of training sets and of probes' sets
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from jobs.report.compare import declarations
from jobs.report.ledger import Ledger, LedgerRow

SAME_DATA = "same_data"


@dataclass(frozen=True)
class SameData:
    """Groups of digests; the first of each stands for all of it."""

    where: str = ""
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def first(self) -> dict[str, str]:
        return {digest: group[0] for group in self.groups for digest in group}

    def said(self, rows: Iterable[LedgerRow]) -> list[str]:
        """What the page has to say of it, about the digests that its rows have."""
        names: dict[str, str] = {}
        for row in rows:
            names |= {row.probe_train: f"heads of {row.set}", row.probe_eval: row.set, row.manifest: _name(row)}
        pairs = [
            f"{names[group[0]]} {' = '.join(digest[:8] for digest in group)}"
            for group in self.groups
            if len(names.keys() & {*group}) > 1
        ]
        return [
            f"By {self.where.rpartition('/')[2]}, these digests are imports of the same data, and count as one: "
            f"{'; '.join(sorted(pairs))}. Rows cannot prove it. Where a comparison's sides are of different imports, "
            "that is named: the machines may differ too, and what their arithmetic adds counts as chance between seeds."
        ] * bool(pairs)


def read_same_data(root: str) -> SameData:
    """What study.json declares, in the folder or its parent. Raises ValueError if it is no list of lists of digests."""
    found = declarations(root)
    if found is None or not isinstance(found[1], Mapping) or SAME_DATA not in found[1]:
        return SameData()
    where, whole = found
    groups = whole[SAME_DATA]
    proper = isinstance(groups, list) and all(isinstance(group, list) and len(group) > 1 for group in groups)
    digests = list(chain(*groups)) if proper else []
    if not proper or not all(isinstance(d, str) and len(d) == 64 for d in digests) or len({*digests}) < len(digests):
        raise ValueError(f"{where}: {SAME_DATA} must be lists of two or more digests of 64 digits, each in one list")
    return SameData(where, tuple(map(tuple, groups)))


def as_one(ledger: Ledger, same: SameData) -> Ledger:
    """The ledger with the first digest of every group in place of the others. Runs keep theirs as `imported`, and so do
    probes, of the test set.

    Raises ValueError if the rows of two digests of a group name different sets, or different numbers of images.
    """
    if not same.groups:
        return ledger
    _check(ledger.rows, same)
    first = same.first

    def one(digest: str) -> str:
        return first.get(digest, digest)

    rows = [
        replace(r, manifest=one(r.manifest), probe_train=one(r.probe_train), probe_eval=one(r.probe_eval))
        for r in ledger.rows
    ]
    runs = [
        replace(
            run,
            info={**run.info, "manifest": one(str(run.info["manifest"])), "imported": run.info["manifest"]},
            probes=tuple({**p, **_probe(p, one)} for p in run.probes),
        )
        for run in ledger.runs
    ]
    return replace(ledger, runs=tuple(runs), rows=tuple(rows))


def _probe(result: Mapping[str, Any], one: Callable[[str], str]) -> dict[str, str]:
    digests = {name: str(result[name]) for name in ("manifest_train", "manifest_eval") if name in result}
    return {name: one(digest) for name, digest in digests.items()} | {"imported": digests.get("manifest_eval", "")}


def _check(rows: Iterable[LedgerRow], same: SameData) -> None:
    facts: dict[tuple[str, str], dict[str, str]] = {}  # (group's first, kind) -> what it is -> a digest that is it
    first = same.first
    for row in rows:
        kinds = {"training set": (row.manifest, f"{_name(row)}, {row.selected:,} images")}
        if row.set:
            kinds["test set"] = (row.probe_eval, f"{row.set}, {row.total:,} images")
            kinds["heads' training set"] = (row.probe_train, f"that of {row.set}")
        for kind, (digest, what) in kinds.items():
            if digest in first:
                facts.setdefault((first[digest], kind), {})[what] = digest
    for (_, kind), found in facts.items():
        if len(found) > 1:
            (one, mine), (other, theirs) = list(found.items())[:2]
            raise ValueError(
                f"{same.where}: {SAME_DATA} calls {mine[:12]} and {theirs[:12]} the same, but as a {kind} they are "
                f"{one} and {other}"
            )


def _name(row: LedgerRow) -> str:
    return row.dataset.rstrip("/").rpartition("/")[2].partition("@")[0]
