"""Random erasing and random crops against timm's own code, fed our draws."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from timm_files import Queue, timm_file, timm_method

from shards.stream.order import mix64, uniform
from xtra.augment import PROBE, PROBE_LINEAR_B, Augment, _normal, erase, erased
from xtra.data import Augment as Same, crop_box

ALWAYS = Augment(erase=1.0)


def test_the_published_augmentations():
    assert Augment is Same
    assert Augment((0.08, 1.0), (3 / 4, 4 / 3), 0.5, "rand-m9-mstd0.5-inc1", 0.25) == PROBE
    assert Augment((0.08, 1.0), (3 / 4, 4 / 3), 0.5, "", 0.0) == PROBE_LINEAR_B


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 90), (224, 224)])
def test_erasing_takes_timms_rectangle_for_the_same_draws(height, width):
    """Fails when the area, the aspect, the tries or the place are drawn in another way."""
    timm = timm_file("random_erasing")
    theirs = timm.RandomErasing(probability=0.4, mode="pixel", max_count=1, device="cpu")
    n, augment = 150, Augment(erase=0.4)
    samples, epochs = np.arange(n), np.full(n, 3)
    boxes = erased(augment, 7, epochs, samples, height, width)
    u = uniform(7, "erase", epochs[:, None], samples[:, None], np.arange(41))
    for box, draws in zip(boxes, u.tolist()):
        image = torch.zeros(3, height, width)
        tries = [draws[i : i + 4] for i in range(1, 41, 4)]
        asked = [draws[0]]
        for area, aspect, top, left in tries:  # timm asks for a place only where the rectangle fits
            size = (0.02 + (1 / 3 - 0.02) * area) * height * width
            shape = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * aspect)
            fits = round(math.sqrt(size * shape)) < height and round(math.sqrt(size / shape)) < width
            asked += [area, aspect, top, left] if fits else [area, aspect]
        timm.random = Queue(*asked)
        theirs(image)
        wanted = image.ne(0).any(0)
        ours = torch.zeros(height, width, dtype=torch.bool)
        if box is not None:
            top, left, h, w = box
            ours[top : top + h, left : left + w] = True
        assert torch.equal(ours, wanted)
    assert 0.2 < sum(box is not None for box in boxes) / n < 0.6


def test_erasing_follows_the_sample_and_leaves_the_rest_as_it_is():
    images = torch.rand(40, 3, 32, 32) + 10  # noise does not come near
    sample, epoch = np.arange(100, 140), np.arange(40) % 3
    whole = erase(images.clone(), PROBE, 5, epoch, sample)
    hit = [row for row in range(40) if not torch.equal(whole[row], images[row])]
    assert hit == [row for row, box in enumerate(erased(PROBE, 5, epoch, sample, 32, 32)) if box is not None]
    assert 3 < len(hit) < 18
    for row in hit:
        changed = whole[row] != images[row]
        top, left, h, w = erased(PROBE, 5, epoch[row : row + 1], sample[row : row + 1], 32, 32)[0]
        assert changed.sum() == 3 * h * w == changed[:, top : top + h, left : left + w].sum()
        alone = erase(images[row : row + 1].clone(), PROBE, 5, epoch[row : row + 1], sample[row : row + 1])
        assert torch.equal(alone[0], whole[row])
    order = torch.randperm(40)
    assert torch.equal(erase(images[order].clone(), PROBE, 5, epoch[order], sample[order]), whole[order])
    assert torch.equal(erase(images.clone(), Augment(), 5, epoch, sample), images)
    assert not torch.equal(erase(images.clone(), PROBE, 6, epoch, sample), whole)
    assert not torch.equal(erase(images.clone(), PROBE, 5, epoch + 1, sample), whole)


def test_the_noise_is_normal_and_of_our_own_generator():
    noise = _normal(int(mix64(1, 2, 3)), 200_001, torch.device("cpu"))
    assert noise.shape == (200_001,)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert abs(noise.pow(3).mean()) < 0.03
    assert abs(noise.pow(4).mean() - 3) < 0.1
    assert abs((noise[0:-1:2] * noise[1::2]).mean()) < 0.015  # the two of a pair
    bits = mix64(1, 2, 3, np.arange(1000))
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(40)) + 1).astype(np.float64) * 2.0**-24))
    angle = ((bits >> np.uint64(16)) & np.uint64(0xFFFFFF)).astype(np.float64) * (2 * np.pi * 2.0**-24)
    wanted = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
    np.testing.assert_allclose(noise[:2000].numpy(), wanted, atol=2e-5)


def test_random_crops_are_timms_for_the_same_draws():
    """Boxes of timm's RandomResizedCropAndInterpolation, which torchvision's RandomResizedCrop draws alike."""
    fake = SimpleNamespace(get_image_size=lambda size: size)
    names = {"F": fake, "math": math, "random": None}
    get_params = timm_method("transforms", "RandomResizedCropAndInterpolation", "get_params", **names)
    for number in range(400):
        rng = np.random.default_rng(number)
        width, height = (int(side) for side in rng.integers(8, 400, 2))
        augment = (PROBE, Augment(), Augment(scale=(0.7, 1.0)))[number % 3]
        u = uniform(4, "crop", 2, number, np.arange(40)).tolist()
        asked = []
        for area_u, ratio_u, x_u, y_u in (u[i : i + 4] for i in range(0, 40, 4)):
            asked += [area_u, ratio_u]
            area = width * height * (augment.scale[0] + area_u * (augment.scale[1] - augment.scale[0]))
            low, high = (math.log(ratio) for ratio in augment.ratio)
            ratio = math.exp(low + ratio_u * (high - low))
            if round(math.sqrt(area * ratio)) <= width and round(math.sqrt(area / ratio)) <= height:
                asked += [y_u, x_u]
        get_params.__globals__["random"] = Queue(*asked)
        top, left, h, w = get_params((width, height), augment.scale, augment.ratio)
        assert crop_box(width, height, augment, 4, 2, number) == (left, top, w, h)
