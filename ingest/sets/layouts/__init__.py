"""The known layouts of each evaluation set on disk, and their readers.

A reader returns None for a source in another layout and the pictures of both splits for one in its own; it raises
ValueError for one in its own layout that is damaged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts import arrays, cars, folders, lists, parquet, wilds
from ingest.sets.layouts.found import Found

__all__ = ["LAYOUTS", "Found", "Layout", "find"]

SHOWN = 8  # names in the error about an unknown layout


@dataclass(frozen=True)
class Layout:
    """`read(source, benchmark, scratch)`; scratch is a local folder for files that must be unpacked first."""

    description: str  # a short description
    read: Callable[[Path, Benchmark, Path], Found | None]


_PARQUET = Layout("SPLIT-00000-of-00001.parquet files as Hugging Face has them", parquet.read)
_TEST = Layout("folders train/CLASS/ and test/CLASS/", folders.read)
_VAL = Layout("folders train/CLASS/ and val/CLASS/", folders.read)

LAYOUTS: Mapping[str, tuple[Layout, ...]] = MappingProxyType(
    {
        "imagenet1k": (
            Layout("folders train/WNID/ and val/WNID/", folders.read),
            Layout("train/WNID/ and a flat val/ with its labels next to it", folders.read_flat_val),
        ),
        "inat18": (
            Layout("train2018.json, val2018.json and train_val2018/", lists.read_inat),
            Layout("folders train/SUPERCATEGORY/CLASS/ and val/SUPERCATEGORY/CLASS/", folders.read_inat),
        ),
        "cifar10": (Layout("cifar-10-python.tar.gz, packed or not", arrays.read_cifar10), _TEST),
        "cifar100": (Layout("cifar-100-python.tar.gz, packed or not", arrays.read_cifar100), _TEST),
        "food101": (Layout("meta/train.txt, meta/test.txt and images/", lists.read_food101), _TEST),
        "dtd": (Layout("labels/train1.txt, val1.txt, test1.txt and images/", lists.read_dtd), _TEST),
        "pets": (Layout("annotations/trainval.txt, test.txt and images/", lists.read_pets), _TEST),
        "cars": (
            Layout("devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat", cars.read_devkit),
            Layout("cars_annos.mat and car_ims/", cars.read_one_file),
            _TEST,
        ),
        "iwildcam": (Layout("metadata.csv and train/ of WILDS", wilds.read_iwildcam), _VAL),
        "camelyon17": (Layout("metadata.csv and patches/ of WILDS", wilds.read_camelyon17), _VAL),
        "pcam": (Layout("camelyonpatch_level_2_split_{train,valid}_{x,y}.h5 or .h5.gz", arrays.read_pcam), _VAL),
        "rxrx1": (Layout("metadata.csv and images/ of WILDS", wilds.read_rxrx1), _VAL),
        "eurosat": (_TEST,),
        "fmow": (Layout("rgb_metadata.csv and images/ of WILDS", wilds.read_fmow), _VAL),
        "infograph": (Layout("infograph_train.txt, infograph_test.txt and infograph/", lists.read_domainnet), _TEST),
    }
)


def find(source: Path, benchmark: Benchmark, scratch: Path) -> tuple[Found, str]:
    """The pictures of a set, and the description of its layout. Raises ValueError for an unknown layout."""
    if not source.exists():
        raise ValueError(f"{source}: there is no such folder or file: check SOURCE")
    known = (*LAYOUTS[benchmark.name], _PARQUET)
    for layout in known:
        found = layout.read(source, benchmark, scratch)
        if found is not None:
            return found, layout.description
    names = (
        sorted(path.name + "/" * path.is_dir() for path in source.iterdir() if path.name[0] != ".")
        if source.is_dir()
        else ["a file"]
    )
    there = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")
    understood = "; or ".join(layout.description for layout in known)
    raise ValueError(f"{source}: {benchmark.name} must be {understood}. Found there: {there or 'nothing'}")
