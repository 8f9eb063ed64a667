"""Folders as people have them: splits, nested classes, thumbnails, names in two forms, and the Hub's own layouts."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_class_folders import picture

from ingest.sets import folders
from jobs import cli
from shards import manifest, store
from shards.dataset import read_table


def put(root: Path, *names: str) -> Path:
    for at, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(at))
    return root


def imported(tmp_path: Path, source: Path, **options: object) -> list[tuple[str, list[str], str]]:
    out = str(tmp_path / "out")
    folders.run(folders.Config(str(source), out, **options))  # type: ignore[arg-type]
    shard = manifest.read_manifest(out).shards[0]
    table = read_table(store.join(out, "shards", shard.index))
    return [(row["url"], row["labels"], row["reason"]) for row in table.to_pylist()]


def refused(tmp_path: Path, source: Path, what: str, **options: object) -> None:
    with pytest.raises(ValueError, match=what):
        folders.run(folders.Config(str(source), str(tmp_path / "out"), **options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("splits", "asks"),
    [
        (["train", "val"], True),
        (["train2018", "val2018"], True),
        (["Training", "Test"], True),
        (["in_train", "in_val", "in_small"], True),
        (["train"], True),
        (["train", "car", "bus"], False),
        (["bullet_train", "passenger_train", *"abcdef"], False),
    ],
)
def test_split_folders_are_no_classes(tmp_path: Path, splits: list[str], asks: bool) -> None:
    source = put(tmp_path / "set", *(f"{split}/{c}/{split}{c}.jpg" for split in splits for c in ("cat", "dog")))
    if not asks:
        assert len({tuple(row[1]) for row in imported(tmp_path, source, label_from="folder")}) == len(splits)
        return
    refused(tmp_path, source, "look like splits, not classes: import one with --split")
    assert [row[1] for row in imported(tmp_path, source, split=splits[0])] == [["cat"], ["dog"]]


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    source = put(tmp_path / "set", "train/cat/1.jpg")
    refused(tmp_path, source, "has no folder 'val' for --split: it has train", split="val")


def test_nested_classes_are_asked_about(tmp_path: Path) -> None:
    source = put(tmp_path / "set", "animal/cat/1.jpg", "animal/dog/2.jpg", "plant/oak/3.jpg")
    refused(tmp_path, source, r"the 2 first ones \(animal, plant\) .* or the 3 last ones \(cat, dog, oak\)")
    assert [row[1] for row in imported(tmp_path, source, label_from="parent")] == [["cat"], ["dog"], ["oak"]]
    (tmp_path / "out").rename(tmp_path / "other")
    assert [row[1] for row in imported(tmp_path, source, label_from="folder")] == [["animal"], ["animal"], ["plant"]]


def test_thumbnails_of_file_servers_are_no_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    junk = [
        "cat/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",
        "#recycle/cat/2.jpg",
        "__MACOSX/cat/3.jpg",
        "cat/.AppleDouble/4.jpg",
    ]
    source = put(tmp_path / "set", "cat/1.jpg", "dog/2.jpg", *junk)
    (source / "README.md").write_text("x")
    assert cli.main(["import", str(source), "--out", str(tmp_path / "cli")]) == 0
    said = capsys.readouterr().out
    assert "2 classes: cat, dog; files that are no pictures of the set: " in said
    assert "1 in @eaDir" in said
    assert "1 .md" in said
    assert [row[0] for row in imported(tmp_path, source)] == ["cat/1.jpg", "dog/2.jpg"]


@pytest.mark.parametrize("name", ["café", "Ångström", "日本が"])
def test_one_class_in_two_forms_of_unicode(tmp_path: Path, name: str) -> None:
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    source = put(tmp_path / "set", *(f"{form}/{at}.jpg" for at, form in enumerate(forms)))
    assert {tuple(row[1]) for row in imported(tmp_path, source)} == {(forms[0],)}


def test_pictures_without_labels(tmp_path: Path) -> None:
    source = put(tmp_path / "set", "1.jpg", "2.jpg", "more/3.jpg")
    refused(tmp_path, source, r"1.jpg: is outside a class folder: .* import the set with --no-labels")
    assert imported(tmp_path, source, labels=False) == [(n, [], "kept") for n in ("1.jpg", "2.jpg", "more/3.jpg")]
    assert manifest.read_manifest(str(tmp_path / "out")).classes == ()


# --- the Hub -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_folder_with_metadata(tmp_path: Path, ending: str) -> None:
    source = put(tmp_path / "set", "a.jpg", "in/b.jpg", "c.jpg")
    rows = [{"file_name": "in/b.jpg", "label": "dog", "text": 'a "b"\nc'}, {"file_name": "a.jpg", "label": "cat"}]
    text = 'file_name,label,text\nin/b.jpg,dog,"a\nb"\na.jpg,cat,\n' if ending == "csv" else ""
    (source / f"metadata.{ending}").write_text(text or "".join(json.dumps(row) + "\n" for row in rows))
    assert imported(tmp_path, source) == [("in/b.jpg", ["dog"], "kept"), ("a.jpg", ["cat"], "kept")]
    found = folders.find(str(source))
    assert found.remarks == [f"1 pictures that metadata.{ending} does not name"]


def test_metadata_that_cannot_be_followed(tmp_path: Path) -> None:
    source = put(tmp_path / "set", "a.jpg")
    for text, what in (
        ("file_name,label\nb.jpg,cat\n", "b.jpg: is listed in metadata.csv, but missing"),
        ("file_name,label\n../a.jpg,cat\n", "is outside the set"),
        ("name,label\na.jpg,cat\n", "has no column file_name"),
        ("file_name,label\n,cat\n", "row 1 has no file_name"),
        ("file_name,text\na.jpg,a cat\n", "row 1, a.jpg, has no label: add a column label, or give --no-labels"),
    ):
        (source / "metadata.csv").write_text(text)
        refused(tmp_path, source, what)
    assert imported(tmp_path, source, labels=False) == [("a.jpg", [], "kept")]


def hub_file(path: Path, labels: list[object] | None, named: bool = True, null: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": picture(at), "path": f"{at}.jpg"} for at in range(3)]
    images += [{"bytes": None, "path": "x.jpg"}, None] if null else []  # type: ignore[list-item]
    table = pa.table({"image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    if labels is not None:
        table = table.append_column("label", pa.array(labels[: len(images)]))
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})} if named else None
    pq.write_table(table.replace_schema_metadata(meta), path, row_group_size=2)


@pytest.mark.parametrize(
    "name", ["data/train-00000-of-00001.parquet", "train-00000-of-00001-abc123.parquet", "0000.parquet"]
)
def test_parquet_of_the_hub(tmp_path: Path, name: str) -> None:
    hub_file(tmp_path / "set" / name, [0, 1, 0, 1, None])
    (tmp_path / "set" / "README.md").write_text("x")
    found = imported(tmp_path, tmp_path / "set")
    assert [row[1:] for row in found] == [
        (["cat"], "kept"),
        (["dog"], "kept"),
        (["cat"], "kept"),
        (["dog"], "not_an_image"),
        ([], "not_an_image"),
    ]


def test_parquet_without_names_or_labels(tmp_path: Path) -> None:
    hub_file(tmp_path / "a" / "train-00000-of-00001.parquet", ["x", "y", "x"], named=False, null=False)
    assert [row[1] for row in imported(tmp_path, tmp_path / "a")] == [["x"], ["y"], ["x"]]
    (tmp_path / "out").rename(tmp_path / "other")
    hub_file(tmp_path / "b" / "train-00000-of-00001.parquet", None, named=False, null=False)
    refused(tmp_path, tmp_path / "b", "has no column label or labels .* import it with --no-labels")
    assert [row[1] for row in imported(tmp_path, tmp_path / "b", labels=False)] == [[]] * 3


def test_splits_of_parquet_are_asked_about(tmp_path: Path) -> None:
    for split in ("train", "test"):
        hub_file(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet", [0, 1, 0], null=False)
    refused(tmp_path, tmp_path / "set", "holds Parquet files of test, train: import one with --split")
    assert len(imported(tmp_path, tmp_path / "set", split="test")) == 3


def test_parquet_that_holds_no_pictures(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table({"url": ["http://a/1.jpg"]}), tmp_path / "set" / "a.parquet")
    refused(tmp_path, tmp_path / "set", r"has the columns url: .*for a list of URLs use xtra ingest")
