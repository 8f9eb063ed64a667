"""The package as others install it: a wheel in an environment of its own, far from this checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

import api_page
import pytest
from places import ROOT

pytestmark = pytest.mark.slow  # builds and installs the package

LOOK = """
import io, sys
from pathlib import Path
import numpy as np
from PIL import Image
import shards
from ingest.filter import FilterConfig
from ingest.isolate import WORK, judge_apart
from ingest.record import Fetched, Link
from shards.pixels import Child, crop, entropy, image

assert Path(shards.__file__).is_relative_to(sys.prefix), shards.__file__
out = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 80, 3), np.uint8)).save(out, "JPEG")
body, view = out.getvalue(), image.crop_view((8, 8, 40, 40), 32, False)
if "compiler" in sys.argv:
    assert entropy.available()
    assert crop.build_name().startswith("crop.c")
ours, reference = np.zeros((1, 3, 32, 32), np.uint8), np.zeros((3, 32, 32), np.uint8)
refused = crop.decode_batch([body], [view], 32, ours)
image.show(image.decode(body), view, reference)
assert refused == ([] if "compiler" in sys.argv else [0])
assert refused or np.mean((ours[0].astype(float) - reference) ** 2) < 1
child = Child(WORK)
link = Link("k", "http://example.org/", (), 0)
fetched = Fetched(link, body, None, "", 200, "http://example.org/", 1, 0, 0.0)
assert judge_apart(child, fetched, FilterConfig()).picture is not None
child.close()
print("whole")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git knows of, as it is in the working tree: building writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in names.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "tree" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "tree"], check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with this wheel alone, which finds the other libraries where this test has them."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    packages = next((folder / "lib").glob("python*")) / "site-packages"
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The Python of an environment into which pip has installed the wheel with all that it asks for, and the wall
    seconds of each step. torch comes first and from where `make setup` takes it: TORCH, TORCH_INDEX."""
    if os.environ.get("XTRA_TEST_REGISTRY") != "1":
        pytest.skip("downloads some 400 MB from the package registry: run it with XTRA_TEST_REGISTRY=1")
    folder, seconds = tmp_path_factory.mktemp("fresh"), {}
    index = os.environ.get("TORCH_INDEX", "")
    torch = [os.environ.get("TORCH") or "torch==2.13.0", *(["--index-url", index] if index else [])]
    for step, words in {
        "python -m venv": [sys.executable, "-m", "venv", folder],
        f"pip install {' '.join(torch)}": [folder / "bin/python", "-m", "pip", "install", "-q", *torch],
        f"pip install {wheel.name}": [folder / "bin/python", "-m", "pip", "install", "-q", wheel],
    }.items():
        begun = time.monotonic()
        run(*words, at=folder)
        seconds[step] = time.monotonic() - begun
    return folder / "bin" / "python", seconds


def run(*words: object, at: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in words], cwd=at, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_file_that_is_needed_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    rooms = [ROOT / room for room in ("shards", "ingest", "xtra", "jobs")]
    found = {path.relative_to(ROOT) for room in rooms for path in room.rglob("*")}
    sources = {str(path) for path in found if path.suffix in (".py", ".pyi", ".c", ".h")}
    assert sources <= set(names)
    assert {name.split("/")[0] for name in names} == {"shards", "ingest", "xtra", "jobs", names[-1].split("/")[0]}
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_a_wheel_made_of_the_sdist_has_the_same_files(wheel: Path, tmp_path: Path) -> None:
    make = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    tree = wheel.parent / "tree"
    subprocess.run([sys.executable, "-c", make, tmp_path], cwd=tree, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("xtra_pretrain-*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist], check=True)
    (again,) = tmp_path.glob("*.whl")
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(again)
    assert sorted(first.namelist()) == sorted(second.namelist())
    for name in first.namelist():
        if not name.endswith("/RECORD"):
            assert first.read(name) == second.read(name), name


def test_the_metadata_name_the_command_the_pythons_and_the_licence(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel)
    (info,) = {name.split("/")[0] for name in files.namelist() if ".dist-info/" in name}
    metadata = files.read(f"{info}/METADATA").decode()
    assert "\nRequires-Python: <3.14,>=3.11\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nDescription-Content-Type: text/markdown\n" in metadata
    assert files.read(f"{info}/entry_points.txt").decode().splitlines() == ["[console_scripts]", "xtra = jobs.cli:main"]


def test_no_other_distribution_provides_our_top_level_names(installed: Path, tmp_path: Path) -> None:
    look = "import json; from importlib import metadata; print(json.dumps(metadata.packages_distributions()))"
    found = json.loads(run(installed, "-c", look, at=tmp_path))
    ours = {room: {*found[room]} for room in ("shards", "ingest", "xtra", "jobs")}
    assert ours == {room: {"xtra-pretrain"} for room in ours}


def test_an_installed_package_runs_decodes_and_isolates(installed: Path, tmp_path: Path) -> None:
    assert "usage: xtra VERB" in run(installed.with_name("xtra"), "--help", at=tmp_path)
    words = []
    if shutil.which(os.environ.get("CC", "cc")):
        for library in ("crop", "entropy"):
            assert f"{library}.c, and Pillow" in run(installed, "-m", f"shards.pixels.{library}", at=tmp_path)
        words = ["compiler"]
    assert run(installed, "-c", LOOK, *words, at=tmp_path) == "whole\n"
    assert "xtra ingest" in run(installed.with_name("xtra"), "ingest", "--help", at=tmp_path)


@pytest.mark.timeout(900)
def test_the_snippets_of_the_api_page_run_where_the_wheel_is_installed(installed: Path, tmp_path: Path) -> None:
    with api_page.folder(tmp_path) as at:
        done = api_page.run_all(installed, at)
    assert list(done) == list(api_page.snippets())


@pytest.mark.timeout(1800)
def test_a_fresh_environment_has_all_that_the_api_page_needs(
    fresh: tuple[Path, dict[str, float]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table of docs/api.md: XTRA_TEST_REGISTRY=1 python -m pytest -s tests/test_wheel.py -k fresh."""
    python, seconds = fresh
    (home,) = {
        Path(run(python, "-c", f"import {room}; print({room}.__file__)", at=tmp_path)).parents[1]
        for room in ("shards", "ingest", "xtra", "jobs")
    }
    assert home.is_relative_to(python.parents[1])
    with api_page.folder(tmp_path) as at:
        done = {name: wall for name, (wall, _) in api_page.run_all(python, at).items()}
    with capsys.disabled():
        print("\n" + "\n".join(f"| `{step}` | {wall:.1f} |" for step, wall in (seconds | done).items()))
    assert "usage: xtra VERB" in run(python.with_name("xtra"), "--help", at=tmp_path)
