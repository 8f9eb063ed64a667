"""What a run's ranks read, in processes that are stopped and killed, and what they should have read.

Each rank is a process that goes through `train_batches` on a real Stream and writes a line for every batch. All that
one attempt hands to the next is a cursor, as a checkpoint holds it. The processes are forked from one that has imported
everything (multiprocessing's fork server), so that an attempt of eight ranks begins in a fraction of a second.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import forked
from made_datasets import jpeg, rows_of, write_unit

from shards.manifest import Manifest, make_version, read_manifest
from shards.stream import ReadConfig
from shards.stream.order import Order, Sequence, batch, cut
from shards.stream.stream import Cursor, Stream
from xtra.data import Augment, augmented, train_batches

SIDE, SEED = 16, 5


@dataclass(frozen=True)
class Setting:
    """What all ranks of all attempts share."""

    data: str  # dataset@digest
    folder: Path  # for their lines
    batch: int
    stop_at: int
    order: Order
    read: ReadConfig = field(default_factory=ReadConfig)
    env: dict[str, str] = field(default_factory=dict)
    pace: float = 0.0  # seconds that a step takes besides


@dataclass(frozen=True)
class Line:
    """What one rank had of one global batch."""

    attempt: int
    rank: int
    world: int
    start: int  # global positions of the whole batch
    keys: list[str]
    epochs: list[int]
    pixels: list[int]  # checksums: equal ones are equal crops of equal pictures
    replaced: list[tuple[str, str]]  # (key, key shown)
    vitals: tuple[int, int, int, float]  # resident bytes, open files, threads, seconds of processor time


def rank_main(
    setting: Setting, cursor: dict[str, Any], attempt: int, rank: int, world: int, pause_at: int | None
) -> None:
    """A rank of one attempt, from the cursor until the end or SIGTERM, which it obeys after its step; it goes no
    further than `pause_at`."""
    os.environ.update(setting.env)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    manifest = read_manifest(setting.data)
    assert manifest.digest == cursor["manifest"]
    order, seen = Order(**cursor["order"]), cursor["samples_seen"]
    stream = Stream(manifest, order, setting.batch, seen, setting.stop_at, rank, world, setting.read)
    path = setting.folder / f"{attempt:04d}-{rank}-{world}.jsonl"
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for shown in train_batches(stream, SIDE, Augment(), SEED, threads=1):
        line = Line(
            attempt=attempt,
            rank=rank,
            world=world,
            start=seen,
            keys=list(shown.keys),
            epochs=shown.epoch_B.tolist(),
            pixels=[zlib.crc32(pixels.tobytes()) for pixels in shown.images_B3HW.numpy()],
            replaced=[(event["key"], event["shown"]) for event in shown.events],
            vitals=vitals(),
        )
        shown.release()
        os.write(file, json.dumps(dataclasses.asdict(line)).encode() + b"\n")
        seen += min(setting.batch, setting.stop_at - seen)
        if pause_at is not None and seen >= pause_at:
            stop.wait()
        if stop.wait(setting.pace):
            break
    stream.close()


def vitals() -> tuple[int, int, int, float]:
    """This process's resident bytes, open files, threads and processor time."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE"), files, threads, time.process_time()


# --- attempts ------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run of many attempts; `cursor` is what its newest checkpoint holds."""

    setting: Setting
    cursor: dict[str, Any]
    attempts: int = 0

    @property
    def done(self) -> bool:
        return self.cursor["samples_seen"] >= self.setting.stop_at

    def attempt(
        self,
        world: int,
        batches: int | None,
        how: str,
        chosen: random.Random,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        """Go on with so many ranks until one has seen so many more batches, or to the end (None). Then all are asked to
        stop ("term"), or one is killed and, as soon as that is noticed, the others ("kill"). `meanwhile` is called now
        and then."""
        self.attempts += 1
        goal = None if batches is None else self.cursor["samples_seen"] + batches * self.setting.batch
        pause_at = None if goal is None else goal + self.setting.batch
        ranks = []
        for rank in range(world):
            words = (self.setting, self.cursor, self.attempts, rank, world, pause_at)
            ranks.append(forked.context.Process(target=rank_main, args=words, daemon=True))
            ranks[-1].start()
        while any(process.is_alive() for process in ranks):
            meanwhile()
            if goal is not None and self._reached() >= goal:
                break
            _wait(ranks, 0.01)
        if how == "kill":
            time.sleep(chosen.uniform(0, 0.02))  # anywhere in a step
            ranks[chosen.randrange(world)].kill()
            time.sleep(chosen.uniform(0, 0.02))
        for process in ranks:
            process.kill() if how == "kill" else process.terminate()
        for process in ranks:
            process.join()
        codes = {process.exitcode for process in ranks}
        allowed = {0, -signal.SIGKILL} if how == "kill" else {0, -signal.SIGTERM}  # before it has begun
        assert codes <= allowed, f"ranks ended with {codes}"
        self._checkpoint(world, chosen, how)

    def lines(self, attempt: int | None = None) -> Iterator[Line]:
        for path in sorted(self.setting.folder.glob(f"{attempt:04d}-*" if attempt is not None else "*")):
            for text in path.read_text().splitlines(keepends=True):
                if text.endswith("\n"):  # else its writer was killed
                    yield Line(**json.loads(text))

    def _reached(self) -> int:
        """How far the foremost rank of this attempt is."""
        paths = self.setting.folder.glob(f"{self.attempts:04d}-*")
        most = max((path.read_bytes().count(b"\n") for path in paths), default=0)
        return self.cursor["samples_seen"] + most * self.setting.batch

    def _checkpoint(self, world: int, chosen: random.Random, how: str) -> None:
        """The newest checkpoint is from a step that all ranks made: the last one, or an earlier one if they died."""
        ranks = Counter(line.start for line in self.lines(self.attempts))
        whole = sorted(start for start, many in ranks.items() if many == world)
        ends = [self.cursor["samples_seen"]] + [min(s + self.setting.batch, self.setting.stop_at) for s in whole]
        seen = chosen.choice(ends[-4:]) if how == "kill" and not ends[-1] >= self.setting.stop_at else ends[-1]
        self.cursor = json.loads(json.dumps(self.cursor | {"samples_seen": seen}))


def _wait(ranks: list[ForkServerProcess], seconds: float) -> None:
    multiprocessing.connection.wait([process.sentinel for process in ranks if process.is_alive()], seconds)


def begin(setting: Setting) -> Run:
    """A run that has seen nothing yet."""
    manifest = read_manifest(setting.data)
    setting.folder.mkdir()
    return Run(setting, json.loads(json.dumps(dataclasses.asdict(Cursor(manifest.digest, setting.order, 0)))))


# --- the proof -----------------------------------------------------------------------------------------------------


def small_set(base: str, counts: list[int], broken: tuple[int, ...] = (), side: int = 32) -> Manifest:
    """Tars with so many pictures each; the rows in `broken` do not decode."""
    from made_datasets import make_dataset

    first = counts[0]
    assert not [row for row in broken if row < first], "the first tar is sound"
    make_dataset(base, counts[:1], side=side)
    for unit, count in enumerate(counts[1:], 1):
        rows = rows_of(first, count, side=side)
        for row in rows:
            if row["row"] in broken:
                row["body"] = row["body"][: len(row["body"]) // 2]
        write_unit(base, unit, rows)
        first += count
    return make_version(base, "test")


class Expected:
    """What the order says, without a stream: sample n of the set is row n, whose picture is jpeg(n)."""

    def __init__(self, manifest: Manifest, setting: Setting, broken: tuple[int, ...] = (), side: int = 32) -> None:
        self.sequence = Sequence(manifest.counts, setting.order)
        self.setting, self.broken, self.side = setting, broken, side
        self._checksum = lru_cache(maxsize=1 << 16)(self._decoded)

    def line(self, start: int, rank: int, world: int, pixels: bool = True) -> dict[str, Any]:
        """Keys, epochs, checksums and replacements of a rank's part of the batch at `start`."""
        stop = min(start + self.setting.batch, self.setting.stop_at)
        place = batch(self.sequence, start, stop).take(cut(stop - start, rank, world))
        keys, sums, replaced = [], [], []
        for epoch, lane, item, sample in zip(*map(list, (place.epoch, place.lane, place.item, place.sample))):
            shown = int(sample)
            if shown in self.broken:
                others = (int(p.sample[0]) for p in self.sequence.substitutes(int(epoch), int(lane), int(item)))
                shown = next(other for other in others if other not in self.broken)
                replaced.append((f"k{sample:06d}", f"k{shown:06d}"))
            keys.append(f"k{shown:06d}")
            if pixels:
                sums.append(self._checksum(int(epoch), shown))
        return {"keys": keys, "epochs": place.epoch.tolist(), "pixels": sums, "replaced": replaced}

    def _decoded(self, epoch: int, sample: int) -> int:
        return zlib.crc32(augmented(jpeg(sample, self.side), SIDE, Augment(), SEED, epoch, sample).tobytes())


def prove(run: Run, expected: Expected, every: int = 1) -> dict[str, int]:
    """Whatever any rank of any attempt saw is what the order says (pixels: in every so many-th batch), all of it was
    seen, and every epoch holds each sample once except those that were replaced."""
    seen: dict[int, dict[str, list[Any]]] = {}
    parts: dict[tuple[int, int, int], Line] = {}
    for line in run.lines():
        pixels = line.start // run.setting.batch % every == 0
        right = expected.line(line.start, line.rank, line.world, pixels)
        for name, value in right.items():
            if name != "pixels" or pixels:
                found = [tuple(pair) for pair in line.replaced] if name == "replaced" else getattr(line, name)
                assert found == value, f"attempt {line.attempt}, rank {line.rank} of {line.world}, {line.start}: {name}"
        parts[line.start, line.rank, line.world] = line
    for (start, rank, world), _ in parts.items():
        if rank == 0 and all((start, other, world) in parts for other in range(world)):
            them = [parts[start, other, world] for other in range(world)]
            whole = {name: [x for line in them for x in getattr(line, name)] for name in ("keys", "epochs", "replaced")}
            assert seen.setdefault(start, whole) == whole
    assert sorted(seen) == list(range(0, run.setting.stop_at, run.setting.batch)), "a batch was never seen whole"
    samples, epochs = expected.sequence.samples, run.setting.stop_at // expected.sequence.samples
    extra: Counter[str] = Counter()
    for epoch in range(epochs):
        times = Counter(
            key for whole in seen.values() for key, when in zip(whole["keys"], whole["epochs"]) if when == epoch
        )
        assert times.total() == samples
        assert {f"k{n:06d}" for n in range(samples)} - times.keys() == {f"k{n:06d}" for n in expected.broken}
        extra.update({key: n - 1 for key, n in times.items() if n > 1})
    named = [pair for whole in seen.values() for pair in whole["replaced"]]
    assert Counter(key for key, _ in named) == {f"k{n:06d}": epochs for n in expected.broken}
    assert Counter(shown for _, shown in named) == extra
    return {"lines": len(parts), "batches": len(seen)}
