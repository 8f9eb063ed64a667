"""Which pictures a set on disk holds, and their labels: class folders, WebDataset tars, the Hub's folders and Parquet.

Nothing is skipped silently: files that are not pictures of the set are counted in a note, and where labels are
ambiguous the user must give --split, --label-from or --no-labels.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ingest.sets import hub, tars
from ingest.sets.config import LabelFrom
from ingest.sets.pictures import ENDINGS, File, Missing, Picture, Stretch, file_key, is_picture, listed
from shards import store
from shards.local_files import refuse_special
from shards.tar import Headers, Placed

JUNK = frozenset({"@eadir", "@tmp", "@recycle", "#recycle", "$recycle.bin", "__macosx", "lost+found", "thumbnails"})
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".zip", ".7z", ".rar")
_UNPACK = {".zip": "unzip", ".7z": "7z x", ".rar": "unrar x"}
METADATA = ("metadata.csv", "metadata.jsonl")
_LABELS = ("label", "labels", "class")
WILDS = {  # columns of metadata.csv as the WILDS package unpacks it, by --set (layouts/wilds.py)
    "camelyon17": {"patient", "node", "x_coord", "y_coord", "tumor", "center", "split"},
    "rxrx1": {"dataset", "experiment", "plate", "well", "site", "sirna_id"},
    "iwildcam": {"split", "filename", "y"},
}
NAMED = 4  # names shown in a message


@dataclass(frozen=True)
class How:
    """The user's choices about labels."""

    label_from: LabelFrom = "auto"
    labels: bool = True  # False: pictures get no labels
    split: str | None = None


@dataclass(frozen=True)
class Found:
    pictures: Sequence[Picture]
    remarks: list[str] = field(default_factory=list)  # about files that were not taken


def find(source: str, classes: str | None = None, how: How = How()) -> Found:
    """The pictures of a source, in order. Raises ValueError naming what has no label or cannot be read, and for
    ambiguous labels."""
    if not store.is_local(source):
        raise ValueError(f"{source}: sets are imported from local disks: copy it there, or index tars with --in-place")
    path = store.local_path(source)
    names = class_names(classes) if classes else None
    if not path.is_dir():
        given = [Path(name) for name in local_tars(source)]
        if not given:
            raise ValueError(f"{source}: there is no such folder or tar: check --source")
        refuse_packed(source, [tar.name for tar in given])
        found = _in_tars(given, names, how)
    elif here := tars_of(path):
        found = _in_tars(here, names, how)
    else:
        found = _of_folder(path, names, how)
    if not found.pictures:
        refuse_packed(source, sorted(os.listdir(path)) if path.is_dir() else [])
        raise ValueError(f"{source}: holds no pictures ({', '.join(sorted(ENDINGS))}): check --source")
    return found


def local_tars(source: str) -> list[str]:
    """The files that a path with wildcards and brace lists ({0000..0099}) names. Raises ValueError if some of them are
    missing."""
    from braceexpand import braceexpand  # as in the webdataset library

    expanded = list(dict.fromkeys(str(store.local_path(each)) for each in braceexpand(source)))
    found = {each: [each] if os.path.exists(each) else sorted(glob.glob(each)) for each in expanded}
    absent = [each for each, names in found.items() if not names]
    if absent and len(absent) < len(expanded):
        raise ValueError(f"{source}: names {absent[0]}, which does not exist: get it, or leave it out")
    return list(dict.fromkeys(name for names in found.values() for name in names))


def tars_of(folder: Path) -> list[Path]:
    """The tars directly in a folder. Raises ValueError if it also has compressed tars or folders of pictures."""
    inside = sorted(folder.iterdir())
    found = [path for path in inside if path.suffix.lower() == ".tar" and path.name[0] not in "._"]
    refuse_packed(str(folder), [path.name for path in inside])
    others = [path for path in inside if path.is_dir() and not _is_junk(path.name)] if found else []
    for path in others:
        if next(walk(path), None) is not None:
            raise ValueError(
                f"{folder}: holds tars ({found[0].name}) and folders of pictures ({path.name}): give one as SOURCE, "
                f"such as {folder}/*.tar"
            )
    return found


def refuse_packed(source: str, names: Iterable[str]) -> None:
    """Raises ValueError naming compressed archives and the command that unpacks them."""
    packed = [name for name in names if name.lower().endswith(PACKED) and not name.startswith(".")]
    if packed:
        command = next((how for end, how in _UNPACK.items() if packed[0].lower().endswith(end)), "tar -xf")
        command = f"gunzip {packed[0]}" if packed[0].lower().endswith((".gz", ".tgz")) else f"{command} {packed[0]}"
        raise ValueError(f"{source}: {_some(packed)} is compressed: unpack it ({command}) and import again")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# --- tars ----------------------------------------------------------------------------------------------------------


def _in_tars(paths: Sequence[Path], names: dict[str, str] | None, how: How) -> Found:
    unused = tars.Unused()
    pictures = [picture for tar in paths for picture in _in_tar(tar, names, how, unused)]
    return Found(pictures, remarks(unused))


def remarks(unused: tars.Unused) -> list[str]:
    """A remark about members that no sample uses, if there are any."""
    kinds = [f"{count:,} {kind}" for kind, count in unused.kinds.most_common(NAMED + 1)]
    more = f" and {len(unused.kinds) - len(kinds)} more kinds" if len(unused.kinds) > len(kinds) else ""
    return [f"members of the tars that no sample uses: {', '.join(kinds)}{more}"] if kinds else []


def _in_tar(tar: Path, names: dict[str, str] | None, how: How, unused: tars.Unused) -> Iterator[Picture]:
    refuse_special(tar)
    try:
        with tar.open("rb") as file:
            headers = Headers(file)

            def bodies(member: Placed) -> bytes:
                wanted = not tars.is_picture(member.name) and tars.is_wanted(member.name)
                wanted = wanted and member.length <= tars.MAX_LABEL_BYTES
                return headers.take(member.length) if wanted else b""

            samples = sorted(
                tars.samples(headers, str(tar), unused, bodies, adjacent=False), key=lambda sample: sample.key
            )
    except OSError as error:
        raise ValueError(f"{tar}: cannot be read ({error.strerror}): rerun when it can be read") from None
    except ValueError as error:
        damaged = str(error).endswith("WebDataset tar")
        raise ValueError(str(error).replace(f"{tar}: ", f"{tar}: cannot be read: ", damaged)) from None
    own = [tars.labels_of(sample) if how.labels and how.label_from == "auto" else [] for sample in samples]
    found = [tars.picture_of(sample, unused, bool(labels)) for sample, labels in zip(samples, own)]
    if how.labels and not any(own):
        members = [place[0].name for place in found if not isinstance(place, str)]
        by_place = iter(tars.labels_by_place(tar.name, members, how.label_from) or ())
        own = [[] if isinstance(place, str) else [label for label in [next(by_place, "")] if label] for place in found]
    for sample, place, labels in zip(samples, found, own):
        if how.labels and not labels and not isinstance(place, str):
            raise ValueError(
                f"{tar}: {place[0].name} has no label: add a member {sample.key}.cls, say where labels are with "
                "--label-from, or import it with --no-labels"
            )
        label, *more = [named(label, names, tar) for label in labels] or [""]
        if isinstance(place, str):
            yield Missing(f"{tar.name}/{tars.utf8(sample.key)}", sample.key, label, tuple(more), place)
        else:
            member = place[0]
            name = f"{tar.name}/{member.name}"
            yield Stretch(tar, name, sample.key, label, member.offset, member.length, tuple(more))


# --- folders -------------------------------------------------------------------------------------------------------


def _of_folder(root: Path, names: dict[str, str] | None, how: How) -> Found:
    root = _split_of(root, how.split)
    for name in METADATA:
        if (root / name).is_file():
            return _in_metadata(root, root / name, names, how)
    pictures = list(walk(root))
    if not pictures and (files := hub.files(root, how.split)):
        return Found(hub.pictures(root, files, how.labels))
    if how.label_from == "tar":
        raise ValueError(f"{root}: holds no tars: --label-from tar takes labels from their names")
    if how.labels:
        _check_classes(root, [relative.split("/") for relative, _ in pictures], how)
    at = -2 if how.label_from == "parent" else 0
    found: list[Picture] = []
    for relative, size in pictures:
        parts = relative.split("/")
        label = unicodedata.normalize("NFC", parts[at]) if how.labels else ""
        key = file_key(relative, parts[at]) if how.labels else relative.rpartition(".")[0].replace("/", "_")
        found.append(File(root, relative, key, named(label, names, root / relative) if how.labels else "", size))
    return Found(found, _passed_over(root))


def _split_of(root: Path, split: str | None) -> Path:
    """The folder of a split; the root itself for Parquet files, or without a split. Raises ValueError if there is no
    folder of that name."""
    folders = sorted(path.name for path in root.iterdir() if path.is_dir() and not _is_junk(path.name))
    if split is None or hub.files(root, split):
        return root
    if split not in folders:
        raise ValueError(f"{root}: has no folder {split!r} for --split: it has {_some(folders) or 'none'}")
    return root / split


def _check_classes(root: Path, paths: list[list[str]], how: How) -> None:
    """Raises ValueError if a picture has no folder, or if it is ambiguous which folders are the classes."""
    outside = next((parts for parts in paths if len(parts) < 2), None)
    if outside is not None:
        raise ValueError(
            f"{root}/{outside[0]}: is outside a class folder: put it into {root}/CLASS/, or import the set with "
            "--no-labels"
        )
    if how.label_from != "auto":
        return
    first = {parts[0] for parts in paths}
    tars.ask_about_splits(root, first)
    last = {parts[-2] for parts in paths}
    if paths and all(len(parts) > 2 for parts in paths) and len(last) > len(first):
        raise ValueError(
            f"{root}: has folders in folders: choose the classes, the {len(first):,} first ones "
            f"({_some(sorted(first))}) with --label-from folder or the {len(last):,} last ones "
            f"({_some(sorted(last))}) with --label-from parent"
        )


def _passed_over(root: Path) -> list[str]:
    """A remark about files in a folder of classes that are not pictures, by ending, if there are any."""
    kinds: Counter[str] = Counter()
    for _, below, files in os.walk(root):
        kinds.update(f"in {name}" for name in below if _is_junk(name))
        below[:] = [name for name in below if not _is_junk(name)]
        kinds.update(Path(name).suffix.lower() or name for name in files if not is_picture(name))
    kinds.pop(".ds_store", None)
    named = [f"{count:,} {kind}" for kind, count in kinds.most_common(NAMED)]
    return [f"files that are no pictures of the set: {', '.join(named)}"] if named else []


def _is_junk(folder: str) -> bool:
    return folder.startswith(".") or folder.lower() in JUNK


def in_folder(root: Path, names: dict[str, str] | None = None) -> Iterator[File]:
    """The pictures below a folder of class folders. Raises ValueError for one outside a class folder."""
    for relative, size in walk(root):
        label, slash, _ = relative.partition("/")
        if not slash:
            raise ValueError(f"{root / relative}: is outside a class folder: put it into {root}/CLASS/")
        key = file_key(relative, label)
        yield File(root, relative, key, named(label, names, root / relative), size)


def walk(root: Path) -> Iterator[tuple[str, int]]:
    """(path relative to root, bytes) of every picture file, folder by folder, in sorted order. Raises ValueError for
    one that cannot be read."""
    walked: set[str] = set()  # folders may be links; this ends a cycle of links
    for folder, below, files in os.walk(root, followlinks=True):
        below[:] = sorted(name for name in below if not _is_junk(name))
        real = os.path.realpath(folder)
        if real in walked:
            below[:] = []
            continue
        walked.add(real)
        place = Path(folder).relative_to(root).as_posix() + "/"
        for name in sorted(filter(is_picture, files)):
            try:
                about = os.stat(os.path.join(folder, name))
            except OSError as error:  # such as a broken link
                raise ValueError(f"{folder}/{name}: cannot be read ({error.strerror}): remove or repair it") from None
            refuse_special(name, f"{folder}/{name}", about.st_mode)
            yield place.removeprefix("./") + name, about.st_size


# --- metadata.csv and metadata.jsonl, as the Hub's ImageFolder has them --------------------------------------------


def _in_metadata(root: Path, path: Path, names: dict[str, str] | None, how: How) -> Found:
    """The pictures that a metadata file names. Raises ValueError for a row without a picture or a label."""
    found: list[Picture] = []
    for number, row in _metadata_rows(path):
        name = row.get("file_name")
        if "file_name" not in row:
            raise ValueError(f"{path}: {_not_the_hubs(row)}")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{path}: row {number} has no file_name: it must name a picture")
        value = next((row[key] for key in _LABELS if row.get(key) not in (None, "")), None)
        if value is None and how.labels and "/" in name and how.label_from != "tar":
            value = name.split("/")[-2 if how.label_from == "parent" else 0]
        values = [str(each) for each in (value if isinstance(value, list) else [value])] if value is not None else []
        if how.labels and not values:
            raise ValueError(f"{path}: row {number}, {name}, has no label: add a column label, or give --no-labels")
        label, *more = [named(unicodedata.normalize("NFC", v), names, path) for v in values if how.labels] or [""]
        file = listed(root, name, label, path)
        found.append(Stretch(root / name, name, file.key, label, 0, file.size, tuple(more)))
    taken = {picture.name for picture in found}
    others = sum(1 for name, _ in walk(root) if name not in taken)
    return Found(found, [f"{others:,} pictures that {path.name} does not name"] if others else [])


def _not_the_hubs(row: Mapping[str, Any]) -> str:
    """An error text for a metadata table without a column file_name, with what to do."""
    for name, columns in WILDS.items():
        if columns <= row.keys():
            return f"is that of WILDS' {name}: give --set {name}, which knows its splits and classes"
    has = ", ".join(map(str, row))[:200]
    return (
        f"has no column file_name, which names the pictures (it has {has}): rename that column, or move the file away"
    )


def _metadata_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    refuse_special(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                yield from enumerate(csv.DictReader(file), 1)
            else:
                yield from ((number, json.loads(line)) for number, line in enumerate(file, 1) if line.strip())
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())[:100]}): repair it") from None


# --- names of classes ----------------------------------------------------------------------------------------------


def named(label: str, names: dict[str, str] | None, where: Path | str) -> str:
    if names is None:
        return label
    if label not in names:
        raise ValueError(f"{where}: label {label!r} is not among the {len(names)} class names: check --classes")
    return names[label]


def class_names(url: str) -> dict[str, str]:
    """Label as written -> class name, from a JSON file. A "wnid" is preferred to a "name", which may not be unique.

    Raises ValueError for a file of another form or with repeated names.
    """
    value = store.read_json(url)
    entries: list[tuple[Any, Any]]
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list) and all(isinstance(entry, dict) and "label" in entry for entry in value):
        entries = [(entry["label"], entry.get("wnid") or entry.get("name")) for entry in value]
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        entries = []
    if not entries or not all(isinstance(name, str) and name for _, name in entries):
        raise ValueError(f'{url}: must be a list of names, {{"number": "name"}} or [{{"label": 0, "name": "…"}}]')
    names = {str(label): name for label, name in entries}
    twice = [name for name, times in Counter(names.values()).items() if times > 1]
    if twice or len(names) < len(entries):
        raise ValueError(f"{url}: names {twice[0] if twice else 'a label'!r} twice: class names must differ")
    return names
