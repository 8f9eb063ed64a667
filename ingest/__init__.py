"""Links in, shards out: read a URL list, fetch politely, judge every body, commit tars one unit at a time.

The functions here are the Python side of the commands (docs/api.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.config import Config as Config
    from ingest.run import IngestResult, Progress

__all__ = ["Config", "import_set", "ingest"]


def ingest(
    config: Config | None = None,
    *,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> IngestResult:
    """Fetch and judge the links of a list, in this process, into a dataset; a rerun does what is missing.

    `settings` are fields of `Config`, the flags of `xtra ingest`, at least `urls` and `out`; a dict changes fields of a
    nested Config (`fetch={"contact": "you@lab.org"}`). `stop` is called often; once it returns True, the run ends
    soon and cleanly. Raises ValueError for a list, a store or a setting that cannot work.
    """
    from ingest import run
    from ingest.config import Config
    from shards.typed_json import changed

    asked = changed(config or Config(), settings)
    if asked.dry_run:
        raise ValueError(f"dry_run is {asked.dry_run}: here it must be 0; for a forecast use `xtra ingest --dry-run`")
    with _shown(progress) as report:
        return run.run(asked, report, stop)


def import_set(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
    stop: Callable[[], bool] = lambda: False,
    **settings: Any,
) -> IngestResult:
    """Make a dataset of labelled pictures (class folders, tars or Parquet files); a rerun does what is missing.

    `settings` are fields of `ingest.sets.folders.Config`, the flags of `xtra import`. `stop` is called often; once it
    returns True, the import ends soon and cleanly. Raises ValueError for a source, a store or a setting that cannot
    work.
    """
    from ingest.sets import folders, in_place
    from shards.typed_json import changed

    config = changed(folders.Config(os.fspath(source), os.fspath(out)), settings)
    if config.set:
        raise ValueError(f"set is {config.set}: an evaluation set has two splits: use `xtra import --set {config.set}`")
    with _shown(progress) as report:
        return (in_place.run if config.in_place else folders.run)(config, report, stop)


@contextmanager
def _shown(progress: bool) -> Iterator[Callable[[Progress], None]]:
    """A progress bar of links, until the end of the block."""
    from shards.bar import bar

    with bar("links", progress) as report:
        yield lambda now: report(now.done, now.links, note=f"kept {now.kept:,} {now.note}".rstrip())


def __getattr__(name: str) -> object:
    if name == "Config":
        from ingest.config import Config

        return Config
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
