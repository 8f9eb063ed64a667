"""A small model learns 64 photographs by heart: the whole path from stored bytes to weights and back to pictures."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from test_train import metrics

from ingest.sets import folders
from xtra import generate, recipes, train

pytestmark = pytest.mark.slow  # 480 steps of training

IMAGES, STEPS, BOUND = 64, 70, 0.1  # the loss of an untrained model is 1


def photographs(shared: Path, folder: Path) -> str:
    """A dataset of the first 64 pictures of Tiny ImageNet's validation set."""
    (folder / "source" / "any").mkdir(parents=True)
    with tarfile.open(shared / "data" / "tin-val-00000.tar.gz") as tar:
        pictures = (member for member in tar if member.name.endswith(".jpg"))
        for member, _ in zip(pictures, range(IMAGES)):
            body = tar.extractfile(member)
            assert body is not None
            (folder / "source" / "any" / Path(member.name).name).write_bytes(body.read())
    return folders.run(folders.Config(str(folder / "source"), str(folder / "data"))).dataset


def test_64_photographs_are_learnt_by_heart(shared, tmp_path):
    base = recipes.get("overfit64")
    settings = replace(
        base,
        model=replace(base.model, image=32, depth=3, dec_depth=1, head=512),
        data=photographs(shared, tmp_path),
        out=str(tmp_path / "run"),
        samples=STEPS * IMAGES,
        checkpoint_every=STEPS * IMAGES,
    )
    train.run(settings)
    rows = metrics(tmp_path / "run")
    assert 0.9 < rows[0]["loss"] < 1.3
    assert rows[-1]["loss"] < BOUND
    shown = generate.run(generate.Config(settings.out, settings.data, str(tmp_path / "shown"), samples=IMAGES))
    assert shown.loss < BOUND
