"""Checks of this machine: what it has, what is missing, and how to fix it. Never prints a secret."""

from __future__ import annotations

import io
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from jobs import pillow_simd as build
from jobs.config import DoctorConfig as Config
from jobs.terminal import say
from shards import store
from shards.pixels import crop, entropy

GIB = 1 << 30
PACKAGES = {  # a possible missing build requirement -> its Debian package
    "a C compiler": "build-essential",
    "jpeglib.h": "libjpeg-turbo8-dev or libjpeg62-turbo-dev",
    "zlib.h": "zlib1g-dev",
    "webp/decode.h": "libwebp-dev",
    "lcms2.h": "liblcms2-dev",
    "tiffio.h": "libtiff-dev",
}
ROOMS = ("shards", "ingest", "xtra", "jobs")
CODECS = ("jpg", "zlib", "webp", "littlecms2", "libtiff")
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
AWS_OTHER = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL")


@dataclass(frozen=True)
class Check:
    level: Literal["ok", "warn", "fail"]
    what: str
    detail: str
    next_step: str = ""

    def __str__(self) -> str:
        return f"{self.level:<5} {self.what:<12} {self.detail}" + (f" -> {self.next_step}" if self.next_step else "")


def run(config: Config) -> list[Check]:
    """Run all checks, printing each when it is done."""
    found: list[Check] = []
    for check in _checks(config):
        say(check, flush=True)
        found.append(check)
    return found


def _checks(config: Config) -> Iterator[Check]:
    checks: list[Callable[[], Check]] = [
        python,
        torch,
        ray,
        pil,
        simd,
        walker,
        cropper,
        gpu_decode,
        curl,
        cores,
        memory,
        shm,
        disk,
        files,
        aws,
    ]
    for check in checks:
        yield check()
    if shadowed := clashes():
        yield Check(
            "fail", "names", f"also provided by others: {', '.join(shadowed)}", "use an environment without them"
        )
    if config.url:
        yield object_store(config.url)


def clashes() -> list[str]:
    """Our top-level packages that another installed distribution also provides, with its name: the first on the path
    would be imported."""
    providers = metadata.packages_distributions()
    others = {room: sorted({*providers.get(room, ())} - {"xtra-pretrain"}) for room in ROOMS}
    return [f"{room} by {', '.join(names)}" for room, names in others.items() if names]


def python() -> Check:
    version, fits = platform.python_version(), (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Check("ok", "python", version) if fits else Check("fail", "python", version, "use Python 3.11 to 3.13")


def torch() -> Check:
    try:
        import torch as pytorch
    except ImportError as error:
        return Check("fail", "torch", f"does not import: {error}", "make setup (TORCH=... picks a build)")
    if pytorch.cuda.is_available():
        gpus = [pytorch.cuda.get_device_name(i) for i in range(pytorch.cuda.device_count())]
        return Check("ok", "torch", f"{pytorch.__version__}, CUDA {pytorch.version.cuda}, {', '.join(gpus)}")
    if Path("/proc/driver/nvidia").exists():
        return Check(
            "warn", "torch", f"{pytorch.__version__} sees no GPU, but a driver is loaded", "make setup TORCH=..."
        )
    return Check("ok", "torch", f"{pytorch.__version__}, no GPU here: runs on the CPU")


def ray() -> Check:
    version = _version("ray")
    return Check("ok", "ray", version) if version else Check("fail", "ray", "not installed", "make setup")


def pil() -> Check:
    """Which of the two packages named PIL is imported, and what it can decode."""
    plain, fast = _version("pillow"), _version("pillow-simd")
    if plain and fast:
        both = f"pillow {plain} and pillow-simd {fast} overwrite each other"
        return Check("fail", "PIL", both, "make clean setup (installs exactly one)")
    try:
        from PIL import features
    except ImportError as error:
        return Check("fail", "PIL", f"does not import: {error}", "make setup")
    name = f"pillow-simd {fast}" if fast else f"pillow {plain}"
    if missing := [codec for codec in CODECS if not features.check(codec)]:
        return Check(
            "fail", "PIL", f"{name} without {', '.join(missing)}", "install the headers below, make clean setup"
        )
    turbo = "" if features.check("libjpeg_turbo") else ", without libjpeg-turbo"
    return Check("ok", "PIL", f"{name} with {', '.join(CODECS)}{turbo}")


def simd() -> Check:
    """Whether pillow-simd is in use, or could be built here."""
    if _version("pillow-simd"):
        return Check("ok", "pillow-simd", "in use")
    if not build.has_avx2():
        return Check("ok", "pillow-simd", "not in use: this processor has no AVX2")
    if missing := build.missing_headers():
        packages = ", ".join(PACKAGES[name] for name in missing)
        return Check("warn", "pillow-simd", f"not in use: no {', '.join(missing)}", f"install {packages}; make setup")
    return Check("ok", "pillow-simd", "not in use, but it can be built here", "make clean setup")


def walker() -> Check:
    """Whether the accelerated JPEG check is in use, or could be built here."""
    if not entropy.available():
        return Check("warn", "JPEG check", "Pillow alone", "make setup with a C compiler halves the cost of checking")
    return Check("ok", "JPEG check", "entropy.c, and Pillow")


def cropper() -> Check:
    """Whether the accelerated cropper is in use, or could be built here."""
    found = crop.loaded()
    if found is not None:
        return Check("ok", "crops", f"crop.c with {found.codec}, and Pillow")
    missing = [name for name in ("a C compiler", "jpeglib.h") if name in build.missing_headers()]
    packages = ", ".join(PACKAGES[name] for name in missing)
    step = f"install {packages}; make setup" if missing else "python -m shards.pixels.crop says why"
    why = f": no {', '.join(missing)}" if missing else ""
    return Check("warn", "crops", f"Pillow alone, at two to three times the CPU{why}", step)


def gpu_decode() -> Check:
    """Whether a GPU can decode JPEGs here, by decoding one."""
    try:
        import torch as pytorch
        from PIL import Image

        from shards.pixels import image
        from xtra.gpu_decode import GpuDecoder, library
    except ImportError as error:
        return Check("warn", "GPU decode", f"does not import: {error}", "make setup")
    if not pytorch.cuda.is_available():
        return Check("ok", "GPU decode", "not in use: torch sees no GPU here")
    device = pytorch.device("cuda", 0)
    try:
        decoder = GpuDecoder(device, library(device))
    except ValueError as why:
        detail, _, step = str(why).rpartition(": ")
        return Check("warn", "GPU decode", detail, step)
    body = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(body, "JPEG")
    decoder([body.getvalue()], [image.crop_view((32, 32, 128, 128), 64)], 64)
    done = decoder.report()
    if not done["gpu"]:
        return Check("warn", "GPU decode", f"{done['decoder']} fails on a plain JPEG: {done['cpu']}", "--decoder cpu")
    return Check("ok", "GPU decode", f"{done['decoder']}: --decoder gpu")


def curl() -> Check:
    try:
        import pycurl
    except ImportError as error:
        return Check("fail", "libcurl", f"pycurl does not import: {error}", "make setup")
    info = pycurl.version_info()
    library, tls, protocols = f"libcurl {info[1]}", info[5], info[8]
    if "https" not in protocols:
        return Check("fail", "libcurl", f"{library} has no https", "install a pycurl that is built with TLS")
    return Check("ok", "libcurl", f"{library}, {tls}")


def cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup("cpu.max").split()
    detail = f"{usable} usable"
    if len(quota) == 2 and quota[0].isdigit() and (share := int(quota[0]) / int(quota[1])) < usable:
        return Check(
            "warn", "cores", f"{detail}, limited to {share:g}", "give the container more CPU, or fewer workers"
        )
    return Check("ok", "cores", detail) if usable > 1 else Check("warn", "cores", detail, "2 or more are better")


def memory() -> Check:
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    if "MemAvailable" not in kib:
        return Check("warn", "memory", "cannot be read on this system")
    free, total = kib["MemAvailable"] * 1024, kib["MemTotal"] * 1024
    limit = _cgroup("memory.max")
    if limit.isdigit() and int(limit) < total:
        total, free = int(limit), min(free, int(limit) - int(_cgroup("memory.current") or 0))
    detail = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return (
        Check("ok", "memory", detail) if free > 4 * GIB else Check("warn", "memory", detail, "fewer workers or threads")
    )


def shm() -> Check:
    if not Path("/dev/shm").is_dir():
        return Check("warn", "/dev/shm", "not there", "Ray falls back to slower files in /tmp")
    free = shutil.disk_usage("/dev/shm").free
    detail = f"{free / GIB:.1f} GiB free"
    step = "start the container with a larger --shm-size: Ray's object store lives there"
    return Check("ok", "/dev/shm", detail) if free > GIB else Check("warn", "/dev/shm", detail, step)


def disk() -> Check:
    free = shutil.disk_usage(".").free
    detail = f"{free / GIB:.1f} GiB free here"
    step = "free some space or work elsewhere: ingest and checkpoints need scratch"
    return Check("ok", "disk", detail) if free > 10 * GIB else Check("warn", "disk", detail, step)


def files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"{soft} open files"
    return (
        Check("ok", "limits", detail)
        if soft >= 4096
        else Check("warn", "limits", detail, f"ulimit -n {min(hard, 65536)}")
    )


def aws() -> Check:
    """Names of the AWS variables that are set; never a value."""
    found = [name for name in (*AWS_KEYS, *AWS_OTHER) if os.environ.get(name)]
    keys = [name for name in AWS_KEYS if name in found]
    detail = f"set: {', '.join(found)}" if found else "none set: only local folders, or an instance's role"
    if len(keys) == 1:
        return Check("warn", "AWS", detail, f"set {next(k for k in AWS_KEYS if k not in keys)} as well")
    return Check("ok", "AWS", detail)


def object_store(url: str) -> Check:
    """Check that of two concurrent conditional puts of one new key exactly one wins; the object is removed."""
    since = time.perf_counter()
    try:
        store.check_writable(url)
    except store.StoreError as error:
        where, _, why = str(error).partition(": ")
        detail, _, step = why.rpartition(": ")
        return Check("fail", "store", f"{where}: {detail or step}", step if detail else "")
    took = 1000 * (time.perf_counter() - since)
    return Check("ok", "store", f"{url}: writable, put-if-absent holds ({took:.0f} ms)")


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cgroup(name: str) -> str:
    path = Path("/sys/fs/cgroup", name)
    return path.read_text().strip() if path.is_file() else ""
