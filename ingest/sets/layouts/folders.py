"""Folders of splits: SPLIT/CLASS/…/NAME.jpg, as torchvision's ImageFolder reads each split; and ImageNet's flat val.

iNat-18 has SPLIT/SUPERCATEGORY/CLASS (torchvision.datasets.INaturalist, version 2018): the last folder is the class.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ingest.sets import sources
from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts.found import Found, below, lines, matlab, sorted_names, table
from ingest.sets.pictures import File, file_key, listed

KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")  # where Kaggle's archive of ImageNet-1k has train/ and val/
SOLUTION = "LOC_val_solution.csv"
SYNSETS = "imagenet_2012_validation_synset_labels.txt"
TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"


def read(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """train/CLASS/ and val/CLASS/ (or test/CLASS/), with pictures at any depth."""
    splits = _splits(source, benchmark)
    if splits is None or _flat(splits[1][0]):
        return None
    train, evaluation = ([file for folder in split for file in sources.in_folder(folder)] for split in splits)
    return Found(train, evaluation, sorted_names(file.label for file in train))


def read_inat(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """train/SUPERCATEGORY/CLASS/ and val/SUPERCATEGORY/CLASS/, with or without the supercategories."""
    splits = _splits(source, benchmark)
    if splits is None:
        return None
    train, evaluation = ([file for folder in split for file in _by_last_folder(folder)] for split in splits)
    if not train and not evaluation:  # folders of something else, such as Parquet files
        return None
    return Found(train, evaluation, sorted_names(file.label for file in train))


def _by_last_folder(root: Path) -> Iterator[File]:
    for name, size in sources.walk(root):
        folder, slash, _ = name.rpartition("/")
        if not slash:
            raise ValueError(f"{root / name}: is outside a class folder: put it into {root}/CLASS/")
        label = folder.rpartition("/")[2]
        yield File(root, name, file_key(name, label), label, size)


def read_flat_val(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """ImageNet-1k as downloaded: train/WNID/, and val/ without folders. The labels of val come from Kaggle's
    LOC_val_solution.csv, TensorFlow's imagenet_2012_validation_synset_labels.txt (a WNID a line), or the development
    kit (as torchvision.datasets.imagenet reads it)."""
    splits = _splits(source, benchmark)
    if splits is None or not _flat(splits[1][0]):
        return None
    val = splits[1][0]
    names = [name for name, _ in sources.walk(val)]
    if not names:
        return None
    train = [file for folder in splits[0] for file in sources.in_folder(folder)]
    wnids, where = _wnids_of_val(source, names)
    evaluation = [listed(val, name, wnid, where) for name, wnid in zip(names, wnids)]
    return Found(train, evaluation, sorted_names(file.label for file in train))


def _splits(source: Path, benchmark: Benchmark) -> tuple[list[Path], list[Path]] | None:
    """The folders of both splits, if both are there."""
    for root in (source, *(source / inner for inner in KAGGLE), below(source, benchmark.train_names[0])):
        if root is None:
            continue
        train = [root / name for name in benchmark.train_names if (root / name).is_dir()]
        evaluation = [root / name for name in benchmark.eval_names if (root / name).is_dir()]
        if train and evaluation:
            return train, evaluation
    return None


def _flat(folder: Path) -> bool:
    return not any(path.is_dir() and not path.name.startswith(".") for path in folder.iterdir())


def _wnids_of_val(source: Path, names: list[str]) -> tuple[list[str], Path]:
    """The label of each file of val, and the file that the labels come from."""
    if folder := below(source, SOLUTION):
        path = folder / SOLUTION
        rows = table(path, "ImageId", "PredictionString")  # a prediction is the WNID, then boxes
        known = {row["ImageId"]: row["PredictionString"].partition(" ")[0] for row in rows}
        unknown = [name for name in names if name.partition(".")[0] not in known]
        if unknown:
            raise ValueError(f"{path}: does not name {unknown[0]}: get the file again")
        return [known[name.partition(".")[0]] for name in names], path
    if folder := below(source, SYNSETS):
        path, wnids = folder / SYNSETS, lines(folder / SYNSETS)
    elif folder := below(source, TRUTH):
        path, wnids = folder / TRUTH, _of_devkit(folder / TRUTH)
    else:
        raise ValueError(
            f"{source}: val/ has no class folders, and there are no labels for its files: "
            f"put {SOLUTION}, {SYNSETS} or the unpacked ILSVRC2012_devkit_t12 next to it"
        )
    if len(wnids) != len(names):
        raise ValueError(f"{path}: has {len(wnids):,} labels for {len(names):,} files of val/: get the set again")
    return wnids, path


def _of_devkit(truth: Path) -> list[str]:
    """Numbers of the development kit (ILSVRC2012_ID) -> WNIDs, by the meta.mat in the same folder."""
    synsets = matlab(truth.with_name("meta.mat"), "synsets", "ImageNet's development kit")
    wnids = {str(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
    unknown = [number for number in lines(truth) if number not in wnids]
    if unknown:
        raise ValueError(f"{truth}: {unknown[0]!r} is none of the {len(wnids)} classes of meta.mat: get both again")
    return [wnids[number] for number in lines(truth)]
