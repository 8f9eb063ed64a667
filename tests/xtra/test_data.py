"""Batches: what was decoded, cropped how, and what stood in for what did not decode."""

import itertools

import numpy as np
import pytest
import torch
from made_datasets import jpeg, make_dataset, rows_of, write_unit

from shards.manifest import make_version
from shards.pixels import crop, image
from shards.stream.order import Order
from shards.stream.stream import Stream
from xtra.data import Augment, augmented, crop_box, eval_batches, normalise, train_batches

ORDER = Order(seed=1, lanes=4, chunk=4, window=2)


def batches(manifest, n, batch=12, rank=0, world=1, seen=0, threads=3):
    stream = Stream(manifest, ORDER, batch, seen, rank=rank, world=world)
    taken = list(itertools.islice(train_batches(stream, 16, Augment(), 5, threads), n))
    stream.close()
    return taken


def test_keys_and_crops_do_not_depend_on_world_size_threads_or_resume(tmp_path):
    manifest = make_dataset(tmp_path, [40])
    whole = batches(manifest, 6)
    for step, parts in enumerate(zip(*(batches(manifest, 6, rank=r, world=3, threads=1) for r in range(3)))):
        assert torch.equal(torch.cat([p.images_B3HW for p in parts]), whole[step].images_B3HW)
        assert tuple(k for p in parts for k in p.keys) == whole[step].keys
    resumed = batches(manifest, 2, seen=48)
    assert torch.equal(resumed[0].images_B3HW, whole[4].images_B3HW)
    assert resumed[1].keys == whole[5].keys


def test_a_sample_has_another_crop_every_epoch():
    one, again, two = (augmented(jpeg(3), 16, Augment(), 0, epoch, 7) for epoch in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, two)


def test_crops_have_the_area_and_ratio_asked_for():
    boxes = [crop_box(200, 160, Augment(), 1, 0, sample) for sample in range(3000)]
    area = np.array([w * h / (200 * 160) for _, _, w, h in boxes])
    ratio = np.array([w / h for _, _, w, h in boxes])
    assert area.min() > 0.29
    assert area.max() <= 1
    assert abs(np.median(area) - 0.55) < 0.05  # below the middle of the range: the largest areas often do not fit
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35
    assert all(0 <= x <= 200 - w and 0 <= y <= 160 - h for x, y, w, h in boxes)
    assert len({(x, y) for x, y, _, _ in boxes}) > 1500


def test_a_crop_that_cannot_fit_is_centred():
    x, y, w, h = crop_box(400, 10, Augment(scale=(0.9, 1.0)), 0, 0, 0)
    assert (w, h, y) == (13, 10, 0)
    assert x == (400 - 13) // 2


def test_flips_mirror_about_half_of_the_samples():
    body, always, never = jpeg(1), Augment(flip=1), Augment(flip=0)
    sometimes = [augmented(body, 16, Augment(), 2, 0, s) for s in range(60)]
    mirrored = sum(np.array_equal(p, augmented(body, 16, always, 2, 0, s)) for s, p in enumerate(sometimes))
    plain = sum(np.array_equal(p, augmented(body, 16, never, 2, 0, s)) for s, p in enumerate(sometimes))
    assert mirrored + plain == 60
    assert 15 < mirrored < 45


def test_an_undecodable_sample_is_replaced_from_its_window_and_named(tmp_path):
    base = str(tmp_path)
    make_dataset(base, [30])
    rows = rows_of(30, 10)
    rows[4]["body"] = rows[4]["body"][:200]
    write_unit(base, 1, rows)
    manifest = make_version(base, "with a broken one")
    epoch = batches(manifest, 4, batch=10)
    (event,) = [e for b in epoch for e in b.events]
    assert (event["event"], event["key"]) == ("substitute", "k000034")
    assert event["shard"].endswith("000001-a1.tar")
    keys = [k for b in epoch for k in b.keys]
    assert "k000034" not in keys
    assert keys.count(event["shown"]) == 2
    assert len(set(keys)) == 39


def test_when_nothing_decodes_the_shard_is_named(tmp_path):
    rows = rows_of(0, 8)
    for row in rows:
        row["body"] = b"\xff\xd8\xff not a picture"
    make_dataset(tmp_path, [8])
    base = str(tmp_path / "bad")
    make_dataset(base, [8])
    write_unit(base, 1, [r | {"row": r["row"] + 8, "key": "x" + r["key"]} for r in rows])
    manifest = make_version(base, "broken")
    with pytest.raises(ValueError, match=r"000001-a1\.tar: xk\d+ .*xtra check"):
        list(eval_batches(manifest, 4, 16))


def test_evaluation_sees_each_sample_once_centred(tmp_path):
    manifest = make_dataset(tmp_path, [7, 6], side=24)
    taken = list(eval_batches(manifest, 5, 16, resize=20))
    assert [len(b) for b in taken] == [5, 5, 3]
    assert [k for b in taken for k in b.keys] == [f"k{i:06d}" for i in range(13)]
    expected = np.empty((3, 16, 16), np.uint8)
    image.show(image.decode(jpeg(3, 24)), image.centre_view(24, 24, 20, 16), expected)
    assert np.array_equal(taken[0].images_B3HW[3].numpy(), expected)
    one, two = (next(iter(eval_batches(manifest, 5, 16, view=v))).images_B3HW for v in (1, 2))
    assert not torch.equal(one, two)


def test_a_batch_keeps_its_images_until_it_is_released(tmp_path):
    stream = Stream(make_dataset(tmp_path, [40]), ORDER, 8)
    given = train_batches(stream, 16, Augment(), 5)
    kept = [next(given) for _ in range(4)]
    copies = [batch.images_B3HW.clone() for batch in kept]
    places = {batch.images_B3HW.data_ptr() for batch in kept}
    for batch in kept[2:]:
        batch.release()
        batch.release()
        with pytest.raises(ValueError, match="was released"):
            _ = batch.images_B3HW
    later = [next(given) for _ in range(6)]
    assert {batch.images_B3HW.data_ptr() for batch in later} & places  # the memory is used again
    assert len({batch.images_B3HW.data_ptr() for batch in (*kept[:2], *later)}) == 8  # by one at a time
    assert all(torch.equal(batch.images_B3HW, copy) for batch, copy in zip(kept[:2], copies))
    given.close()
    stream.close()


def test_batches_are_the_same_without_the_accelerator(tmp_path, monkeypatch):
    manifest = make_dataset(tmp_path, [20], side=40)
    ours, centred = batches(manifest, 2), list(eval_batches(manifest, 8, 16, resize=24))
    monkeypatch.setattr(crop, "loaded", lambda: None)
    for taken, again in ((ours, batches(manifest, 2)), (centred, list(eval_batches(manifest, 8, 16, resize=24)))):
        for one, other in zip(taken, again, strict=True):
            off = (one.images_B3HW.int() - other.images_B3HW.int()).abs()
            assert off.max() <= (0 if image.IMAGE_BUILD.startswith("pillow 13.") else 3)
            assert one.keys == other.keys


def test_what_a_device_refuses_is_decoded_here(tmp_path):
    asked = []

    def device(bodies, views, size):
        asked.append([len(bodies), len(views)])
        return torch.zeros(len(bodies), 3, size, size, dtype=torch.uint8), list(range(1, len(bodies), 2))

    manifest = make_dataset(tmp_path, [20])
    wanted = next(iter(eval_batches(manifest, 20, 16, view=3))).images_B3HW
    (batch,) = eval_batches(manifest, 20, 16, view=3, device=device)
    assert torch.equal(batch.images_B3HW[1::2], wanted[1::2])
    assert not batch.images_B3HW[::2].any()
    assert asked == [[20, 20]]


def test_normalise_takes_imagenet_statistics_out():
    white = normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert torch.allclose(white, torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


def test_bad_augmentation_is_named():
    with pytest.raises(ValueError, match=r"augment\.scale is 0 1"):
        Augment(scale=(0, 1))


def test_normalise_takes_other_statistics_too():
    grey = torch.full((1, 3, 1, 1), 51, dtype=torch.uint8)
    assert torch.allclose(normalise(grey, (0.2, 0.2, 0.2), (0.5, 0.5, 0.5)), torch.zeros(1, 3, 1, 1), atol=1e-6)
    assert torch.allclose(normalise(grey, (0.0, 0.1, 0.2), (0.1, 0.1, 0.1)).flatten(), torch.tensor([2.0, 1.0, 0.0]))


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ({"randaugment": "autoaugment"}, r"augment\.randaugment is 'autoaugment'; it must begin with rand"),
        ({"randaugment": "rand-m9-x3"}, "its part 'x3' is unknown"),
        ({"randaugment": "rand-m9.5"}, "its part 'm9.5'"),
        ({"randaugment": "rand-m9-m8"}, "its part 'm8'"),
        ({"randaugment": "rand-m9-n0"}, "n must be 1 to 16"),
        ({"erase": 1.5}, r"augment\.erase is 1\.5"),
    ],
)
def test_bad_strong_augmentation_is_named(field, said):
    with pytest.raises(ValueError, match=said):
        Augment(**field)
