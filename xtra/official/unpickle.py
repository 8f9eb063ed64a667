"""Read a torch.save file without running any code pickled in it; tensors are read on access.

torch.save writes a zip (since torch 1.6): NAME/data.pkl is a pickle whose tensors point at NAME/data/0, 1, ... A pickle
is a program: its GLOBAL instructions name any function of any module. Here only the names below are resolved; every
other name becomes a `Foreign` placeholder that accepts any arguments and does nothing, so a checkpoint with callbacks
and hyper-parameters of foreign classes opens without those classes, and they are listed.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shards.local_files import refuse_special
from xtra.official import pickle_limits

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


# Errors that zipfile raises for a damaged archive.
_ZIP = (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, struct.error)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Raises ValueError for a damaged zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _ZIP as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{path}: is a damaged zip ({why}): download it again") from None


def _closed(self: object, state: object) -> None:
    """`__setstate__` of classes that a file must not modify: a pickle could point a tensor at another file's bytes."""
    raise pickle.UnpicklingError(f"it modifies a {type(self).__name__.strip('_')}")


@dataclass(frozen=True)
class _Storage:
    archive: Path
    member: str
    dtype: torch.dtype
    numel: int

    __setstate__ = _closed


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that is not yet read from the file."""

    storage: _Storage
    offset: int  # of the first value, counted in values
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    __setstate__ = _closed

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
        """Read it. Raises ValueError if the file does not have its bytes."""
        where = f"{self.storage.archive}: {self.storage.member}"
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        if min(self.offset, *self.shape, *self.stride, 0) < 0 or last >= self.storage.numel > 0:
            raise ValueError(f"{where} has {self.storage.numel} values, too few for {list(self.shape)}: damaged file")
        with _opened(self.storage.archive) as archive:
            try:
                body = archive.read(self.storage.member)
            except (KeyError, *_ZIP) as error:
                raise ValueError(f"{where} cannot be read ({error}): the file is damaged or cut short") from None
        if len(body) != self.storage.numel * self.dtype.itemsize:
            raise ValueError(f"{where} has {len(body)} bytes, not {self.storage.numel} x {self.dtype}: damaged file")
        if not body:
            return torch.empty(self.shape, dtype=self.dtype)
        values = torch.frombuffer(bytearray(body), dtype=self.dtype)
        return values.as_strided(self.shape, self.stride, self.offset).clone()


class Foreign:
    """A placeholder for an object of an unknown class. Accepts anything, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Foreign:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _ignore(self, *args: Any, **kwargs: Any) -> Foreign:
        return self

    __call__ = __setitem__ = __setstate__ = append = extend = add = update = _ignore


@dataclass
class Unpickled:
    """A file's contents: plain containers, numbers and text, `StoredTensor`s, and `Foreign` placeholders."""

    root: Any
    foreign: list[str] = field(default_factory=list)  # the names replaced by placeholders


def _what_else(path: Path) -> str:
    """What a file is, if it is not a complete zip, and what to do."""
    with path.open("rb") as file:
        head = file.read(512)
    start = head.lstrip().lower()
    if head.startswith(b"PK\x03\x04"):
        return "it begins like one, but its end is missing: download it again"
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page, such as a server's error or a login page: download the file itself"
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "it is a Git LFS pointer, not the file: fetch the file with git lfs pull"
    if not head:
        return "it is empty: download it again"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip: unpack it with gunzip"
    if head[:1] == b"\x80" or head.startswith(b"}q"):
        return "it is a bare pickle of an older torch: load it with the torch that wrote it and save it again"
    return "it is not a recognised checkpoint: download it again"


def read(path: Path) -> Unpickled:
    """Read a file. Raises ValueError if it is not a torch.save zip, or if sizes in it are impossible.

    Memory is bounded by the file's own size: no length, index, shape or stride in it is trusted.
    """
    refuse_special(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: is not a zip as written by torch.save since 1.6: {_what_else(path)}")
    with _opened(path) as archive:
        pickles = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"{path}: has {len(pickles)} data.pkl, but torch.save writes one: download it again")
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        if packed:
            raise ValueError(f"{path}: {packed[0]} is compressed, which torch.save never does: download it again")
        prefix = pickles[0].filename.removesuffix("data.pkl")
        if prefix + "byteorder" in archive.namelist() and archive.read(prefix + "byteorder") != b"little":
            raise ValueError(f"{path}: was saved on a big-endian machine: save it again on this kind")
        if pickles[0].file_size > pickle_limits.MAX_BYTES:
            raise ValueError(
                f"{path}: its data.pkl has {pickles[0].file_size:,} bytes, more than {pickle_limits.MAX_BYTES:,}: "
                "it is not a model checkpoint"
            )
        try:
            body = archive.read(pickles[0])
            pickle_limits.check(body)
            unpickler = _Unpickler(body, path, prefix)
            root = unpickler.load()
            pickle_limits.measure(root)
        except _FAILURES as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            raise ValueError(f"{path}: data.pkl cannot be read ({why}): the file is damaged") from None
    return Unpickled(root, sorted(unpickler.foreign))


_FAILURES = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, TypeError, ValueError, AttributeError),
    *(LookupError, ArithmeticError, RecursionError, MemoryError, ImportError, NotImplementedError),
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, pickled: bytes, path: Path, prefix: str) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self.path, self.prefix = path, prefix
        self.bytes = path.stat().st_size
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
        if not isinstance(pid, tuple) or len(pid) != 5:
            raise pickle.UnpicklingError("a reference in it is not a tensor's storage")
        kind, dtype, key, _, numel = pid
        named = isinstance(key, str) and type(numel) is int
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not named:
            raise pickle.UnpicklingError("a reference in it is not a tensor's storage")
        if not 0 <= numel * dtype.itemsize <= self.bytes:
            raise pickle.UnpicklingError(f"storage {key[:20]} of {numel:,} values in a file of {self.bytes:,} bytes")
        return _Storage(self.path, f"{self.prefix}data/{key}", dtype, numel)


class _Maker:
    """A function that a pickle may call but not modify."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *args: Any) -> Any:
        return self._make(*args)

    __setstate__ = _closed


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    """Raises UnpicklingError for what is not a tensor, or one with more values than its storage: with dimensions of
    stride 0, 4 values would become 2^33."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise pickle.UnpicklingError("a tensor in it has no storage, or no shape")
    if not all(type(number) is int for number in (offset, *size, *stride)) or len(size) != len(stride):
        raise pickle.UnpicklingError("a tensor in it has a shape that is not integers")
    values, most = 1, storage.numel
    for length in size:
        values *= length
        if length < 0 or values > max(most, 1):
            raise pickle.UnpicklingError(f"a tensor in it is larger than its storage of {most:,} values")
    return StoredTensor(storage, offset, size, stride)


def _parameter(tensor: Any, *_: Any) -> StoredTensor:
    if not isinstance(tensor, StoredTensor):
        raise pickle.UnpicklingError("a parameter in it is not a tensor")
    return tensor


_MAKES: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor": _Maker(_tensor),
    "torch._utils._rebuild_tensor_v2": _Maker(_tensor),
    "torch._utils._rebuild_parameter": _Maker(_parameter),
    "torch.Size": tuple,
}
