"""Sets whose pictures are arrays: CIFAR's pickles, PCAM's HDF5. Each picture becomes a PNG, losslessly."""

from __future__ import annotations

import gzip
import io
import math
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ingest.sets.benchmarks import Benchmark
from ingest.sets.layouts.found import Found, below, library
from ingest.sets.pictures import Blocks, Row

BLOCK = 256  # pictures of an HDF5 file in one read
PCAM = "camelyonpatch_level_2_split_{split}_{what}.h5"
_FILTERS = set(range(1, 7))  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset (hdf5, src/H5Zpublic.h)
PCAM_CLASSES = ("normal", "tumor")  # 1: the middle 32 x 32 pixels show tumor tissue (github.com/basveeling/pcam)


# --- CIFAR ---------------------------------------------------------------------------------------------------------


def read_cifar10(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """cifar-10-python.tar.gz or what it unpacks to: batches.meta, data_batch_1 to 5 and test_batch
    (https://www.cs.toronto.edu/~kriz/cifar.html)."""
    parts = {"train": [f"data_batch_{number}" for number in range(1, 6)], "eval": ["test_batch"]}
    return _cifar(source, "cifar-10-batches-py", "batches.meta", "label_names", "labels", parts)


def read_cifar100(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """cifar-100-python.tar.gz or what it unpacks to: meta, train and test; classes are the 100 fine ones."""
    parts = {"train": ["train"], "eval": ["test"]}
    return _cifar(source, "cifar-100-python", "meta", "fine_label_names", "fine_labels", parts)


def _cifar(source: Path, folder: str, meta: str, names: str, labels: str, parts: dict[str, list[str]]) -> Found | None:
    get = _cifar_files(source, folder, [meta, *(name for split in parts.values() for name in split)])
    if get is None:
        return None
    classes = tuple(map(str, _field(get, meta, names, list)))
    splits = {
        split: [row for name in files for row in _batch(get, name, labels, classes)] for split, files in parts.items()
    }
    return Found(**splits, classes=classes)


def _cifar_files(source: Path, folder: str, wanted: list[str]) -> Callable[[str], bytes] | None:
    """A function that reads a member of the archive, packed or not; None if there is no archive."""
    packed = [source] if source.is_file() else sorted(source.glob(folder.split("-batches")[0] + "*.tar.gz"))
    if root := below(source, *wanted):
        return lambda name: (root / name).read_bytes()
    if not packed or not tarfile.is_tarfile(packed[0]):
        return None
    try:
        with tarfile.open(packed[0]) as tar:  # read whole: 180 MB, less than an array and its copy
            bodies = {name: member.read() for name in wanted if (member := tar.extractfile(f"{folder}/{name}"))}
            while tar.fileobj and tar.fileobj.read(1 << 20):  # gzip checks its checksum only at the end
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError, KeyError) as error:
        raise ValueError(f"{packed[0]}: cannot be read ({error}): get the archive again") from None
    return bodies.__getitem__


def _batch(get: Callable[[str], bytes], name: str, labels: str, classes: tuple[str, ...]) -> list[Row]:
    """The pictures of one pickle: data is uint8 [N, 3072], each row 3 planes of 32 x 32."""
    batch = _unpickled(get, name)
    data, numbers = _array(batch.get("data")), batch.get(labels)
    if data is None or data.ndim != 2 or data.shape[1] != 3072:
        raise ValueError(f"{name}: data is not uint8 [pictures, 3072]: get the archive again")
    right = isinstance(numbers, list) and all(isinstance(n, int) and 0 <= n < len(classes) for n in numbers)
    if not right or len(numbers) != len(data):
        raise ValueError(f"{name}: {labels} is not {len(data)} numbers below {len(classes)}: get the archive again")
    files = batch.get("filenames") or [f"{at:05d}.png" for at in range(len(data))]
    if not isinstance(files, list) or len(files) != len(data):
        raise ValueError(f"{name}: filenames is not {len(data)} names: get the archive again")
    pixels_NHW3 = data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    blocks = Blocks(lambda block: np.ascontiguousarray(pixels_NHW3[block * BLOCK : (block + 1) * BLOCK]))
    return [
        Row(blocks, *divmod(at, BLOCK), f"{name}/{file}", f"{name}_{file.removesuffix('.png')}", classes[number], 3072)
        for at, (file, number) in enumerate(zip(map(str, files), numbers, strict=True))
    ]


def _field(get: Callable[[str], bytes], name: str, field: str, kind: type) -> Any:
    value = _unpickled(get, name).get(field)
    if not isinstance(value, kind):
        raise ValueError(f"{name}: has no {field}: get the archive again")
    return value


def _unpickled(get: Callable[[str], bytes], name: str) -> dict[str, Any]:
    """A pickle's dictionary. Pickles can call anything; only CIFAR's strings, lists, numbers and one array are made."""
    try:
        value = _Reader(io.BytesIO(get(name)), encoding="latin1").load()
    except Exception as error:  # a bad pickle may raise anything
        raise ValueError(f"{name}: is not a batch of CIFAR ({error}): get the archive again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: is not a batch of CIFAR ({type(value).__name__}): get the archive again")
    return {key.decode() if isinstance(key, bytes) else key: each for key, each in value.items()}


class _Reader(pickle.Unpickler):
    """Resolves names only to the functions below, never to those of numpy or codecs: numpy's own unpickling is not safe
    against crafted states (an object array over arbitrary bytes is a list of pointers)."""

    def find_class(self, module: str, name: str) -> _Named:
        made = _NAMES.get((module.replace("numpy._core", "numpy.core"), name))
        if made is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return made


class _Recorded:
    """An object that a pickle made. BUILD may set its state once, which is only stored."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        if self.state is not None or not isinstance(state, tuple):
            raise pickle.UnpicklingError(f"it sets an invalid state of {self.kind}")
        self.state = state


class _Named:
    """A name that a pickle may call; it has no state that BUILD could set."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def __call__(self, *args: Any) -> Any:
        return self.make(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it sets the state of a name")


def _not_called(*args: Any) -> Any:
    raise pickle.UnpicklingError("it makes an array in another way than numpy.save does")


def _dtype(code: Any, *_: Any) -> _Recorded:
    return _Recorded(f"numpy.dtype({code!r})")


def _encoded(text: Any, codec: Any) -> bytes:
    """Bytes as protocol 2 of Python 3 pickles them."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes as {codec!r}"[:100])
    return text.encode("latin1")


_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Named(lambda *_: _Recorded("numpy.ndarray")),
    ("numpy", "ndarray"): _Named(_not_called),
    ("numpy", "dtype"): _Named(_dtype),
    ("_codecs", "encode"): _Named(_encoded),
}
_BYTES = ("numpy.dtype('u1')", "numpy.dtype('|u1')", "numpy.dtype('uint8')")


def _array(value: Any) -> np.ndarray | None:
    """The uint8 array in numpy's state (version, shape, dtype, column-major, bytes); None for any other value."""
    if not isinstance(value, _Recorded) or value.kind != "numpy.ndarray" or len(value.state or ()) != 5:
        return None
    _, shape, dtype, fortran, raw = value.state
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # a str of Python 2, read as latin1
    sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or fortran or not isinstance(dtype, _Recorded) or dtype.kind not in _BYTES:
        return None
    if not isinstance(raw, bytes) or len(raw) != math.prod(shape):
        return None
    return np.frombuffer(raw, np.uint8).reshape(shape)


# --- PCAM ----------------------------------------------------------------------------------------------------------


def read_pcam(source: Path, benchmark: Benchmark, scratch: Path) -> Found | None:
    """camelyonpatch_level_2_split_{train,valid}_{x,y}.h5 (as torchvision.datasets.PCAM reads them), also as .h5.gz:
    data sets x, uint8 [N, 96, 96, 3], and y, 0 or 1 [N, 1, 1, 1]. The .gz are unpacked to scratch: 8 GB."""
    for ending in ("", ".gz"):
        names = [PCAM.format(split=s, what=w) + ending for s in ("train", "valid") for w in "xy"]
        if root := below(source, *names):
            paths = [_unpacked(root / name, scratch) for name in names]
            return Found(_patches("train", *paths[:2]), _patches("valid", *paths[2:]), PCAM_CLASSES)
    return None


def _patches(split: str, x: Path, y: Path) -> list[Row]:
    labels, pixels_NHW3 = _hdf5(y, "y")[:].reshape(-1), _hdf5(x, "x")
    if pixels_NHW3.dtype != np.uint8 or pixels_NHW3.ndim != 4 or pixels_NHW3.shape[3] != 3:
        raise ValueError(f"{x}: x is not uint8 [pictures, height, width, 3]: get the file again")
    if len(labels) != len(pixels_NHW3) or not set(np.unique(labels)) <= {0, 1}:
        raise ValueError(f"{y}: is not one 0 or 1 for each of the {len(pixels_NHW3):,} pictures: get the file again")
    blocks = Blocks(lambda block: pixels_NHW3[block * BLOCK : (block + 1) * BLOCK])
    size = x.stat().st_size
    return [
        Row(blocks, *divmod(at, BLOCK), f"{x.name}/{at}", f"{split}_{at:06d}", PCAM_CLASSES[label], size)
        for at, label in enumerate(labels.tolist())
    ]


def _hdf5(path: Path, name: str) -> Any:
    """A data set whose bytes are all in this file, which stays open while it is in use. HDF5 can also refer to other
    files, local or remote, and to libraries that decode them: such references are refused."""
    h5py = library("h5py", "PCAM's HDF5")
    try:
        file = h5py.File(path, "r")
        link = file.get(name, getlink=True)
        if link is None:
            raise KeyError(f"it has no {name}")
        found = file[name] if isinstance(link, h5py.HardLink) else None
    except (OSError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read ({error}): get the file again") from None
    wrong = _elsewhere(h5py, found)
    if wrong:
        raise ValueError(f"{path}: {name} {wrong}: get the file from its publishers")
    return found


def _elsewhere(h5py: Any, found: Any) -> str:
    """Why the bytes of a data set are not all in its own file; "" if they are. `found` is None for an external link."""
    if not isinstance(found, h5py.Dataset):
        return "leads to another file or is not a data set"
    if found.external is not None:
        return "keeps its data in other files"
    if found.is_virtual:
        return "is a view of other files"
    settings = found.id.get_create_plist()
    filters = {settings.get_filter(number)[0] for number in range(settings.get_nfilters())}
    return f"needs the filters {sorted(filters - _FILTERS)}, no part of HDF5" if filters - _FILTERS else ""


def _unpacked(path: Path, scratch: Path) -> Path:
    if path.suffix != ".gz":
        return path
    try:
        with gzip.open(path) as packed, (scratch / path.stem).open("wb") as out:
            shutil.copyfileobj(packed, out, 1 << 20)
    except (zlib.error, OSError, EOFError) as error:
        raise ValueError(
            f"{path}: cannot be unpacked to {scratch} ({error}): get it again, or set --scratch to a disk with room"
        ) from None
    return scratch / path.stem
