"""JPEG bodies and their views -> a uint8 batch on the GPU: sort, decode the crops, check each, resize, flip.

The CPU path (xtra/data.py) is the reference: it decodes pictures refused here, and only it may call a sample bad. A
batch goes through `GpuDecoder` on its own CUDA stream, in a thread that runs ahead of the consumer:

1. `refusal` reads the header: progressive, CMYK, unusually sampled, rotated or truncated pictures never reach the GPU.
2. Crops of similar size get slots in one padded buffer painted with SENTINEL; the library decodes each into its slot.
3. A crop is good if the library reports success, no row of its slot is still SENTINEL, and the result has more than one
   colour. (nvJPEG has one status for a whole batch, and has reported a skipped picture as decoded.) Damage that the
   hardware decodes to some picture is not noticed: `xtra check --decode` finds it.
4. `resize` makes the batch: Pillow's antialiased bicubic filter as two matrix products, whose weights also mirror.

Speed: the host spends about 60 us of Python per picture (headers, memory views), perhaps more than a large GPU's
engines do: one decoder may not saturate them. `xtra bench gpu-decode` measures one and two callers.

This was written without a GPU. With the CPU as its device, everything except the CUDA streams runs, on nvImageCodec's
bundled libjpeg-turbo; tests/xtra/test_gpu_decode.py does so if the library is installed.

Shapes: B pictures in a batch, G in a group of similar size in slots of H x W pixels; results are S x S pixels.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from shards.pixels import View, image, jpeg

Body = bytes | memoryview
Region = tuple[int, int, int, int]  # x, y, width, height; whole pixels of the stored picture

SAMPLINGS = (None, "4:4:4", "4:2:2", "4:2:0")  # of the chroma; None is gray. The hardware refuses 4:1:1 and rarer ones
MAX_SIDE = 16_384  # pixels, of the whole picture
MAX_PIXELS = 1 << 25  # of a region: a larger one would take the memory of a whole batch
GROUP_PIXELS = 1 << 23  # of a group's slots with padding: about 500 MB of intermediates
# nvJPEG before 13.2 interpolates chroma wrongly in the outermost pixels of a region (nvImageCodec's hw_decoder.cpp):
# the decoded region is larger than the crop by this margin on every side, which is cut off while resizing.
MARGIN = 2
ON_CPU = "XTRA_GPU_DECODE_ON_CPU"
SENTINEL = (1, 254, 3)  # RGB; a picture that really has a row of only this colour is decoded by the CPU, harmlessly


# --- sorting -------------------------------------------------------------------------------------------------------


def refusal(opened: image.Opened) -> str | None:
    """Why a picture is left to the CPU, by its header, in a word or two; None if the GPU may decode it."""
    head, photo = opened.header, opened.pixels
    if head.format != "jpeg" or not isinstance(photo, jpeg.Jpeg):
        return "not a jpeg"
    if head.progressive:
        return "progressive"
    if head.mode not in ("RGB", "L"):
        return "cmyk"
    if head.subsampling not in SAMPLINGS:
        return "sampling"
    components = [layer[0] for layer in photo.layer]
    if photo.info.get("adobe_transform", 1) != 1 or components not in ([1], [1, 2, 3]):
        return "colour space"  # libjpeg guesses it by rules; nvJPEG may have others
    if head.orientation != 1:
        return "orientation"  # views show the upright picture
    if max(head.width, head.height) > MAX_SIDE:
        return "too large"
    if not opened.body.endswith(jpeg.END):
        return "cut off"  # or has trailing data; the reference checks closely
    return None


@dataclass(frozen=True)
class Job:
    """A picture for the GPU."""

    body: Body
    view: View
    region: Region  # to decode: the view's box with MARGIN around it, within the picture


def plan(body: Body, view: View | None) -> Job | str:
    """The job for a picture, or why it is refused."""
    try:
        opened = image.read(bytes(body))
    except image.Undecodable:
        return "unreadable"
    if (reason := refusal(opened)) is not None:
        return reason
    if view is None:
        return "unsized"
    left, top = max(0, view.x - MARGIN), max(0, view.y - MARGIN)
    right = min(opened.header.width, view.x + view.width + MARGIN)
    bottom = min(opened.header.height, view.y + view.height + MARGIN)
    region = (left, top, right - left, bottom - top)
    return Job(body, view, region) if region[2] * region[3] <= MAX_PIXELS else "too large"


def groups_of(regions: dict[int, Region]) -> list[list[int]]:
    """The regions' keys in groups of similar size, whose padded slots have at most GROUP_PIXELS (unless alone)."""
    groups: list[list[int]] = []
    wide = high = 0
    for i in sorted(regions, key=lambda i: max(regions[i][2:])):
        wide, high = max(wide, regions[i][2]), max(high, regions[i][3])
        if not groups or (len(groups[-1]) + 1) * wide * high > GROUP_PIXELS:
            groups.append([])
            wide, high = regions[i][2:]
        groups[-1].append(i)
    return groups


# --- resizing ------------------------------------------------------------------------------------------------------


def resize(slots_GHW3: Tensor, views: Sequence[View], regions: Sequence[Region], size: int) -> Tensor:
    """Slots (uint8) with these regions -> their views, uint8 [G, 3, size, size].

    Pillow's crop().resize(BICUBIC): rows first, rounded to whole numbers, then columns. (Pillow 13 starts with the
    columns if a picture shrinks more in height; then the rounding differs: 55 dB instead of 80 or more.)

    The products are in float64, which a training process's --tf32 does not affect: it applies to all threads' float32
    products, so pixels would depend on it. Training GPUs have about as much float64 as float32 throughput.
    """
    group, high, wide, _ = slots_GHW3.shape
    edges = [
        (v.x - x, v.width, v.width / v.to_width, v.left, v.y - y, v.height, v.height / v.to_height, v.top, v.mirrored)
        for v, (x, y, _, _) in zip(views, regions)
    ]
    edges_9G = torch.tensor(edges, dtype=torch.float32).T.to(slots_GHW3.device)
    across_GWS = weights(edges_9G[:4], wide, size, edges_9G[8] > 0)
    down_GHS = weights(edges_9G[4:8], high, size)
    rows_GRW = slots_GHW3.permute(0, 3, 1, 2).reshape(group, 3 * high, wide).double()
    rows_G3HS = torch.bmm(rows_GRW, across_GWS.double()).round_().clamp_(0, 255).view(group, 3, high, size)
    return torch.matmul(down_GHS.double().mT[:, None], rows_G3HS).round_().clamp_(0, 255).to(torch.uint8)


def weights(edges_4G: Tensor, span: int, size: int, mirror_G: Tensor | None = None) -> Tensor:
    """[G, span, size]: the weight of each of `span` input pixels in each of `size` output pixels, on the edges' device.

    The edges: `length` input pixels from `start` on are resized, `scale` of them to one output pixel; the first `skip`
    output pixels are dropped. Pillow's antialiased filter (Resample.c, a = -0.5): the kernel is stretched when the
    picture shrinks, and pixels outside the interval have weight 0.
    """
    start_G, length_G, scale_G, skip_G = edges_4G
    output_S = torch.arange(size, device=edges_4G.device) + 0.5
    centre_GS = start_G[:, None] + (output_S + skip_G[:, None]) * scale_G[:, None]
    if mirror_G is not None:
        centre_GS = torch.where(mirror_G[:, None], centre_GS.flip(1), centre_GS)
    input_P = torch.arange(span, device=edges_4G.device) + 0.5
    t = ((input_P[:, None] - centre_GS[:, None, :]) / scale_G.clamp(min=1)[:, None, None]).abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    kernel_GPS = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    inside_GP = (input_P > start_G[:, None]) & (input_P < (start_G + length_G)[:, None])
    kernel_GPS *= inside_GP[:, :, None]
    return kernel_GPS / kernel_GPS.sum(1, keepdim=True)


# --- libraries -----------------------------------------------------------------------------------------------------


class Library(Protocol):
    """Decodes regions of JPEGs into device memory."""

    name: str

    def fill(self, slots: Sequence[Tensor], bodies: Sequence[Body], regions: Sequence[Region]) -> list[bool]:
        """Decode each region into its slot (uint8 [h, w, 3]; rows may be padded), on the current stream. Returns for
        each whether the library reports success and the right size; keeps no reference to the bodies."""
        ...


class NvImageCodec:
    """nvImageCodec >= 0.9: decodes only the region, directly into its slot, on the JPEG engines if there are any.

    CPU_ONLY is not used on a GPU: a picture that the GPU refuses returns None, and is left to the reference.
    """

    name = "nvimgcodec"
    # Interpolate chroma as in libjpeg, also in regions, which nvJPEG before 13.2 would refuse (see MARGIN).
    OPTIONS = ":fancy_upsampling=1 :enable_roi_fancy_upsampling=1"

    def __init__(self, device: torch.device, threads: int = 2) -> None:
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # refusals are counted, not printed
        self._library = lib = importlib.import_module("nvidia.nvimgcodec")
        self._cuda = device.type == "cuda"
        if self._cuda:
            number = lib.NVIMGCODEC_DEVICE_CURRENT if device.index is None else device.index
            kinds = [lib.BackendKind.HW_GPU_ONLY, lib.BackendKind.GPU_ONLY, lib.BackendKind.HYBRID_CPU_GPU]
        else:
            number, kinds = lib.NVIMGCODEC_DEVICE_CPU_ONLY, [lib.BackendKind.CPU_ONLY]
        self._decoder = lib.Decoder(
            device_id=number,
            max_num_cpu_threads=max(threads, 2),  # with one, its fastest path is not used
            backends=[lib.Backend(kind) for kind in kinds],
            options=self.OPTIONS,
        )
        self._params = lib.DecodeParams(apply_exif_orientation=False, sample_format=lib.SampleFormat.I_RGB)

    def fill(self, slots: Sequence[Tensor], bodies: Sequence[Body], regions: Sequence[Region]) -> list[bool]:
        lib = self._library
        sources = [
            lib.CodeStream(body).get_sub_code_stream(0, lib.Region(y, x, y + h, x + w))
            for body, (x, y, w, h) in zip(bodies, regions)
        ]
        # It accepts GPU tensors through __cuda_array_interface__, and CPU memory only as arrays.
        stream = torch.cuda.current_stream(slots[0].device).cuda_stream if self._cuda else 0
        memory = slots if self._cuda else [slot.numpy() for slot in slots]
        images = lib.as_images(memory, stream, sample_format=lib.SampleFormat.I_RGB)
        done = self._decoder.decode(sources, images=images, params=self._params, cuda_stream=stream)
        return [made is not None and made.shape == tuple(slot.shape) for made, slot in zip(done, slots)]


class TorchCodec:
    """torchcodec >= 0.17: decodes whole pictures on the JPEG engines, from which regions are copied.

    The second choice: more pixels, and chroma is repeated, not interpolated, so it is further from the reference.
    """

    name = "torchcodec"

    def __init__(self, device: torch.device) -> None:
        self._decode = importlib.import_module("torchcodec.decoders").decode_jpeg
        self._device = device

    def fill(self, slots: Sequence[Tensor], bodies: Sequence[Body], regions: Sequence[Region]) -> list[bool]:
        encoded = [bytes(body) for body in bodies]
        heads = [image.header(body) for body in encoded]
        # Its memory comes from torch's pool, probably from the blocks just freed: these are painted, so that a skipped
        # picture is noticed in the slot that it is copied to.
        blocks = [painted(self._device)[:, None, None].repeat(1, head.height, head.width) for head in heads]
        del blocks
        try:
            pictures = self._decode(encoded, mode="RGB", device=self._device)
        except RuntimeError:  # it does not say which picture failed: the reference decodes all
            return [False] * len(encoded)
        done = [tuple(made.shape) == (3, head.height, head.width) for made, head in zip(pictures, heads)]
        for slot, made, right, (x, y, w, h) in zip(slots, pictures, done, regions):
            if right:
                slot.copy_(made[:, y : y + h, x : x + w].permute(1, 2, 0))
        return done


LIBRARIES = ("nvimgcodec", "torchcodec")  # best first


def library(device: torch.device, threads: int = 2, names: Sequence[str] = LIBRARIES) -> Library:
    """The first of these libraries that is installed. Raises ValueError that says what to install."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} sees no GPU")
    missing = []
    for name in names:
        try:
            return NvImageCodec(device, threads) if name == "nvimgcodec" else TorchCodec(device)
        except (ImportError, OSError, RuntimeError) as error:  # also if a CUDA library that they need is missing
            missing.append(f"{name} ({' '.join(str(error).split())[:100]})")
    cuda = (torch.version.cuda or "13").split(".")[0]
    install = f"pip install 'nvidia-nvimgcodec-cu{cuda}[nvjpeg]' torchcodec"
    raise ValueError(f"no GPU decoder is installed: {', '.join(missing)}: {install}")


# --- batches -------------------------------------------------------------------------------------------------------


class GpuDecoder:
    """A `DeviceDecoder` (xtra/data.py). Only one thread may call it at a time; any may read `counts`.

    Its batches are for the stream that is current when it is made, the trainer's.
    """

    def __init__(self, device: torch.device, library: Library) -> None:
        self.device, self.library = device, library
        self.counts: Counter[str] = Counter()  # pictures so far, by "gpu" or the reason why the CPU decoded them
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._consumer = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def __call__(self, bodies: Sequence[Body], views: Sequence[View | None], size: int) -> tuple[Tensor, list[int]]:
        """uint8 [B, 3, size, size] on the device, complete, and the indices left to the CPU, with arbitrary pixels. A
        view is None if the header was not read: such a picture is refused.

        The host waits for the GPU here, so that the training thread does not have to.
        """
        jobs: dict[int, Job] = {}
        refused: dict[int, str] = {}
        for i, (body, view) in enumerate(zip(bodies, views)):
            planned = plan(body, view)
            if isinstance(planned, Job):
                jobs[i] = planned
            else:
                refused[i] = planned
        with torch.cuda.stream(self._stream) if self._stream is not None else contextlib.nullcontext():
            out_B3SS = torch.empty(len(bodies), 3, size, size, dtype=torch.uint8, device=self.device)
            for group in groups_of({i: job.region for i, job in jobs.items()}):
                pixels_G3SS, wrong_G = self._decode([jobs[i] for i in group], size)
                out_B3SS[torch.tensor(group, device=self.device)] = pixels_G3SS
                refused |= {i: wrong for i, wrong in zip(group, wrong_G) if wrong}
        if self._stream is not None and self._consumer is not None:
            self._stream.synchronize()
            out_B3SS.record_stream(self._consumer)  # its memory is reused only after that stream is done with it
        self.counts.update(refused.values())
        self.counts["gpu"] += len(bodies) - len(refused)
        return out_B3SS, sorted(refused)

    def report(self) -> dict[str, Any]:
        """For a run's events: the decoder, how many pictures the GPU decoded, and how many the CPU, by reason."""
        counts = dict(self.counts)
        return {"decoder": self.library.name, "device": str(self.device), "gpu": counts.pop("gpu", 0), "cpu": counts}

    def _decode(self, jobs: Sequence[Job], size: int) -> tuple[Tensor, list[str | None]]:
        """The views of pictures of similar size, uint8 [G, 3, size, size], and each one's error or None."""
        regions = [job.region for job in jobs]
        wide, high = (max(region[side] for region in regions) for side in (2, 3))
        slots_GHW3 = torch.empty(len(jobs), high, wide, 3, dtype=torch.uint8, device=self.device)
        slots_GHW3[:] = painted(self.device)
        # nvJPEG's engines (H100) may write before earlier work on the stream is done: painting these slots, and reading
        # the previous ones, whose memory they may reuse.
        self._wait()
        slots = [slot[:h, :w] for slot, (_, _, w, h) in zip(slots_GHW3, regions)]
        said_G = self.library.fill(slots, [job.body for job in jobs], regions)
        self._wait()
        pixels_G3SS = resize(slots_GHW3, [job.view for job in jobs], regions, size)
        written_G = written(slots_GHW3, [h for _, _, _, h in regions])
        colourful_G = (pixels_G3SS.flatten(2).amax(2) > pixels_G3SS.flatten(2).amin(2)).any(1)
        checks = zip(said_G, *torch.stack([written_G, colourful_G]).tolist())
        wrong_G = [
            "not decoded" if not said else "not written" if not written else None if colourful else "of one colour"
            for said, written, colourful in checks
        ]
        return pixels_G3SS, wrong_G

    def _wait(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()


def painted(device: torch.device) -> Tensor:
    """[3]: the colour of memory before decoding."""
    return torch.tensor(SENTINEL, dtype=torch.uint8, device=device)


def written(slots_GHW3: Tensor, heights: Sequence[int]) -> Tensor:
    """[G]: whether none of the first `height` rows of a slot still has the painted colour."""
    left_GH = (slots_GHW3 == painted(slots_GHW3.device)).flatten(2).all(2)
    row_H = torch.arange(slots_GHW3.shape[1], device=slots_GHW3.device)
    wanted_GH = row_H < torch.tensor(heights, device=slots_GHW3.device)[:, None]
    return ~(left_GH & wanted_GH).any(1)


def chosen(decoder: Literal["cpu", "gpu", "auto"], device: torch.device, threads: int = 2) -> GpuDecoder | None:
    """The decoder for `--decoder` on a run's device; None: the CPU decodes.

    "auto" uses the GPU if the run is on one and a library is installed. Raises ValueError that says what to install.
    With XTRA_GPU_DECODE_ON_CPU in the environment, "gpu" on a CPU is nvImageCodec's own CPU decoder, for tests.
    """
    if decoder == "cpu" or (decoder == "auto" and device.type != "cuda"):
        return None
    if device.type != "cuda" and ON_CPU not in os.environ:
        raise ValueError(f"decoder is gpu, but the run's device is {device}: use --decoder cpu or --device cuda")
    try:
        return GpuDecoder(device, library(device, threads))
    except ValueError as why:
        if decoder == "auto":
            return None
        raise ValueError(f"decoder is gpu, but {why}; or use --decoder cpu") from None
