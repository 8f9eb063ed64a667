"""Read a file of torch.save without running anything that is pickled in it, and tensors only when they are asked for.

torch.save writes a zip (since torch 1.6): NAME/data.pkl is a pickle whose tensors point at NAME/data/0, 1, ... A pickle
is a program: its GLOBAL instructions name any function of any module. Here only the names below mean anything; every
other name becomes a stand-in that takes whatever it is given and does nothing, so a checkpoint with callbacks and
hyper-parameters of foreign classes opens without those classes, and they are listed.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class _Storage:
    archive: Path
    member: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is still in the file."""

    storage: _Storage
    offset: int  # of the first value, in values
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    @property
    def bytes(self) -> int:
        values = 1
        for size in self.shape:
            values *= size
        return values * self.dtype.itemsize

    def read(self) -> Tensor:
        """Raises ValueError when the file does not hold what the tensor needs."""
        where = f"{self.storage.archive}: {self.storage.member}"
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        if min(self.offset, *self.shape, *self.stride, 0) < 0 or last >= self.storage.numel > 0:
            raise ValueError(f"{where} has {self.storage.numel} values, too few for {list(self.shape)}: damaged file")
        with zipfile.ZipFile(self.storage.archive) as archive:
            try:
                body = archive.read(self.storage.member)
            except (KeyError, zipfile.BadZipFile) as error:
                raise ValueError(f"{where} cannot be read ({error}): the file is damaged or cut short") from None
        if len(body) != self.storage.numel * self.dtype.itemsize:
            raise ValueError(f"{where} has {len(body)} bytes, not {self.storage.numel} x {self.dtype}: damaged file")
        if not body:
            return torch.empty(self.shape, dtype=self.dtype)
        values = torch.frombuffer(bytearray(body), dtype=self.dtype)
        return values.as_strided(self.shape, self.stride, self.offset).clone()


class Foreign:
    """Stands for an object of a class that is none of ours to make. Takes everything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> Foreign:
        return self

    __call__ = __setitem__ = __setstate__ = append = extend = add = update = _ignore


@dataclass
class Unpickled:
    """What a file holds: plain containers, numbers and text, `StoredTensor`s, and `Foreign` stand-ins."""

    root: Any
    foreign: list[str] = field(default_factory=list)  # the names that stand-ins replace


def _what_else(path: Path) -> str:
    """What a file is that is no whole zip, and what to do."""
    with path.open("rb") as file:
        head = file.read(512)
    start = head.lstrip().lower()
    if head.startswith(b"PK\x03\x04"):
        return "it begins as one and its end is missing: it was cut short, download it again"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page, such as a server's error or a page to log in: download the file itself"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a pointer of Git LFS, not the file: fetch that with git lfs pull"
    if not head:
        return "it is empty: download it again"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip: unpack it with gunzip"
    if head[:1] == b"\x80" or head.startswith(b"}q"):
        return "it is a bare pickle of an older torch: load it with the torch that wrote it and save it again"
    return "it is no checkpoint that can be recognised: download it again"


def read(path: Path) -> Unpickled:
    """Raises ValueError when the file is not one of torch.save's zips."""
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is no zip, as torch.save writes since 1.6: {_what_else(path)}")
    with zipfile.ZipFile(path) as archive:
        pickles = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: holds {len(pickles)} data.pkl, a file of torch.save holds one")
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{path}: {packed[0]} is compressed, which torch.save never does: not its file")
        prefix = pickles[0].filename.removesuffix("data.pkl")
        if prefix + "byteorder" in archive.namelist() and archive.read(prefix + "byteorder") != b"little":
            raise ValueError(f"{path}: was saved on a big-endian machine: save it again on this kind")
        with archive.open(pickles[0]) as body:
            unpickler = _Unpickler(body, path, prefix)
            try:
                root = unpickler.load()
            except (pickle.UnpicklingError, EOFError, TypeError, AttributeError, IndexError, KeyError) as error:
                raise ValueError(f"{path}: data.pkl cannot be read ({error}): the file is damaged") from None
    return Unpickled(root, sorted(unpickler.foreign))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path, prefix: str) -> None:
        super().__init__(file, encoding="utf-8")
        self.path, self.prefix = path, prefix
        self.foreign: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        made = _MAKES.get(f"{module}.{name}")
        if made is None:
            self.foreign.add(f"{module}.{name}")
            made = type(name, (Foreign,), {})
        return made

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(numel, int):
            raise pickle.UnpicklingError(f"{pid!r} is not a tensor's storage")
        return _Storage(self.path, f"{self.prefix}data/{key}", dtype, numel)


def _tensor(storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> StoredTensor:
    return StoredTensor(storage, offset, tuple(size), tuple(stride))


def _parameter(tensor: StoredTensor, *_: Any) -> StoredTensor:
    return tensor


_MAKES: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.Size": tuple,
}
