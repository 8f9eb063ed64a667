"""RandAugment against timm's own code: the same pixels for the same draws, and draws of the same distribution."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from made_datasets import jpeg, make_dataset, rows_of, write_unit
from PIL import Image
from timm_files import Queue, timm_file

from shards.manifest import make_version
from shards.stream.order import Order
from shards.stream.stream import Stream
from xtra import train
from xtra.augment import PROBE, Augment
from xtra.data import RandomCrop, Unguarded, augmented, decode_reference, eval_batches, train_batches
from xtra.model import SIZES
from xtra.rand_augment import OPS, Act, Policy, apply, draw, parse, perform

NOTATION = "rand-m9-mstd0.5-inc1"
STRONG = Augment(randaugment=NOTATION)


@pytest.fixture(scope="module")
def timm():
    return timm_file("auto_augment")


def settings(size):
    """As timm's create_transform makes them for interpolation="bicubic"."""
    mean = tuple(min(255, round(255 * x)) for x in (0.485, 0.456, 0.406))
    return {"translate_const": int(size * 0.45), "img_mean": mean, "interpolation": Image.Resampling.BICUBIC}


def picture(seed=0, size=(57, 48)):
    """Smooth, with noise: every operation changes it."""
    draws = np.random.default_rng(seed)
    small = Image.fromarray(draws.integers(20, 220, (5, 6, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = draws.integers(-9, 9, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.asarray(small) + noise, 0, 255).astype(np.uint8))


def done_by(op, image):
    """By timm, as the Pillow of its time did it: from 13 on, Pillow refuses to keep 0 bits, which made all black."""
    try:
        return op(image)
    except ValueError as error:
        if "bits must be between" not in str(error):
            raise
        return Image.new("RGB", image.size)


@pytest.mark.parametrize("increasing", [True, False])
@pytest.mark.parametrize("number", range(15))
def test_each_operation_gives_timms_pixels_at_every_magnitude(timm, number, increasing):
    """Fails when an operation, its range, its direction, its filling or its resampling is another."""
    theirs = (timm._RAND_INCREASING_TRANSFORMS if increasing else timm._RAND_TRANSFORMS)[number]
    ours, _ = OPS[number]
    assert theirs.removesuffix("Increasing").removesuffix("Rel") == ours
    image, changed = picture(number), 0
    for magnitude, negate in itertools.product((0, 0.7, 1, 2, 3.3, 4, 5, 6, 7, 8, 8.9, 9, 9.6, 10), (False, True)):
        op = timm.AugmentOp(theirs, prob=1.0, magnitude=magnitude, hparams=settings(48))
        timm.random = Queue(0.9 if negate else 0.1)
        wanted = np.asarray(done_by(op, image))
        given = np.asarray(perform(image, Act(number, magnitude / 10, negate), increasing))
        assert np.array_equal(given, wanted), (ours, magnitude, negate)
        changed += not np.array_equal(given, np.asarray(image))
    assert changed >= 2


@pytest.mark.parametrize(
    "notation", [NOTATION, "rand-m7-mstd0.5", "rand-m15-n3-p0.8-mmax30-inc1", "rand-m9-mstd101-inc1"]
)
def test_the_whole_of_it_gives_timms_pixels_for_the_same_draws(timm, notation):
    """timm's transform, made from the same notation and fed our draws, in the order in which it asks for them."""
    policy, size = parse(notation), 40
    theirs = timm.rand_augment_transform(notation, settings(size))
    samples = np.arange(120)
    ours = draw(policy, 3, np.full(120, 2), samples)
    assert max(map(len, ours)) == policy.ops
    for sample, acts in zip(samples, ours):
        image = picture(sample, (size, size))
        wanted = image
        for act in acts:
            op = theirs.ops[act.op]
            op.prob, op.magnitude_std, op.magnitude = 1.0, 0, act.strength * 10
            timm.random = Queue(0.9 if act.negate else 0.1)
            wanted = done_by(op, wanted)
        pixels_3HW = np.asarray(image).transpose(2, 0, 1).copy()
        apply(policy, acts, pixels_3HW)
        assert np.array_equal(pixels_3HW.transpose(1, 2, 0), np.asarray(wanted))


class Spy:
    """Stands for timm's operation functions: takes down what is asked of them."""

    def __init__(self, name, seen):
        self.name, self.seen = name, seen

    def __call__(self, img, *args, **kwargs):
        self.seen.append((self.name, args))
        return img


@pytest.mark.parametrize(
    "notation", [NOTATION, "rand-m5-n3-p0.7-mstd2", "rand-m8-mstd101-inc1", "rand-m20-mmax30-mstd3"]
)
def test_operations_magnitudes_and_signs_have_timms_distribution(timm, notation):
    """Fails when a probability, the noise, its clipping or the choice of operations is another."""
    policy, n = parse(notation), 6000
    theirs = timm.rand_augment_transform(notation, settings(40))
    seen = []
    for number, op in enumerate(theirs.ops):
        op.aug_fn, op.level_fn = Spy(number, seen), lambda level, _: (level / 10, timm._randomly_negate(1) < 0)
    timm.random = random.Random(1)
    np.random.seed(1)
    counts = []
    for _ in range(n):
        before = len(seen)
        theirs(None)
        counts.append(len(seen) - before)
    ours = draw(policy, 0, np.zeros(n, np.int64), np.arange(n))
    acts = [act for image in ours for act in image]

    def near(a, b, of):
        """Shares of two samples: no farther apart than five standard deviations."""
        share = (a + b) / (2 * of)
        assert abs(a - b) / of < 5 * (2 * max(share * (1 - share), 1 / of) / of) ** 0.5

    for k in range(policy.ops + 1):
        near(counts.count(k), sum(len(image) == k for image in ours), n)
    their_ops, our_ops = Counter(number for number, _ in seen), Counter(act.op for act in acts)
    for number in range(len(OPS)):
        near(their_ops[number], our_ops[number], min(len(seen), len(acts)))
    near(sum(negated for _, (_, negated) in seen), sum(act.negate for act in acts), min(len(seen), len(acts)))
    levels = np.sort([level for _, (level, _) in seen]), np.sort([act.strength for act in acts])
    grid = np.linspace(0, 3, 400)
    curves = [np.searchsorted(of, grid, side="right") / len(of) for of in levels]
    assert np.abs(curves[0] - curves[1]).max() < 2.2 * (2 / min(map(len, levels))) ** 0.5  # Kolmogorov and Smirnov's
    # A second operation does not follow from the first, nor from the same sample's in another epoch.
    pairs = Counter((image[0].op, image[1].op) for image in ours if len(image) > 1)
    assert len(pairs) == len(OPS) ** 2
    assert ours[:50] != draw(policy, 0, np.ones(50, np.int64), np.arange(50))
    assert ours[:50] != draw(policy, 1, np.zeros(50, np.int64), np.arange(50))


def test_the_notation_is_timms():
    assert parse(NOTATION) == Policy(magnitude=9, noise=0.5, increasing=True)
    assert parse("rand") == Policy() == Policy(10, 0, 10, 2, 0.5, False)
    assert parse("rand-p0.3-n1-mmax12-m11-inc0") == Policy(11, 0, 12, 1, 0.3, False)
    assert parse("rand-mstd101").noise == float("inf")
    assert PROBE.randaugment == NOTATION


# ---- in batches ----------------------------------------------------------------------------------------------------

ORDER = Order(seed=1, lanes=4, chunk=4, window=2)


def batches(manifest, n, rank=0, world=1, seen=0, threads=3, augment=STRONG):
    stream = Stream(manifest, ORDER, 12, seen, rank=rank, world=world)
    taken = list(itertools.islice(train_batches(stream, 16, augment, 5, threads), n))
    stream.close()
    return taken


def test_what_becomes_of_a_sample_does_not_depend_on_ranks_threads_or_resume(tmp_path):
    manifest = make_dataset(tmp_path, [40])
    whole = batches(manifest, 6)
    for step, parts in enumerate(zip(*(batches(manifest, 6, rank=r, world=3, threads=1) for r in range(3)))):
        assert torch.equal(torch.cat([p.images_B3HW for p in parts]), whole[step].images_B3HW)
    assert torch.equal(batches(manifest, 1, seen=48)[0].images_B3HW, whole[4].images_B3HW)
    plain = batches(manifest, 6, augment=Augment())
    same = [bool((a == b).all()) for p, q in zip(plain, whole) for a, b in zip(p.images_B3HW, q.images_B3HW)]
    assert 0.15 < sum(same) / len(same) < 0.55  # a quarter has no operation, and some do nothing


def test_a_batch_shows_what_its_samples_show_alone(tmp_path):
    """Crop, mirror, then timm's operations, by sample and epoch: of training, and of an evaluation's views."""
    manifest = make_dataset(tmp_path, [40])
    for batch in batches(manifest, 5):
        for row, (key, sample, epoch) in enumerate(zip(batch.keys, batch.sample_B, batch.epoch_B)):
            wanted = augmented(jpeg(int(key[1:])), 16, STRONG, 5, int(epoch), int(sample))
            assert np.array_equal(batch.images_B3HW[row].numpy(), wanted)
    (view,) = eval_batches(manifest, 40, 16, view=3, seed=5, augment=STRONG)
    assert (view.epoch_B == 3).all()
    for row, (key, sample) in enumerate(zip(view.keys, view.sample_B)):
        assert np.array_equal(
            view.images_B3HW[row].numpy(), augmented(jpeg(int(key[1:])), 16, STRONG, 5, 3, int(sample))
        )
    (centre,) = eval_batches(manifest, 40, 16, seed=5, augment=STRONG)
    (plain,) = eval_batches(manifest, 40, 16, seed=5)
    assert torch.equal(centre.images_B3HW, plain.images_B3HW)


def test_a_stand_in_is_augmented_as_itself(tmp_path):
    """With the draws of the sample that is shown, in the epoch in which it is shown."""
    make_dataset(tmp_path, [30])
    rows = rows_of(30, 10)
    rows[4]["body"] = b"\xff\xd8\xff not a picture"
    write_unit(str(tmp_path), 1, rows)
    manifest = make_version(str(tmp_path), "one broken")
    shown = 0
    for batch in batches(manifest, 7):
        for event in batch.events:
            row = batch.keys.index(event["shown"])
            wanted = augmented(
                jpeg(int(event["shown"][1:])), 16, STRONG, 5, int(batch.epoch_B[row]), int(batch.sample_B[row])
            )
            assert np.array_equal(batch.images_B3HW[row].numpy(), wanted)
            shown += 1
    assert shown


def test_a_decoder_of_whole_batches_is_refused(tmp_path):
    manifest = make_dataset(tmp_path, [20])

    def device(bodies, views, size):
        raise AssertionError("asked all the same")

    for given in (
        train_batches(Stream(manifest, ORDER, 12), 16, STRONG, 5, device=device),
        eval_batches(manifest, 4, 16, view=1, augment=STRONG, device=device),
    ):
        with pytest.raises(ValueError, match=r"augment\.randaugment works on pixels that the CPU decodes"):
            next(given)


def test_what_a_guard_decodes_is_augmented_like_the_rest(tmp_path):
    """A sample that has killed decoders comes from a child, cropped and no more."""
    manifest = make_dataset(tmp_path, [20])
    crop = RandomCrop(16, STRONG, 5)

    class Guard(Unguarded):
        def risky(self, sample):
            return sample.sample % 3 == 0

        def decode(self, sample, out_3HW):
            (draws,) = crop.draw(np.array([sample.epoch]), np.array([sample.sample]))
            decode_reference(sample.body, crop, draws, out_3HW)

    stream = Stream(manifest, ORDER, 12)
    guarded = next(train_batches(stream, 16, STRONG, 5, guard=Guard()))
    stream.close()
    plain = batches(manifest, 1)[0]
    assert torch.equal(guarded.images_B3HW[guarded.sample_B % 3 != 0], plain.images_B3HW[plain.sample_B % 3 != 0])
    close = (guarded.images_B3HW.float() - plain.images_B3HW.float()).abs().flatten(1).mean(1)
    assert (close < 8).all()  # the reference decoder's own rounding, which an operation may enlarge


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"augment": Augment(erase=0.25)}, "augment.erase is 0.25; pretraining predicts pixels"),
        ({"augment": STRONG, "decoder": "gpu"}, "augment.randaugment works on pixels that the CPU decodes"),
    ],
)
def test_pretraining_refuses_what_it_cannot_do(changes, said):
    with pytest.raises(ValueError, match=said):
        train.Config(SIZES["tiny32"], 100, 10, **changes)
