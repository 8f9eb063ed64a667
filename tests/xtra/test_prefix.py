"""AIM's prefix attention: who sees whom, what counts, what probes see; and that a plain model is as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from made_datasets import make_dataset
from test_train import config, losses

from xtra import prefix, recipes, train
from xtra.loss import next_block_loss
from xtra.model import SIZES, build

PLAIN = dataclasses.replace(SIZES["tiny32"], block=1, depth=1, dec_depth=1)
PREFIX = dataclasses.replace(PLAIN, prefix=True)


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_draws_are_uniform_over_all_lengths_and_depend_on_the_image_alone():
    many = np.arange(63_000)
    found = prefix.draws(64, 0, np.zeros_like(many), many)
    counts = torch.bincount(found, minlength=64)
    assert counts[0] == 0
    assert len(counts) == 64, "at least one block is predicted"
    assert counts[1:].min() > 800
    assert counts[1:].max() < 1200
    assert torch.equal(prefix.draws(64, 0, many[:2] * 0, many[5:7]), found[5:7])
    assert not torch.equal(prefix.draws(64, 1, many * 0, many), found)


def reach(model, prefix_B: torch.Tensor, token: int) -> list[set[int]]:
    """For each image, the tokens whose output changes with the pixels of one token."""
    x = images()
    changed = x.clone()
    row, column = divmod(token, 8)
    changed[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 1
    before, after = (model.encoder(y, prefix_B=prefix_B) for y in (x, changed))
    return [set(((a - b).abs().amax(1) > 1e-6).nonzero().flatten().tolist()) for a, b in zip(before, after)]


def test_a_prefix_sees_itself_in_both_directions_and_nothing_after_it():
    model = build(PREFIX)
    found = reach(model, torch.tensor([1, 10, 63]), token=5)
    assert found == [set(range(5, 64)), set(range(64)), set(range(64))]
    found = reach(model, torch.tensor([1, 10, 63]), token=20)
    assert found == [set(range(20, 64)), set(range(20, 64)), set(range(64))]


def test_a_prefix_of_one_block_is_the_plain_model():
    model = build(PREFIX)
    ones = torch.ones(3, dtype=torch.int64)
    plain, (with_prefix,) = model(images())[0], model(images(), prefix_B=ones)
    torch.testing.assert_close(with_prefix, plain, rtol=1e-4, atol=1e-5)
    targets = torch.randn(3, 64, 48, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(next_block_loss([plain], targets, prefix_B=ones), next_block_loss([plain], targets))


def test_the_loss_is_of_what_follows_the_prefix_and_images_count_alike():
    targets = torch.randn(2, 64, 48, generator=torch.Generator().manual_seed(2))
    guess = torch.zeros(2, 63, 48)
    prefix_B = torch.tensor([2, 60])
    whole = next_block_loss([guess], targets, prefix_B=prefix_B)
    wrong_inside = guess.clone()
    wrong_inside[1, :59] += 9  # predictions of blocks 1..59, all of the prefix
    assert next_block_loss([wrong_inside], targets, prefix_B=prefix_B) == whole
    wrong_inside[1, 59] += 9
    assert next_block_loss([wrong_inside], targets, prefix_B=prefix_B) > whole
    by_image = [next_block_loss([guess[i : i + 1]], targets[i : i + 1], prefix_B=prefix_B[i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(whole, torch.stack(by_image).mean())
    weighted = next_block_loss([guess], targets, weight_B=torch.tensor([0.5, 0.5]), prefix_B=prefix_B)
    torch.testing.assert_close(weighted, whole)


def test_probes_see_all_tokens_in_both_directions():
    plain, both = build(PLAIN), build(PREFIX)
    changed = images()
    changed[:, :, 28:, 28:] += 1  # the last token
    first = [model.encoder.layers(images(), 1)[0][:, 0] for model in (plain, both)]
    then = [model.encoder.layers(changed, 1)[0][:, 0] for model in (plain, both)]
    assert torch.equal(first[0], then[0])
    assert not torch.allclose(first[1], then[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own, while it traces
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # likewise, on importing its compiler
def test_it_trains_in_passes_of_any_size_and_compiled(tmp_path):
    data = tmp_path / "data"
    make_dataset(data, [40, 37], bad=(5,))
    model = dataclasses.replace(config(data, tmp_path).model, prefix=True)
    for name, changes in {"whole": {}, "micro": {"micro": 3}, "compiled": {"compile": "on"}}.items():
        train.run(config(data, tmp_path / name, model=model, **changes))
    whole = losses(tmp_path / "whole")
    assert losses(tmp_path / "micro") == pytest.approx(whole, rel=1e-4)
    assert losses(tmp_path / "compiled") == pytest.approx(whole, rel=1e-3)
    assert whole[-1] < whole[0]


def test_what_cannot_be_is_refused():
    base = recipes.get("demo32_aim_prefix")
    with pytest.raises(ValueError, match=r"dropped is skip .*model\.prefix"):
        dataclasses.replace(base, dropped="skip")
    with pytest.raises(ValueError, match=r"attention flex64; with model\.prefix"):
        dataclasses.replace(base, attention="flex64")
    with pytest.raises(ValueError, match=r"model\.dec_mlp_ratio is -1"):
        dataclasses.replace(PLAIN, dec_mlp_ratio=-1)


def test_a_decoder_may_have_its_own_mlp_ratio():
    wide = build(dataclasses.replace(PLAIN, dec_mlp_ratio=2.0))
    assert wide.decoder.blocks[0].mlp.fc1.weight.shape == (128, 64)
    assert wide.encoder.blocks[0].mlp.fc1.weight.shape == (256, 64)
