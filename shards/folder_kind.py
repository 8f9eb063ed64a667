"""What a folder holds already, so that no verb mixes its own files into those of another kind.

Each kind is known by names that its writer puts first. Other files in a folder do not matter (docs/design.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shards import store
from shards.local_files import refuse_no_folder

Kind = Literal["dataset", "run", "export", "probes", "vectors", "study"]

LOOKED = 32  # folders inside, in which a run or a dataset is looked for
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
    ("run", ("config.json",)),  # which an export has, too
    ("probes", ("probes", "probes-unfinished")),
    ("vectors", ("_embedding.json",)),
)
_BEGUN: dict[Kind, str] = {"dataset": "dataset.json", "run": "run.json"}


@dataclass(frozen=True)
class Held:
    """What a folder holds, and the name in it that says so."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{_MADE[self.kind]} ({self.name})"


def look(url: str) -> Held | None:
    """The kind of a folder; None for one that is not there, is empty, or has nothing of ours."""
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
    """What to add to a message that says what a folder lacks: what it holds; "" where nothing is ours."""
    held = look(url)
    return f", but {held}" if held else ""


def require(url: str, makes: str, *kinds: Kind, flag: str = "--out") -> None:
    """Raises ValueError where a folder holds another kind than these; `makes` says what is to be written there.

    A dataset or run of that kind goes on, even where an older build let another kind be mixed into it.
    """
    if url.startswith(("http://", "https://")):
        return  # which nobody can write to: the write itself says so
    if store.is_local(url):
        refuse_no_folder(store.local_path(url), url)
    if any(store.exists(store.join(url, _BEGUN[kind])) for kind in kinds if kind in _BEGUN):
        return
    held = look(url)
    if held is not None and held.kind not in kinds:
        raise ValueError(f"{url}: holds {held}, and {makes} would be mixed into it: give another {flag}")
