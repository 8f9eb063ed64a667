"""Images per CPU second from tars on a local disk to cropped uint8 batches: ours against webdataset and Pillow, and
against torchvision.

All read the same tars (our datasets are plain WebDataset tars), crop the same boxes of the same pictures at 224
pixels, and run in one process each, pinned to one core; CPU is the user + system time of a pass, the median of
interleaved rounds, without start-up. Ours shuffles and draws its boxes while it is measured; webdataset reads in order
with given boxes; torchvision is handed the bodies in memory, in order, so that it has no reader to pay for. Each writes
its pixels into a batch once. PSNR is against the pixels of webdataset + Pillow; 99 means equal to the bit.

Also what the full check of a picture costs in this process (`image.check`, as ingest does it), and of the same picture
as a progressive JPEG: of the pictures, and of ones of half the side.

Rows: settings of Pillow and of pillow-simd (built here, if the headers are installed) under webdataset; torchvision's
decode_jpeg and antialiased bicubic of uint8; ours with each Pillow, and with `crop.c` added to each. Pictures are
synthetic, or from `--images`, unchanged or enlarged.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin

from ingest.sets import folders
from jobs import pillow_simd
from jobs.bench import result
from jobs.bench.origin import body_of, photographs, real_photographs
from jobs.bench.peers import Batches, environments, serve
from shards import store
from shards.manifest import Manifest, read_manifest
from shards.pixels import crop, image
from shards.stream import Order, Stream, once
from xtra.data import Augment, RandomCrop, train_batches

DISTINCT = 250  # pictures; further images are copies with another comment
MEAN_BYTES = 110_000  # per picture, ImageNet's mean
COMPARED = 400  # images, for the PSNR
CHECKED = 100  # pictures
EQUAL = 99.0  # dB
SEED = 0
WEBDATASET = environments.Peer(
    "webdataset", ("webdataset==1.0.2", "pillow==13.0.0", "numpy<3"), "webdataset, PIL, numpy"
)
TORCHVISION = environments.Peer(
    "torchvision", ("torchvision==0.28.0", "numpy<3"), "torch, numpy", first=("torch==2.13.0",)
)


@dataclass(frozen=True)
class Config:
    """What to measure."""

    images: str | None = None  # a folder or tar of real JPEGs; default: synthetic ones of about 500x375
    enlarge: float = 1.0  # scale their sides and re-encode to 110 KB on average: 1.8 turns 256 px into ImageNet's size
    count: int = 1000
    size: int = 224
    batch: int = 64
    rounds: int = 5
    scratch: str | None = None  # a folder for the tars, twice 110 KB per image

    def __post_init__(self) -> None:
        for name, least in (("count", 10), ("size", 8), ("batch", 1), ("rounds", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.enlarge <= 0:
            raise ValueError(f"enlarge is {self.enlarge}: it must be above 0")


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    reader: str  # "webdataset", "torchvision" or "ours"
    pillow: str  # "pillow" or "pillow-simd"; "no pillow" under torchvision
    setting: str

    @property
    def name(self) -> str:
        return f"{self.reader}, {self.pillow}, {self.setting}"


REFERENCE = Variant("webdataset", "pillow", "crop")
VARIANTS = [
    *(
        Variant("webdataset", build, setting)
        for build in ("pillow", "pillow-simd")
        for setting in ("crop", "box", "draft")
    ),
    Variant("torchvision", "no pillow", "antialias"),
    *(Variant("ours", build, setting) for setting in ("Pillow alone", "crop.c") for build in ("pillow", "pillow-simd")),
]


def run(config: Config) -> dict[str, Any]:
    """Measure all variants that can run here and print a line each. Raises ValueError if pictures or peers fail."""
    fast = _pillow_simd()
    variants = [variant for variant in VARIANTS if variant.pillow != "pillow-simd" or isinstance(fast, Path)]
    peers = {peer.name: peer for peer in (WEBDATASET, TORCHVISION)}
    pythons = {name: environments.build(peers[name]) for name in peers if name in {one.reader for one in variants}}
    if not isinstance(fast, Path):
        print(f"without pillow-simd: {fast}", flush=True)
    with tempfile.TemporaryDirectory(prefix="xtra-bench-", dir=config.scratch) as name:
        folder = Path(name)
        manifest = _dataset(config, folder)
        spec = _spec(config, manifest, folder)
        with ExitStack() as stack:
            clients = {variant: _Client(variant, spec, pythons, fast, stack) for variant in variants}
            likeness = _likeness(clients, folder)
            passes = [_round(clients, turn) for turn in range(config.rounds)]
    rows = [
        _row(client, [done[variant] for done in passes], passes, likeness[variant])
        for variant, client in clients.items()
    ]
    for row in rows:
        row |= {"mean_bytes": spec["mean_bytes"], "images": manifest.samples}
        print(_line(row), flush=True)
    large = pictures(config)[:CHECKED]
    found = [checks(bodies, config.rounds) for bodies in (large, [_halved(body) for body in large])]
    for each in found:
        print(_check_line(each), flush=True)
    return result("decode", rows, ratios_of(rows)) | {"checks": found}


def ratios_of(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Ours as set up by default, on Pillow and on pillow-simd, over webdataset + Pillow; also over torchvision."""
    named = {(row["reader"], row["pillow"], row["setting"]): row for row in rows}
    ours = named.get(("ours", "pillow", "crop.c")) or named["ours", "pillow", "Pillow alone"]
    ratios = {"speedup_vs_pillow": ours["ratio"], "psnr_db": ours["psnr_db"]}
    other = named.get(("ours", "pillow-simd", "crop.c")) or named.get(("ours", "pillow-simd", "Pillow alone"))
    if other is not None:
        ratios |= {"speedup_vs_pillow_on_simd": other["ratio"], "psnr_db_on_simd": other["psnr_db"]}
    theirs = named.get(("torchvision", "no pillow", "antialias"))
    if theirs is not None:
        ratios |= {"speedup_vs_torchvision": theirs["cpu_ms"] / ours["cpu_ms"]}
    return ratios


# --- pictures ------------------------------------------------------------------------------------------------------


def pictures(config: Config) -> list[bytes]:
    """The distinct pictures. Raises ValueError if there is no JPEG at `images`."""
    distinct = min(DISTINCT, config.count)
    if config.images is None:
        return photographs(distinct, MEAN_BYTES)
    real = real_photographs(Path(config.images), distinct)
    if config.enlarge == 1:
        return real
    large = [_enlarged(body, config.enlarge) for body in real]
    low, high = 30, 98
    while high - low > 1:  # the quality that gives the mean size
        middle = (low + high) // 2
        some = [len(_encoded(picture, middle)) for picture in large[:: max(1, len(large) // 40)]]
        low, high = (middle, high) if np.mean(some) < MEAN_BYTES else (low, middle)
    return [_encoded(picture, high) for picture in large]


def _enlarged(body: bytes, by: float) -> Image.Image:
    picture = image.decode(body)
    return picture.resize((round(picture.width * by), round(picture.height * by)), Image.Resampling.BICUBIC)


def _encoded(picture: Image.Image, quality: int) -> bytes:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _dataset(config: Config, folder: Path) -> Manifest:
    """The pictures as a dataset of ours, whose tars webdataset reads as well."""
    pool, source = pictures(config), folder / "source" / "photographs"
    source.mkdir(parents=True)
    for n in range(config.count):
        (source / f"{n:06d}.jpg").write_bytes(body_of(pool, f"{n:06d}"))
    data = folder / "dataset"
    done = folders.run(folders.Config(str(source.parent), str(data), unit=500, scratch=str(folder)))
    if done.kept != config.count:
        raise ValueError(
            f"{config.images}: {done.links - done.kept} of {done.links} pictures are unusable: {done.reasons}"
        )
    return read_manifest(str(data))


def _spec(config: Config, manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The specification for all clients: the tars, each picture's crop, and the pictures to compare."""
    transform = RandomCrop(config.size, Augment(), SEED)
    views, total = {}, 0
    for encoded in once(manifest, 256):
        for key, body, draws in zip(
            encoded.keys, encoded.bodies, transform.draw(encoded.place.epoch, encoded.place.sample)
        ):
            head = image.header(bytes(body))
            view = transform.view(head.width, head.height, draws)
            views[key] = [*view[:4], view.mirrored]
            total += len(body)
        encoded.release()
    path = folder / "views.json"
    path.write_text(json.dumps({"views": views, "compare": sorted(views)[:COMPARED]}))
    return {
        "data": str(manifest.dataset),
        "tars": [str(store.local_path(manifest.tar_url(shard))) for shard in range(len(manifest.shards))],
        "views": str(path),
        "size": config.size,
        "batch": config.batch,
        "seed": SEED,
        "core": min(os.sched_getaffinity(0)),
        "mean_bytes": total / len(views),
    }


def _halved(body: bytes) -> bytes:
    """The picture at half the side, with the same tables of quantisation."""
    opened, out = _jpeg(body), io.BytesIO()
    opened.reduce(2).save(out, "JPEG", qtables=opened.quantization, subsampling=JpegImagePlugin.get_sampling(opened))
    return out.getvalue()


def progressive(body: bytes) -> bytes:
    """The picture as a progressive JPEG, with the same tables of quantisation and sampling."""
    opened, out = _jpeg(body), io.BytesIO()
    opened.load()
    ImageFile.MAXBLOCK = max(ImageFile.MAXBLOCK, 4 * len(body))  # type: ignore[bad-assignment]  # all of it must fit
    opened.save(out, "JPEG", quality="keep", progressive=True)
    return out.getvalue()


def _jpeg(body: bytes) -> JpegImagePlugin.JpegImageFile:
    return cast(JpegImagePlugin.JpegImageFile, Image.open(io.BytesIO(body)))


# --- clients -------------------------------------------------------------------------------------------------------


class _Client:
    """A variant's process, which makes a pass on command."""

    def __init__(
        self, variant: Variant, spec: dict[str, Any], pythons: dict[str, Path], fast: Path | str, stack: ExitStack
    ) -> None:
        here = Path(__file__).parent
        spec = spec | {"setting": variant.setting, "accelerator": variant.setting == "crop.c"}
        if variant.reader == "ours":
            command, paths = [sys.executable, "-m", "jobs.bench.decode"], [str(here.parents[1])]
        else:
            script = ["torchvision_crop.py"] if variant.reader == "torchvision" else ["-P", "decode.py"]
            command, paths = [str(pythons[variant.reader]), *script[:-1], str(here / "peers" / script[-1])], []
        if variant.pillow == "pillow-simd":
            paths.insert(0, str(fast))
        self.variant = variant
        self._process = stack.enter_context(
            subprocess.Popen(
                [*command, json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environments.environment() | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
                text=True,
            )
        )
        stack.callback(self._process.kill)
        self.about = self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        print(command, file=cast(io.TextIOBase, self._process.stdin), flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = cast(io.TextIOBase, self._process.stdout).readline()
        if not line:
            raise ValueError(f"{self.variant.name}: its process ended with status {self._process.wait()}; see above")
        return json.loads(line)


def _pillow_simd() -> Path | str:
    """A folder with pillow-simd for this Python, built now if necessary; or why there is none."""
    if missing := pillow_simd.missing_headers():
        return f"no {', '.join(missing)}: see xtra doctor for the packages"
    if not pillow_simd.has_avx2():
        return "this processor has no AVX2"
    folder = environments.ROOT / f"{pillow_simd.PILLOW_SIMD}-{sys.version_info[0]}.{sys.version_info[1]}"
    if not (folder / "PIL").exists():
        print(f"building {pillow_simd.PILLOW_SIMD} in {folder}", file=sys.stderr, flush=True)
        aside = folder.with_suffix(".new")
        shutil.rmtree(aside, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps"]
        built = subprocess.run(
            [*pip, "--no-cache-dir", "--no-binary", "pillow-simd", "--target", str(aside), pillow_simd.PILLOW_SIMD],
            env=pillow_simd.build_environment(),
            capture_output=True,
            check=False,
        )
        if built.returncode:
            return f"{pillow_simd.PILLOW_SIMD} does not build here"
        aside.rename(folder)
    return folder


# --- numbers -------------------------------------------------------------------------------------------------------


def psnr(pixels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """[N] dB of uint8 [N, ...] against another; EQUAL for those that are the same to the bit."""
    error_N = np.array([np.mean((one.astype(np.float64) - other) ** 2) for one, other in zip(pixels, wanted)])
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(255**2 / error_N), EQUAL)


def _likeness(clients: dict[Variant, _Client], folder: Path) -> dict[Variant, np.ndarray]:
    """Each variant's PSNR against the reference, image by image. Also warms everything up."""
    wanted, found = None, {}
    for variant, client in clients.items():  # the reference comes first
        path = folder / "pixels.npy"
        client.ask(f"pixels {path}")
        pixels = np.load(path)
        wanted = pixels if wanted is None else wanted
        found[variant] = psnr(pixels, wanted)
    return found


def _round(clients: dict[Variant, _Client], turn: int) -> dict[Variant, float]:
    """CPU seconds per image; the order changes from round to round."""
    order = list(clients.values())
    order = order[turn % len(order) :] + order[: turn % len(order)]
    done = {client.variant: client.ask("pass") for client in (order if turn % 2 == 0 else reversed(order))}
    return {variant: answer["cpu"] / answer["images"] for variant, answer in done.items()}


def _row(
    client: _Client, costs: list[float], passes: list[dict[Variant, float]], likeness_N: np.ndarray
) -> dict[str, Any]:
    cpu = statistics.median(costs)
    return dataclasses.asdict(client.variant) | {
        "build": client.about["build"],
        "cpu_ms": 1000 * cpu,
        "cpu_ms_least": 1000 * min(costs),
        "cpu_ms_most": 1000 * max(costs),
        "images_per_cpu_s": 1 / cpu,
        "ratio": statistics.median(done[REFERENCE] / done[client.variant] for done in passes),
        "psnr_db": float(likeness_N.mean()),
        "psnr_p5_db": float(np.percentile(likeness_N, 5)),
        "rounds": len(passes),
    }


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['reader']:10} {row['build']:26} {row['setting']:12} {row['images_per_cpu_s']:6.0f} images per CPU s  "
        f"{row['cpu_ms']:.3f} ms ({row['cpu_ms_least']:.3f} to {row['cpu_ms_most']:.3f})  "
        f"{row['ratio']:.2f}x  {row['psnr_db']:.1f} dB (5th percentile {row['psnr_p5_db']:.1f})"
    )


def checks(bodies: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """CPU of `image.check` on baseline JPEGs and on progressive ones of the same pictures, ms each: medians of rounds
    in turns, and their extremes. Raises what `image.check` raises."""
    kinds = {"baseline": bodies, "progressive": [progressive(body) for body in bodies]}
    spent: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(-1, rounds):  # the first warms up
        for kind in sorted(kinds, reverse=turn % 2 == 1):
            began = time.thread_time()
            for body in kinds[kind]:
                image.check(body)
            spent[kind].append(1000 * (time.thread_time() - began) / len(bodies))
    found: dict[str, Any] = {"pictures": len(bodies), "rounds": rounds}
    for kind, (_, *each) in spent.items():
        found[f"{kind}_mean_bytes"] = sum(map(len, kinds[kind])) / len(bodies)
        found |= _spread(f"check_{kind}_ms", each)
    ratios = [one / other for one, other in zip(spent["progressive"][1:], spent["baseline"][1:])]
    return found | _spread("progressive_check_ratio", ratios)


def _spread(name: str, each: Sequence[float]) -> dict[str, float]:
    return {name: statistics.median(each), f"{name}_least": min(each), f"{name}_most": max(each)}


def _check_line(found: dict[str, Any]) -> str:
    def of(name: str, digits: int) -> str:
        middle, least, most = (f"{found[name + end]:.{digits}f}" for end in ("", "_least", "_most"))
        return f"{middle} ({least} to {most})"

    return (
        f"check of {found['pictures']} pictures of {found['baseline_mean_bytes'] / 1000:.0f} KB: "
        f"check_baseline_ms {of('check_baseline_ms', 3)}, check_progressive_ms {of('check_progressive_ms', 3)}, "
        f"progressive_check_ratio {of('progressive_check_ratio', 2)}"
    )


# --- our stream and decoder, in a process of its own; peers/decode.py documents the commands -----------------------


def _stream_batches(spec: dict[str, Any]) -> Batches:
    """One epoch in the default shuffled order, as in training."""
    manifest = read_manifest(spec["data"])
    with closing(Stream(manifest, Order(), spec["batch"], stop_at=manifest.samples)) as stream:
        for batch in train_batches(stream, spec["size"], Augment(), seed=spec["seed"], threads=1):
            yield batch.keys, batch.images_B3HW.numpy()
            batch.release()


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    os.sched_setaffinity(0, {spec["core"]})
    if not spec["accelerator"]:
        crop.loaded = lambda: None  # type: ignore[assignment]
    print(json.dumps({"build": image.IMAGE_BUILD, "accelerator": crop.loaded() is not None}), flush=True)
    serve(lambda: _stream_batches(spec), json.loads(Path(spec["views"]).read_text())["compare"])
