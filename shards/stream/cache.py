"""A bounded folder of remote bytes on local disk, shared by all processes of a node, surviving any of their deaths.

Content-addressed: a name says which bytes of which tar (by its sha256) it holds, so nothing is ever stale. An entry is
written aside, synced and renamed: what has a name is whole. There are no locks and no state but the folder itself; two
processes that write one entry write the same bytes.

Entries that this run has not used are evicted, the longest unused first. Once all entries are this run's, the cache is
full and stays as it is: a run visits every sample once an epoch, and on such a scan a cache that replaces entries never
hits, while one that does not keeps its share.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from shards import store

FOLDER = "xtra-read-cache"  # inside the named folder: other files there are not ours to count or delete
_STALE = 3600.0  # seconds after which an unfinished write counts as abandoned


@dataclass(frozen=True)
class _Entry:
    used: float
    bytes: int
    path: str


class DiskCache:
    """Entries by name, `limit` bytes in all; each process may briefly exceed it by a 64th, or by an entry."""

    def __init__(self, folder: str | Path, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"read.cache_bytes is {limit}; it must be above 0")
        self.folder = Path(folder) / FOLDER
        self.limit = limit
        self.hits = self.misses = self.failures = 0
        self._began = time.time() - 1  # the file system's clock may be some ms behind
        self._lock = threading.Lock()
        self._unlooked = 0  # bytes written since the last look at the folder
        self._room = 0
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._look()
        except OSError as error:
            raise ValueError(
                f"read.cache: {folder} cannot be used ({error.strerror}): name a folder of yours"
            ) from None

    def read_into(self, name: str, view: memoryview) -> bool:
        """Fill `view` from an entry; False if it is not here, or has another size."""
        try:
            file = os.open(self._path(name), os.O_RDONLY)
        except OSError:
            self.misses += 1
            return False
        try:
            status = os.fstat(file)
            if status.st_size != len(view) or store.fill(file, [view], 0) != len(view):
                self.misses += 1
                return False
            if status.st_mtime < max(self._began, time.time() - _STALE):
                with contextlib.suppress(OSError):  # another user's
                    os.utime(file)  # it is in use, by this run
        except OSError:
            self.failures += 1
            return False
        finally:
            os.close(file)
        self.hits += 1
        return True

    def write(self, name: str, body: memoryview | bytes) -> None:
        """Keep an entry, if there is room. A disk that fails costs the entry, never the run: it is counted."""
        if not self._reserve(len(body)):
            return
        path = self._path(name)
        try:
            path.parent.mkdir(exist_ok=True)
            handle, aside = tempfile.mkstemp(prefix=".aside-", dir=path.parent)
            try:
                os.fchmod(handle, 0o644)  # other users' runs on this node read it, too
                with os.fdopen(handle, "wb", buffering=0) as file:
                    at = 0
                    while at < len(body):
                        at += file.write(memoryview(body)[at:])
                    os.fdatasync(file.fileno())
                os.replace(aside, path)
            except OSError:
                with contextlib.suppress(OSError):
                    os.unlink(aside)
                raise
        except OSError:
            self.failures += 1

    def path(self, name: str) -> Path | None:
        """The file of an entry, for mapping it; None if it is not here."""
        path = self._path(name)
        return path if path.exists() else None

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name

    def _reserve(self, size: int) -> bool:
        with self._lock:
            if self._unlooked > self.limit // 64 or self._room < size:
                if self._unlooked == 0:
                    return False  # full, and we have written nothing since
                with contextlib.suppress(OSError):
                    self._look()
            if self._room < size:
                return False
            self._room -= size
            self._unlooked += size
            return True

    def _look(self) -> None:
        """Count the entries, evict unused ones down to the limit, and remove what dead writers left."""
        entries, total = [], 0
        for folder in os.scandir(self.folder):
            if not folder.is_dir():
                continue
            for file in os.scandir(folder.path):
                with contextlib.suppress(OSError):  # evicted by another process meanwhile, or another user's
                    status = file.stat()
                    if not file.name.startswith(".aside-"):
                        entries.append(_Entry(status.st_mtime, status.st_size, file.path))
                    elif time.time() - status.st_mtime > _STALE:
                        os.unlink(file.path)
                        continue
                    total += status.st_size
        if total > self.limit - self.limit // 16:
            for entry in sorted(entries, key=lambda entry: entry.used):
                if total <= self.limit - self.limit // 8 or entry.used >= self._began:
                    break
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    total -= entry.bytes
        self._room = max(0, self.limit - total)
        self._unlooked = 0
