"""Which classes of a labelled list are taken: by WordNet subtree, by name, by a file, by their number of links.

Two companion files of ImageNet are read: `wordnet.is_a.txt`, a line `parent child` for every edge (a synset may have
several parents, so it is not a tree), and `words.txt`, a line `wnid<TAB>lemma, lemma, …` for every synset. Both are
small (82,115 synsets) and held in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest.criteria import WNID, ClassConfig
from shards import store

_SHOWN = 8  # candidates that an error lists


def chosen(config: ClassConfig, counts: Callable[[], Mapping[str, int]]) -> frozenset[str] | None:
    """The labels that are taken; None: all links, also those without labels.

    `counts` returns the number of links of each label (`source.label_counts` of a list; of kept rows when selecting).
    It is called only if min_count is set. Raises ValueError for a file that is missing or broken, a class that is not
    in the hierarchy, an ambiguous name, and if no class is left.
    """
    if config.all:
        return None
    rules: list[Collection[str]] = []
    if config.subtree:
        assert config.is_a is not None  # checked by ClassConfig
        names = None if config.words is None else read_words(config.words)
        tops = [resolve(name, names, config.words) for name in config.subtree]
        rules.append(subtree(tops, read_is_a(config.is_a), config.is_a))
    if config.file is not None:
        rules.append(read_classes(config.file))
    if config.min_count:
        rules.append({label for label, n in counts().items() if n >= config.min_count})
    left = frozenset(rules[0]).intersection(*rules[1:])
    if not left:
        raise ValueError("--classes: no class meets all the rules that are set: loosen one")
    return left


def takes(labels: pa.ListArray, classes: Collection[str]) -> pa.BooleanArray:
    """Whether each row has a label among `classes`, bool [rows]; each row has a list of strings (or bytes)."""
    flat = labels.flatten()
    mine = pc.is_in(flat, value_set=pa.array(sorted(classes), pa.string()).cast(flat.type))
    hits = np.concatenate([[0], np.cumsum(mine.to_numpy(zero_copy_only=False))])
    lengths = pc.list_value_length(labels).fill_null(0).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths)
    return pa.array(hits[ends] > hits[ends - lengths])


# --- the hierarchy and the names -----------------------------------------------------------------------------------


def read_is_a(url: str) -> dict[str, list[str]]:
    """Parent -> children. Raises ValueError naming the line that is not `parent child`."""
    children: dict[str, list[str]] = defaultdict(list)
    for number, line in _lines(url):
        edge = line.split()
        if len(edge) != 2:
            raise ValueError(f"{url}: line {number} is {line[:60]!r}: it must be a parent and a child")
        children[edge[0]].append(edge[1])
    return dict(children)


def subtree(tops: Iterable[str], children: Mapping[str, Iterable[str]], url: str) -> set[str]:
    """The tops and all synsets below them, each once, with any number of parents and even in a cycle. Raises ValueError
    for a top that is not in the hierarchy, which was read from `url`."""
    known = set(children).union(*children.values())
    found: set[str] = set()
    todo = list(tops)
    for top in todo:
        if top not in known:
            raise ValueError(
                f"classes.subtree: {top} is not in {url}: check the wnid, and that this is the right hierarchy"
            )
    while todo:
        synset = todo.pop()
        if synset not in found:
            found.add(synset)
            todo += children.get(synset, ())
    return found


def read_words(url: str) -> dict[str, str]:
    """Wnid -> its lemmas, `dog, domestic dog, Canis familiaris`. Raises ValueError naming a line without a tab."""
    words = {}
    for number, line in _lines(url):
        wnid, tab, lemmas = line.partition("\t")
        if not tab:
            raise ValueError(f"{url}: line {number} is {line[:60]!r}: it must be a wnid, a tab and names")
        words[wnid.strip()] = lemmas.strip()
    return words


def resolve(name: str, words: Mapping[str, str] | None, url: str | None) -> str:
    """The wnid of a name: a wnid, a synset's whole line of lemmas, or a lemma that no other synset has. Raises
    ValueError for an unknown name, and for an ambiguous one, with the candidates."""
    if WNID.fullmatch(name):
        return name
    assert words is not None  # checked by ClassConfig
    wanted = name.strip()
    # A synset with only this name is not preferred: "dog" alone is an insult; the animal is "dog, domestic dog, ...".
    found = [wnid for wnid, lemmas in words.items() if lemmas == wanted or wanted in lemmas.split(", ")]
    if not found:
        raise ValueError(
            f"classes.subtree: no synset in {url} is named {name!r}: use a wnid, or a lemma as written there"
        )
    if len(found) > 1:
        listed = "; ".join(f"{wnid} {words[wnid]}" for wnid in found[:_SHOWN])
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ValueError(f"classes.subtree: {name!r} names {len(found)} synsets: use one's wnid: {listed}{more}")
    return found[0]


def read_classes(url: str) -> frozenset[str]:
    """The labels that a file names, one a line. Raises ValueError if it names none."""
    found = set()
    for _, line in _lines(url):
        word = line.split()[0]
        found.add(word if WNID.fullmatch(word) else line.split("\t")[0].strip())
    if not found:
        raise ValueError(f"{url}: names no classes: put one a line")
    return frozenset(found)


def _lines(url: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that are not blank."""
    try:
        text = store.read(url).decode("utf-8", "replace")
    except store.Missing:
        raise ValueError(f"{url}: there is no such file: check the --classes flags") from None
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")
