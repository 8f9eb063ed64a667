"""Validation during training: the loss of every held-out image, whatever the batch size."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from made_datasets import make_dataset
from test_train import MODEL, config, metrics

from xtra import train
from xtra.blocks import block_orders, target_blocks
from xtra.data import eval_batches, normalise
from xtra.loss import LossConfig, next_block_loss
from xtra.model import build
from xtra.run.checkpoint import find, load_model
from xtra.validation import Validation, validation_loss


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("held"), [13])


def test_it_is_the_mean_over_all_images_for_any_batch_size(held_out):
    model = build(MODEL, 0)
    (everything,) = eval_batches(held_out, 100, MODEL.image, 18)
    images = normalise(everything.images_B3HW)
    wanted = next_block_loss(model(images), target_blocks(images, MODEL.side), LossConfig(l1=True)).item()
    for batch in (3, 5, 100):
        settings = Validation("x", batch=batch, resize=18)
        ours = validation_loss(model, held_out, settings, LossConfig(l1=True), torch.device("cpu"))
        assert ours == pytest.approx(wanted, rel=1e-6)
    perm_K = block_orders(MODEL.blocks, 3)[1]
    permuted = validation_loss(model, held_out, settings, LossConfig(), torch.device("cpu"), perm_K=perm_K)
    wanted = next_block_loss(model(images, perm_K=perm_K), target_blocks(images, MODEL.side)[:, perm_K])
    assert permuted == pytest.approx(wanted.item(), rel=1e-6)
    assert all(p.grad is None for p in model.parameters())


def test_a_run_validates_every_so_many_samples_and_trains_the_same(held_out, tmp_path):
    data = make_dataset(tmp_path / "data", [40]).dataset
    plain = config(data, tmp_path / "plain", samples=60)
    train.run(plain)
    val = Validation(held_out.dataset, every=25, batch=4)
    with_val = dataclasses.replace(plain, out=str(tmp_path / "val"), val=val)
    train.run(with_val)
    rows, alone = metrics(tmp_path / "val"), metrics(tmp_path / "plain")
    assert [r["loss"] for r in rows] == [r["loss"] for r in alone]
    assert [r["samples_seen"] for r in rows if "val_loss" in r] == [30, 50, 60]
    trained = load_model(find(str(tmp_path / "val")))
    last = validation_loss(trained, held_out, val, LossConfig(), torch.device("cpu"))
    assert rows[-1]["val_loss"] == pytest.approx(last, rel=1e-6)
    assert not any("val_loss" in r for r in alone)


def test_bad_values_and_a_missing_set_are_named(tmp_path, held_out):
    with pytest.raises(ValueError, match=r"val\.every is 0; it must be at least 1"):
        Validation("x", every=0)
    wrong = config(held_out.dataset, tmp_path / "run", val=Validation(str(tmp_path / "none")))
    with pytest.raises(ValueError, match="none: is not a dataset"):
        train.run(wrong)
