"""A dataset's vectors: a frozen encoder's features of every picture, as Parquet files of key, label, vector.

OUT/_embedding.json        put if absent: the version, the encoder's fingerprint, and all other inputs of the vectors
OUT/part-000017.parquet    the vectors of a fixed run of samples, in row order; written whole or not at all

A vector is a probe head's input for the centre crop (`Feature`): pooled as for linear heads, or the tokens as for
attentive ones. Existing parts are not made again, so a killed run loses only its current part, and a rerun gives the
same bits on the same kind of machine. Parquet readers skip names that begin with an underscore:
`pyarrow.parquet.read_table(OUT)` is the whole table.
"""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from shards import store, typed_json
from shards.dataset import table_bytes
from shards.manifest import Manifest, read_manifest
from xtra import official
from xtra.device import check_device, chosen
from xtra.model import Encoder
from xtra.probe import config as probe_config
from xtra.probe.config import EmbedConfig as Config
from xtra.probe.encoders import FrozenEncoder, of_xtra
from xtra.probe.features import DTYPES, Encode, Feature
from xtra.probe.probe import open_probed

ABOUT = "_embedding.json"


@dataclass(frozen=True)
class About:
    """`_embedding.json`: the inputs of the vectors, and (last three fields) where they came from."""

    format: int
    manifest: str  # digest
    fingerprint: str  # of the encoder's weights
    layers: int
    pooling: str
    resize: int  # pixels
    precision: str
    dtype: str
    rows: int  # per part
    samples: int
    tokens: int  # a vector is tokens x width numbers, token by token; ours are in block order
    width: int
    dataset: str = ""
    encoder: str = ""
    checkpoint: str = ""


_ASIDE = {"dataset", "encoder", "checkpoint"}  # not inputs: the same weights and version may be anywhere


@dataclass(frozen=True)
class Embedded:
    out: str
    samples: int  # in the dataset
    done: int  # of these, in existing parts
    found: int  # of these, in parts that existed before
    parts: int  # existing parts
    vector: int  # numbers per vector
    seconds: float

    @property
    def stopped(self) -> bool:
        return self.done < self.samples


def run(
    config: Config,
    progress: Callable[[int, int], None] = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
    encoder: Encoder | None = None,
) -> Embedded:
    """Make the missing parts. `encoder` is one of ours, which is not modified; otherwise the config names one.
    `stop` returning True ends it after a batch; the current part is then dropped.

    Raises ValueError for a missing dataset or encoder, a picture that does not decode, and a folder that contains
    something else, or vectors of another version, encoder or setting.
    """
    since = time.monotonic()
    store.require(data=config.data, out=config.out)
    device = chosen(config.device)
    check_device(device)
    manifest = read_manifest(config.data)
    frozen, checkpoint = _open(config, device, encoder)
    if config.layers > frozen.depth:
        raise ValueError(f"layers is {config.layers}; the {frozen.name} encoder has 1..{frozen.depth}")
    encode = _encode(config, device, frozen)
    about = _about(config, manifest, frozen, checkpoint)
    _begin(config.out, about)
    total = manifest.samples
    there = set(store.names(config.out))
    starts = range(0, total, config.part)
    missing = [start for start in starts if _part(start // config.part) not in there]
    todo = [np.arange(start, min(start + config.part, total)) for start in missing]
    found = done = total - sum(map(len, todo))
    progress(done, total)
    for part in _parts(encode, manifest, np.concatenate([np.empty(0, np.int64), *todo]), config, progress, stop):
        start = int(part.sample_N[0])
        store.put(store.join(config.out, _part(start // config.part)), table_bytes(_table(part, about)))
        done += len(part.sample_N)
    if store.is_local(config.out):
        store.remove_left_aside(config.out)
    return Embedded(
        out=config.out,
        samples=total,
        done=done,
        found=found,
        parts=-(-done // config.part),
        vector=about.tokens * about.width,
        seconds=time.monotonic() - since,
    )


def _open(config: Config, device: str, encoder: Encoder | None) -> tuple[FrozenEncoder, str]:
    """The encoder on its device, and its checkpoint."""
    if encoder is not None:
        return of_xtra(copy.deepcopy(encoder).requires_grad_(False), "given").to(device), ""
    if config.checkpoint and config.encoder == "trained" and official.is_official(config.checkpoint):
        loaded = official.load_encoder(config.checkpoint).requires_grad_(False)
        return of_xtra(loaded, "official").to(device), config.checkpoint
    named = {"checkpoint": config.checkpoint, "encoder": config.encoder, "out": config.out}
    probed = open_probed(probe_config.Config(**named, device=device))
    return probed.encoder, probed.checkpoint


def _encode(config: Config, device: str, frozen: FrozenEncoder) -> Encode:
    return Encode(
        encoder=frozen,
        wanted=(Feature("pooled" if config.pooling == "mean" else "tokens", config.layers),),
        token_dtype=torch.float32,
        device=device,
        batch=config.encode_batch,
        resize=config.resize,
        seed=0,
        threads=config.threads,
        precision=config.precision,
    )


def _about(config: Config, manifest: Manifest, frozen: FrozenEncoder, checkpoint: str) -> About:
    return About(
        format=1,
        manifest=manifest.digest,
        fingerprint=frozen.fingerprint(),
        layers=config.layers,
        pooling=config.pooling,
        resize=config.resize or frozen.image,
        precision=config.precision,
        dtype=config.dtype,
        rows=config.part,
        samples=manifest.samples,
        tokens=1 if config.pooling == "mean" else frozen.tokens,
        width=frozen.width,
        dataset=manifest.address,
        encoder=frozen.name,
        checkpoint=checkpoint,
    )


def _begin(out: str, about: About) -> None:
    """Record the inputs of OUT's vectors, or check the recorded ones. Raises ValueError naming a difference."""
    url = store.join(out, ABOUT)
    if not store.exists(url) and (others := [name for name in store.names(out) if not name.startswith(".")]):
        raise ValueError(f"{out}: contains {others[0]} and no vectors: give a new or empty folder as out")
    if not store.is_local(out) and not store.exists(url):
        store.check_writable(out)
    if store.put_json_if_absent(url, dataclasses.asdict(about)):
        return
    there = typed_json.read(About, url)
    for field in dataclasses.fields(About):
        theirs, ours = getattr(there, field.name), getattr(about, field.name)
        if field.name not in _ASIDE and theirs != ours:
            raise ValueError(
                f"{out}: contains vectors whose {field.name} is {theirs}, not {ours}: give another folder as out, or "
                "the same settings"
            )


def _part(number: int) -> str:
    return f"part-{number:06d}.parquet"


@dataclass(frozen=True)
class _Vectors:
    """The vectors of one part, in row order."""

    sample_N: np.ndarray
    keys: Sequence[str]
    labels: Sequence[str | None]  # each sample's first label, as in probes
    vector_NV: np.ndarray


def _parts(
    encode: Encode,
    manifest: Manifest,
    todo: np.ndarray,
    config: Config,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
) -> Iterator[_Vectors]:
    """The missing parts, complete and in order. Batches do not cross parts, so a sample's batch is always the same."""
    held: list[_Vectors] = []
    done = manifest.samples - len(todo)
    (wanted,) = encode.wanted
    if not len(todo):
        return
    for batch in encode.batches(manifest, only=todo):
        values = encode(batch.images_B3HW, np.zeros(len(batch), np.int64)).values[wanted]
        vector_BV = values.flatten(1).to(DTYPES[config.dtype]).cpu().numpy()
        labels = [names[0] if names else None for names in batch.labels]
        held.append(_Vectors(batch.sample_B, batch.keys, labels, vector_BV))
        batch.release()
        done += len(batch)
        last = int(held[-1].sample_N[-1])
        if last % config.part == config.part - 1 or last == manifest.samples - 1:
            yield _joined(held)
            held = []
        progress(done, manifest.samples)
        if stop():
            return


def _joined(parts: Sequence[_Vectors]) -> _Vectors:
    return _Vectors(
        sample_N=np.concatenate([part.sample_N for part in parts]),
        keys=[key for part in parts for key in part.keys],
        labels=[label for part in parts for label in part.labels],
        vector_NV=np.concatenate([part.vector_NV for part in parts]),
    )


def _table(part: _Vectors, about: About) -> pa.Table:
    values = pa.array(part.vector_NV.reshape(-1))
    vectors: Any = pa.FixedSizeListArray.from_arrays(values, part.vector_NV.shape[1])
    columns = [pa.array(part.keys, pa.string()), pa.array(part.labels, pa.string()), vectors]
    said = {name: str(getattr(about, name)) for name in ("manifest", "fingerprint", "tokens", "width")}
    return pa.Table.from_arrays(columns, ["key", "label", "vector"]).replace_schema_metadata(said)
