"""The local folder where bodies wait: ours alone, bounded, and gone afterwards, whatever ends the process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from shards.scratch import dead, locked

PREFIX = "xtra-ingest-"
JUDGING = "judging"  # files in which the rows being judged are marked (`shards.pixels.isolate`)
RESERVE = 1 << 30  # bytes that we leave free on the disk, or a twentieth of it where that is less
BYTES_A_LINK = 64 << 10  # of a list where a third is dead; ImageNet's pictures have 110 KB
COPIES = 2  # the spool and, while it is sealed, the tar


@dataclass
class Scratch:
    """A folder, how much may lie in it, and what killed runs left there."""

    folder: Path
    limit: int | None = None  # bytes; None: what the disk has
    left: tuple[Path, ...] = ()  # the marks of runs of the same dataset that were killed: rows that may have done it

    def used(self) -> int:
        total = 0
        for at, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(at, name)).st_size
        return total

    def room(self) -> int:
        """Bytes that may still be put here; below 0 when there are too many already."""
        disk = shutil.disk_usage(self.folder)
        free = disk.free - min(RESERVE, disk.total // 20)
        return free if self.limit is None else min(free, self.limit - self.used())

    def check(self, links: int) -> None:
        """Raises ValueError when one unit of so many links would probably not fit."""
        need, room = COPIES * BYTES_A_LINK * links, self.room()
        if need <= room:
            return
        if self.limit is not None and self.limit < need:
            raise ValueError(
                f"scratch_bytes is {self.limit:,}: a unit of {links:,} links may need {need:,}: "
                "allow more, or start a dataset with a smaller --unit"
            )
        raise ValueError(
            f"{self.folder.parent}: has room for {max(0, room):,} bytes, and a unit of {links:,} links may need "
            f"{need:,}: free space, set --scratch to another disk, or start a dataset with a smaller --unit"
        )


@contextlib.contextmanager
def scratch_folder(base: str | None, dataset: str = "", limit: int | None = None) -> Iterator[Scratch]:
    """A folder of our own below `base` (the system's own if None), gone afterwards; also removes those of runs that
    were killed. Each is locked while its run lives: flock ends with the process, whatever ends it.

    Raises ValueError when nothing can be written there.
    """
    root = Path(base or tempfile.gettempdir())
    prefix = PREFIX + hashlib.sha256(dataset.encode()).hexdigest()[:8] + "-"
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(locked(prefix, root))
        except OSError as error:
            raise ValueError(
                f"{root}: cannot hold scratch files ({error.strerror}): set --scratch to a folder"
            ) from None
        yield Scratch(folder, limit, tuple(_take_over(root, prefix, folder)))


def _take_over(root: Path, prefix: str, ours: Path) -> Iterator[Path]:
    """Remove the folders of killed runs; keeps, and yields, what they were judging if they were of our dataset."""
    for left in dead(PREFIX, root):
        if left.name.startswith(prefix):
            for marks in left.glob(f"{JUDGING}*"):
                kept = ours / f"left-{left.name}-{marks.name}"
                with contextlib.suppress(OSError):
                    marks.rename(kept)
                    yield kept
