"""The 15 evaluation sets, as people have them on disk: right split, label and count, or one line that says so."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from benchmark_copies import CLASS_OF, COPIES, EVAL, OTHER, TRAIN, body, food101, parquet, pixels, put
from PIL import Image

from ingest import benchmarks, import_benchmark, layouts, sets
from ingest.benchmarks import BENCHMARKS, Benchmark
from ingest.filter import FilterConfig
from ingest.pictures import Blocks
from jobs import cli
from shards import check, manifest
from shards.stream import once

CASES = [(name, layout) for name, copies in COPIES.items() for layout in copies]
NUMBER = {pixels(n).tobytes(): n for n in (*TRAIN, *EVAL, *OTHER)}


def write(name: str, layout: str, root: Path) -> tuple[str, ...]:
    needs = {("pcam", "hdf5"): "h5py", ("pcam", "packed"): "h5py", ("imagenet1k", "devkit"): "scipy"}
    needs |= {("cars", "devkit"): "scipy", ("cars", "one file"): "scipy"}
    if library := needs.get((name, layout)):
        pytest.importorskip(library, reason=f"{library} is not installed: make setup installs it")
    return tuple(COPIES[name][layout](root))


def small(name: str) -> Benchmark:
    return dataclasses.replace(BENCHMARKS[name], train=len(TRAIN), eval=len(EVAL), classes=2)


def samples(dataset: str) -> dict[int, tuple[tuple[str, ...], bytes]]:
    """Number of the picture -> its labels and stored bytes."""
    found = {}
    for batch in once(manifest.read_manifest(dataset), 4):
        for sample in batch:
            decoded = np.asarray(Image.open(io.BytesIO(sample.body)).convert("RGB"))
            found[NUMBER[decoded.tobytes()]] = (sample.labels, bytes(sample.body))
    return found


def test_the_table_is_the_papers():
    names = (
        "imagenet1k inat18 cifar10 cifar100 food101 dtd pets cars iwildcam camelyon17 pcam rxrx1 eurosat fmow infograph"
    )
    assert list(BENCHMARKS) == list(layouts.LAYOUTS) == list(COPIES) == names.split()
    assert sum(benchmark.train for benchmark in BENCHMARKS.values()) == 2_774_101  # as the paper adds them up


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_both_splits_and_their_labels(name: str, layout: str, tmp_path: Path):
    classes = write(name, layout, tmp_path / "source")
    config = sets.Config(str(tmp_path / "source"), str(tmp_path / "out"), set=name, unit=3)
    result = import_benchmark.run(config, small(name))
    assert (result.lost, result.stopped, result.classes, result.differs) == (0, False, 2, ())
    for split, numbers, list_name in (("train", TRAIN, f"{name}-train"), ("eval", EVAL, name)):
        version = manifest.read_manifest(str(tmp_path / "out" / split))
        assert (version.list_name, version.classes) == (list_name, classes)
        found = samples(version.dataset)
        assert {n: labels for n, (labels, _) in found.items()} == {n: (classes[CLASS_OF[n]],) for n in numbers}
        if layout not in ("pickles", "packed", "hdf5"):
            assert all(stored == body(n) for n, (_, stored) in found.items()), "files keep their bytes"
        assert check.run(check.Config(version.dataset)).ok


@pytest.mark.parametrize("name", BENCHMARKS)
def test_other_counts_than_the_papers_are_refused(name: str, tmp_path: Path):
    write(name, next(iter(COPIES[name])), tmp_path / "source")
    config = sets.Config(str(tmp_path / "source"), str(tmp_path / "out"), set=name)
    with pytest.raises(ValueError) as refused:
        import_benchmark.run(config, BENCHMARKS[name])
    for is_, must in ((len(TRAIN), BENCHMARKS[name].train), (len(EVAL), BENCHMARKS[name].eval)):
        assert f"{is_:,} pictures in " in str(refused.value)
        assert f"where the paper has {must:,}" in str(refused.value)
    assert "--counts any" in str(refused.value)
    assert name in str(refused.value)
    assert not (tmp_path / "out").exists(), "nothing is written before the counts are right"


def test_any_counts_are_taken_on_request_and_told(tmp_path: Path):
    write("eurosat", "folders", tmp_path / "source")
    config = sets.Config(str(tmp_path / "source"), str(tmp_path / "out"), set="eurosat", counts="any")
    result = import_benchmark.run(config, dataclasses.replace(small("eurosat"), train=6, classes=10))
    assert result.differs == (
        "has 5 pictures in train where the paper has 6",
        "has 2 classes where the paper has 10",
    )
    assert "taken as it is (--counts any): it has 5 pictures in train" in "\n".join(import_benchmark.lines(result))
    assert len(samples(str(tmp_path / "out/train"))) == 5


def test_dtd_of_parquet_trains_on_train_and_validation(tmp_path: Path):
    parquet(tmp_path, "validation", "test", "train", ("banded", "zigzagged"))
    found, _ = layouts.find(tmp_path, small("dtd"), tmp_path)
    assert [NUMBER[np.asarray(Image.open(io.BytesIO(p.read()))).tobytes()] for p in found.train] == [*OTHER, *TRAIN]


# --- the command ---------------------------------------------------------------------------------------------------


def run_cli(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    status = cli.main(["import", *words])
    return status, *capsys.readouterr()


def test_the_command_makes_both_and_a_rerun_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"food101": small("food101")})
    food101(tmp_path / "source")
    words = [str(tmp_path / "source"), "--set", "food101", "--out", str(tmp_path / "out"), "--json"]
    status, out, _ = run_cli(words, capsys)
    told = json.loads(out.splitlines()[-1])
    assert (status, told["name"], told["lost"], told["counted"]) == (0, "food101", 0, True)
    assert {split: part["kept"] for split, part in told["splits"].items()} == {"train": 5, "eval": 2}
    assert "food101: laid out as meta/train.txt, meta/test.txt and images/; 2 classes" in out
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.name != "ingest.html")
    assert run_cli(words, capsys)[0] == 0
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.name != "ingest.html") == files


def test_a_set_that_lost_pictures_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(benchmarks, "BENCHMARKS", {"food101": small("food101")})
    food101(tmp_path / "source")
    (tmp_path / "source/food-101/images/apple_pie/1000.jpg").write_bytes(body(0)[:300])
    words = [str(tmp_path / "source"), "--set", "food101", "--out", str(tmp_path / "out")]
    status, out, _ = run_cli(words, capsys)
    assert status == 1
    assert "train: 4 of 5 pictures kept: results on it are not the paper's set's" in out
    assert f"xtra peek {tmp_path}/out/train --reason undecodable" in out
    assert run_cli([*words, "--counts", "any"], capsys)[0] == 0, "whoever takes any set takes this one"


def test_tall_and_huge_pictures_are_part_of_a_set(tmp_path: Path):
    out = io.BytesIO()
    Image.new("RGB", (10, 500), (9, 8, 7)).save(out, "PNG")
    food101(tmp_path / "source")
    (tmp_path / "source/food-101/images/apple_pie/1000.jpg").write_bytes(out.getvalue())
    config = sets.Config(str(tmp_path / "source"), str(tmp_path / "out"), set="food101")
    assert import_benchmark.run(config, small("food101")).lost == 0


def test_a_stop_between_the_splits_is_finished_by_the_next(tmp_path: Path):
    write("cifar100", "pickles", tmp_path / "source")
    config = sets.Config(str(tmp_path / "source"), str(tmp_path / "out"), set="cifar100", unit=2)
    told = []
    first = import_benchmark.run(
        config,
        small("cifar100"),
        told.append,
        stop=lambda: len(manifest.committed_units(str(tmp_path / "out/train"))) > 1,
    )
    assert first.stopped
    assert len(first.splits) == 1
    result = import_benchmark.run(config, small("cifar100"), told.append)
    assert not result.stopped
    assert set(samples(str(tmp_path / "out/train"))) == set(TRAIN)
    assert (told[-1].links, told[-1].done, told[-1].kept, told[-1].units_done) == (7, 7, 7, 4), "of both splits"
    assert told[-1].done_now == 3, "of this run"


def test_the_settings_that_a_set_has_of_its_own():
    for words, message in (
        ({"set": "cifar"}, "set is 'cifar': it must be one of imagenet1k, inat18, cifar10"),
        ({"set": "cifar10", "in_place": True}, "leave out --in-place, --classes and --name"),
        ({"set": "cifar10", "name": "mine"}, "leave out --in-place, --classes and --name"),
        (
            {"set": "dtd", "filter": FilterConfig(min_side=1, max_aspect=3)},
            "set dtd is taken whole: leave out --filter",
        ),
        ({"counts": "any"}, "only an evaluation set is counted"),
    ):
        with pytest.raises(ValueError, match=message):
            sets.Config("source", "out", **words)  # type: ignore[arg-type]


# --- sources that are not what they should be ----------------------------------------------------------------------


def refused(name: str, source: Path | str, tmp_path: Path) -> str:
    with pytest.raises(ValueError) as error:
        import_benchmark.run(sets.Config(str(source), str(tmp_path / "out"), set=name), small(name))
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_a_layout_that_is_none_is_one_line_of_those_that_are(tmp_path: Path):
    put(tmp_path / "source/pictures/1.jpg", body(1))
    put(tmp_path / "source/list.txt", "")
    assert refused("pets", tmp_path / "source", tmp_path).endswith(
        "pets is understood as annotations/trainval.txt, test.txt and images/; or folders train/CLASS/ and "
        "test/CLASS/; or SPLIT-00000-of-00001.parquet files as Hugging Face has them. Found there: list.txt, pictures/"
    )
    assert "there is no such folder" in refused("pets", tmp_path / "nothing", tmp_path)
    assert "imported from local disks" in refused("pets", "s3://bucket/pets", tmp_path)


def test_damage_is_named(tmp_path: Path):
    food101(tmp_path / "source")
    food = tmp_path / "source/food-101"
    (food / "images/waffles/1001.jpg").unlink()
    assert "1001.jpg: is listed in train.txt and is not there" in refused("food101", tmp_path / "source", tmp_path)
    shutil.copytree(food, tmp_path / "source/food-102")
    assert "food-101 and " in refused("food101", tmp_path / "source", tmp_path)
    write("eurosat", "folders", tmp_path / "eurosat")
    put(tmp_path / "eurosat/test/River/1.jpg", body(1))
    assert "test has the label 'River'" in refused("eurosat", tmp_path / "eurosat", tmp_path)
    write("pets", "lists", tmp_path / "pets")
    put(tmp_path / "pets/annotations/test.txt", "Sphynx_1 1 1\n")
    assert "'Sphynx_1 1 1' has 3 fields, not 4" in refused("pets", tmp_path / "pets", tmp_path)
    write("rxrx1", "wilds", tmp_path / "rxrx1")
    put(tmp_path / "rxrx1/metadata.csv", "dataset,experiment\ntrain,HEPG2-08\n")
    assert "metadata.csv: has no column plate" in refused("rxrx1", tmp_path / "rxrx1", tmp_path)
    write("fmow", "parquet", tmp_path / "fmow")
    next((tmp_path / "fmow/data").glob("train-00000*")).write_bytes(b"PAR1 and no more")
    assert "train-00000-of-00002" in refused("fmow", tmp_path / "fmow", tmp_path)
    write("imagenet1k", "synsets", tmp_path / "imagenet")
    put(tmp_path / "imagenet/val/more.JPEG", body(1))
    assert "has 2 labels for 3 files of val/" in refused("imagenet1k", tmp_path / "imagenet", tmp_path)
    (tmp_path / "imagenet/imagenet_2012_validation_synset_labels.txt").unlink()
    assert "nothing says the classes of its files" in refused("imagenet1k", tmp_path / "imagenet", tmp_path)
    parquet(tmp_path / "two", "train", "test", "x", ("a", "b"))
    shutil.copytree(tmp_path / "two/data", tmp_path / "two/other")
    assert "give one of them as SOURCE" in refused("eurosat", tmp_path / "two", tmp_path)


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_can_call_nothing(tmp_path: Path):
    write("cifar10", "pickles", tmp_path / "source")
    harm = pickle.dumps({b"data": Harmful(tmp_path / "harm"), b"labels": []}, protocol=2)
    put(tmp_path / "source/cifar-10-batches-py/data_batch_3", harm)
    said = refused("cifar10", tmp_path / "source", tmp_path)
    assert "data_batch_3: is not a batch of CIFAR (it asks for posix.mkdir" in said
    assert not (tmp_path / "harm").exists()
    put(tmp_path / "source/cifar-10-batches-py/data_batch_3", pickle.dumps({"data": np.zeros((2, 5), np.uint8)}))
    assert "data is not uint8 [pictures, 3072]" in refused("cifar10", tmp_path / "source", tmp_path)


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("train_x", "train_y", "valid_x", "valid_y"):
        put(tmp_path / f"source/camelyonpatch_level_2_split_{name}.h5", b"")
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert refused("pcam", tmp_path / "source", tmp_path) == (
        "h5py is missing, and PCAM's HDF5 needs it: python -m pip install h5py"
    )


def test_blocks_are_read_once_and_only_two_stay():
    loads: Counter[int] = Counter()

    def load(block: int) -> list[bytes]:
        loads[block] += 1
        return [b"%d" % block]

    blocks = Blocks(load)
    assert [blocks[block][0] for block in (0, 1, 0, 1, 2, 1, 2)] == [b"0", b"1", b"0", b"1", b"2", b"1", b"2"]
    assert loads == {0: 1, 1: 1, 2: 1}
    assert blocks[0] == [b"0"]
    assert loads[0] == 2
