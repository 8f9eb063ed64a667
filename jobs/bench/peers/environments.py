"""The tools that we compare with, each in its own virtual environment under the checkout's `.bench/`.

`build(IMG2DATASET)` returns the Python that runs it. An environment is built once; an incomplete one, or one for other
versions, is rebuilt. Its `freeze.txt` lists the installed packages.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3] / ".bench"


@dataclass(frozen=True)
class Peer:
    """A tool, its requirements, and the modules that must import for it to count as built."""

    name: str
    requirements: tuple[str, ...]
    imports: str
    newest: tuple[int, int] = (3, 13)  # newest Python that it runs on
    why: str = ""  # why not on newer ones
    first: tuple[str, ...] = ()  # installed before the requirements, with dependencies
    bare: tuple[str, ...] = ()  # installed last, without dependencies


IMG2DATASET = Peer(
    "img2dataset",
    # Its own version ranges are open: with albumentations 2, pandas 3 or webdataset 0.3 it fails or warns on start.
    (
        "img2dataset==1.47.0",
        "albumentations==1.4.24",
        "pandas<3",
        "webdataset<0.3",
        "numpy<3",
        "opencv-python-headless<5",
    ),
    "img2dataset, webdataset, cv2, albumentations",
    (3, 12),
    "it imports imghdr, which Python 3.13 no longer has",
)

DAFT = Peer("daft", ("daft==0.7.26",), "daft")

STREAMS = Peer(
    "streams",
    # The modules that the three import when they read and write. Reading from S3 needs none of the cloud and image
    # libraries that MosaicML's requires; its numpy range is kept.
    (
        "numpy<2.2",
        "boto3",
        "braceexpand",
        "brotli",
        "catalogue",
        "lightning-utilities",
        "obstore",
        "pillow",
        "psutil",
        "python-snappy",
        "pyyaml",
        "requests",
        "tifffile",
        "tqdm",
        "transformers<5",
        "xxhash",
        "zstd<2",
    ),
    "webdataset, litdata, transformers, boto3, obstore",
    first=("torch==2.13.0",),
    bare=("webdataset==1.0.2", "mosaicml-streaming==0.13.0", "litdata==0.2.76"),
)

# On its own: what it needs of huggingface_hub is newer than what the transformers of the others takes.
ARROW = Peer("arrow", ("datasets==5.2.0",), "datasets")


def build(peer: Peer, root: Path = ROOT) -> Path:
    """The interpreter of the peer's environment, built now if necessary (a minute, from the package index).

    Raises ValueError if there is no suitable Python or the installation fails.
    """
    folder = root / peer.name
    python, done = folder / "bin" / "python", folder / "done.json"
    base = interpreter(peer)
    version = _run(peer, [str(base), "-c", "import sys; print(sys.version)"]).strip()
    wanted = json.dumps({"requirements": [*peer.first, *peer.requirements, *peer.bare], "python": version})
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{peer.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # concurrent benches build it once
        if done.exists() and done.read_text() == wanted:
            return python
        print(f"building {peer.name}'s environment in {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run(peer, [str(base), "-m", "venv", str(folder)])
        pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
        for flag, requirements in (("-q", peer.first), ("-q", peer.requirements), ("--no-deps", peer.bare)):
            if requirements:
                _run(peer, [*pip, "install", flag, *requirements])
        _run(peer, [str(python), "-c", f"import {peer.imports}"])
        (folder / "freeze.txt").write_text(_run(peer, [*pip, "freeze"]))
        done.write_text(wanted)
    return python


def interpreter(peer: Peer) -> Path:
    """This Python if it is old enough for the peer, otherwise an older one on PATH. Raises ValueError naming both."""
    oldest = (3, 11)
    if oldest <= sys.version_info[:2] <= peer.newest:
        return Path(sys.executable)
    for minor in range(peer.newest[1], oldest[1] - 1, -1):
        if found := shutil.which(f"python3.{minor}"):
            return Path(found)
    here = ".".join(map(str, sys.version_info[:2]))
    newest = ".".join(map(str, peer.newest))
    raise ValueError(
        f"{peer.name} needs Python 3.11 to {newest} ({peer.why}), this is {here}: "
        f"put python{newest} on PATH, or run the bench from an environment made with it"
    )


def environment() -> dict[str, str]:
    """A peer's environment variables: ours, without those that would make its Python import our modules, or compile
    its own again in each run."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__", "PYTHONDONTWRITEBYTECODE")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def _run(peer: Peer, command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise ValueError(f"{peer.name}: its environment cannot be built: {' '.join(command[1:4])} ...: {said[-1]}")
    return done.stdout
