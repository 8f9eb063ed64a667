"""A dataset's README.md: by it Hugging Face's `load_dataset(FOLDER)` finds the pictures, and a user's own stays."""

from __future__ import annotations

import importlib.util
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ingesting import FETCH
from made_datasets import jpeg, make_dataset, plan_unit, rows_of, write_unit
from origin import Origin
from PIL import Image

from ingest import readme
from ingest.config import Config
from ingest.run import run
from ingest.sets import folders, in_place
from shards import check, store, sweep
from shards.dataset import Generation, write_generation
from shards.manifest import make_version, read_manifest

PLAIN = {"url": "string", "labels": "string", "sha256": "string", "width": "int64", "height": "int64"}


def front(dataset: str | Path) -> dict[str, Any]:
    """The front matter as YAML."""
    return yaml.safe_load((Path(dataset) / "README.md").read_text().split("---\n")[1])


def paths(dataset: str | Path) -> list[str]:
    (config,) = front(dataset)["configs"]
    (split,) = config["data_files"]
    assert (config["config_name"], split["split"]) == ("default", "train")
    return split["path"]


def features(dataset: str | Path) -> dict[str, Any]:
    """Name -> dtype, or name -> dtype of the fields of a struct."""

    def of(entry: dict[str, Any]) -> Any:
        kinds = entry.get("struct")
        return {e["name"]: of(e) for e in kinds} if kinds else entry.get("dtype") or entry["sequence"]

    return {entry["name"]: of(entry) for entry in front(dataset)["dataset_info"]["features"]}


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """A folder of pictures of several formats, the rarest last; one is damaged."""
    for n in range(9):
        path = tmp_path / "pictures" / f"c{n % 2}" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(n, side=40))
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), np.uint8)).save(path.parent / "9.png")
    (path.parent / "bad.jpg").write_bytes(jpeg(3)[:200])
    return tmp_path / "pictures"


def test_an_import_names_its_tars_and_what_their_samples_have(classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = folders.run(folders.Config(str(classes), str(out), unit=6))
    assert paths(out) == [f"shards/{shard.tar}" for shard in read_manifest(str(out)).shards]
    assert features(out) == {
        "jpg": "image",
        "png": "image",
        "json": PLAIN,
        "__key__": "string",
        "__url__": "string",
    }
    text = (out / "README.md").read_text()
    assert f"{result.kept} pictures in 2 tars" in text
    assert check.run(check.Config(str(out))).ok
    swept = sweep.run(sweep.Config(str(out), older_than="10m"))
    assert not swept.objects
    assert (out / "README.md").read_text() == text
    before = (out / "README.md").stat().st_mtime_ns
    folders.run(folders.Config(str(classes), str(out), unit=6))
    assert (out / "README.md").stat().st_mtime_ns == before, "a rerun has nothing to add"


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="the datasets library is not installed")
def test_the_datasets_library_finds_every_picture(classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    folders.run(folders.Config(str(classes), str(out), unit=6))
    script = (
        "import datasets, sys\n"
        "rows = datasets.load_dataset(sys.argv[1], split='train')\n"
        "print(len(rows), sum((row['jpg'] or row['png']).size == (40, 40) for row in rows), rows[0]['json']['labels'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        env={"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "10 10 ['c0']", done.stderr


def test_an_ingest_says_which_columns_its_samples_have(tmp_path: Path, origin: Origin) -> None:
    rows = [
        {"url": origin.url(f"/ok/{n}.jpg"), "caption: x": f"says {n}", "score": n / 2, "n": n, "tags": ["a"]}
        for n in range(8)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "list.parquet")
    out = tmp_path / "out"
    run(Config(urls=str(tmp_path / "list.parquet"), out=str(out), unit=5, fetch=FETCH))
    assert features(out)["json"] == PLAIN | {"columns": {"caption: x": "string", "score": "float64", "n": "int64"}}
    assert "tags" not in (out / "README.md").read_text(), "a list of values has no type that all readers know"
    assert len(paths(out)) == 2


def test_tars_of_a_retry_are_added_and_tars_of_dead_writers_are_not_there(tmp_path: Path) -> None:
    dataset = str(tmp_path / "set")
    version = make_dataset(dataset, [6, 6], bad=(2,))
    assert readme.write(version) == ""
    first = paths(dataset)
    store.put(f"{dataset}/shards/000001-dead.tar", b"x")
    rows = rows_of(2, 1)
    plan_unit(dataset, 2, rows)
    write_generation(dataset, Generation(1, version.digest, 2, 1))
    write_unit(dataset, 2, rows, supersedes={"http_404": 1})
    newer = make_version(dataset, "retry")
    assert readme.write(newer) == ""
    assert paths(dataset) == [*first, f"shards/{newer.shards[2].tar}"]
    assert "12 pictures in 3 tars" in (tmp_path / "set/README.md").read_text()


@pytest.mark.parametrize("own", ["mine alone\n", "---\nlicense: mit\n---\n", "", "\xff"])
def test_a_readme_of_the_user_stays(tmp_path: Path, own: str) -> None:
    version = make_dataset(tmp_path, [4])
    (tmp_path / "README.md").write_bytes(own.encode("latin-1"))
    assert readme.write(version) == ""
    assert (tmp_path / "README.md").read_bytes() == own.encode("latin-1")


def test_ours_stays_once_it_has_been_edited(tmp_path: Path) -> None:
    version = make_dataset(tmp_path, [4])
    readme.write(version)
    edited = (
        (tmp_path / "README.md").read_text().replace("shards/000000", "shards/00000*").replace("4 pict", "Four pict")
    )
    (tmp_path / "README.md").write_text(edited)
    assert readme.write(version) == ""
    assert (tmp_path / "README.md").read_text() == edited
    assert not readme.is_ours(edited)


def test_tars_of_others_are_named_where_they_lie_and_what_they_hold_is_left_to_the_reader(tmp_path: Path) -> None:
    theirs = tmp_path / "their [odd] tars"
    theirs.mkdir()
    with tarfile.open(theirs / "a.tar", "w") as tar:
        for name, body in (("x.jpg", jpeg(1)), ("x.cls", b"3")):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    out = tmp_path / "out"
    in_place.run(folders.Config(str(theirs), str(out), in_place=True))
    (path,) = paths(out)
    assert path == str(theirs / "a.tar").replace("[", "[[]").replace("odd]", "odd]")
    assert "dataset_info" not in front(out)


def test_the_name_of_a_list_is_text_and_no_more(tmp_path: Path) -> None:
    version = make_dataset(tmp_path, [4], name="a`b\n---\nconfigs: <script>")
    readme.write(version)
    text = (tmp_path / "README.md").read_text()
    assert "\n# `a b --- configs: <script>`\n" in text
    assert len(paths(tmp_path)) == 1


def test_what_keeps_nothing_has_none_and_a_store_that_fails_is_a_remark(tmp_path: Path) -> None:
    empty = make_dataset(tmp_path / "empty", [3], bad=(0, 1, 2))
    assert readme.write(empty) == ""
    assert not (tmp_path / "empty" / "README.md").exists()
    version = make_dataset(tmp_path / "set", [3])
    (tmp_path / "set" / "README.md").mkdir()
    assert readme.write(version).startswith("README.md was not written: ")


def test_it_goes_to_a_bucket(base: str) -> None:
    version = make_dataset(base, [3])
    assert readme.write(version) == ""
    assert json.dumps(version.shards[0].tar)[1:-1].encode() in store.read(f"{base}/README.md")
