"""The local folder where bodies wait: private, bounded, and removed afterwards, however the process ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.journal import JOURNAL
from shards import store
from shards.scratch import dead, locked

PREFIX = "xtra-ingest-"
KEPT = "xtra-kept-"  # folders, one a dataset, of what its open units had fetched when their run ended
KEPT_SECONDS = 7 * 86_400.0  # that such a folder waits for the rerun
JUDGING = "judging"  # files in which the rows being judged are marked (`shards.pixels.isolate`)
RESERVE = 1 << 30  # bytes that are left free on the disk, or a twentieth of it if that is less
BYTES_A_LINK = 64 << 10  # for a list in which a third is dead; ImageNet's pictures have 110 KB
TAKEN = "taken-"  # prefix of a kept unit that is in use again
COPIES = 2  # the spool and, while it is sealed, the tar


@dataclass
class Scratch:
    """A folder, how much it may hold, and what killed runs left there."""

    folder: Path
    limit: int | None = None  # bytes; None: as much as the disk has
    left: tuple[Path, ...] = ()  # marks left by killed runs of the same dataset: rows that may have killed them
    kept: Path | None = None  # where the bodies of open units wait for the next run of the same dataset

    def used(self) -> int:
        total = 0
        for at, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    total += os.stat(os.path.join(at, name)).st_size
        return total

    def room(self) -> int:
        """Bytes that may still be added; negative if there are too many already."""
        disk = shutil.disk_usage(self.folder)
        free = disk.free - min(RESERVE, disk.total // 20)
        return free if self.limit is None else min(free, self.limit - self.used())

    def keep(self, folder: Path) -> None:
        """Keep a unit's folder for the next run. Never raises: what cannot be kept is fetched again."""
        if self.kept is not None:
            _keep(self.kept, folder)

    def take(self, name: str) -> list[Path]:
        """Move here what earlier runs kept of a unit; returns the folders. Only the first process that asks gets
        them."""
        found = []
        for path in sorted(self.kept.glob(f"{name}-*")) if self.kept is not None and _ours(self.kept) else ():
            ours = self.folder / f"{TAKEN}{path.name}"
            with contextlib.suppress(OSError):
                path.rename(ours)
                found.append(ours)
        return found

    def check(self, links: int) -> None:
        """Raises ValueError if a unit of so many links would probably not fit."""
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
    """A new folder below `base` (the system's own if None), removed afterwards; also removes those of killed runs.
    Each is locked while its run lives: flock ends with the process, however it ends.

    Raises ValueError if nothing can be written there.
    """
    root = Path(base or tempfile.gettempdir())
    mark = _mark(dataset)
    kept = root / (KEPT + mark) if dataset else None
    with contextlib.ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            folder = stack.enter_context(locked(f"{PREFIX}{mark}-", root))
        except OSError as error:
            raise ValueError(
                f"{root}: cannot hold scratch files ({error.strerror}): set --scratch to a folder"
            ) from None
        _expire(root)
        yield Scratch(folder, limit, tuple(_take_over(root, folder)), kept)


@contextlib.contextmanager
def holding_a_unit(scratch: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError about scratch: storage, network and sources raise their own errors."""
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise ValueError(f"{scratch.parent}: cannot hold a unit ({why}): free space or set --scratch") from error


def _take_over(root: Path, ours: Path) -> Iterator[Path]:
    """Remove the folders of killed runs, but keep what their open units have fetched. Yields the marks of what runs of
    our dataset were judging, moved to `ours`."""
    prefix = ours.name[: len(PREFIX) + 9]
    for left in dead(PREFIX, root):
        for unit in [*left.glob("unit-*"), *left.glob(f"{TAKEN}*")]:
            _keep(root / (KEPT + left.name[len(PREFIX) :][:8]), unit)
        if left.name.startswith(prefix):
            for marks in left.glob(f"{JUDGING}*"):
                kept = ours / f"left-{left.name}-{marks.name}"
                with contextlib.suppress(OSError):
                    marks.rename(kept)
                    yield kept


# --- kept ----------------------------------------------------------------------------------------------------------


def _keep(kept: Path, folder: Path) -> None:
    with contextlib.suppress(OSError):
        if (folder / JOURNAL).exists():
            kept.mkdir(mode=0o700, exist_ok=True)
            if _ours(kept):
                name = folder.name.removeprefix(TAKEN)
                folder.rename(kept / f"{'-'.join(name.split('-')[:2])}-{secrets.token_hex(4)}")


def _ours(kept: Path) -> bool:
    """Whether a folder is ours and not writable by others, who can guess its name."""
    with contextlib.suppress(OSError):
        about = kept.lstat()
        return stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and not about.st_mode & 0o022
    return False


def waiting(base: str | None, dataset: str) -> tuple[Path, int]:
    """The folder where the bodies of open units wait for the rerun, and its size in bytes."""
    kept = Path(base or tempfile.gettempdir(), KEPT + _mark(dataset))
    return kept, sum(path.stat().st_size for path in kept.rglob("*") if path.is_file()) if _ours(kept) else 0


def forget(base: str | None, dataset: str) -> None:
    """Remove what was kept of a dataset whose units are all done."""
    kept, _ = waiting(base, dataset)
    if _ours(kept):
        shutil.rmtree(kept, ignore_errors=True)


def _mark(dataset: str) -> str:
    return hashlib.sha256(store.absolute(dataset).encode() if dataset else b"").hexdigest()[:8]


def _expire(root: Path) -> None:
    """Remove what has waited for a rerun for too long."""
    for kept in root.glob(f"{KEPT}*"):
        with contextlib.suppress(OSError):
            if _ours(kept):
                for folder in kept.iterdir():
                    if time.time() - folder.lstat().st_mtime > KEPT_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)
                if not any(kept.iterdir()):
                    kept.rmdir()
