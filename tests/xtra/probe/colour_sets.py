"""Labelled sets of noise around three colours, and the features that a tiny encoder gives of them."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import made_datasets
import numpy as np
import pyarrow as pa
from PIL import Image

from shards.dataset import PLAN_SCHEMA, DatasetInfo, write_info, write_plan
from shards.manifest import Manifest, make_version
from xtra.augment import Augment
from xtra.model import ModelConfig
from xtra.probe import features, probe
from xtra.probe.encoders import of_xtra

MODEL = ModelConfig(16, 4, 2, 32, 3, 2, bridge=32, dec_width=32, dec_depth=1, dec_heads=2, head=32)


COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}


AUGMENT = Augment(scale=(0.5, 1.0))


def picture(label: str, number: int) -> bytes:
    """16x16 noise around the colour of its class."""
    noise = np.random.default_rng(number).normal(0, 60, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray(np.clip(noise + COLOURS[label], 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def labelled_set(
    folder: Path, name: str, labels: list[list[str]], first: int = 0, classes: tuple[str, ...] | None = None
) -> Manifest:
    rows = [
        made_datasets.rows_of(first + i, 1, side=16)[0]
        | {"key": f"{name}-{i:04d}", "labels": found, "body": picture((found or ["red"])[0], first + i)}
        for i, found in enumerate(labels)
    ]
    plan = [{column: row.get(column) for column in PLAN_SCHEMA.names} for row in rows]
    write_plan(str(folder), 0, pa.Table.from_pylist(plan, PLAN_SCHEMA))
    made_datasets.write_unit(str(folder), 0, rows)
    write_info(str(folder), DatasetInfo(name, "0" * 64, 1, len(rows), "c", "t", classes=classes))
    return make_version(str(folder), "test")


def labels(count: int) -> list[list[str]]:
    return [[list(COLOURS)[i % 3]] for i in range(count)]


TOKENS = features.Feature("tokens", 2)


POOLED = features.Feature("pooled", 1)


PIXELS = features.Feature("pixels")


def encode_of(world: Any, *wanted: features.Feature, encoder: Any = None) -> features.Encode:
    frozen = of_xtra((encoder or world["model"].encoder).requires_grad_(False), "ours")
    return dataclasses.replace(probe._encode(world["config"], frozen), wanted=wanted)


def one_unit(folder: Path, rows: list[dict[str, Any]]) -> str:
    plan = [{column: row.get(column) for column in PLAN_SCHEMA.names} for row in rows]
    write_plan(str(folder), 0, pa.Table.from_pylist(plan, PLAN_SCHEMA))
    made_datasets.write_unit(str(folder), 0, rows)
    write_info(str(folder), DatasetInfo("t", "0" * 64, 1, len(rows), "c", "t"))
    return make_version(str(folder), "test").dataset


def images_of(batches: Any) -> set[bytes]:
    return {row.numpy().tobytes() for batch in batches for row in batch.values[PIXELS]}
