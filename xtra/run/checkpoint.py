"""Checkpoints: safetensors by parameter name and JSON, committed last. (Official ones: xtra/official/weights.py.)

    RUN/checkpoints/000000012800/000001/model.safetensors    parameters by name
    RUN/checkpoints/000000012800/000001/optim.safetensors    optimiser state as "NAME/exp_avg", "NAME/step", ...; if
                                                             sharded, one optim-00001-of-00008.safetensors per rank
    RUN/checkpoints/000000012800/000001/state.json           the caller's state: where the sample order goes on
    RUN/checkpoints/000000012800/COMMIT.json                 put if absent, last: attempt, manifest, sizes, sha256

Attempts share no key, so a checkpoint is whatever its COMMIT names, however many writers there were. Nothing is
pickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shards import folder_kind, scratch, store, typed_json
from shards.parallel import map_in_order
from xtra.model import Encoder, ModelConfig, Xtra, model_config
from xtra.run import records
from xtra.run.tensor_files import safetensors_bytes

M = TypeVar("M", bound=nn.Module)
COMMIT = "COMMIT.json"
PART_SECONDS = 1800.0  # that a checkpoint's first part waits for the others
HASHED_AT_ONCE = 4  # files of a checkpoint
MODEL, OPTIM, STATE = "model.safetensors", "optim.safetensors", "state.json"
_WRAPPERS = re.compile(
    r"(?<![^.])(?:module|_forward_module|_orig_mod)\."
)  # name parts added by DDP, Lightning, compile


# --- Saving ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint is written from: tensors on the CPU, and the caller's state (JSON).

    `state["cursor"]` names the manifest that the COMMIT repeats.
    """

    weights: Mapping[str, Tensor]
    optim: Mapping[str, Tensor]  # of this part
    state: Mapping[str, Any]
    part: int = 0  # if ranks shard the optimiser's state: which part this is, of how many
    parts: int = 1

    @property
    def files(self) -> list[str]:
        """What this part writes; the first also writes what all have in common."""
        optim = OPTIM if self.parts == 1 else f"optim-{self.part:05d}-of-{self.parts:05d}.safetensors"
        return [optim] if self.part else [MODEL, optim, STATE]


def snapshot(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    part: int = 0,
    parts: int = 1,
    copy: bool = False,
    into: Snapshot | None = None,
) -> Snapshot:
    """`copy` takes tensors that are on the CPU already as well, so that training may go on while they are written.

    `into` is an earlier snapshot whose memory may be used again: new memory costs several times what copying does.
    """

    def on_cpu(tensors: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: old[name].copy_(t.detach()) if name in old else t.detach().to("cpu", copy=copy).contiguous()
            for name, t in tensors.items()
        }

    weights = {} if part else on_cpu(parameters(model), into.weights if into else {})
    optim = on_cpu(_optimizer_tensors(model, optimizer), into.optim if into else {})
    return Snapshot(weights, optim, state, part, parts)


def save(
    run: str,
    attempt: int,
    samples_seen: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    may_commit: Callable[[], bool] = lambda: True,
) -> bool:
    """`write` of the model and the optimiser as they are now."""
    return write(run, attempt, samples_seen, snapshot(model, optimizer, state), may_commit)


def write(
    run: str, attempt: int, samples_seen: int, taken: Snapshot, may_commit: Callable[[], bool] = lambda: True
) -> bool:
    """Write and commit one checkpoint; True if the committed one is this attempt's.

    A checkpoint that is already committed is left alone. `may_commit` is called after the uploads, which may take
    minutes. If there are several parts, each is written by a call of its own, at the same time; the first waits for
    the notes of the others, and commits. Raises StoreError.
    """
    folder = checkpoint_folder(run, samples_seen)
    if not store.exists(store.join(folder, COMMIT)):
        files: dict[str, dict[str, Any]] = {}
        for name in taken.files:
            url = store.join(folder, f"{attempt:06d}", name)
            with _scratch(url) as path:
                files[f"{attempt:06d}/{name}"] = _write_file(path, name, taken)
                store.put_file(url, path, move=True)
        if taken.part:
            store.put_json(_note(folder, attempt, taken.part), files)
            return True
        for part in range(1, taken.parts):
            files |= _wait_for(_note(folder, attempt, part))
        if not may_commit():
            return False
        commit = {
            "attempt": attempt,
            "samples_seen": samples_seen,
            "manifest": (taken.state.get("cursor") or {}).get("manifest"),
            "files": files,
        }
        store.put_json_if_absent(store.join(folder, COMMIT), commit)
    return read_commit(folder)["attempt"] == attempt


def _note(folder: str, attempt: int, part: int) -> str:
    return store.join(folder, f"{attempt:06d}", f"part-{part:05d}.json")


def _wait_for(note: str) -> dict[str, Any]:
    """The files that another rank reports as written."""
    until = time.monotonic() + PART_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(store.Missing):
            return typed_json.read_object(dict[str, records.File], note)
        time.sleep(0.05)
    raise store.StoreError(f"{note}: was not written within {PART_SECONDS:.0f} s: did that rank die?")


@contextlib.contextmanager
def _scratch(url: str) -> Generator[Path]:
    """A temporary file to fill before it is put; on a local disk it is next to its target, so that putting it is a
    rename. Raises StoreError when it cannot be written."""
    try:
        if not store.is_local(url):
            with scratch.folder("xtra-checkpoint-") as aside:
                yield aside / "part"
            return
        folder = store.local_path(url).parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".aside-", dir=folder)  # the store's listings leave such names out
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)  # being written: `store.remove_left_aside` leaves it alone
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)
            os.close(handle)
    except OSError as error:
        raise store.StoreError(f"{url}: cannot be written ({error.strerror or error}): fix that and rerun") from None


def _write_file(path: Path, name: str, taken: Snapshot) -> dict[str, Any]:
    """Write the file; returns its size and sha256 for the COMMIT."""
    with path.open("wb", buffering=0) as file:
        if name == STATE:
            pieces = iter([memoryview((json.dumps(taken.state, indent=1, sort_keys=True) + "\n").encode())])
        else:
            pieces = safetensors_bytes(taken.weights if name == MODEL else taken.optim)
        digest, size = hashlib.sha256(), 0
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            while piece := piece[file.write(piece) :]:  # a write may take less than it is given, and at most 2 GB
                pass
    return {"bytes": size, "sha256": digest.hexdigest()}


def checkpoint_folder(run: str, samples_seen: int) -> str:
    return store.join(run, "checkpoints", f"{samples_seen:012d}")


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by the name that they have outside DDP and compile wrappers."""
    assert not list(model.buffers()), "a checkpoint holds parameters only; the models have no buffers"
    return {_WRAPPERS.sub("", name): p for name, p in model.named_parameters()}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as flat tensors "NAME/KEY"; {} before its first step."""
    return {
        f"{name}/{key}": value
        for name, p in parameters(model).items()
        for key, value in optimizer.state.get(p, {}).items()
    }


# --- Loading --------------------------------------------------------------------------------------------------------


def committed(run: str) -> list[int]:
    """The samples seen of every committed checkpoint of a run, oldest first."""
    folders = [name for name in store.names(store.join(run, "checkpoints")) if re.fullmatch(r"\d{12}", name)]
    return [int(name) for name in folders if store.exists(store.join(run, "checkpoints", name, COMMIT))]


class Damaged(ValueError):
    """A committed checkpoint is not what its COMMIT says, or has none that can be read."""


def read_commit(checkpoint: str) -> dict[str, Any]:
    """Raises Missing, and Damaged when it is not what `write` puts there."""
    url = store.join(checkpoint, COMMIT)
    body = store.read(url)
    try:
        value = typed_json.parse(body, url)
        typed_json.checked(records.Commit, value, url)
    except store.StoreError as error:
        said = str(error).removeprefix(f"{url}: ")
        raise Damaged(f"{url}: is not what a checkpoint ends with ({said}): use another checkpoint") from None
    return value


def latest(run: str) -> str | None:
    """The folder of a run's newest committed checkpoint."""
    for name in reversed(store.names(store.join(run, "checkpoints"))):
        if re.fullmatch(r"\d{12}", name) and store.exists(store.join(run, "checkpoints", name, COMMIT)):
            return store.join(run, "checkpoints", name)
    return None


def load(checkpoint: str, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """Fill the model and the optimiser from a committed checkpoint, at any world size; returns its state.

    Raises Missing without a COMMIT or a file that it names; Damaged naming the file whose size or sha256 differs;
    ValueError naming the first tensor that does not fit and both shapes. Nothing is changed in these cases.
    """
    commit = read_commit(checkpoint)
    parts = [name.split("/")[1] for name in commit["files"] if "/optim" in name] if optimizer is not None else []
    own = parameters(model)
    with contextlib.ExitStack() as stack:
        # Side by side: a sha256 is bound to one core.
        entered = map_in_order(
            lambda name: stack.enter_context(_verified(checkpoint, commit, name)),
            (MODEL, STATE, *parts),
            HASHED_AT_ONCE,
        )
        model_file, state_file, *optim_files = entered
        weights = load_file(model_file)
        state = typed_json.parse(state_file.read_bytes(), store.join(checkpoint, STATE), finite=False)
        found = {name: t for path in optim_files for name, t in load_file(path).items()}
    _require_same_names(f"{checkpoint}: the model", {n: list(p.shape) for n, p in own.items()}, weights)
    if optimizer is not None:
        _load_optimizer(checkpoint, found, own, optimizer)
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return state


@dataclass(frozen=True)
class Saved:
    """A committed checkpoint and the model that it holds."""

    url: str
    run: str
    config: ModelConfig
    commit: Mapping[str, Any]


def find(path: str) -> Saved:
    """The newest checkpoint of a run folder, or the one that is named.

    Raises ValueError when nothing is committed there, or nothing says which model it is.
    """
    checkpoint = path if store.exists(store.join(path, COMMIT)) else latest(path)
    if checkpoint is None:
        also = folder_kind.instead(path)
        raise ValueError(f"{path}: holds no committed checkpoint{also}: name a run folder or one of its checkpoints")
    run = checkpoint.rstrip("/").rsplit("/", 2)[0]
    try:
        config = records.read_settings(run)
    except store.Missing:
        raise ValueError(f"{store.join(run, 'config.json')}: is missing: is {run} a run folder?") from None
    commit = read_commit(checkpoint)
    return Saved(checkpoint, run, model_config(config["model"]), commit)


def load_model(saved: Saved) -> Xtra:
    """The whole pretraining model, in eval mode."""
    with torch.device("meta"):
        model = Xtra(saved.config)
    return _filled(model, _tensors(saved.url, saved.commit, MODEL), f"{saved.url}: the model")


def load_encoder(path: str) -> Encoder:
    """The encoder of a run folder (its newest checkpoint) or of one checkpoint folder, in eval mode: `xtra.load`."""
    saved = find(path)
    with torch.device("meta"):
        encoder = Encoder(saved.config)
    weights = _tensors(saved.url, saved.commit, MODEL)
    weights = {n.removeprefix("encoder."): w for n, w in weights.items() if n.startswith("encoder.")}
    return _filled(encoder, weights, f"{saved.url}: the encoder")


def _filled(module: M, weights: Mapping[str, Tensor], who: str) -> M:
    own = {name: list(p.shape) for name, p in module.named_parameters()}
    _require_same_names(who, own, weights)
    module.load_state_dict({name: w.clone() for name, w in weights.items()}, assign=True)  # w maps the file
    return module.eval()


def _tensors(checkpoint: str, commit: Mapping[str, Any], name: str) -> dict[str, Tensor]:
    with _verified(checkpoint, commit, name) as path:
        return load_file(path)


@contextlib.contextmanager
def _verified(checkpoint: str, commit: Mapping[str, Any], name: str) -> Generator[Path]:
    """A local copy of one file of a checkpoint, its size and sha256 checked against the COMMIT."""
    file = f"{commit['attempt']:06d}/{name}"
    if file not in commit["files"]:
        raise Damaged(f"{store.join(checkpoint, COMMIT)}: names no {name}: use another checkpoint")
    url, promised = store.join(checkpoint, file), commit["files"][file]
    with contextlib.ExitStack() as stack:
        local = store.is_local(url)
        path = store.local_path(url) if local else stack.enter_context(scratch.folder("xtra-checkpoint-")) / name
        if not store.is_local(url):
            with store.open_read(url) as source, path.open("wb") as out:
                while piece := source.read(8 << 20):
                    out.write(piece)
        elif not path.exists():
            raise store.Missing(f"{url}: is named by {COMMIT} but missing: use another checkpoint")
        for what, found in (("bytes", path.stat().st_size), ("sha256", _sha256(path))):
            if found != promised[what]:
                raise Damaged(f"{url}: {what} is {found}, {COMMIT} says {promised[what]}: use another checkpoint")
        yield path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_same_names(who: str, own: Mapping[str, list[int]], found: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensor that is missing, unexpected or of another shape."""
    for name, shape in own.items():
        if name not in found:
            raise ValueError(f"{who} has {name} {shape}, the file does not: its config is another one")
        if list(found[name].shape) != shape:
            raise ValueError(f"{who} has {name} {shape}, the file {list(found[name].shape)}: its config is another one")
    for name, tensor in found.items():
        if name not in own:
            raise ValueError(f"{who} has no {name}, the file has it {list(tensor.shape)}: its config is another one")


def _load_optimizer(
    checkpoint: str,
    found: dict[str, Tensor],
    own: Mapping[str, nn.Parameter | Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in found.items():
        parameter, key = name.rsplit("/", 1)
        state.setdefault(parameter, {})[key] = value
    moments = {n: s["exp_avg"] for n, s in state.items() if "exp_avg" in s}
    names = {id(p): name for name, p in own.items()}
    held = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    if state:  # empty when the checkpoint was written before the first step
        held_of_all = {n: list(p.shape) for n, p in own.items() if p.requires_grad}  # this rank may own a part of them
        _require_same_names(f"{checkpoint}: the optimiser", held_of_all, moments)
    # load_state_dict puts each tensor where this optimiser wants it (fused ones keep `step` on the device).
    by_position = {position: state[name] for position, name in enumerate(held) if name in state}
    optimizer.load_state_dict({"state": by_position, "param_groups": optimizer.state_dict()["param_groups"]})


def prune(run: str, keep: int, keep_every: int = 0, keep_at: Collection[int] = ()) -> list[int]:
    """Delete all but the newest `keep` committed checkpoints and what dead attempts left before them.

    With `keep_every`, the first checkpoint at or after each multiple of so many samples stays as well; so do those
    after exactly `keep_at` samples. COMMIT is deleted first, so that a half-deleted checkpoint does not count. Returns
    the samples seen of those deleted.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least 1 checkpoint must stay")
    commits = committed(run)
    if not commits:
        return []
    oldest_kept, stay = commits[-keep:][0], {*keep_at}
    if keep_every:
        firsts = {samples // keep_every: samples for samples in reversed(commits)}
        stay |= {samples for multiple, samples in firsts.items() if multiple}
    for name in store.names(store.join(run, "checkpoints")):
        if not re.fullmatch(r"\d{12}", name) or int(name) >= oldest_kept or int(name) in stay:
            continue
        folder = store.join(run, "checkpoints", name)
        store.delete(store.join(folder, COMMIT))
        for attempt in store.names(folder):
            if attempt.startswith("COMMIT-damaged-"):
                store.delete(store.join(folder, attempt))
            if re.fullmatch(r"\d{6}", attempt):
                for file in store.entries(store.join(folder, attempt)):  # half-written ones, too
                    store.delete(store.join(folder, attempt, file.name))
    return [samples for samples in commits if samples < oldest_kept and samples not in stay]
