"""Decoding on a GPU. The pure parts and the checks run everywhere, with a fake library that decodes with Pillow; the
library itself runs where it is installed (its own CPU decoder), and on the GPU where there is one."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from made_datasets import make_dataset, rows_of, write_unit
from PIL import Image
from test_train import config
from torch.utils._python_dispatch import TorchDispatchMode

from shards import store
from shards.manifest import make_version
from shards.pixels import image
from shards.pixels.image import View, centre_view, crop_view
from shards.stream.order import Order
from shards.stream.stream import Stream
from xtra import gpu_decode, train
from xtra.data import Augment, train_batches
from xtra.gpu_decode import MARGIN, SENTINEL, GpuDecoder, Job, NvImageCodec, TorchCodec

CPU = torch.device("cpu")
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


def photo(width: int, height: int, seed: int = 0, **options) -> bytes:
    """Soft shapes with some detail, as JPEG (or what `format` says)."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    picture = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    picture.convert(options.pop("mode", "RGB")).save(out, options.pop("format", "JPEG"), **options)
    return out.getvalue()


def reference(body: bytes, view: View, size: int) -> np.ndarray:
    out_3SS = np.empty((3, size, size), np.uint8)
    image.show(image.decode(body), view, out_3SS)
    return out_3SS


def psnr(found, wanted) -> float:
    error = float(((np.asarray(found, np.float64) - np.asarray(wanted)) ** 2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


class ByPillow:
    """Decodes as the libraries promise to, except where `spoil` does something else to a slot."""

    name = "by Pillow"

    def __init__(self, spoil: Callable[[int, torch.Tensor], bool] = lambda number, slot: True) -> None:
        self.spoil, self.calls = spoil, 0

    def fill(self, slots, bodies, regions):
        said = []
        for slot, body, (x, y, w, h) in zip(slots, bodies, regions):
            before = slot.clone()
            slot.copy_(torch.from_numpy(np.array(image.decode(bytes(body)).crop((x, y, x + w, y + h)))))
            said.append(self.spoil(self.calls, slot))
            if not said[-1]:
                slot.copy_(before)
            self.calls += 1
        return said


# --- sorting -------------------------------------------------------------------------------------------------------


def turned(body: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.open(io.BytesIO(body)).save(out, "JPEG", exif=exif)
    return out.getvalue()


def sampled_oddly(body: bytes) -> bytes:
    at = body.index(b"\xff\xc0") + 11  # the first component's sampling factors: 4x1 instead of 2x2
    return body[:at] + b"\x41" + body[at + 1 :]


REFUSED = {
    "not a jpeg": photo(40, 30, format="PNG"),
    "progressive": photo(40, 30, progressive=True),
    "cmyk": photo(40, 30, mode="CMYK"),
    "sampling": sampled_oddly(photo(40, 30)),
    "colour space": photo(40, 30, keep_rgb=True),
    "orientation": turned(photo(40, 30)),
    "cut off": photo(40, 30)[:-9],
    "unreadable": b"\xff\xd8\xff not a picture",
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_hardware_does_not_decode_as_we_do_is_sorted_out_by_its_header(reason):
    assert gpu_decode.plan(REFUSED[reason], crop_view((0, 0, 20, 20), 8)) == reason


@pytest.mark.parametrize("options", [{"subsampling": s} for s in (0, 1, 2)] + [{"mode": "L"}, {"exif": Image.Exif()}])
def test_plain_jpegs_are_decoded_around_their_crop(options):
    body = photo(40, 30, **options)
    view = crop_view((5, 1, 20, 28), 8)
    assert gpu_decode.plan(memoryview(body), view) == Job(body, view, (5 - MARGIN, 0, 20 + 2 * MARGIN, 30))


def test_a_crop_that_would_take_the_memory_of_a_batch_is_refused(monkeypatch):
    monkeypatch.setattr(gpu_decode, "MAX_PIXELS", 40 * 30)
    assert isinstance(gpu_decode.plan(photo(40, 30), crop_view((0, 0, 40, 30), 8)), Job)
    assert gpu_decode.plan(photo(41, 30), crop_view((0, 0, 41, 30), 8)) == "too large"
    assert gpu_decode.plan(photo(40, 30), None) == "unsized"


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), max_size=40))
def test_groups_hold_everything_once_and_stay_small(sizes):
    groups = gpu_decode.groups_of({i: (0, 0, w, h) for i, (w, h) in enumerate(sizes)})
    assert sorted(itertools.chain(*groups)) == list(range(len(sizes)))
    for group in groups:
        padded = len(group) * max(sizes[i][0] for i in group) * max(sizes[i][1] for i in group)
        assert len(group) == 1 or padded <= gpu_decode.GROUP_PIXELS


# --- resizing ------------------------------------------------------------------------------------------------------

VIEWS = {
    "shrunk": crop_view((11, 20, 300, 200), 64),
    "enlarged": crop_view((30, 17, 40, 33), 64),
    "mixed and mirrored": crop_view((0, 3, 350, 50), 64, mirrored=True),
    "a corner, mirrored": crop_view((355, 235, 5, 5), 64, mirrored=True),
    "one pixel": crop_view((100, 100, 1, 1), 64),
    "centre": centre_view(360, 240, 80, 64),
    "all": crop_view((0, 0, 360, 240), 64),
}


def test_views_are_resized_as_pillow_does_all_sizes_together():
    body = photo(360, 240, quality=95)
    decoder = GpuDecoder(CPU, ByPillow())
    images_B3SS, refused = decoder([body] * len(VIEWS), list(VIEWS.values()), 64)
    found = {name: psnr(images_B3SS[i], reference(body, view, 64)) for i, (name, view) in enumerate(VIEWS.items())}
    assert {name: db for name, db in found.items() if db < 50} == {}
    # A crop of one pixel has one colour: right, but the reference decoder is used.
    assert ([list(VIEWS)[i] for i in refused], decoder.counts) == (
        ["one pixel"],
        {"gpu": len(VIEWS) - 1, "of one colour": 1},
    )


class Products(TorchDispatchMode):
    """The types of what is multiplied as matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if "mm" in str(op):
            self.types |= {arg.dtype for arg in args if isinstance(arg, torch.Tensor)}
        return op(*args, **(kwargs or {}))


def test_the_trainers_tf32_has_no_part_in_pixels():
    """torch rounds float32 products to TF32 for a whole process, other threads too: so none of these may be float32."""
    view = View(3, 4, 30, 20, 16, 16, 0, 0)
    with Products() as products:
        gpu_decode.resize(torch.zeros(1, 40, 50, 3, dtype=torch.uint8), [view], [(0, 0, 50, 40)], 16)
    assert products.types == {torch.float64}


def test_nothing_outside_of_the_crop_has_a_part_in_it():
    picture = np.zeros((1, 60, 60, 3), np.uint8)
    picture[0, 10:30, 10:40] = 77
    view = crop_view((10, 10, 30, 20), 16)
    assert (gpu_decode.resize(torch.from_numpy(picture), [view], [(0, 0, 60, 60)], 16) == 77).all()


# --- checks --------------------------------------------------------------------------------------------------------


def test_every_picture_is_checked_and_the_others_are_kept():
    def spoil(number: int, slot: torch.Tensor) -> bool:
        if number == 1:
            return False  # the library says so
        if number == 2:
            slot[-1] = torch.tensor(SENTINEL, dtype=torch.uint8)  # it says nothing, and stops before the last row
        if number == 3:
            slot[:] = torch.tensor(SENTINEL, dtype=torch.uint8)  # it has not begun
        if number == 4:
            slot[:] = 128
        return True

    bodies = [memoryview(photo(50 + i, 40, i)) for i in range(6)]
    views = [crop_view((1, 1, 48, 38), 24)] * 6
    decoder = GpuDecoder(CPU, ByPillow(spoil))
    images_B3SS, refused = decoder(bodies, views, 24)
    assert refused == [1, 2, 3, 4]
    assert decoder.counts == {"gpu": 2, "not decoded": 1, "not written": 2, "of one colour": 1}
    assert decoder.report() == {
        "decoder": "by Pillow",
        "device": "cpu",
        "gpu": 2,
        "cpu": {"not decoded": 1, "not written": 2, "of one colour": 1},
    }
    for i in (0, 5):
        assert psnr(images_B3SS[i], reference(bytes(bodies[i]), views[i], 24)) >= 50


def test_batches_are_the_cpus_but_for_rounding_whatever_is_refused(tmp_path):
    """Training batches: what is refused comes from the CPU, what is bad is replaced, and all of it is counted."""
    base = str(tmp_path)
    make_dataset(base, [30])
    rows = rows_of(30, 10)
    rows[2]["body"] = photo(32, 32, 5, progressive=True)
    rows[4]["body"] = rows[4]["body"][:200]
    write_unit(base, 1, rows)
    manifest = make_version(base, "with a progressive and a broken one")

    def batches(device):
        stream = Stream(manifest, Order(seed=1, lanes=4, chunk=4, window=2), 10)
        taken = list(itertools.islice(train_batches(stream, 16, Augment(), 5, device=device), 4))
        stream.close()
        return taken

    decoder = GpuDecoder(CPU, ByPillow(lambda number, slot: number != 7))
    ours, theirs = batches(decoder), batches(None)
    assert [b.keys for b in ours] == [b.keys for b in theirs]
    assert [b.events for b in ours] == [b.events for b in theirs]
    assert sum(len(b.events) for b in ours) == 1
    for mine, other in zip(ours, theirs):
        assert psnr(mine.images_B3HW, other.images_B3HW) >= 50
    counts = decoder.counts  # of the batches that were decoded ahead, too
    assert sum(counts.values()) >= 40
    assert (counts["progressive"] > 0, counts["unreadable"] > 0, counts["not decoded"]) == (True, True, 1)


# --- choosing ------------------------------------------------------------------------------------------------------


def test_a_run_on_the_cpu_decodes_there_unless_the_gpu_is_asked_for(tmp_path):
    assert gpu_decode.chosen("cpu", torch.device("cuda", 0)) is None
    assert gpu_decode.chosen("auto", CPU) is None
    data = make_dataset(tmp_path / "data", [20]).dataset
    with pytest.raises(ValueError, match="decoder is gpu, but the run's device is cpu: use --decoder cpu"):
        train.run(config(data, tmp_path / "run", device="cpu", decoder="gpu"))
    assert not store.names(str(tmp_path / "run"))


def test_a_rank_decodes_on_its_own_gpu_with_its_share_of_the_cores(tmp_path, monkeypatch):
    """Ray Train makes a worker's GPU the current one; so does torchrun's user."""
    asked = []

    def chosen(*how) -> None:
        asked.append(how)
        raise ValueError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(gpu_decode, "chosen", chosen)
    with pytest.raises(ValueError, match="far enough"):
        train.run(config(tmp_path, tmp_path / "run", device="cuda", decoder="gpu", threads=0))
    assert asked == [("gpu", torch.device("cuda", 1), 8)]
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named_with_what_to_install(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="sees no GPU"):
        gpu_decode.library(cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "12.8")

    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(gpu_decode.importlib, "import_module", missing)
    with pytest.raises(
        ValueError, match=r"decoder is gpu, .*nvimgcodec .*pip install 'nvidia-nvimgcodec-cu12\[nvjpeg\]'"
    ):
        gpu_decode.chosen("gpu", cuda)
    assert gpu_decode.chosen("auto", cuda) is None


# --- the libraries -------------------------------------------------------------------------------------------------


def decode_photos(decoder: GpuDecoder, least: float) -> None:
    """Crops of every plain kind come out as the reference has them; what is not plain is refused, with its reason."""
    kinds = [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"mode": "L"},
        {"subsampling": 2, "quality": 95},
    ]
    plain = [photo(200 + 37 * i, 150 + 11 * i, i, **kinds[i % 5]) for i in range(20)]
    views = [crop_view((3 * i, 2 * i, 100 + 9 * i, 90 + 4 * i), 96, i % 2 == 0) for i in range(20)]
    bodies = [*plain, *REFUSED.values()]
    images_B3SS, refused = decoder([memoryview(b) for b in bodies], views + [crop_view((0, 0, 20, 20), 96)] * 8, 96)
    assert refused == list(range(20, 28))
    assert decoder.counts == {"gpu": 20} | dict.fromkeys(REFUSED, 1)
    found = [psnr(images_B3SS[i].cpu(), reference(plain[i], views[i], 96)) for i in range(20)]
    assert min(found) >= least, found


def no_memory_is_held(decoder: GpuDecoder) -> None:
    body = bytearray(photo(64, 48))
    with memoryview(body) as lent:
        decoder([lent], [crop_view((0, 0, 64, 48), 32)], 32)
    body.clear()  # BufferError if anything still looks at it


def test_nvimagecodec_decodes_regions_into_our_slots():
    pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu is not installed")
    decode_photos(GpuDecoder(CPU, NvImageCodec(CPU)), 50)
    no_memory_is_held(GpuDecoder(CPU, NvImageCodec(CPU)))


def test_nvimagecodec_says_which_body_it_cannot_decode():
    pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu is not installed")
    slots = [torch.zeros(20, 30, 3, dtype=torch.uint8) for _ in range(3)]
    good = photo(64, 48)
    said = NvImageCodec(CPU).fill(slots, [good, b"\xff\xd8\xff not a picture", good], [(4, 5, 30, 20)] * 3)
    assert said == [True, False, True]
    assert torch.equal(slots[0], slots[2])
    assert slots[1].max() == 0


@no_gpu
@pytest.mark.parametrize(("library", "least"), [(NvImageCodec, 50), (TorchCodec, 35)])
def test_the_gpu_agrees_with_the_reference(library, least):
    """torchcodec repeats chroma instead of interpolating it: it cannot come closer."""
    pytest.importorskip("nvidia.nvimgcodec" if library is NvImageCodec else "torchcodec", reason="not installed")
    device = torch.device("cuda", 0)
    decode_photos(GpuDecoder(device, library(device)), least)
    no_memory_is_held(GpuDecoder(device, library(device)))


@no_gpu
def test_batches_are_the_same_while_the_gpu_is_busy():
    """The engines may not write before, nor the consumer read after, what their streams have to do with the memory."""
    pytest.importorskip("nvidia.nvimgcodec", reason="not installed")
    device = torch.device("cuda", 0)
    decoder = GpuDecoder(device, NvImageCodec(device))
    bodies = [photo(300, 200, i) for i in range(64)]
    views = [crop_view((10, 10, 250, 150), 224)] * 64
    quiet = decoder(bodies, views, 224)[0].clone()
    work = torch.randn(4096, 4096, device=device)
    for _ in range(20):
        for _ in range(20):
            work = torch.tanh(work @ work)
        images_B3SS, refused = decoder(bodies, views, 224)
        later = images_B3SS.float().sum()  # on the consumer's busy stream, long after the name is gone
        del images_B3SS
        assert refused == []
        assert later.item() == quiet.float().sum().item()
