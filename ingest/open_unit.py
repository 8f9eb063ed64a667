"""A unit in progress: its writer, its journal, and which of its links share an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ingest.journal import Binding, Journal
from ingest.record import BadLine, Link
from ingest.unit import UnitWriter


class OpenUnit:
    """A unit whose links are being fetched, or that is full and waits to be sealed."""

    def __init__(
        self, number: int, careful: bool, links: Sequence[Link], writer: UnitWriter, folder: Path, binding: Binding
    ) -> None:
        self.number, self.careful = number, careful
        self.writer, self.folder, self.binding = writer, folder, binding
        self.links = by_url(links)
        self.same = {same[0].row: same[1:] for same in self.links if len(same) > 1}  # links that share its answer
        self.journal = Journal(folder, binding)
        self.had: set[int] = set()  # rows of links that an earlier run had answered

    def close(self) -> None:
        self.writer.close()
        self.journal.close()


def by_url(links: Sequence[Link]) -> list[list[Link]]:
    """The links in groups that one answer serves, in order: those with the same URL and hash."""
    if len({link.url for link in links}) == len(links):
        return [[link] for link in links]
    groups: dict[tuple[str, str | None], list[Link]] = {}
    for link in links:
        groups.setdefault((link.url, link.hash), []).append(link)
    return list(groups.values())


def with_all(entries: list[Link | BadLine]) -> list[Link | BadLine]:
    """The entries; the first link of each URL also has the others' keys, labels and columns."""
    if len({entry.url for entry in entries}) == len(entries):
        return entries
    firsts = {
        same[0].row: replace(same[0], also=f"[{', '.join(map(_as_json, same[1:]))}]")
        for same in by_url([entry for entry in entries if isinstance(entry, Link)])
        if len(same) > 1
    }
    return [firsts.get(entry.row, entry) for entry in entries] if firsts else entries


def _as_json(link: Link) -> str:
    columns = f'"columns": {link.columns}, ' if link.columns else ""
    return f'{{{columns}"key": "{link.key}", "labels": {json.dumps(link.labels)}}}'
