"""What a foreign, WebDataset-like tar holds: its samples, and the picture and labels of each. Copying and indexing in
place both use these rules, so that they agree.

Members of one sample share a key: their path up to the first dot of the file's name (dots before a digit do not count,
so `v1.0_7.jpg` is a sample of its own). A sample's picture is the field jpg, png, …, else the only field with such an
ending. Its labels are the field cls, else all fields with that ending; else "labels" or "label" in json; else a single
line of at most 100 characters in txt. If no sample of a tar has its own label, the folders in the tar are the classes,
or the tar is one (ImageNet-21K's form). Members that are neither picture nor label are counted by kind.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from ingest.sets.config import LabelFrom
from ingest.sets.pictures import ENDINGS
from ingest.wordnet import WNID
from shards.tar import Placed, Walkable, walk

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"})
LABELS = ("cls", "json", "txt")
MAX_LABEL_BYTES = 32 << 20  # of a member; a larger one is not a label, and is not read
LONGEST_LABEL = 100  # characters of a txt that is taken for a label; a longer one is a caption
_PREFERRED = ("jpg", "jpeg", "png", "webp")
_META = re.compile(r"__[^/]*__($|/)")  # names that the webdataset library skips
_LEFTOVER = re.compile(r"(^|/)(\._[^/]*|__MACOSX/.*|\.DS_Store|Thumbs\.db|PaxHeaders[^/]*/.*|@eaDir/.*)$")
_ROOT = re.compile(r"^(?:\.?/+)+")  # written by `tar -C FOLDER .`; not part of a name
_KEY = re.compile(r"^((?:.*/|)[^./]+(?:\.\d[^.]*)*?)\.((?!\d[^.]*\.)[^/]*)$")

Field = tuple[Placed, bytes]  # a member's place, and its bytes if they may be needed


class Refused(ValueError):
    """A whole tar whose members do not form samples; the message says which, and why."""


@dataclass
class Sample:
    """The members of one key, by field; `linked` holds those that are links to other members, without bytes."""

    key: str
    fields: dict[str, Field] = field(default_factory=dict)
    linked: dict[str, str] = field(default_factory=dict)


@dataclass
class Unused:
    """How many members no sample uses, by kind."""

    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, count: int = 1) -> None:
        self.kinds[kind.encode("utf-8", "replace").decode()] += count


def samples(
    source: Walkable, url: str, unused: Unused, bodies: Callable[[Placed], bytes], adjacent: bool
) -> Iterator[Sample]:
    """The tar's samples in order; `bodies` returns a member's bytes, or b"" if they are not needed now.

    With `adjacent` each sample is yielded once the next begins, and its members must be next to each other; otherwise
    they may be anywhere in the tar. Raises ValueError for scattered members, for two members of one field next to each
    other, and for a damaged or sparse tar.
    """
    try:
        for sample in _grouped(source, unused, bodies, adjacent):
            yield from _apart(sample)
    except Refused as error:
        raise ValueError(f"{url}: {error}") from None
    except ValueError as error:
        if type(error) is not ValueError:  # of the store
            raise
        raise ValueError(f"{url}: {error}: it must be an uncompressed, whole WebDataset tar") from None


def _grouped(source: Walkable, unused: Unused, bodies: Callable[[Placed], bytes], adjacent: bool) -> Iterator[Sample]:
    done: dict[str, set[str]] = {}  # fields of the samples that were yielded, by key
    held: dict[str, list[Sample]] = {}
    current: Sample | None = None
    for member in walk(source, links=True):
        if _META.match(member.name) or _LEFTOVER.search(member.name):
            unused.add("leftovers of macOS, tar and others")
            continue
        parts = _KEY.match(member.name)
        if parts is None:
            unused.add("without an ending")
            continue
        key, name = _ROOT.sub("", parts[1]), parts[2].lower()
        if current is None or current.key != key:
            if adjacent and current is not None:
                done.setdefault(current.key, set()).update(current.fields, current.linked)
                yield current
            before = held.get(key)
            if adjacent and key in done and name not in done[key]:
                raise Refused(
                    f"{member.name} is apart from the other members of {key}: import it without --in-place, or pack "
                    "the members of a sample next to each other"
                )
            current = before[-1] if before and name not in {*before[-1].fields, *before[-1].linked} else Sample(key)
            if not adjacent and (not before or before[-1] is not current):
                held.setdefault(key, []).append(current)
        elif name in current.fields or name in current.linked:
            raise Refused(f"{member.name}: duplicate file name")
        if member.link is not None:
            current.linked[name] = member.link
        else:
            current.fields[name] = (member, bodies(member))
    if adjacent and current is not None:
        yield current
    for several in held.values():
        yield from several


def _apart(sample: Sample) -> list[Sample]:
    """The sample split where its key has dots: pictures with their own sidecars. Raises Refused for two pictures of one
    name."""
    pictures = [name for name in sample.fields if is_picture(name)]
    if len(pictures) < 2:
        return [sample]
    stems = [name.rpartition(".")[0] for name in pictures]
    for stem in set(stems):
        same = [sample.fields[name][0].name for name, other in zip(pictures, stems) if other == stem]
        if len(same) > 1:
            raise Refused(f"{sample.key} has two pictures, {same[0]} and {same[1]}")
    own = {stem: [n for n in sample.fields if n.rpartition(".")[0] == stem] for stem in stems}
    if any(len(names) < 2 for stem, names in own.items() if stem):
        return [sample]
    found = []
    for stem, names in own.items():
        fields = {name.rpartition(".")[2]: sample.fields[name] for name in names}
        found.append(Sample(f"{sample.key}.{stem}" if stem else sample.key, fields))
    left = {name: value for name, value in sample.fields.items() if not any(name in names for names in own.values())}
    found[0].fields |= left
    found[0].linked |= sample.linked
    return found


def is_picture(name: str) -> bool:
    return name.rpartition(".")[2].lower() in ENDINGS


def is_wanted(name: str) -> bool:
    """Whether a member may be a picture or a label."""
    return is_picture(name) or name.rpartition(".")[2].lower() in LABELS


def picture_of(sample: Sample, unused: Unused, labelled: bool) -> Field | str:
    """The sample's picture, or why it has none. Counts the other members in `unused`, including links; if `labelled`,
    not its labels."""
    fields = sample.fields
    pictures = [name for name in fields if is_picture(name)]
    name = next((name for name in _PREFERRED if name in fields), None)
    name = name or next((name for name in pictures if "." not in name), None)
    if name is None and len(pictures) == 1:
        name = pictures[0]
    label = _label_fields(sample) if labelled else []
    for other in fields:
        if other != name and other not in label:
            unused.add(other)
    if sample.linked:
        unused.add("links", len(sample.linked))
    if name is not None:
        return fields[name]
    for linked, target in sample.linked.items():
        if is_picture(linked):
            return f"is a link to {utf8(target)} and has no bytes: pack the tar with --hard-dereference --dereference"
    held = utf8(", ".join(sorted(fields)))
    if pictures:
        return f"has {len(pictures)} pictures and none of them is the sample: {held}"
    return f"no picture: {held}"


def _label_fields(sample: Sample) -> list[str]:
    """The fields that labels are taken from: those of the first kind that may have labels."""
    for kind in LABELS:
        named = _of_kind(sample.fields, kind)
        if named and (kind != "json" or _json_labels(sample.fields[named[0]][1])):
            return named if kind == "cls" else named[:1]
    return []


def labels_of(sample: Sample) -> list[str]:
    """The sample's own labels, each once. Raises ValueError if a label member is a link."""
    if any(name.rpartition(".")[2] == "cls" for name in sample.linked):
        raise ValueError(f"{sample.key}.cls is a link: pack the tar again with --hard-dereference --dereference")
    fields = sample.fields
    found: list[str] = []
    names = _label_fields(sample)
    kind = names[0].rpartition(".")[2] if names else ""
    if kind == "cls":
        found = [text for name in names if (text := _text(fields[name]))]
    elif kind == "json":
        found = _json_labels(fields[names[0]][1])
    elif kind == "txt":
        text = _text(fields[names[0]])
        found = [text] if text and len(text) <= LONGEST_LABEL and "\n" not in text else []
    return list(dict.fromkeys(found))


def _of_kind(fields: dict[str, Field], kind: str) -> list[str]:
    return [kind] if kind in fields else [name for name in fields if name.endswith(f".{kind}")]


def _json_labels(body: bytes) -> list[str]:
    try:
        value = json.loads(body)
        value = value if isinstance(value, dict) else {}
        found = value.get("labels", value.get("label"))
        if found is not None:
            return [utf8(str(label)) for label in (found if isinstance(found, list) else [found])]
    except (ValueError, RecursionError):  # too deep for the parser, or for str
        pass
    return []


def _text(value: Field) -> str:
    return value[1].decode("utf-8", "replace").strip()


def utf8(text: str) -> str:
    """The text with ? for lone surrogates, which names in tars and JSON strings may have, but an index cannot."""
    return text.encode("utf-8", "replace").decode()


# --- labels by folder or tar ---------------------------------------------------------------------------------------


def labels_by_place(tar: str, members: Sequence[str], label_from: LabelFrom) -> list[str] | None:
    """A label for each picture of a tar in which no sample has its own label, or None. Raises ValueError if folders may
    be either classes or splits."""
    folders = [[part for part in name.split("/")[:-1] if part not in ("", ".")] for name in members]
    stem = stem_of(tar)
    if label_from == "tar":
        return [stem] * len(members)
    if not members or not all(folders):
        if label_from != "auto":
            outside = next(name for name, above in zip(members, folders) if not above) if members else "nothing"
            raise ValueError(f"{tar}: {outside} is in no folder: --label-from {label_from} takes labels from folders")
        names = [name.rpartition("/")[2] for name in members]
        whole = not any(folders) and (WNID.fullmatch(stem) or all(name.startswith(f"{stem}_") for name in names))
        return [stem] * len(members) if whole and members else None
    found = [above[-1 if label_from == "parent" else 0] for above in folders]
    if label_from == "auto":
        ask_about_splits(tar, set(found))
        alone = found[0] if len(set(found)) == 1 else ""
        if alone and not (WNID.fullmatch(alone) or all(n.rpartition("/")[2].startswith(alone) for n in members)):
            return None  # one folder of everything, such as images/
    return found


def stem_of(tar: str) -> str:
    return re.sub(r"\.tar$", "", tar.rpartition("/")[2], flags=re.IGNORECASE)


def is_split(name: str) -> bool:
    """Whether a folder's name is that of a split, such as `imagenet21k_train` or `val2018`."""
    return any(word in SPLITS for word in re.split(r"[^a-z]+", name.lower()))


def ask_about_splits(where: object, folders: Iterable[str]) -> None:
    """Raises ValueError if the folders look like splits, not classes."""
    names = set(folders)
    splits = sorted(filter(is_split, names))
    if 2 * len(splits) >= len(names) and (len(splits) > 1 or (splits and len(names) == 1)):
        raise ValueError(
            f"{where}: {', '.join(splits[:4])} look like splits, not classes: import one with --split {splits[0]}, "
            "or say what the classes are with --label-from parent (the last folder) or --label-from folder (the first)"
        )
