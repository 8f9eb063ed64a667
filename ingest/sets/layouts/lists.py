"""Sets of pictures with lists that give their split and class."""

from __future__ import annotations

import json
from pathlib import Path

from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts.found import Found, below, lines, sorted_names
from ingest.sets.pictures import File, listed


def read_food101(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """food-101.tar.gz: meta/{train,test,classes}.txt, a line is CLASS/ID; images/CLASS/ID.jpg."""
    root = below(source, "meta/train.txt", "meta/test.txt", "images")
    if root is None:
        return None
    train, evaluation = (_by_folder(root, root / f"meta/{split}.txt", ".jpg") for split in ("train", "test"))
    return Found(train, evaluation, sorted_names(file.label for file in train))


def read_dtd(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """dtd-r1.0.1.tar.gz: labels/{train,val,test}1.txt (the first of ten partitions), a line is CLASS/NAME.jpg;
    images/CLASS/NAME.jpg."""
    root = below(source, "labels/train1.txt", "labels/val1.txt", "labels/test1.txt", "images")
    if root is None:
        return None
    train, val, test = (_by_folder(root, root / f"labels/{split}1.txt") for split in ("train", "val", "test"))
    return Found(train + val, test, sorted_names(file.label for file in train))


def read_pets(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """annotations.tar.gz and images.tar.gz: images/NAME_7.jpg, and annotations/{trainval,test}.txt, where a line is
    `NAME_7 CLASS SPECIES BREED` with CLASS from 1. A class has the name of its files."""
    root = below(source, "annotations/trainval.txt", "annotations/test.txt", "images")
    if root is None:
        return None
    numbers: dict[str, int] = {}
    splits = []
    for split in ("trainval", "test"):
        where = root / f"annotations/{split}.txt"
        files = []
        for line in lines(where):
            name, number = _fields(where, line, 4)[:2]
            label = name.rpartition("_")[0]
            numbers[label] = _number(where, line, number)
            files.append(listed(root, f"images/{name}.jpg", label, where))
        splits.append(files)
    return Found(*splits, classes=tuple(sorted(numbers, key=numbers.__getitem__)))


def read_domainnet(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """DomainNet's infograph_{train,test}.txt, a line is `infograph/CLASS/NAME.jpg NUMBER`, and infograph.zip unpacked
    next to them (http://ai.bu.edu/M3SDA)."""
    names = [f"{benchmark.name}_train.txt", f"{benchmark.name}_test.txt"]
    root = below(source, *names)
    if root is None:
        return None
    images = root if (root / benchmark.name).is_dir() else root.parent  # the lists may be in the pictures' folder
    numbers: dict[str, int] = {}
    splits = []
    for name in names:
        files = []
        for line in lines(root / name):
            path, _, number = line.rpartition(" ")
            label = path.split("/")[-2] if path.count("/") else ""
            if not label:
                raise ValueError(f"{root / name}: {line!r} is not PATH NUMBER: get the list again")
            numbers[label] = _number(root / name, line, number)
            files.append(listed(images, path, label, root / name))
        splits.append(files)
    return Found(*splits, classes=tuple(sorted(numbers, key=numbers.__getitem__)))


def read_inat(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """train2018.json and val2018.json in the form of COCO (github.com/visipedia/inat_comp, 2018): images with file_name
    train_val2018/SUPERCATEGORY/CLASS/NAME.jpg, annotations with image_id and category_id. Classes are those numbers:
    the first release obfuscates the names of species, the second does not."""
    root = below(source, "train2018.json", "val2018.json", "train_val2018")
    if root is None:
        return None
    splits, classes = [], set[str]()
    for split in ("train", "val"):
        where = root / f"{split}2018.json"
        try:
            table = json.loads(where.read_bytes())
            labels = {each["image_id"]: str(each["category_id"]) for each in table["annotations"]}
            named = [(each["file_name"], labels[each["id"]]) for each in table["images"]]
            classes |= {str(each["id"]) for each in table["categories"]}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{where}: is not a list of iNat-18 ({error!r}): get it again") from None
        splits.append([listed(root, name, label, where) for name, label in named])
    return Found(*splits, classes=sorted_names(classes))


def _by_folder(root: Path, where: Path, ending: str = "") -> list[File]:
    """The files in a list of CLASS/NAME lines."""
    return [listed(root, f"images/{name}{ending}", name.partition("/")[0], where) for name in lines(where)]


def _fields(where: Path, line: str, count: int) -> list[str]:
    fields = line.split()
    if len(fields) != count:
        raise ValueError(f"{where}: {line!r} has {len(fields)} fields, not {count}: get the list again")
    return fields


def _number(where: Path, line: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{where}: {line!r} has no number where its class must be: get the list again")
    return int(text)
