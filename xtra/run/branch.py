"""Branches: runs that continue from a checkpoint of a trunk (a run at a constant rate) and decay their rate to 0.

One trunk serves every sample count (xtra/optim.py, `decay_start`). A branch sees the samples that the trunk would see,
in the same order, since both are pure functions of the same config: it gives the same result as a full run of its
length.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from shards import store
from xtra.run import checkpoint, records
from xtra.run.folder import differences

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

BRANCHES_DIFFER = ("samples",)  # from their trunk, in addition to settings that any attempt may change


def require_trunk(settings: DataclassInstance, manifest: str, start: int) -> str:
    """The trunk's checkpoint after `start` samples, from which a branch with these settings starts.

    Raises ValueError if the trunk has no such checkpoint, or was trained with other settings or on another manifest.
    """
    ours = dataclasses.asdict(settings)
    trunk = str(ours["branch"])
    config = store.join(trunk, "config.json")
    if not store.exists(config):
        raise ValueError(f"{trunk}: is not a run (it has no config.json): give the run that this one branches from")
    theirs = records.read_settings(trunk)
    same: dict[str, Any] = {name: theirs.get(name) for name in BRANCHES_DIFFER}
    ours |= same | {"optim": ours["optim"] | {"decay": (theirs.get("optim") or {}).get("decay", 0.0)}}
    for name, old, new in differences(settings, theirs, ours, resumed=False):
        raise ValueError(
            f"{trunk}: was trained with {name} = {old!r}, its branch has {new!r}: use the old value or another trunk"
        )
    url = checkpoint.checkpoint_folder(trunk, start)
    if start not in checkpoint.committed(trunk):
        raise ValueError(
            f"{trunk}: has no checkpoint after {start} samples, where the decay begins: train it that far with "
            f"--keep-at {start}"
        )
    found = str(checkpoint.read_commit(url).get("manifest"))
    if found != manifest:
        raise ValueError(
            f"{trunk}: was trained on manifest {found[:16]}, its branch reads {manifest[:16]}: use that version"
        )
    return url
