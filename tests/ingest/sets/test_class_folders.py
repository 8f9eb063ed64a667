"""Labelled sets on disk become datasets like any other: every picture is a link, and none is lost without a reason."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ingest.select.apply import SelectConfig, select
from ingest.sets import folders, in_place
from shards import check, manifest, store
from shards.dataset import committed_units, planned_units, read_table
from shards.stream.stream import once


def picture(number: int, kind: str = "JPEG", side: int = 24) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def folder_set(root: Path) -> dict[str, bytes]:
    """Files by path: two classes, one with a folder below, three formats, one that is not a picture at all."""
    files = {
        "cat/2.jpg": picture(1),
        "cat/10.JPEG": picture(2),
        "cat/more/a b.png": picture(3, "PNG"),
        "dog/2.webp": picture(4, "WEBP"),
        "dog/dog_7.gif": picture(5, "GIF"),
        "dog/broken.jpg": picture(6)[:200],
        "dog/page.jpg": b"<html>not found</html>",
        "dog/notes.txt": b"no picture",
        "dog/.hidden.jpg": b"",
    }
    for name, body in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(body)
    return files


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            out.addfile(info, io.BytesIO(body))
    return path


def tar_set(folder: Path, tars: int = 2, each: int = 7) -> None:
    for t in range(tars):
        members: dict[str, bytes] = {}
        for i in range(each):
            members |= {f"im-{t}-{i}.cls": str(i % 3).encode(), f"im-{t}-{i}.jpg": picture(100 * t + i)}
        write_tar(folder / f"part-{t}.tar", members)


def samples(dataset: str) -> dict[str, tuple[tuple[str, ...], bytes]]:
    version = manifest.read_manifest(dataset)
    return {sample.key: (sample.labels, bytes(sample.body)) for batch in once(version, 4) for sample in batch}


def test_a_folder_of_classes(tmp_path: Path) -> None:
    files = folder_set(tmp_path / "pets")
    out = str(tmp_path / "out")
    result = folders.run(folders.Config(str(tmp_path / "pets"), out, unit=3))
    assert (result.links, result.kept, result.reasons) == (7, 5, {"undecodable": 1, "not_an_image": 1})
    found = samples(out)
    assert {key: labels for key, (labels, _) in found.items()} == {
        "cat_10": ("cat",),
        "cat_2": ("cat",),
        "cat_more_a_b": ("cat",),
        "dog_2": ("dog",),
        "dog_7": ("dog",),
    }
    kept = {"cat_2": "cat/2.jpg", "cat_10": "cat/10.JPEG", "cat_more_a_b": "cat/more/a b.png", "dog_2": "dog/2.webp"}
    for key, name in kept.items():
        assert found[key][1] == files[name], "JPEG, PNG and WebP keep their bytes"
    assert found["dog_7"][1].startswith(b"\x89PNG"), "other formats become PNG"
    version = manifest.read_manifest(out)
    assert version.classes == ("cat", "dog")
    assert version.list_name == "pets"
    assert planned_units(out) == committed_units(out) == [0, 1, 2]
    assert check.run(check.Config(out, decode=True)).problems == ()


def test_refused_pictures_are_rows_of_the_index(tmp_path: Path) -> None:
    folder_set(tmp_path / "pets")
    out = str(tmp_path / "out")
    folders.run(folders.Config(str(tmp_path / "pets"), out))
    rows = read_table(store.join(out, "shards", manifest.read_manifest(out).shards[0].index)).to_pylist()
    assert [row["row"] for row in rows] == list(range(7))
    refused = {row["url"]: (row["reason"], row["labels"], row["member"]) for row in rows if row["reason"] != "kept"}
    assert refused == {
        "dog/broken.jpg": ("undecodable", ["dog"], None),
        "dog/page.jpg": ("not_an_image", ["dog"], None),
    }


@pytest.mark.parametrize("source", ["tars", "tars/part-*.tar"])
def test_tars_by_folder_and_glob(tmp_path: Path, source: str) -> None:
    tar_set(tmp_path / "tars")
    out = str(tmp_path / "out")
    result = folders.run(folders.Config(str(tmp_path / source), out, unit=5, name="two parts"))
    assert (result.links, result.kept, result.reasons) == (14, 14, {})
    found = samples(out)
    assert list(found)[:2] == ["im-0-0", "im-0-1"]
    assert found["im-1-5"] == (("2",), picture(105))
    version = manifest.read_manifest(out)
    assert (version.list_name, version.classes) == ("two parts", ("0", "1", "2"))
    assert check.run(check.Config(out)).ok


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog", "owl", "never seen"],
        {"0": "cat", "1": "dog", "2": "owl", "3": "never seen"},
        [{"label": i, "name": "same", "wnid": n} for i, n in enumerate(["cat", "dog", "owl", "never seen"])],
    ],
)
def test_class_names_stand_for_numbers(tmp_path: Path, names: object) -> None:
    tar_set(tmp_path / "tars", tars=1)
    (tmp_path / "names.json").write_text(json.dumps(names))
    out = str(tmp_path / "out")
    folders.run(folders.Config(str(tmp_path / "tars"), out, classes=str(tmp_path / "names.json")))
    assert samples(out)["im-0-5"][0] == ("owl",)
    assert manifest.read_manifest(out).classes == ("cat", "dog", "owl", "never seen"), "in the order of the file"


def test_class_numbers_are_in_the_order_of_numbers(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for label in (10, 9, 2):
        members |= {f"k{label}.jpg": picture(label), f"k{label}.cls": str(label).encode()}
    write_tar(tmp_path / "t.tar", members)
    folders.run(folders.Config(str(tmp_path / "t.tar"), str(tmp_path / "out")))
    assert manifest.read_manifest(str(tmp_path / "out")).classes == ("2", "9", "10")


def test_keys_are_unique_and_of_the_allowed_letters(tmp_path: Path) -> None:
    for t in range(2):
        write_tar(
            tmp_path / f"{t}.tar", {"a/b c.jpg": picture(t), "a/b c.cls": b"x", "é" * 100 + ".jpg": picture(5 + t)}
        )
    for t in range(2):
        with tarfile.open(tmp_path / f"{t}.tar", "a") as tar:
            info = tarfile.TarInfo("é" * 100 + ".cls")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"y"))
    links = folders.links(folders.find(str(tmp_path)).pictures)
    assert [link.key for link in links] == ["a_b_c", "_" * 90, "a_b_c_r2", "_" * 87 + "_r3"]
    assert [link.url for link in links][::2] == ["0.tar/a/b c.jpg", "1.tar/a/b c.jpg"]


def test_a_second_run_does_nothing_and_a_changed_set_is_refused(tmp_path: Path) -> None:
    tar_set(tmp_path / "tars")
    config = folders.Config(str(tmp_path / "tars"), str(tmp_path / "out"), unit=5)
    first = folders.run(config)
    before = sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*"))
    again = folders.run(config)
    assert (again.links, again.kept) == (first.links, first.kept)
    assert sorted(path.relative_to(tmp_path) for path in (tmp_path / "out").rglob("*")) == before
    write_tar(tmp_path / "tars" / "part-9.tar", {"new.jpg": picture(1), "new.cls": b"0"})
    with pytest.raises(ValueError, match="was made with another list_sha256"):
        folders.run(config)


def test_an_import_of_what_was_selected_since_says_what_is_left(tmp_path: Path) -> None:
    folder_set(tmp_path / "set")
    (tmp_path / "set" / "dog" / "twin.jpg").write_bytes(picture(1))
    config = folders.Config(str(tmp_path / "set"), str(tmp_path / "out"))
    first = folders.run(config)
    assert (first.samples, first.deselected) == (first.kept, {})
    made = select(manifest.read_manifest(config.out), SelectConfig())
    again = folders.run(config)
    assert (again.version, again.samples, again.deselected) == (made.digest, first.kept - 1, {"duplicate": 1})


def test_an_interrupted_import_is_finished_by_the_next(tmp_path: Path) -> None:
    tar_set(tmp_path / "tars")
    config = folders.Config(str(tmp_path / "tars"), str(tmp_path / "out"), unit=5)
    whole = folders.Config(str(tmp_path / "tars"), str(tmp_path / "whole"), unit=5)
    done: list[int] = []
    folders.run(config, stop=lambda: bool(committed_units(config.out)))
    done += committed_units(config.out)
    assert done == [0]
    result = folders.run(config)
    folders.run(whole)
    assert result.links == 14
    assert committed_units(config.out) == [0, 1, 2]
    assert samples(config.out) == samples(whole.out)


def test_a_flat_picture_of_a_labelled_set_is_kept(tmp_path: Path) -> None:
    """On the web one flat colour is a placeholder; in a set of satellite pictures it is the sea."""
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 40, 90)).save(out, "JPEG")
    write_tar(tmp_path / "t.tar", {"sea.jpg": out.getvalue(), "sea.cls": b"sea"})
    result = folders.run(folders.Config(str(tmp_path / "t.tar"), str(tmp_path / "out")))
    assert (result.links, result.kept) == (1, 1)


def test_mistakes_are_named(tmp_path: Path) -> None:
    def said(source: Path | str, message: str, **options: object) -> None:
        with pytest.raises(ValueError, match=message):
            folders.run(folders.Config(str(source), str(tmp_path / "out"), **options))  # type: ignore[arg-type]

    said(tmp_path / "nothing", "there is no such folder or tar")
    said("s3://bucket/set", "imported from local disks")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.jpg").write_bytes(picture(1))
    said(tmp_path / "flat", "a.jpg: is outside a class folder")
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    said(tmp_path / "empty", "holds no pictures")
    said(write_tar(tmp_path / "bare.tar", {"k.jpg": picture(1)}), "k.jpg has no label: add a member k.cls")
    said(write_tar(tmp_path / "two.tar", {"k.jpg": b"", "k.png": b"", "k.cls": b"1"}), "k has two pictures")
    (tmp_path / "torn.tar").write_bytes((tmp_path / "bare.tar").read_bytes()[:700])
    said(tmp_path / "torn.tar", r"torn.tar: cannot be read")
    tar_set(tmp_path / "tars", tars=1)
    for names, message in (
        (["a"], "label '1' is not among the 1 class names"),
        (["a", "b", "a"], "names 'a' twice"),
        ({"0": 1}, "must be a list of names"),
    ):
        (tmp_path / "names.json").write_text(json.dumps(names))
        said(tmp_path / "tars", message, classes=str(tmp_path / "names.json"))
    with pytest.raises(ValueError, match="unit is 0"):
        folders.Config("a", "b", unit=0)
    assert not (tmp_path / "out").exists(), "a mistake leaves nothing behind"


@pytest.mark.parametrize("run", [folders.run, in_place.run])
def test_an_import_to_or_from_nowhere_is_refused(run: Callable[..., object]):
    for source, out, name in (("", "x", "source"), ("x", " ", "out")):
        with pytest.raises(ValueError, match=f"^{name} is empty: give a folder or URL"):
            run(folders.Config(source, out))


def test_a_full_scratch_disk_is_one_line_and_the_rerun_makes_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_set(tmp_path / "set")
    config = folders.Config(str(tmp_path / "set"), str(tmp_path / "out"), scratch=str(tmp_path), unit=3)
    kept = folders.run(folders.Config(config.source, str(tmp_path / "whole"), unit=3)).kept

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("ingest.unit_tar.os.writev", full)
        with pytest.raises(ValueError, match=rf"^{tmp_path}: cannot hold a unit \(No space left on device\): free"):
            folders.run(config)
    assert folders.run(config).kept == kept
