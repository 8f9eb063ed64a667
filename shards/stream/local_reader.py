"""Batches of samples from tars on this machine's disks: one `preadv` a sample, straight into the batch's buffer."""

from __future__ import annotations

import contextlib
import os
import resource
from collections import OrderedDict
from collections.abc import Sequence

from shards import store
from shards.config import ReadConfig
from shards.manifest import Manifest
from shards.stream.order import Place
from shards.stream.reader import Reader
from shards.stream.sample import Encoded
from shards.tar import BLOCK

_MOST_FILES = 4096
_BATCHES = 4  # planned ahead, so that the kernel can read ahead
_GRAIN = 64  # bytes between two bodies, a line of the processor's cache


class LocalTars:
    """The tars of `reader` that are on local disks, a bounded number of them open."""

    def __init__(self, reader: Reader, chunk: int) -> None:
        self._reader, self._chunk = reader, chunk
        self._files: OrderedDict[int, int] = OrderedDict()
        self._most_files = min(_MOST_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._advised: set[tuple[int, int, int]] = set()
        self._header = memoryview(bytearray(BLOCK))

    def advise(self, epoch: int, shard: int, number: int) -> None:
        """Advise the kernel, once an epoch, that a sample and its neighbours will be read soon: a cold disk then works
        ahead of us."""
        name = (epoch, shard, number // self._chunk)
        if name not in self._advised:
            if len(self._advised) > 1 << 16:
                self._advised.clear()
            self._advised.add(name)
            index, first = self._reader.index(shard), name[2] * self._chunk
            last = min(first + self._chunk, len(index)) - 1
            begin, end = index.offset[first] - BLOCK, index.offset[last] + index.length[last]
            with contextlib.suppress(OSError):  # some file systems take no advice
                os.posix_fadvise(self._file(shard), begin, end - begin, os.POSIX_FADV_WILLNEED)

    def read(self, shard: int, number: int, body: memoryview) -> None:
        """Fill `body` with a sample's bytes. Raises StoreError naming the tar and the sample."""
        index = self._reader.index(shard)
        offset = index.offset[number]
        try:
            got = store.fill(self._file(shard), [self._header, body], offset - BLOCK)
        except OSError as error:
            place = f"{self._reader.tar_url(shard)}: cannot be read at byte {offset}, {index.key(number)}"
            raise store.StoreError(f"{place}: {error.strerror}") from None
        if got != BLOCK + index.length[number]:
            raise store.StoreError(
                f"{self._reader.tar_url(shard)}: is cut short at byte {offset - BLOCK + got}, in {index.key(number)}: "
                "run xtra check"
            )
        self._reader.check_header(self._header, shard, number)

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= self._most_files:
                os.close(self._files.popitem(last=False)[1])
            url = self._reader.tar_url(shard)
            try:
                file = os.open(store.local_path(url), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise store.Missing(f"{url}: the shard is gone: run xtra check on the dataset") from None
            except OSError as error:
                raise store.StoreError(f"{url}: cannot be opened: {error.strerror}") from None
            self._files[shard] = file
        return file

    def close(self) -> None:
        while self._files:
            with contextlib.suppress(KeyError):  # another thread took the last one: a file is closed once
                os.close(self._files.popitem()[1])


class LocalReader(Reader):
    """All tars are on local disks."""

    horizon = _BATCHES

    def __init__(self, manifests: Sequence[Manifest], config: ReadConfig, chunk: int):
        super().__init__(manifests, config.ahead)
        self._tars = LocalTars(self, chunk)

    def announce(self, place: Place) -> None:
        """Advise the kernel of the samples of the next batch; their indexes are read."""
        shard_B, index_B = (array.tolist() for array in self.locate(place.sample))
        self._begin_indexes(shard_B)
        for epoch, shard, number in zip(place.epoch.tolist(), shard_B, index_B):
            self._tars.advise(epoch, shard, number)

    def read(self, place: Place, start: int = 0, stop: int = 0) -> Encoded:
        """The samples at these places in one lent buffer; `start` and `stop` name the whole batch's global positions.

        Raises StoreError naming the tar that cannot be read.
        """
        batch, _ = self._lend(place, start, stop, _GRAIN)
        for shard, number, body in zip(batch.shard_B.tolist(), batch.index_B.tolist(), batch.bodies):
            self._tars.read(shard, number, body)
        return batch

    def close(self) -> None:
        super().close()
        self._tars.close()
