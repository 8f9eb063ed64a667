"""What became of every line of a list: lines -> links -> kept -> samples, with the reason of each loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ingest.record import CONTENT, FINAL, RETRYABLE, Reason
from shards.figures import percent
from shards.manifest import Manifest, Version

SHOWN = 20  # lines of an exclusion list
WIDTH = 28  # width of a name in a table
CLASSES = "classes"  # name of the rule that chooses classes
GROUPS: dict[str, frozenset[Reason]] = {
    "failed, may work later": RETRYABLE,
    "gone, or not ours to take": FINAL,
    "no picture that we keep": CONTENT,
}


@dataclass(frozen=True)
class Account:
    """lines = sum(not_chosen) + links; links = kept + sum(reasons) + left; samples = kept - sum(deselected)."""

    links: int
    kept: int
    reasons: dict[str, int]
    deselected: dict[str, int]
    left: int = 0  # links without a verdict yet
    not_chosen: Mapping[str, int] = field(default_factory=dict)  # lines that were left out, by rule

    @property
    def lines(self) -> int:
        return self.links + sum(self.not_chosen.values())

    @property
    def samples(self) -> int:
        return self.kept - sum(self.deselected.values())

    @property
    def retryable(self) -> int:
        """Links that may succeed later, by their reason: `--retry` fetches them again."""
        return sum(n for reason, n in self.reasons.items() if reason in RETRYABLE)

    def grouped(self) -> Iterator[tuple[str, int, dict[str, int]]]:
        """(meaning, count, counts by reason) of each non-empty group, the most frequent reason first."""
        for meaning, members in GROUPS.items():
            if found := ordered({reason: n for reason, n in self.reasons.items() if reason in members}):
                yield meaning, sum(found.values()), found


def excluded(counts: list[tuple[str, int]], name: str) -> str:
    """How many pictures the first lines of an exclusion list removed, and how many lines matched none."""
    shown = "\n".join(f"{count:>12,}  {line[:66]}" for line, count in counts[:SHOWN])
    nothing = sum(1 for _, count in counts if not count)
    return f"{shown}\n{len(counts):,} lines of {name}; {nothing:,} name no picture here"


def meaning(chosen: Manifest, before: Version | None, now: Version | None) -> str:
    """In one line: which version a dataset's bare name means now, and whether that has changed."""
    bare = chosen.dataset
    if now is None or (now.digest != chosen.digest and now == before):
        still = f"{bare} still means {bare}@{now.number}" if now else f"{bare} still means no version"
        return f"{still}; this one has no number: name it as above"
    if now == before:
        return f"{bare} means this version, {bare}@{now.number}, as before"
    until = f"; until now it meant {bare}@{before.number}" if before else ""
    return f"{bare} now means this version, {bare}@{now.number}{until}"


def of_manifest(manifest: Manifest, not_chosen: Mapping[str, int] = {}) -> Account:
    return Account(manifest.links, manifest.kept, manifest.reasons, manifest.deselected, not_chosen=dict(not_chosen))


def left_out(account: Account) -> list[tuple[str, int]]:
    """The rules that left lines of the list out, in words, and how many each."""
    return [("of no chosen class" if rule == CLASSES else f"not {rule}", n) for rule, n in account.not_chosen.items()]


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """Sorted, the largest first, without zeros."""
    return {name: n for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if n}


def text(account: Account, things: str = "links") -> str:
    """The account as a table of at most 60 columns; each stage is what remains of the one before. `things`: what the
    source consists of, "links" or "pictures"."""
    a = account
    rows: list[tuple[str, int]] = []
    if a.not_chosen:
        rows += [("lines in the list", a.lines), *((f"  {what}"[:WIDTH], n) for what, n in left_out(a))]
    rows.append((things, a.links))
    for meaning, total, reasons in a.grouped():
        rows.append((f"  {meaning}", total))
        rows += [(f"    {reason}", n) for reason, n in reasons.items()]
    if a.left:
        rows.append(("  not done yet", a.left))
    return _table([*rows, *_selected(a)], a.links)


def selection(account: Account) -> str:
    """Only the last stages: kept pictures, and the samples of a version, as shares of the kept ones."""
    return _table(_selected(account), account.kept)


def _selected(a: Account) -> list[tuple[str, int]]:
    rows = [("kept", a.kept), *((f"  {reason}", n) for reason, n in ordered(a.deselected).items())]
    return rows if a.left else [*rows, ("samples", a.samples)]


def _table(rows: list[tuple[str, int]], whole: int) -> str:
    return "\n".join(f"{name:<{WIDTH}} {n:>14,}  {percent(n, whole) if n <= whole else '':>7}" for name, n in rows)
