"""Stanford Cars as its authors packed it: pictures, and MATLAB files with their classes.

Fields are those of torchvision.datasets.StanfordCars and of the one-file form of the same archive.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts.found import Found, below, matlab
from ingest.sets.pictures import File, listed

WHOSE = "Stanford Cars' development kit"
LABELLED = "cars_test_annos_withlabels.mat"  # published separately: the development kit has no labels for test


def read_devkit(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """cars_train/, cars_test/, devkit/cars_meta.mat and cars_train_annos.mat, and cars_test_annos_withlabels.mat next
    to devkit/ or in it."""
    root = below(source, "devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_train", "cars_test")
    if root is None:
        return None
    test = next((path for path in (root / LABELLED, root / "devkit" / LABELLED) if path.exists()), None)
    if test is None:
        raise ValueError(f"{root}: {LABELLED} is missing, and devkit/ has no classes for test: put it there")
    classes = _classes(root / "devkit/cars_meta.mat")
    train = root / "devkit/cars_train_annos.mat"
    return Found(
        [_file(root, "cars_train", each["fname"], each["class"], classes, train) for each in _annotations(train)],
        [_file(root, "cars_test", each["fname"], each["class"], classes, test) for each in _annotations(test)],
        classes,
    )


def read_one_file(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """cars_annos.mat, whose annotations have relative_im_path, class and test, and car_ims/."""
    root = below(source, "cars_annos.mat", "car_ims")
    if root is None:
        return None
    where, splits = root / "cars_annos.mat", (list[File](), list[File]())
    classes = _classes(where)
    for each in _annotations(where):
        file = _file(root, "", each["relative_im_path"], each["class"], classes, where)
        splits[int(each["test"])].append(file)
    return Found(*splits, classes=classes)


def _file(root: Path, folder: str, name: Any, number: Any, classes: tuple[str, ...], where: Path) -> File:
    if not 1 <= int(number) <= len(classes):
        raise ValueError(f"{where}: class {number} of {name} is not 1 to {len(classes)}: get the file again")
    inner = f"{folder}/{folder}" if folder and (root / folder / folder).is_dir() else folder  # as Kaggle packs it
    return listed(root, f"{inner}/{name}".lstrip("/"), classes[int(number) - 1], where)


def _classes(path: Path) -> tuple[str, ...]:
    return tuple(map(str, matlab(path, "class_names", WHOSE)))


def _annotations(path: Path) -> np.ndarray:
    return matlab(path, "annotations", WHOSE)
