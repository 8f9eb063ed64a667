"""Which columns of a table hold the URL, the id and the labels: the user's choice, else by name or content.

A column called `url` wins; else the column that holds http(s) URLs. If several do, one called `image_url` wins;
otherwise the user must choose.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ingest.lists.rows import is_url

SAMPLE = 100  # rows that are inspected
NOWHERE = sys.maxsize  # the place of a column that a table does not have

KEPT, ASKED = "+", "?"  # prefix of the name of a column that is carried along: to keep, or only for --where
MOST = 1000  # columns of a list that can be carried along

URL_NAMES = ("url", "urls", "image_url", "image", "link")
ID_NAMES = ("id", "key")
LABEL_NAMES = ("label", "labels", "class")
_OF_PICTURES = ("image_url", "image_urls", "imageurl", "img_url", "imgurl")  # preferred to, say, the URL of a page


class NoColumn(ValueError):
    """The list has no column of a name that the user gave. For JSON that may be known only after the last line."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table's URL, id and labels: names, or numbers from 0. None: found by name or content."""

    url: str | None = None
    id: str | None = None
    label: str | None = None
    keep: tuple[str, ...] | None = ()  # others to carry along; None: all but the URL
    asked: tuple[str, ...] = ()  # others that --where needs

    def mark(self, name: str, is_url: bool = False) -> str | None:
        """The prefixed name under which a column is carried along; None if it is not carried."""
        if name in self.keep if self.keep is not None else not is_url:
            return KEPT + name
        return ASKED + name if name in self.asked else None

    @property
    def plain(self) -> Columns:
        """The same without columns to carry along."""
        return Columns(self.url, self.id, self.label)

    @property
    def named(self) -> tuple[str, ...]:
        """The columns that a list must have in addition to those of the URL, id and labels."""
        return (*(self.keep or ()), *self.asked)


class Places(NamedTuple):
    url: int
    id: int
    label: int


def places(urls: str, header: Sequence[str] | None, sample: Sequence[Sequence[bytes]], columns: Columns) -> Places:
    """The places of the URL, id and label. `sample` holds the cells of some rows, which may differ in length.

    Raises ValueError for a missing column, and when no column or several could hold the URLs.
    """
    width = len(header) if header is not None else max(map(len, sample), default=0)
    names = [cell.strip() for cell in header] if header is not None else [str(at) for at in range(width)]
    url = find(urls, names, columns.url, ())
    if url == NOWHERE:
        url = _url_place(urls, names, sample)
    return Places(url, find(urls, names, columns.id, ID_NAMES), find(urls, names, columns.label, LABEL_NAMES))


def carried(urls: str, header: Sequence[str], url_at: int, columns: Columns) -> list[tuple[int, str]]:
    """(place, prefixed name) of each column to carry along. A column with an empty or repeated name goes by its number.

    Raises ValueError for a missing column.
    """
    names = [name.strip() for name in header]
    names = [name if name and names.count(name) == 1 else str(at) for at, name in enumerate(names)]
    require(urls, names, columns)
    marked = [(at, columns.mark(name, at == url_at)) for at, name in enumerate(names)]
    return [(at, mark) for at, mark in marked if mark is not None]


def require(urls: str, names: Collection[str], columns: Columns) -> None:
    """Raises NoColumn for a column that the user named and the list lacks, and ValueError for too many columns."""
    for name in columns.named:
        if name not in names:
            raise NoColumn(f"{urls}: has no column {name!r}: it has {', '.join(names)[:300] or 'no named columns'}")
    if columns.keep is None and len(names) > MOST:
        raise ValueError(f"{urls}: has more than {MOST:,} columns: name those to keep with --keep-columns, or none")


def find(urls: str, names: Sequence[str], wanted: str | None, usual: tuple[str, ...]) -> int:
    """The place of the wanted column, given by name or number; without one, of the first column with a usual name."""
    if wanted is None:
        return next((at for at, name in enumerate(names) if name.lower() in usual), NOWHERE)
    if names.count(wanted) > 1:
        same = ", ".join(str(at) for at, name in enumerate(names) if name == wanted)
        raise ValueError(f"{urls}: has several columns {wanted!r}: give the number of one ({same})")
    if wanted in names:
        return names.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(names):
        return int(wanted)
    raise ValueError(f"{urls}: has no column {wanted!r}: it has {', '.join(names)[:300]}")


def _url_place(urls: str, names: Sequence[str], sample: Sequence[Sequence[bytes]]) -> int:
    named = [at for at, name in enumerate(names) if name.lower() == "url"]
    if len(named) == 1:
        return named[0]
    holding = named or [at for at in range(len(names)) if _holds_urls([row[at] for row in sample if at < len(row)])]
    if len(holding) > 1:
        holding = [at for at in holding if names[at].lower() in _OF_PICTURES] or holding
    if not holding:
        holding = [at for at, name in enumerate(names) if name.lower() in URL_NAMES]
        if len(holding) != 1:
            raise ValueError(f"{urls}: which column holds the URLs? It has {', '.join(names)[:300]}: set --url-column")
    if len(holding) > 1:
        which = ", ".join(names[at] if names.count(names[at]) == 1 else str(at) for at in holding)[:300]
        raise ValueError(f"{urls}: which column holds the pictures' URLs? URLs are in {which}: set --url-column")
    return holding[0]


def _holds_urls(cells: list[bytes]) -> bool:
    """Whether most of the non-empty cells are URLs."""
    filled = [cell for cell in cells if cell.strip()]
    return 2 * sum(map(is_url, filled)) > len(filled)
