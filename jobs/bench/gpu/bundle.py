"""`make gpu-bundle`: what a GPU machine without an installer needs in addition to this source tree.

    python -m jobs.bench.gpu.bundle [--vectors DIR] [--tar SMALL.tar] [--wheels FOLDER]

It fills .gpu/, which git ignores, with at most 60 MiB: the compiled croppers with the libjpeg that they link to, wheels
(nvImageCodec with nvJPEG, and torchcodec, for decoding; safetensors, for checkpoints), the official numbers, a small
tar of photographs, and this tree's commit. `make bench-gpu` uses the contents of .gpu/ (`environment`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from jobs.bench import commit
from jobs.bench.rounds import parsed

FOLDER = ".gpu"
LIMIT = 60 << 20  # bytes
WHEELS = ("nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "torchcodec", "safetensors")
SITE = Path(".bench/gpu-site")  # wheels are unpacked here, outside .gpu/, which stays small
NATIVE = Path("shards/pixels")


def make(folder: Path, vectors: str = "", tar: str = "", wheels: str = "") -> list[tuple[str, int]]:
    """Fill the folder; return (file, bytes) pairs. Raises ValueError if something is missing or it is too large."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    put_croppers(folder)
    (folder / "commit").write_text(commit())
    if vectors:
        _require(vectors)
        shutil.copytree(vectors, folder / "vectors")
    if tar:
        _require(tar)
        shutil.copy2(tar, folder / "photos.tar")
    if wheels:
        _require(wheels)
        for wheel in sorted(Path(wheels).glob("*.whl")):
            shutil.copy2(wheel, folder)
    else:
        command = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder), *WHEELS]
        if subprocess.run([sys.executable, *command], check=False).returncode:
            raise ValueError(f"pip did not download {', '.join(WHEELS)}: give a folder that has them, --wheels FOLDER")
    files = [(str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file()]
    total = sum(size for _, size in files)
    if total > LIMIT:
        largest = sorted(files, key=lambda one: -one[1])[:3]
        said = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in largest)
        raise ValueError(f"{folder} has {total / 2**20:.0f} MiB, above {LIMIT >> 20} MiB; the largest: {said}")
    return sorted(files)


def put_croppers(folder: Path) -> None:
    """Copy the compiled croppers, and the libjpeg that they link to. Raises ValueError if none are built."""
    built = sorted(NATIVE.glob("_*.so"))
    if not built:
        raise ValueError(f"{NATIVE} has no compiled croppers: run make setup first")
    for library in built:
        shutil.copy2(library, folder)
        linked = subprocess.run(["ldd", str(library)], capture_output=True, text=True, check=False).stdout
        for needed in map(Path, re.findall(r"=> (/\S+)", linked)):
            if "jpeg" in needed.name:
                shutil.copy2(needed.resolve(), folder / needed.name)


def environment(folder: Path) -> dict[str, str]:
    """Environment variables for a process that uses the bundle; empty if there is no bundle.

    Copies the croppers to their place in this source tree, and unpacks the wheels into another folder of it.
    """
    if not folder.is_dir():
        return {}
    for library in folder.glob("_*.so"):
        if not (NATIVE / library.name).exists():
            shutil.copy2(library, NATIVE)
    for wheel in sorted(folder.glob("*.whl")):
        if not (SITE / f".{wheel.stem}").exists():
            with zipfile.ZipFile(wheel) as packed:
                packed.extractall(SITE)
            (SITE / f".{wheel.stem}").touch()
    found = {"LD_LIBRARY_PATH": _joined(str(folder.resolve()), os.environ.get("LD_LIBRARY_PATH", ""))}
    if SITE.is_dir():
        found["PYTHONPATH"] = _joined(os.getcwd(), os.environ.get("PYTHONPATH", ""), str(SITE.resolve()))
    if (packed_from := folder / "commit").is_file():
        found["XTRA_COMMIT"] = packed_from.read_text().strip()  # what runs name where there is no checkout
    return found


def _joined(*paths: str) -> str:
    return os.pathsep.join(path for path in paths if path)


def _require(path: str) -> None:
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist: check --vectors, --tar and --wheels")


def main(words: list[str]) -> int:
    flags = {
        "--vectors": {"default": "", "help": "folder of the official numbers"},
        "--tar": {"default": "", "help": "a small tar of photographs"},
        "--wheels": {"default": "", "help": "folder that has the wheels; default: pip downloads them"},
    }
    values = parsed(words, flags, prog="python -m jobs.bench.gpu.bundle", description=(__doc__ or "").split("\n")[0])
    try:
        files = make(Path(FOLDER), values.vectors, values.tar, values.wheels)
    except ValueError as error:
        print(f"gpu-bundle: {error}", file=sys.stderr)
        return 2
    for name, size in files:
        print(f"{size:>12,} {FOLDER}/{name}")
    print(f"{sum(size for _, size in files) / 2**20:>12.1f} MiB, of at most {LIMIT >> 20}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
