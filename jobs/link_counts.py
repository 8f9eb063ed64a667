"""Where every line of a list went: lines -> links -> kept -> samples, with the reason of each that fell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ingest.record import CONTENT, FINAL, RETRYABLE, Reason
from shards.figures import percent
from shards.manifest import Manifest, Version

SHOWN = 20  # lines of what was excluded
WIDTH = 28  # of a name in a table
CLASSES = "classes"  # the rule that the choice of classes is
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
        """Links whose reason says that the same link may succeed later: what `--retry` takes."""
        return sum(n for reason, n in self.reasons.items() if reason in RETRYABLE)

    def grouped(self) -> Iterator[tuple[str, int, dict[str, int]]]:
        """(what the group means, how many, by reason) of each group that has any, the most frequent reason first."""
        for meaning, members in GROUPS.items():
            if found := ordered({reason: n for reason, n in self.reasons.items() if reason in members}):
                yield meaning, sum(found.values()), found


def excluded(counts: list[tuple[str, int]], name: str) -> str:
    """How many pictures the first lines of a list took out, and how many lines none."""
    shown = "\n".join(f"{count:>12,}  {line[:66]}" for line, count in counts[:SHOWN])
    nothing = sum(1 for _, count in counts if not count)
    return f"{shown}\n{len(counts):,} lines of {name}; {nothing:,} name no picture here"


def meaning(chosen: Manifest, before: Version | None, now: Version | None) -> str:
    """Whether a dataset's bare name means another version since one was chosen; in one line."""
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
    """What left lines of the list out, in words, and how many."""
    return [("of no chosen class" if rule == CLASSES else f"not {rule}", n) for rule, n in account.not_chosen.items()]


def ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """The largest first; none of nothing."""
    return {name: n for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if n}


def text(account: Account, things: str = "links") -> str:
    """The account as a table of at most 60 columns; each stage is what remains of the one before. `things`: what the
    source has, "links" or "pictures"."""
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
    """The last stages alone: what was kept, and what of it a version holds; shares are of what was kept."""
    return _table(_selected(account), account.kept)


def _selected(a: Account) -> list[tuple[str, int]]:
    rows = [("kept", a.kept), *((f"  {reason}", n) for reason, n in ordered(a.deselected).items())]
    return rows if a.left else [*rows, ("samples", a.samples)]


def _table(rows: list[tuple[str, int]], whole: int) -> str:
    return "\n".join(f"{name:<{WIDTH}} {n:>14,}  {percent(n, whole) if n <= whole else '':>7}" for name, n in rows)
