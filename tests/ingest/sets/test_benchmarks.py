"""The 15 evaluation sets, as people have them on disk: right split, label and count, or one line that says so."""

from __future__ import annotations

import codecs
import csv
import dataclasses
import io
import json
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_copies import CLASS_OF, COPIES, EVAL, OTHER, TRAIN, body, food101, parquet, pixels, put
from PIL import Image

from ingest.filter import FilterConfig
from ingest.sets import benchmarks, folders, import_benchmark, layouts
from ingest.sets.benchmarks import BENCHMARKS, Benchmark
from ingest.sets.pictures import Blocks, Row
from jobs import cli
from shards import check, manifest
from shards.dataset import committed_units
from shards.stream.stream import once

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
    config = folders.Config(str(tmp_path / "source"), str(tmp_path / "out"), set=name, unit=3)
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
    config = folders.Config(str(tmp_path / "source"), str(tmp_path / "out"), set=name)
    with pytest.raises(ValueError) as refused:
        import_benchmark.run(config, BENCHMARKS[name])
    for is_, must in ((len(TRAIN), BENCHMARKS[name].train), (len(EVAL), BENCHMARKS[name].eval)):
        assert f"{is_:,} pictures in " in str(refused.value)
        assert f", not {must:,}" in str(refused.value)
    assert "--counts any" in str(refused.value)
    assert name in str(refused.value)
    assert not (tmp_path / "out").exists(), "nothing is written before the counts are right"


def test_any_counts_are_taken_on_request_and_reported(tmp_path: Path):
    write("eurosat", "folders", tmp_path / "source")
    config = folders.Config(str(tmp_path / "source"), str(tmp_path / "out"), set="eurosat", counts="any")
    result = import_benchmark.run(config, dataclasses.replace(small("eurosat"), train=6, classes=10))
    assert result.differs == (
        "5 pictures in train, not 6",
        "2 classes, not 10",
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
    summary = json.loads(out.splitlines()[-1])
    assert (status, summary["name"], summary["lost"], summary["counted"]) == (0, "food101", 0, True)
    assert not summary["stopped"]
    assert not summary["splits"]["eval"]["stopped"]
    assert {split: part["kept"] for split, part in summary["splits"].items()} == {"train": 5, "eval": 2}
    assert "food101: laid out as meta/train.txt, meta/test.txt and images/; 2 classes" in out
    files = sorted(path for path in (tmp_path / "out").rglob("*") if path.name != "ingest.html")
    assert run_cli(words, capsys)[0] == 0
    assert sorted(path for path in (tmp_path / "out").rglob("*") if path.name != "ingest.html") == files


def test_a_set_that_lost_pictures_is_reported(
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
    assert run_cli([*words, "--counts", "any"], capsys)[0] == 0, "with --counts any, this set is taken, too"


def test_tall_and_huge_pictures_are_part_of_a_set(tmp_path: Path):
    out = io.BytesIO()
    Image.new("RGB", (10, 500), (9, 8, 7)).save(out, "PNG")
    food101(tmp_path / "source")
    (tmp_path / "source/food-101/images/apple_pie/1000.jpg").write_bytes(out.getvalue())
    config = folders.Config(str(tmp_path / "source"), str(tmp_path / "out"), set="food101")
    assert import_benchmark.run(config, small("food101")).lost == 0


def test_a_stop_between_the_splits_is_finished_by_the_next(tmp_path: Path):
    write("cifar100", "pickles", tmp_path / "source")
    config = folders.Config(str(tmp_path / "source"), str(tmp_path / "out"), set="cifar100", unit=2)
    reports = []
    first = import_benchmark.run(
        config,
        small("cifar100"),
        reports.append,
        stop=lambda: len(committed_units(str(tmp_path / "out/train"))) > 1,
    )
    assert first.stopped
    assert len(first.splits) == 1
    result = import_benchmark.run(config, small("cifar100"), reports.append)
    assert not result.stopped
    assert set(samples(str(tmp_path / "out/train"))) == set(TRAIN)
    assert (reports[-1].links, reports[-1].done, reports[-1].kept, reports[-1].units_done) == (7, 7, 7, 4), (
        "of both splits"
    )
    assert reports[-1].done_now == 3, "of this run"


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
            folders.Config("source", "out", **words)  # type: ignore[arg-type]


# --- sources that are not what they should be ----------------------------------------------------------------------


def refused(name: str, source: Path | str, tmp_path: Path) -> str:
    with pytest.raises(ValueError) as error:
        import_benchmark.run(folders.Config(str(source), str(tmp_path / "out"), set=name), small(name))
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_a_layout_that_is_none_is_one_line_of_those_that_are(tmp_path: Path):
    put(tmp_path / "source/pictures/1.jpg", body(1))
    put(tmp_path / "source/list.txt", "")
    assert refused("pets", tmp_path / "source", tmp_path).endswith(
        "pets must be annotations/trainval.txt, test.txt and images/; or folders train/CLASS/ and "
        "test/CLASS/; or SPLIT-00000-of-00001.parquet files as Hugging Face has them. Found there: list.txt, pictures/"
    )
    assert "there is no such folder" in refused("pets", tmp_path / "nothing", tmp_path)
    assert "imported from local disks" in refused("pets", "s3://bucket/pets", tmp_path)


def test_damage_is_named(tmp_path: Path):
    food101(tmp_path / "source")
    food = tmp_path / "source/food-101"
    (food / "images/waffles/1001.jpg").unlink()
    assert "1001.jpg: is listed in train.txt, but missing" in refused("food101", tmp_path / "source", tmp_path)
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
    assert "there are no labels for its files" in refused("imagenet1k", tmp_path / "imagenet", tmp_path)
    parquet(tmp_path / "two", "train", "test", "x", ("a", "b"))
    shutil.copytree(tmp_path / "two/data", tmp_path / "two/other")
    assert "give one of them as SOURCE" in refused("eurosat", tmp_path / "two", tmp_path)


def test_parquet_files_of_one_set_agree(tmp_path: Path):
    def copy(name: str, names: Sequence[str] = ("cat", "dog"), **columns: str) -> Path:
        """Whose evaluation is of a set with those names and columns."""
        parquet(tmp_path / name, "train", "other", "x", ("cat", "dog"))
        parquet(tmp_path / name, "y", "test", "z", names, **columns)
        return tmp_path / name / "data"

    for odd in (copy("order", ("dog", "cat")), copy("image", image="img")):
        said = refused("eurosat", odd, tmp_path)
        assert "have different columns or class names" in said
        assert f"{odd}/train-00000-of-00002" in said
        assert f"{odd}/test-00000-of-00002" in said
    assert "one called label" in refused("eurosat", copy("none", label="z"), tmp_path)
    cut = copy("cut")
    next(cut.glob("train-00001*")).unlink()
    assert f"{cut}: holds 1 of train's 2 files" in refused("eurosat", cut, tmp_path)
    secret = copy("secret")
    for path in secret.glob("test-*"):
        table = pq.read_table(path)
        pq.write_table(table.set_column(1, table.schema.field(1), pa.array([-1] * len(table), pa.int64())), path)
    assert "has rows without a label (-1)" in refused("eurosat", secret, tmp_path)


def test_parquet_rows_of_all_files_share_two_blocks(tmp_path: Path):
    parquet(tmp_path, "train", "test", "x", ("cat", "dog"))
    found, _ = layouts.find(tmp_path, small("eurosat"), tmp_path)
    assert len({id(row.blocks) for row in found.train if isinstance(row, Row)}) == 1


def test_damage_inside_an_archive_is_named(tmp_path: Path):
    write("cifar10", "packed", tmp_path / "source")
    packed = tmp_path / "source/cifar-10-python.tar.gz"
    whole = packed.read_bytes()
    middle = len(whole) // 2
    for damaged in (
        whole[:-8] + b"12345678",  # the checksum
        whole[:-8],
        whole[:middle] + b"\xff" * 64 + whole[middle + 64 :],
    ):
        packed.write_bytes(damaged)
        assert "cifar-10-python.tar.gz: cannot be read (" in refused("cifar10", tmp_path / "source", tmp_path)
    x = "camelyonpatch_level_2_split_train_x.h5"
    for name in ("train_x", "train_y", "valid_x", "valid_y"):
        put(tmp_path / f"pcam/{x.replace('train_x', name)}.gz", whole[:10] + b"\xff" * 64)
    assert f"{x}.gz: cannot be unpacked" in refused("pcam", tmp_path / "pcam", tmp_path)


def test_batches_of_cifar_hold_what_they_must(tmp_path: Path):
    write("cifar10", "pickles", tmp_path)
    data = np.zeros((2, 3072), np.uint8)
    for batch, said in (
        ({"labels": [[0], [1]]}, "labels is not 2 numbers below 2"),
        ({"labels": [0, 1], "filenames": ["one"]}, "filenames is not 2 names"),
    ):
        put(tmp_path / "cifar-10-batches-py/data_batch_3", pickle.dumps({"data": data, **batch}))
        assert said in refused("cifar10", tmp_path, tmp_path)


@pytest.mark.parametrize("name", ["infograph/zebra/../../../secret.png", "/etc/zebra/secret.png"])
def test_lists_name_nothing_outside_the_set(name: str, tmp_path: Path):
    write("infograph", "lists", tmp_path / "source")
    put(tmp_path / "secret.png", body(1))
    put(tmp_path / "source/infograph_test.txt", f"{name} 0\n")
    assert f"infograph_test.txt: '{name}' is outside the set" in refused("infograph", tmp_path / "source", tmp_path)


def test_lists_and_tables_of_other_programs(tmp_path: Path):
    """A byte order mark is no part of them; what is no text at all is named."""
    write("food101", "lists", tmp_path / "food")
    write("fmow", "wilds", tmp_path / "fmow")
    listing, rows = tmp_path / "food/food-101/meta/train.txt", tmp_path / "fmow/rgb_metadata.csv"
    for path in (listing, rows):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    for name, source in (("food101", tmp_path / "food"), ("fmow", tmp_path / "fmow")):
        assert len(layouts.find(source, small(name), tmp_path)[0].train) == len(TRAIN)
    good = rows.read_bytes()
    for bad in (good + b"\xff\n", good + b'"' + b"x" * (csv.field_size_limit() + 1) + b'"\n'):
        put(rows, bad)
        assert "rgb_metadata.csv: cannot be read (" in refused("fmow", tmp_path / "fmow", tmp_path)


def test_files_that_cannot_be_taken_are_named_before_any_is(tmp_path: Path):
    write("eurosat", "folders", tmp_path / "links")
    (tmp_path / "links/test/Forest/99.jpg").symlink_to(tmp_path / "nothing")
    assert "Forest/99.jpg: cannot be read (No such file" in refused("eurosat", tmp_path / "links", tmp_path)
    write("imagenet1k", "kaggle", tmp_path / "flat")
    (tmp_path / "flat/ILSVRC/Data/CLS-LOC/val/.cache").mkdir()
    assert len(layouts.find(tmp_path / "flat", small("imagenet1k"), tmp_path)[0].eval) == len(EVAL)


def test_what_eval_refuses_is_refused_before_train_is_imported(tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    write("eurosat", "folders", source)
    odd = Path(os.fsdecode(os.fsencode(source / "test/Forest/") + b"/\xe9.jpg"))
    config = folders.Config(str(source), str(out), set="eurosat")
    odd.write_bytes(body(20))
    with pytest.raises(ValueError, match=r"Forest/\\udce9.jpg': is a name that is not UTF-8"):
        import_benchmark.run(config, dataclasses.replace(small("eurosat"), eval=3))
    assert not out.exists()
    odd.unlink()
    import_benchmark.run(config, small("eurosat"))
    shutil.rmtree(out / "train")
    with pytest.raises(ValueError, match="was made with another unit"):
        import_benchmark.run(dataclasses.replace(config, unit=3), small("eurosat"))
    assert not (out / "train").exists()


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
