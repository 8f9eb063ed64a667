"""The 15 evaluation sets of the XTRA paper (arXiv 2411.15648, Table 7): their sizes, and which splits it used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Benchmark:
    """One evaluation set: the counts of Table 7, and its publishers' names of the two splits that the paper used."""

    name: str  # for `xtra import --set`, and of the folder in a suite's root
    title: str  # as the paper writes it
    train: int  # pictures
    eval: int
    classes: int
    train_split: str  # the publishers' name of the split that the paper trained on
    eval_split: str
    train_names: tuple[str, ...] = ("train",)  # folders or Parquet files that, where present, make up the split
    eval_names: tuple[str, ...] = ("test",)


_VAL = ("val", "validation")


def _table(*rows: Benchmark) -> Mapping[str, Benchmark]:
    return MappingProxyType({row.name: row for row in rows})


# In the order of Table 7. Splits are those that the official code loads (src/data/dataset.py): the paper evaluates
# iWildCam and Camelyon17 on their out-of-distribution validation splits, and PCAM on valid, not test.
BENCHMARKS: Mapping[str, Benchmark] = _table(
    Benchmark("imagenet1k", "ImageNet-1k", 1_281_167, 50_000, 1000, "train", "val", eval_names=_VAL),
    Benchmark(
        "inat18", "iNat-18", 437_513, 24_426, 8142, "train2018", "val2018", ("train", "train2018"), (*_VAL, "val2018")
    ),
    Benchmark("cifar10", "CIFAR-10", 50_000, 10_000, 10, "train", "test"),
    Benchmark("cifar100", "CIFAR-100", 50_000, 10_000, 100, "train", "test"),
    Benchmark("food101", "Food-101", 75_750, 25_250, 101, "train", "test", eval_names=("test", "validation")),
    Benchmark("dtd", "DTD", 3_760, 1_880, 47, "train1 + val1", "test1", ("train", *_VAL)),
    Benchmark("pets", "Pets", 3_680, 3_669, 37, "trainval", "test", ("train", "trainval")),
    Benchmark("cars", "Cars", 8_144, 8_041, 196, "train", "test"),
    Benchmark("iwildcam", "iWildCam", 129_809, 14_961, 182, "train", "val", eval_names=_VAL),
    Benchmark(
        "camelyon17", "Camelyon17", 302_436, 34_904, 2, "id_train", "ood_val", ("train", "id_train"), (*_VAL, "ood_val")
    ),
    Benchmark("pcam", "PCAM", 262_144, 32_768, 2, "train", "valid", eval_names=(*_VAL, "valid")),
    Benchmark("rxrx1", "RxRx1", 40_612, 9_854, 1139, "train", "val", eval_names=_VAL),
    Benchmark("eurosat", "EuroSAT", 16_200, 5_400, 10, "train", "test"),
    Benchmark("fmow", "fMoW", 76_863, 19_915, 62, "train", "val", eval_names=_VAL),
    Benchmark("infograph", "Infograph", 36_023, 15_582, 345, "train", "test"),
)
