"""`make study-bundle`: pictures and code in one file of at most 60 MiB, for an otherwise bare machine with a GPU.

    python -m jobs.lab.bundle --data DS [--out study-bundle.tar.xz] [--pictures 25000] [--wheels FOLDER]

DS contains tin-train, tin-val, cifar10-train and cifar10-test. The file is a tar.xz with this tree's tracked code, the
compiled croppers and wheels in .gpu/, and tars of pictures with their labels. All test images of CIFAR-10 come first,
then the study's own subsets (docs/study): the images that train probe heads, and those of the held-out loss. Tiny
ImageNet's training pictures fill the rest, in the order of the hash that makes subsets, so that smaller bundles are
subsets of larger ones.

Each piece is compressed as a separate xz stream, so that its size is known before it is written. Pictures of 64 px have
much in common (half of each is JPEG tables): they shrink to about three fifths.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.bench import commit
from jobs.bench.gpu import FOLDER as GPU, LIMIT, put_croppers
from jobs.bench.rounds import parsed
from jobs.lab import study
from shards.manifest import Manifest, Subset, read_manifest
from shards.selection import below, key_hash, selected_index
from shards.stream import once
from shards.tar import END, Member, header

TOP = "xtra-study"
OUT = "study-bundle.tar.xz"
PICTURES = 25_000
PIECE = 500  # pictures in an inner tar, and in a stream
LEFT_OUT = ("tests/", "docs/", "deploy/")
KEPT = "docs/study/"  # the rows so far, and the study's definition
ENDS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}


@dataclass(frozen=True)
class Packed:
    path: str
    bytes: int
    pictures: dict[str, int]  # by set, those that fitted
    wanted: dict[str, int]
    code_bytes: int  # the file's share for code, croppers and wheels


def pack(data: str, out: str, pictures: int = PICTURES, wheels: str = "", limit: int = LIMIT) -> Packed:
    """Write the file. Raises ValueError for a missing set, and if not even the probes' sets fit."""
    if pictures < 1:
        raise ValueError(f"--pictures is {pictures}; it must be at least 1")
    if wheels and not Path(wheels).is_dir():
        raise ValueError(f"--wheels {wheels} is not a folder: give the folder of the wheels")
    sets = _sets(data, pictures)
    target = Path(out)
    fitted = dict.fromkeys(sets, 0)
    end = lzma.compress(END)
    with tempfile.NamedTemporaryFile(dir=target.absolute().parent, prefix=f".{target.name}.") as file:
        file.write(lzma.compress(b"".join(_code(wheels))))
        code_bytes = file.tell()
        for name, numbers in sets.items():
            for at, (tar, number) in enumerate(_pieces(f"{data}/{name}", numbers)):
                stream = lzma.compress(_plain(Member(f"{TOP}/tars/{name}-{at:05d}.tar", tar)))
                if file.tell() + len(stream) + len(end) > limit:
                    if name != "tin-train":
                        raise ValueError(f"{out}: {name} and the code do not fit into {limit / 2**20:.0f} MiB")
                    break
                file.write(stream)
                fitted[name] += number
        if not fitted["tin-train"]:
            raise ValueError(f"{out}: the other sets leave no room for tin-train in {limit / 2**20:.0f} MiB")
        file.write(end)
        file.flush()
        size = file.tell()
        shutil.copyfile(file.name, f"{out}.part")
    Path(f"{out}.part").replace(target)
    return Packed(out, size, fitted, {name: len(numbers) for name, numbers in sets.items()}, code_bytes)


def _sets(data: str, pictures: int) -> dict[str, np.ndarray]:
    """set -> the numbers of its packed samples, in order."""

    def part(name: str, images: int) -> np.ndarray:
        manifest = read_manifest(f"{data}/{name}")
        hashes = key_hash(_keys(manifest), 0)
        if images >= manifest.samples:
            return np.arange(manifest.samples)
        chosen = below(manifest, Subset(images, 0, int((images / manifest.samples) * (1 << 64))))  # selection.subset's
        return np.flatnonzero(hashes < np.uint64(chosen.subset.threshold if chosen.subset else 0))

    training = read_manifest(f"{data}/tin-train")
    return {
        "cifar10-test": part("cifar10-test", 1 << 62),
        "cifar10-train": part("cifar10-train", study.Config.head_images),
        "tin-val": part("tin-val", study.Config.held_out_images),
        "tin-train": np.argsort(key_hash(_keys(training), 0), kind="stable")[:pictures],
    }


def _keys(manifest: Manifest) -> list[str]:
    return [
        key for number in range(len(manifest.shards)) for key in selected_index(manifest, number, [])["key"].to_pylist()
    ]


def _pieces(dataset: str, numbers: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """Tars of PIECE pictures and their labels, in the order of the numbers; and how many pictures each has."""
    manifest = read_manifest(dataset)
    for start in range(0, len(numbers), PIECE):
        chosen = np.sort(numbers[start : start + PIECE])
        members: list[Member] = []
        for batch in once(manifest, PIECE, only=chosen):
            for sample in batch:
                body = bytes(sample.body)
                members.append(Member(f"{sample.key}.{ENDS.get(body[:2], 'jpg')}", body))
                members += [Member(f"{sample.key}.cls", label.encode()) for label in sample.labels[:1]]
            batch.release()
        yield b"".join(map(_plain, members)) + END, len(chosen)


def _plain(member: Member) -> bytes:
    assert isinstance(member.body, bytes)
    return header(member.name, len(member.body)) + member.body + bytes(-len(member.body) % 512)


def _code(wheels: str) -> Iterator[bytes]:
    """The tar members of code, croppers, wheels and commit."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        raise ValueError(f"not a git checkout ({listed.stderr.strip()}): run this in one; its tracked files are packed")
    for name in listed.stdout.splitlines():
        if Path(name).is_file() and (not name.startswith(LEFT_OUT) or name.startswith(KEPT)):
            yield _file(Path(name), name)
    with tempfile.TemporaryDirectory() as folder:
        put_croppers(Path(folder))
        for wheel in Path(wheels).glob("*.whl") if wheels else ():
            shutil.copy2(wheel, folder)
        Path(folder, "commit").write_text(commit())
        for path in sorted(Path(folder).iterdir()):
            yield _file(path, f"{GPU}/{path.name}")


def _file(path: Path, name: str) -> bytes:
    """One member, written by tarfile: a name may exceed a header's 100 characters, and the mode must be kept."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tar.gettarinfo(path, f"{TOP}/{name}")
        info.uid = info.gid = info.mtime = 0
        info.uname = info.gname = ""
        body = path.read_bytes()
        info.type, info.size = tarfile.REGTYPE, len(body)
        tar.addfile(info, io.BytesIO(body))
        size = out.tell()
    return out.getvalue()[:size]  # without the tar's end marker


def main(words: Sequence[str]) -> int:
    flags = {
        "--data": {"required": True, "help": "folder of the study's datasets"},
        "--out": {"default": OUT, "help": f"the file; default {OUT}"},
        "--pictures": {"type": int, "default": PICTURES, "help": "most from Tiny ImageNet; default 25000"},
        "--wheels": {"default": "", "help": "folder of wheels that the other machine needs"},
    }
    values = parsed(words, flags, prog="python -m jobs.lab.bundle", description=(__doc__ or "").split("\n")[0])
    try:
        packed = pack(values.data, values.out, values.pictures, values.wheels)
    except ValueError as error:
        print(f"study-bundle: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    for name, number in packed.pictures.items():
        print(f"{name:<14} {number:>7,} of {packed.wanted[name]:,} pictures")
    print(f"code           {packed.code_bytes / 2**20:>7.1f} MiB")
    print(f"{packed.path}: {packed.bytes / 2**20:.1f} of at most {LIMIT >> 20} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
