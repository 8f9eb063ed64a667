"""The folders that the WILDS package (github.com/p-lambda/wilds) unpacks: a metadata.csv and pictures.

Columns have the same meaning as in wilds/datasets/{iwildcam,rxrx1,camelyon17,fmow}_dataset.py.
"""

from __future__ import annotations

from pathlib import Path

from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts.found import Found, below, sorted_names, table
from ingest.sets.pictures import File, listed


def read_iwildcam(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """iwildcam_v2.0: split is train or val (camera locations not in train); pictures are train/FILENAME in all splits.
    categories.csv, if present, names the classes."""
    root = below(source, "metadata.csv", "train")
    if root is None:
        return None
    where = root / "metadata.csv"
    rows = list(table(where, "split", "filename", "y"))
    names = _species(root / "categories.csv", sorted_names(row["y"] for row in rows))
    splits = [
        [listed(root, f"train/{row['filename']}", names[row["y"]], where) for row in rows if row["split"] == split]
        for split in ("train", "val")
    ]
    return Found(*splits, classes=tuple(names.values()))


def _species(path: Path, numbers: tuple[str, ...]) -> dict[str, str]:
    """Number -> name, in the order of numbers; the numbers themselves if the file is missing or names repeat."""
    found = {row["y"]: row["name"] for row in table(path, "y", "name")} if path.exists() else {}
    names = {number: found.get(number, "") for number in numbers}
    usable = all(names.values()) and len(set(names.values())) == len(names)
    return names if usable else {number: number for number in numbers}


def read_rxrx1(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """rxrx1_v1.0: dataset is train or val; images/EXPERIMENT/PlatePLATE/WELL_sSITE.png; the class is sirna_id. Of the
    training experiments only site 1 is used: WILDS keeps site 2 for its own test split (id_test)."""
    root = below(source, "metadata.csv", "images")
    if root is None:
        return None
    where, splits, classes = root / "metadata.csv", dict[str, list[File]](train=[], val=[]), set[str]()
    for row in table(where, "dataset", "experiment", "plate", "well", "site", "sirna_id"):
        classes.add(row["sirna_id"])
        if row["dataset"] in splits and (row["dataset"], row["site"]) != ("train", "2"):
            name = f"images/{row['experiment']}/Plate{row['plate']}/{row['well']}_s{row['site']}.png"
            splits[row["dataset"]].append(listed(root, name, row["sirna_id"], where))
    return Found(splits["train"], splits["val"], sorted_names(classes))


def read_camelyon17(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """camelyon17_v1.0: hospital (center) 1 is for validation, 2 for test; of the others, split 0 is for training. The
    class is tumor, 0 or 1."""
    root = below(source, "metadata.csv", "patches")
    if root is None:
        return None
    where, train, evaluation = root / "metadata.csv", list[File](), list[File]()
    for row in table(where, "patient", "node", "x_coord", "y_coord", "tumor", "center", "split"):
        center, split = (row[name].removesuffix(".0") for name in ("center", "split"))  # as pandas writes both
        if center == "2" or (center != "1" and split != "0"):
            continue
        of = f"patient_{row['patient'].zfill(3)}_node_{row['node']}"
        name = f"patches/{of}/patch_{of}_x_{row['x_coord']}_y_{row['y_coord']}.png"
        (evaluation if center == "1" else train).append(listed(root, name, row["tumor"], where))
    return Found(train, evaluation, sorted_names(file.label for file in train))


def read_fmow(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """fmow_v1.1: rgb_metadata.csv, whose row r is images/rgb_img_r.png. Training is split train before 2013, evaluation
    is split val from 2013 to 2015."""
    root = below(source, "rgb_metadata.csv", "images")
    if root is None:
        return None
    where, train, evaluation = root / "rgb_metadata.csv", list[File](), list[File]()
    for number, row in enumerate(table(where, "split", "timestamp", "category")):
        year = row["timestamp"][:4]  # ISO 8601, which sorts as text
        if row["split"] == "train" and year < "2013":
            train.append(listed(root, f"images/rgb_img_{number}.png", row["category"], where))
        elif row["split"] == "val" and "2013" <= year < "2016":
            evaluation.append(listed(root, f"images/rgb_img_{number}.png", row["category"], where))
    return Found(train, evaluation, sorted_names(file.label for file in train))
