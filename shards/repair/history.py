"""Rebuild a dataset's history: versions, the hint to the newest, and retries.

Each version has the digest of the one before it, and `latest.json` repeats the newest. So a lost version's digest is
known, and with it everything that training reads. When and why it was made is only in the version itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shards import store, typed_json
from shards.dataset import DatasetInfo, Generation, numbers
from shards.manifest import Manifest, Version
from shards.repair.unit import Line, Rebuilt, Unusable, parsed, read

_DIGEST = re.compile("[0-9a-f]{64}")
_FIELDS = {"number", "digest", "parent", "why", "made_at"}


@dataclass
class History:
    """The objects that exist; numbers are from 1."""

    versions: dict[int, dict[str, Any]] = field(default_factory=dict)
    damaged: dict[int, str] = field(default_factory=dict)  # versions that exist, but cannot be read
    latest: dict[str, Any] | None = None
    latest_problem: str = ""
    generations: dict[int, Generation] = field(default_factory=dict)
    damaged_generations: dict[int, str] = field(default_factory=dict)

    def digests(self) -> set[str]:
        """The digests of the manifests that must exist."""
        found = [*self.versions.values(), *([self.latest] if self.latest else [])]
        return {value[name] for value in found for name in ("digest", "parent") if value[name]}

    def newest_without_rules(self, manifests: Mapping[str, Manifest], like: Manifest) -> int | None:
        """The newest version of the same units without rules: a selection can be made again from it."""
        units = [shard.unit for shard in like.shards]
        found = [(number, manifests.get(value["digest"])) for number, value in self.versions.items()]
        plain = [n for n, m in found if m and not m.rules and [shard.unit for shard in m.shards] == units]
        return max(plain, default=None)


def load(dataset: str) -> History:
    found = History()
    for number in numbers(dataset, "versions", ".json"):
        try:
            found.versions[number] = _version(read(dataset, f"versions/{number:06d}.json"), number)
        except Unusable as error:
            found.damaged[number] = str(error)
    try:
        found.latest = _version(read(dataset, "latest.json"), None)
    except Unusable as error:
        found.latest_problem = str(error)
    for number in numbers(dataset, "generations", ".json"):
        try:
            value = parsed(read(dataset, f"generations/{number:06d}.json"))
            generation = typed_json.checked(Generation, value, "it")
            if generation.number != number:
                raise Unusable(f"belongs to retry {generation.number}")
            found.generations[number] = generation
        except (Unusable, store.StoreError) as error:
            found.damaged_generations[number] = " ".join(str(error).split())
    return found


def _version(body: bytes, number: int | None) -> dict[str, Any]:
    value = parsed(body)
    digests = [value.get("digest"), *([value["parent"]] if value.get("parent") else [])]
    if value.keys() != _FIELDS or not all(isinstance(d, str) and _DIGEST.fullmatch(d) for d in digests):
        raise Unusable("is damaged")
    try:
        typed_json.checked(Version, value, "it")
    except store.StoreError as error:
        raise Unusable(f"is damaged ({error})") from None
    if number not in (None, value["number"]):
        raise Unusable(f"belongs to version {value['number']}")
    return value


def repair(
    dataset: str, history: History, info: DatasetInfo, manifests: Mapping[str, Manifest], committed: Sequence[int]
) -> tuple[list[Rebuilt], list[Line]]:
    """(objects to write, in this order; what is lost). Also completes the history."""
    made: list[Rebuilt] = []
    lost: list[Line] = []
    planned = [*numbers(dataset, "links", ".parquet"), *committed]
    versions = _versions(history, manifests, committed)
    for found in (*versions, *_generations(history, info, manifests, committed, 1 + max(planned, default=-1))):
        if isinstance(found, Rebuilt):
            made.append(found)
        else:
            lost.append(found)
    newest = max([*history.versions, *history.damaged], default=0)
    if newest in history.versions and history.latest != history.versions[newest]:
        problem = history.latest_problem or "is not the newest version"
        body = store.json_bytes(history.versions[newest])
        made.append(Rebuilt("latest.json", f"{problem}: rebuilt from version {newest}", body))
    return made, lost


# --- versions ------------------------------------------------------------------------------------------------------


def _versions(
    history: History, manifests: Mapping[str, Manifest], committed: Sequence[int]
) -> Iterator[Rebuilt | Line]:
    versions, latest = history.versions, history.latest
    hinted = latest["number"] if latest else 0
    newest = max([*versions, *history.damaged, hinted], default=0)
    if not newest:
        yield from _first_version(history, manifests, committed)
    for number in range(newest, 0, -1):
        if number in versions:
            continue
        name = f"versions/{number:06d}.json"
        problem = history.damaged.get(number, "is gone")
        before, after = versions.get(number - 1), versions.get(number + 1)
        if latest and hinted == number:
            versions[number] = latest
            yield Rebuilt(name, f"{problem}: rebuilt from latest.json", store.json_bytes(latest))
        elif after and after["parent"] and (before or number == 1):
            yield from _add(history, number, after["parent"], before["digest"] if before else None, problem)
        else:
            yield Line(name, f"{problem}, and no other version has its manifest's digest: restore it from a copy")
            continue
        history.damaged.pop(number, None)


def _add(history: History, number: int, digest: str, parent: str | None, problem: str) -> Iterator[Rebuilt | Line]:
    name = f"versions/{number:06d}.json"
    value = {"number": number, "digest": digest, "parent": parent, "why": "repair", "made_at": None}
    history.versions[number] = value
    yield Rebuilt(name, f"{problem}: rebuilt for manifest {digest[:16]}", store.json_bytes(value))
    yield Line(name, "rebuilt, but why and when it was made is lost")


def _first_version(
    history: History, manifests: Mapping[str, Manifest], committed: Sequence[int]
) -> Iterator[Rebuilt | Line]:
    """Rebuild version 1 if no version is left. If there was one, its manifest is left; subsets have no version."""
    left = {digest: found for digest, found in manifests.items() if not found.subset}
    if len(left) == 1:
        (digest, found), *_ = left.items()
        if not found.rules and [shard.unit for shard in found.shards] == list(committed):
            yield from _add(history, 1, digest, None, "is gone")
            return
    if left:
        which = ", ".join(digest[:16] for digest in sorted(left))
        yield Line("versions/", f"none is left, and which of the manifests {which} was the newest is not known")


# --- retries -------------------------------------------------------------------------------------------------------


def _generations(
    history: History, info: DatasetInfo, manifests: Mapping[str, Manifest], committed: Sequence[int], planned: int
) -> Iterator[Rebuilt | Line]:
    """Rebuild retries: a retry's units are those between its neighbours'."""
    there = history.generations
    end, number = info.units, 1
    while number <= max([*there, *history.damaged_generations], default=0) or end <= max(committed, default=-1):
        name = f"generations/{number:06d}.json"
        if number in there:
            end = there[number].first_unit + there[number].units
            number += 1
            continue
        problem = history.damaged_generations.get(number, "is gone")
        after = there.get(number + 1)
        until = after.first_unit if after else planned
        parents = _made_from(history, manifests, end)
        if until <= end or (not after and number + 1 in history.damaged_generations) or not parents:
            yield Line(name, f"{problem}, and which units it planned, or from which version, is not known")
            return
        made = Generation(number, parents[-1][1], end, until - end)
        there[number] = made
        yield Rebuilt(name, f"{problem}: rebuilt from its units", store.json_bytes(dataclasses.asdict(made)))
        if len(parents) > 1:
            which = ", ".join(str(version) for version, _ in parents)
            yield Line(name, f"rebuilt, but which of the versions {which} it was planned from is lost")
        end, number = until, number + 1


def _made_from(history: History, manifests: Mapping[str, Manifest], units: int) -> list[tuple[int, str]]:
    """(number, digest) of the versions that have exactly the units before a retry's."""
    found = [(number, value["digest"]) for number, value in sorted(history.versions.items())]
    return [
        (number, digest) for number, digest in found if digest in manifests and len(manifests[digest].shards) == units
    ]
