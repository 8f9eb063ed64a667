"""`xtra bench decode` with this environment as its peer: the same images, the same boxes, and numbers that fit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jobs.bench import decode
from jobs.bench.peers import environments
from shards.pixels import image


@pytest.fixture
def here(monkeypatch):
    """No environment is built, and few variants run."""
    monkeypatch.setattr(environments, "build", lambda _peer: Path(sys.executable))
    monkeypatch.setattr(decode, "_pillow_simd", lambda: "not tried")
    monkeypatch.setattr(decode, "MEAN_BYTES", 9_000)
    variants = [decode.REFERENCE, decode.Variant("ours", "pillow", "crop.c")]
    monkeypatch.setattr(decode, "VARIANTS", [*variants, decode.Variant("webdataset", "pillow-simd", "crop")])


@pytest.mark.slow
def test_a_run_shows_the_same_pixels_and_gives_ratios_that_fit(here, tmp_path):
    done = decode.run(decode.Config(count=12, size=32, batch=5, rounds=1, scratch=str(tmp_path)))
    theirs, ours = json.loads(json.dumps(done))["rows"]
    assert (theirs["reader"], theirs["psnr_db"], theirs["ratio"]) == ("webdataset", decode.EQUAL, 1)
    assert ours["images"] == 12
    assert ours["ratio"] == pytest.approx(theirs["cpu_ms"] / ours["cpu_ms"])
    assert done["ratios"] == {"speedup_vs_pillow": ours["ratio"], "psnr_db": ours["psnr_db"]}
    large, small = done["checks"]
    assert large["pictures"] == small["pictures"] == 12
    assert 2 < large["baseline_mean_bytes"] / small["baseline_mean_bytes"] < 5
    # In reader's order and in shuffled order, drawn here and told there: every image has its own box.
    assert ours["psnr_p5_db"] > 50
    assert not list(tmp_path.iterdir())


def test_the_ratio_to_torchvision_is_that_of_its_cost_to_ours():
    rows = [
        {"reader": reader, "pillow": pillow, "setting": setting, "cpu_ms": cost, "ratio": 4 / cost, "psnr_db": 50.0}
        for reader, pillow, setting, cost in (
            ("webdataset", "pillow", "crop", 4.0),
            ("torchvision", "no pillow", "antialias", 3.0),
            ("ours", "pillow", "Pillow alone", 3.5),
            ("ours", "pillow", "crop.c", 2.0),
        )
    ]
    assert decode.ratios_of(rows) == {"speedup_vs_pillow": 2.0, "psnr_db": 50.0, "speedup_vs_torchvision": 1.5}


def test_checks_are_of_the_same_pictures_in_both_kinds(monkeypatch):
    seen = []
    monkeypatch.setattr(image, "check", lambda body: seen.append(image.read(body)))
    bodies = decode.photographs(3, 5_000)
    found = decode.checks(bodies, rounds=2)
    assert [bool(one.plain.progressive) for one in seen[:6]] == [True] * 3 + [False] * 3  # the warm-up, in turns
    assert len(seen) == 2 * 3 * (1 + 2)
    for name in ("check_baseline_ms", "check_progressive_ms", "progressive_check_ratio"):
        assert 0 < found[f"{name}_least"] <= found[name] <= found[f"{name}_most"]
        assert name in decode._check_line(found)
    wanted, made = (np.asarray(image.decode(body), float) for body in (bodies[0], decode.progressive(bodies[0])))
    assert np.abs(wanted - made).mean() < 1


def test_enlarged_pictures_have_the_mean_size(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "MEAN_BYTES", 9_000)
    for n, body in enumerate(decode.photographs(4, 5_000)):
        (tmp_path / f"{n}.jpg").write_bytes(body)
    made = decode.pictures(decode.Config(images=str(tmp_path), enlarge=1.8, count=10))
    assert np.mean([len(body) for body in made]) == pytest.approx(9_000, rel=0.15)
    (small,) = decode.photographs(1, 5_000)
    assert image.header(made[0]).width == round(1.8 * image.header(small).width)


def test_likeness_is_in_decibels():
    one = np.zeros((2, 3, 4, 4), np.uint8)
    assert decode.psnr(np.stack([one[0], one[1] + 255]), one).tolist() == [decode.EQUAL, 0.0]


def test_a_pass_that_dies_names_its_arm(here, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "build", lambda _peer: Path("/bin/false"))
    with pytest.raises(ValueError, match="webdataset, pillow, crop: its process ended with status 1"):
        decode.run(decode.Config(count=10, size=32, rounds=1, scratch=str(tmp_path)))
