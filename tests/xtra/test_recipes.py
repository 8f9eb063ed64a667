"""Recipes against the paper's tables and the official modules' own parameter counts."""

from __future__ import annotations

import pytest

from jobs import cli, cluster
from xtra import recipes
from xtra.flops import Shape, parameters
from xtra.model import ModelConfig


def shape(model: ModelConfig) -> Shape:
    return Shape(**{name: getattr(model, name) for name in Shape.__dataclass_fields__})


@pytest.mark.parametrize(
    ("recipe", "count"),
    [
        ("b16_in1k", 300_053_248),
        ("b16_in1k_official_config", 300_053_248),
        ("b16_in1k_as_run", 300_053_248),
        ("h14_in21k", 865_018_240),
        ("h14_in21k_as_run", 865_018_240),
        ("ablation_base", 218_125_312),
        ("ablation_l1", 218_125_312),
        ("ablation_random_order", 218_125_312),
        ("ablation_block16", 111_945_472),
        ("ablation_block64_two", 331_389_952),
        ("ablation_width768", 300_053_248),
    ],
)
def test_a_recipe_has_the_official_number_of_parameters(recipe, count):
    assert parameters(shape(recipes.get(recipe).model)) == count


@pytest.mark.parametrize(
    ("recipe", "epochs", "warmup", "images", "drop_path"),
    [("b16_in1k", 800, 15, recipes.IN1K, 0.2), ("h14_in21k", 100, 3, recipes.IN21K, 0.2)],
)
def test_the_papers_table_1(recipe, epochs, warmup, images, drop_path):
    c = recipes.get(recipe)
    assert (c.samples, c.batch, c.model.drop_path) == (epochs * images, 2048, drop_path)
    o = c.optim
    assert (o.lr, o.min_lr, o.betas, o.weight_decay, o.clip) == (1e-3, 1e-6, (0.9, 0.95), 0.05, 1.0)
    assert int(o.warmup * c.samples) == pytest.approx(warmup * images, abs=1)
    assert (c.augment.scale, c.augment.flip) == ((0.3, 1.0), 0.5)
    assert c.augment.ratio == pytest.approx((0.75, 1.33), abs=0.005)


def test_as_run_has_the_steps_of_the_published_checkpoints():
    b, h = recipes.get("b16_in1k_as_run"), recipes.get("h14_in21k_as_run")
    assert [(c.batch, c.samples / c.batch, c.model.drop_path) for c in (b, h)] == [
        (2088, 490_400, 0.1),
        (2088, 629_900, 0.2),
    ]
    assert int(b.optim.warmup * b.samples / b.batch) == 490_400 * 15 // 800
    config = recipes.get("b16_in1k_official_config")
    assert (config.samples, config.optim.warmup, config.batch) == (1600 * recipes.IN1K, 40 / 1600, 2784)
    assert config.augment.ratio == (0.75, 1.5)


def test_variants_name_every_difference_between_paper_config_and_run():
    config, run = recipes.variants("b16_in1k")
    assert config == (
        "b16_in1k_official_config: samples 2049867200 (here 1024933600), batch 2784 (here 2048), "
        "optim.warmup 0.025 (here 0.01875), augment.ratio 0.75 1.5 (here 0.75 1.333), "
        "decoder_fp32 True (here False)"
    )
    assert run.startswith("b16_in1k_as_run: model.drop_path 0.1 (here 0.2), samples 1023955200 (here 1024933600)")
    assert recipes.variants("h14_in21k_as_run")[0].startswith("h14_in21k: samples 1315350000 (here 1315231200)")
    official = [name for name in recipes.names() if name.endswith(("_official_config", "_as_run"))]
    assert [name for name in recipes.names() if recipes.get(name).decoder_fp32] == official
    assert recipes.variants("small64") == []


@pytest.mark.parametrize(
    ("recipe", "image", "side", "predict"),
    [
        ("ablation_block16", 256, 16, 1),
        ("ablation_block32", 256, 32, 1),
        ("ablation_base", 256, 64, 1),
        ("ablation_block16_two", 256, 16, 2),
        ("ablation_block32_two", 256, 32, 2),
        ("ablation_block64_two", 256, 64, 2),
        ("ablation_224_block14", 224, 14, 1),
        ("ablation_224_block28", 224, 28, 1),
        ("ablation_224_block56", 224, 56, 1),
    ],
)
def test_table_6_blocks(recipe, image, side, predict):
    m = recipes.get(recipe).model
    assert (m.image, m.side, m.predict, m.tokens) == (image, side, predict, 256)


def test_table_6_differs_from_its_baseline_in_one_thing_each():
    base = recipes.get("ablation_base")
    assert (base.model.dec_width, base.model.dec_depth, base.model.drop_path) == (384, 8, 0.0)
    assert (base.samples, base.optim.warmup) == (100 * recipes.IN1K, 0.1)
    changed = {}
    for name in (n for n in recipes.names() if n.startswith("ablation_") and not n.endswith("_official_config")):
        ours, theirs = (recipes._flat(recipes.dataclasses.asdict(c)) for c in (recipes.get(name), base))
        changed[name] = {field: ours[field] for field in ours if ours[field] != theirs[field]}
    assert changed["ablation_l1"] == {"loss.l1": True}
    assert changed["ablation_random_order"] == {"model.order": "random"}
    for depth in (1, 2, 4, 16):
        assert changed[f"ablation_depth{depth}"] == {"model.dec_depth": depth}
    for width in (192, 576, 768):
        assert changed[f"ablation_width{width}"] == {"model.dec_width": width}
    assert len(changed) == 18


def test_every_recipe_carries_its_name_and_a_description():
    assert len(recipes.names()) == 41 + 18
    for name in recipes.names():
        assert recipes.get(name).recipe == name
        assert recipes.describe(name).strip()


def test_an_ablation_has_its_official_config_as_a_variant():
    for name in (n for n in recipes.names() if n.startswith("ablation_") and not n.endswith("_official_config")):
        (line,) = recipes.variants(name)
        assert line == (
            f"{name}_official_config: batch 2052 (here 2048), augment.ratio 0.75 1.5 (here 0.75 1.333), "
            "decoder_fp32 True (here False)"
        )
    assert recipes.get("ablation_224_block56_official_config").model == recipes.get("ablation_224_block56").model


def test_imagenet_21k_is_the_release_that_gives_the_h14_runs_steps():
    on_a_gpu = -(-recipes.IN21K // 72)
    assert 100 * (on_a_gpu // recipes.OFFICIAL_GPU_BATCH) == 629_900


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(ValueError, match=r"recipe 'b15' is unknown: use one of ablation_224_block14, .*b16_in1k"):
        recipes.get("b15")


def test_the_command_says_which_account_of_a_run_it_trains(monkeypatch, capsys):
    def train_all(configs, workers, stop, progress, take_over):
        assert configs[0].recipe == "b16_in1k"
        progress({"samples_seen": 2048, "samples": 4096})
        return []

    monkeypatch.setattr(cluster, "train_all", train_all)
    assert cli.main(["train", "b16_in1k", "--data", "d", "--out", "o"]) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "recipe b16_in1k"
    assert err[1].startswith("not b16_in1k_official_config: samples 2049867200 (here 1024933600)")
    assert err[2].startswith("not b16_in1k_as_run: model.drop_path 0.1 (here 0.2)")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--model.image", "65"], "model.patch is 8; it must divide the image, which is 65"),
        (["--model.block", "3"], "model.block is 3; it must divide the grid, which is 8"),
        (["--model.heads", "128"], "model.heads is 128; width 128 / 128 = 1 a head, which must be even"),
        (["--model.predict", "16"], "model.predict is 16; with 16 blocks it must be 1..15"),
        (["--model.order", "hilbert"], "model.order is 'hilbert'; it must be one of raster, random"),
        (["--dropped", "half"], "compute"),
        (["--precision", "fp16"], "precision is 'fp16'; it must be fp32 or bf16"),
        (["--sinks", "comet"], "tensorboard"),
        (["--val.every", "0"], "val.every is 0; it must be at least 1"),
        (["--keep-every", "-1"], "keep_every is -1; it must be 0 (none) or more"),
        (["--batch", "0"], "batch is 0; it must be at least 1"),
    ],
)
def test_a_bad_setting_is_one_line_with_field_value_and_what_is_allowed(flags, said, capsys):
    assert cli.main(["train", "small64", "--data", "d", "--out", "o", *flags]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err


def test_the_study_has_the_papers_shares_of_an_image_a_block():
    arms = {block: recipes.get(f"tiny_imagenet_block{block}") for block in (1, 2, 4)}
    for block, name in ((1, "ablation_block16"), (2, "ablation_block32"), (4, "ablation_base")):
        ours, papers = arms[block].model, recipes.get(name).model
        assert (ours.grid, ours.blocks) == (papers.grid, papers.blocks) == (16, 256 // block**2)
    for arm in arms.values():
        assert (arm.model.width, arm.model.depth, arm.model.dec_width, arm.model.dec_depth) == (96, 4, 64, 1)
        assert (arm.optim.schedule, arm.batch, arm.device) == ("constant", 16, "auto")
        forks = [samples * 4 // 5 for samples in recipes.STUDY_SAMPLES]
        assert [fork % arm.batch for fork in forks] == [0] * 6, "branches leave their trunk at the end of a step"
    raster, shuffled = (recipes._flat(recipes.dataclasses.asdict(arms[4])), recipes.get("tiny_imagenet_block4_random"))
    other = recipes._flat(recipes.dataclasses.asdict(shuffled))
    assert {name for name in other if other[name] != raster[name]} == {"model.order"}
