"""Pictures of predictions: the paper's figure from the true blocks, and a free run that never sees later ones."""

from __future__ import annotations

import io
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from made_datasets import make_dataset
from PIL import Image

from jobs import cli
from shards import store
from xtra import generate
from xtra.blocks import block_orders, join_blocks, target_blocks
from xtra.loss import normalise_blocks
from xtra.model import SIZES, Xtra, build
from xtra.official.weights import to_official
from xtra.run import checkpoint

CONFIG = replace(SIZES["tiny32"], predict=2)
RASTER = torch.arange(16)


class Oracle(Xtra):
    """Predicts the truth: every block of `truth`, normalised, at the position before it."""

    truth: torch.Tensor

    def forward(self, images, drop_LSB=None, last_block=False, perm_K=None):
        blocks = normalise_blocks(target_blocks(self.truth, self.config.side))[:, perm_K]
        return [blocks[:, 1 + ahead :] for ahead in range(self.config.predict)]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def oracle(images) -> Oracle:
    model = Oracle(CONFIG)
    model.truth = images
    return model


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("permuted", [False, True])
def test_right_predictions_give_the_image_back_but_for_its_first_blocks(oracle, images, head, permuted):
    order_K = block_orders(16, 7)[3] if permuted else RASTER
    shown = target_blocks(generate.teacher_forced(oracle, images, order_K, head), CONFIG.side)
    truth = target_blocks(images, CONFIG.side)
    first, later = order_K[: 1 + head], order_K[1 + head :]
    torch.testing.assert_close(shown[:, later], truth[:, later], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shown[:, first], truth[:, first].mean(-1, keepdim=True).expand_as(truth[:, first]))


def test_a_free_run_keeps_the_given_blocks_and_sees_no_later_one(images):
    model = build(CONFIG, 0)
    with torch.no_grad():
        one = generate.free_run(model, images, RASTER, given=5)
        other = target_blocks(images, CONFIG.side).clone()
        other[:, 5:] = torch.randn_like(other[:, 5:])
        two = generate.free_run(model, join_blocks(other, CONFIG.side), RASTER, given=5)
    assert torch.equal(one, two)
    blocks = target_blocks(one, CONFIG.side)
    assert torch.equal(blocks[:, :5], target_blocks(images, CONFIG.side)[:, :5])
    assert bool(blocks.isfinite().all())


def test_a_free_run_predicts_from_predictions(images):
    """Block by block by hand, with mean and spread from the neighbours above and to the left."""
    model = build(CONFIG, 0)
    c = CONFIG
    with torch.no_grad():
        canvas = target_blocks(images, c.side).clone()
        for block in range(14, 16):
            prediction = model(join_blocks(canvas, c.side))[0][:, block - 1]
            above, left = (canvas[:, n].view(-1, 3, c.side, c.side) for n in (block - 4, block - 1))
            edge = torch.cat([above[:, :, -1].flatten(1), left[:, :, :, -1].flatten(1)], 1)
            spread = (canvas[:, [block - 4, block - 1]].var(-1).mean(1) + 1e-6).sqrt()
            canvas[:, block] = prediction * spread[:, None] + edge.mean(1, keepdim=True)
        ours = generate.free_run(model, images, RASTER, given=14)
    torch.testing.assert_close(target_blocks(ours, c.side), canvas)


def test_a_random_order_is_run_in_that_order(images):
    model, order_K = build(replace(CONFIG, order="random"), 0), block_orders(16, 0)[0]
    with torch.no_grad():
        shown = target_blocks(generate.free_run(model, images, order_K, given=1), CONFIG.side)
    truth = target_blocks(images, CONFIG.side)
    same = [block for block in range(16) if torch.equal(shown[:, block], truth[:, block])]
    assert same == [int(order_K[0])]


@pytest.fixture
def run_folder(tmp_path) -> str:
    run = str(tmp_path / "run")
    store.put_json(store.join(run, "config.json"), {"model": asdict(CONFIG), "seed": 0})
    model = build(CONFIG, 0)
    state = {"cursor": {"manifest": "x"}}
    checkpoint.save(run, 1, 64, model, torch.optim.SGD(model.parameters()), state)
    return run


def test_the_verb_writes_grids_of_the_set(run_folder, tmp_path, capsys):
    data = make_dataset(tmp_path / "data", [20, 10], bad=(3,))
    words = ["generate", run_folder, "--data", data.dataset, "--out", str(tmp_path / "out"), "--samples", "5"]
    assert cli.main([*words, "--rows", "3"]) == 0
    said = capsys.readouterr().out
    assert "grid-001.png" in said
    first, second = (np.asarray(Image.open(tmp_path / "out" / f"grid-00{n}.png")) for n in (0, 1))
    assert first.shape == second.shape == (1080, 1920, 3), "a slide"
    times = (1080 - generate.ABOVE - generate.BELOW - 4 * generate.GAP) // (4 * 32)
    step = 32 * times + generate.GAP

    def cell(page: np.ndarray, row: int, column: int) -> np.ndarray:
        top, left = generate.ABOVE + row * step, generate.LEFT + column * step
        return page[top : top + 32 * times, left : left + 32 * times]

    truth, context = cell(first, 0, 2), cell(first, 2, 2)
    assert truth.std() > 10  # a picture
    assert (truth[::times, ::times].repeat(times, 0).repeat(times, 1) == truth).all(), "each pixel is a square"
    quarter = truth.shape[0] // 4
    assert (context[:quarter] == truth[:quarter]).all()
    assert (context[quarter:] == round(255 * generate.UNSEEN)).all()
    assert (cell(first, 3, 2)[:quarter] == truth[:quarter]).all()
    assert (cell(second, 0, 2) == 255).all(), "the second grid has two images"
    for row in range(4):  # every row has its caption, every column its key
        top = generate.ABOVE + row * step
        assert (first[top : top + step, generate.MARGIN : generate.LEFT - generate.GAP] < 128).any()
    assert (first[generate.ABOVE - 28 : generate.ABOVE, generate.LEFT : generate.LEFT + step] < 128).any()
    again = generate.run(generate.Config(run_folder, data.dataset, str(tmp_path / "again"), samples=5, rows=3))
    assert (tmp_path / "again" / "grid-000.png").read_bytes() == (tmp_path / "out" / "grid-000.png").read_bytes()
    assert len(set(again.keys)) == 5
    assert 0.5 < again.loss < 2


def test_of_other_blocks_than_the_given_ones_the_context_shows_nothing(images):
    order_K = block_orders(16, 7)[3]
    shown = target_blocks(generate.only_given(images, CONFIG.side, order_K, 5), CONFIG.side)
    truth = target_blocks(images, CONFIG.side)
    assert torch.equal(shown[:, order_K[:5]], truth[:, order_K[:5]])
    other = target_blocks(generate.only_given(torch.randn_like(images), CONFIG.side, order_K, 5), CONFIG.side)
    assert torch.equal(shown[:, order_K[5:]], other[:, order_K[5:]])


def test_an_official_checkpoint_is_shown_alike(run_folder, tmp_path):
    data = make_dataset(tmp_path / "data", [6]).dataset
    ours = {name: p.detach() for name, p in build(CONFIG, 0).named_parameters()}
    torch.save({"state_dict": to_official(ours, CONFIG)}, tmp_path / "x.ckpt")
    for name, path in (("a", run_folder), ("b", str(tmp_path / "x.ckpt"))):
        generate.run(generate.Config(path, data, str(tmp_path / name), samples=2))
    ours, theirs = (np.asarray(Image.open(tmp_path / name / "grid-000.png")) for name in "ab")
    assert np.array_equal(ours[generate.ABOVE :, generate.LEFT :], theirs[generate.ABOVE :, generate.LEFT :])
    assert not np.array_equal(ours, theirs), "an official checkpoint does not say how many samples it has seen"


def test_pixels_are_those_of_the_image():
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    shown = generate.to_pixels(generate.normalise(pixels))
    assert np.array_equal(shown, pixels.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("images", "size", "wide", "high"),
    [(1, 8, 1920, 1080), (8, 64, 1920, 1080), (8, 224, 2168, 1219), (60, 32, 2712, 1525)],
    ids=["one", "small", "of 224", "many"],
)
def test_a_slide_has_the_shape_of_slides_and_hides_no_pixel(images, size, wide, high):
    """Larger ones where images would have to be reduced."""
    pixels = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8)
    rows = [generate.Row(f"row {n}", "some words that say what it shows", generate.normalise(pixels)) for n in range(4)]
    picture = Image.open(io.BytesIO(generate.slide(rows, "a $title$ \u6f22", "facts", ["k" * 90] * images)))
    assert picture.size == (wide, high)
    assert abs(wide / high - 16 / 9) < 0.01


def test_the_headings_say_what_was_seen_and_how_large_blocks_are(run_folder):
    config = generate.Config(run_folder, "s3://bucket/set@3", "out")
    assert generate.samples_seen(run_folder) == 64
    title, facts = generate._headings(config, CONFIG, 64_000, 0.51234)
    assert title == "What run predicts"
    side = CONFIG.side
    for words in ("64,000 samples seen", f"blocks of {side} x {side} pixels, 4 x 4", "loss 0.512", "images of set@3"):
        assert words in facts
    named = generate._headings(replace(config, checkpoint="/runs/a/checkpoints/000000000064/"), CONFIG, None, 1.0)
    assert named[0] == "What a predicts"
    assert "samples seen" not in named[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"head": 2}, r"head is 2; this model has 0\.\.1"),
        ({"given": 16}, r"given is 16; with 16 blocks it must be 1\.\.15"),
        ({"checkpoint": "/nowhere"}, "/nowhere: holds no committed checkpoint"),
        ({"data": "/nowhere"}, "/nowhere: is not a dataset"),
    ],
)
def test_a_mistake_is_named(run_folder, tmp_path, change, words):
    data = make_dataset(tmp_path / "data", [4]).dataset
    with pytest.raises(ValueError, match=words):
        generate.run(replace(generate.Config(run_folder, data, str(tmp_path / "out")), **change))
    with pytest.raises(ValueError, match="samples is 0"):
        generate.Config(run_folder, data, "out", samples=0)
