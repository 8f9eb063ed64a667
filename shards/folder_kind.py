"""What a folder already holds, so that no verb mixes its own files with those of another kind.

Each kind is recognised by the names that its writer puts first. Other files are ignored (docs/design.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shards import store
from shards.local_files import refuse_no_folder

Kind = Literal["dataset", "run", "export", "probes", "vectors", "study"]

LOOKED = 32  # subfolders that are searched for a run or a dataset
_MADE = {
    "dataset": "a dataset",
    "run": "a run",
    "export": "an exported encoder",
    "probes": "results of probes",
    "vectors": "vectors",
    "study": "runs or datasets in folders of their own",
}
_MARKS: tuple[tuple[Kind, tuple[str, ...]], ...] = (
    ("dataset", ("dataset.json", "links")),  # plans of a list come before its dataset.json
    ("run", ("run.json",)),
    ("export", ("model.safetensors", "preprocessor_config.json", "encoder.pt2", "xtra.ckpt")),
    ("run", ("config.json",)),  # after "export", which has one, too
    ("probes", ("probes", "probes-unfinished")),
    ("vectors", ("_embedding.json",)),
)
_BEGUN: dict[Kind, str] = {"dataset": "dataset.json", "run": "run.json"}


@dataclass(frozen=True)
class Held:
    """What a folder holds, and the name in it that shows it."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{_MADE[self.kind]} ({self.name})"


def look(url: str) -> Held | None:
    """What a folder holds; None if it does not exist, is empty, or has nothing of ours."""
    names = store.names(url)
    for kind, those in _MARKS:
        found = next((name for name in those if name in names), None)
        if found and (kind != "probes" or store.names(store.join(url, found))):
            return Held(kind, found)
    for name in [name for name in names if not name.startswith(".")][:LOOKED]:
        for mark in ("run.json", "dataset.json"):
            if store.exists(store.join(url, name, mark)):
                return Held("study", f"{name}/{mark}")
    return None


def instead(url: str) -> str:
    """What a folder holds, to append to a message about what it lacks: ", but a run (run.json)"; "" for unknown."""
    held = look(url)
    return f", but {held}" if held else ""


def require(url: str, makes: str, *kinds: Kind, flag: str = "--out") -> None:
    """Raises ValueError if a folder holds another kind than these; `makes` says what is to be written there.

    A dataset or run of these kinds may go on, even if an older build mixed another kind into it.
    """
    if url.startswith(("http://", "https://")):
        return  # read-only: the write itself will fail
    if store.is_local(url):
        refuse_no_folder(store.local_path(url), url)
    if any(store.exists(store.join(url, _BEGUN[kind])) for kind in kinds if kind in _BEGUN):
        return
    held = look(url)
    if held is not None and held.kind not in kinds:
        raise ValueError(f"{url}: holds {held}, and {makes} would be mixed into it: give another {flag}")
