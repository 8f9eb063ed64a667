"""The bundle for a machine with a GPU: what is in it, that it keeps its limit, the one command inside at tiny size."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from made_datasets import make_dataset
from places import ROOT

from jobs.lab import bundle, gpu_study, study
from shards.manifest import read_manifest
from shards.selection import selected_index, subset

SETS = {"tin-train": 96, "tin-val": 24, "cifar10-train": 40, "cifar10-test": 30}
SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    base = tmp_path_factory.mktemp("sets")
    for name, images in SETS.items():
        make_dataset(base / name, [images // 2, images - images // 2], name=name)
    return str(base)


@pytest.fixture
def little_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small pieces and little code, which takes seconds to compress."""
    monkeypatch.setattr(bundle, "PIECE", 8)
    monkeypatch.setattr(bundle, "LEFT_OUT", (*bundle.LEFT_OUT, "ingest/", "xtra/", "jobs/", "shards/", "requirements"))


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # whose tracked files are packed


def members(path: Path, kind: str) -> dict[str, bytes]:
    """Of all inner tars of a set, in order: name -> bytes."""
    found = {}
    with tarfile.open(path) as outer:
        for inner in sorted(
            (m for m in outer if m.name.startswith(f"{bundle.TOP}/tars/{kind}-")), key=lambda m: m.name
        ):
            with tarfile.open(fileobj=outer.extractfile(inner)) as tar:
                found |= {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    return found


def keys(dataset: str) -> set[str]:
    manifest = read_manifest(dataset)
    return {key for n in range(len(manifest.shards)) for key in selected_index(manifest, n, [])["key"].to_pylist()}


@pytest.mark.slow
def test_it_has_code_croppers_and_pictures_with_labels(data: str, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "some-1.0-py3-none-any.whl").write_bytes(b"PK")
    out = tmp_path / "b.tar.xz"
    packed = bundle.pack(data, str(out), wheels=str(wheels))
    assert packed.bytes == out.stat().st_size
    assert packed.pictures == packed.wanted == SETS
    with tarfile.open(out) as tar:
        names = {name.removeprefix(f"{bundle.TOP}/") for name in tar.getnames()}
    assert {"jobs/lab/gpu_study.py", "xtra/train.py", "pyproject.toml", "docs/study/study.json", ".gpu/commit"} <= names
    assert ".gpu/some-1.0-py3-none-any.whl" in names
    assert any(name.startswith(".gpu/_crop") for name in names)
    assert not [name for name in names if name.startswith("tests/")]
    for name, images in SETS.items():
        files = members(out, name)
        assert {Path(file).stem for file in files} == keys(f"{data}/{name}")
        assert sum(file.endswith(".cls") for file in files) == images
    assert {*tmp_path.iterdir()} == {out, wheels}


@pytest.mark.slow
@pytest.mark.usefixtures("little_code")
def test_the_study_s_subsets_are_taken_and_fewer_pictures_nest_in_more(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study.Config, "head_images", 20)
    few, many = tmp_path / "few.tar.xz", tmp_path / "many.tar.xz"
    bundle.pack(data, str(few), 24)
    bundle.pack(data, str(many), 48)
    (smaller, larger), (again, _) = (
        [members(path, name) for path in (few, many)] for name in ("tin-train", "cifar10-train")
    )
    assert len(smaller) == 2 * 24
    assert smaller.items() < larger.items()
    copy = tmp_path / "copy"
    make_dataset(copy, [20, 20], name="cifar10-train")  # as `data` has it, which is not written to
    head = subset(read_manifest(str(copy)), 20)
    chosen = {key for n in range(2) for key in selected_index(head, n, [])["key"].to_pylist()}
    assert {Path(name).stem for name in again} == chosen


@pytest.mark.slow
@pytest.mark.usefixtures("little_code")
def test_what_does_not_fit_is_left_out_and_counted(data: str, tmp_path: Path) -> None:
    whole = bundle.pack(data, str(tmp_path / "whole.tar.xz"))
    limit = whole.bytes - 8_000
    less = bundle.pack(data, str(tmp_path / "less.tar.xz"), limit=limit)
    assert less.bytes <= limit
    assert 0 < less.pictures["tin-train"] < 96
    assert less.pictures["cifar10-test"] == 30
    assert len(members(tmp_path / "less.tar.xz", "tin-train")) == 2 * less.pictures["tin-train"]
    with pytest.raises(ValueError, match=r"cifar10-test and the code do not fit into .* MiB"):
        bundle.pack(data, str(tmp_path / "none.tar.xz"), limit=whole.code_bytes + 50)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.tar.xz", "less.tar.xz"}


def test_mistakes_are_one_line(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "b")]
    for words, said in (
        (["--data", str(tmp_path), *out], "is not a dataset"),
        (["--data", data, *out, "--pictures", "0"], "--pictures is 0"),
        (["--data", data, *out, "--wheels", "nowhere"], "--wheels nowhere is not a folder"),
    ):
        assert bundle.main(words) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_python_without_the_libraries_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu_study, "NEEDED", ("torch", "PIL", "nothing_of_that_name"))
    assert gpu_study.main([]) == 2
    assert capsys.readouterr().err.startswith("gpu-study: this Python has no nothing_of_that_name: pip install")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert gpu_study.main(["--device", "cpu", "--batch", "60000"]) == 2
    said = "gpu-study: --samples has 100000; a count must be at least two batches of 60000\n"
    assert capsys.readouterr().err == said
    assert gpu_study.main(["--device", "cpu"]) == 2
    assert "no such tars: run this in the folder where the bundle was unpacked" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)  # five starts of a process that imports torch: half a minute where nothing else runs
def test_the_command_inside_trains_probes_and_goes_on(data: str, tmp_path: Path) -> None:
    """Two seeds of a hundred samples a run on the CPU, stopped by its minutes and run again."""
    out = tmp_path / "b.tar.xz"
    bundle.pack(data, str(out))
    with tarfile.open(out) as tar:
        tar.extractall(tmp_path, filter="data")
    home = tmp_path / bundle.TOP
    command = [sys.executable, "-m", "jobs.lab.gpu_study", "--device", "cpu", "--samples", "40", "100"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def call(*more: str) -> subprocess.CompletedProcess[str]:
        line = [*command, "--seeds", "2", "--batch", "20", "--at-once", "1", *more]
        return subprocess.run(line, cwd=home, env=env, capture_output=True, text=True)

    first = call("--minutes", "0.2")
    assert first.returncode == os.EX_TEMPFAIL, first
    assert first.stderr.splitlines()[-1] == "gpu-study: not complete yet: the same command continues"
    done = call()
    assert done.returncode == 0, done
    again = call()
    assert again.stdout.startswith("0 runs trained and 0 probed now")
    rows = list(csv.DictReader((home / "work/rows/grid.csv").read_text().splitlines()))
    trained = {(row["arm"], row["seed"], int(row["samples_seen"])) for row in rows if row["encoder"] == "trained"}
    assert trained == {(f"block{b}", seed, n) for b in (1, 2, 4) for seed in "01" for n in (40, 100)}
    assert {row["set"] for row in rows if row["accuracy"]} == {"cifar10-test"}
    bits = list(csv.DictReader((home / "work/rows/grid-right.csv").read_text().splitlines()))
    assert {row["total"] for row in bits} == {"30"}
    assert len(bits) >= len(trained)
