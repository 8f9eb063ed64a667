"""Tars as other programs write them: copying and indexing in place take the same pictures with the same labels, and
every member is used or named."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from test_class_folders import picture

from ingest.sets import folders, in_place, sources, tars
from jobs import cli
from shards import check, manifest, store
from shards.dataset import read_table
from shards.tar import Source, pieces, walk

Members = list[tuple[str, bytes]]


def pack(path: Path, members: Members, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as out:  # type: ignore[call-overload]
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            out.addfile(info, io.BytesIO(body))
    return path


def rows(dataset: str) -> list[tuple[str, list[str], str]]:
    found = []
    for shard in manifest.read_manifest(dataset).shards:
        found += read_table(store.join(dataset, "shards", shard.index)).to_pylist()
    return sorted((row["url"], row["labels"], row["reason"]) for row in found)


def both(tmp_path: Path, source: Path | str, **options: object) -> list[tuple[str, list[str], str]]:
    """The rows of both ways to import a source, which must be the same."""
    outs = [str(tmp_path / name) for name in ("copied", "in-place")]
    folders.run(folders.Config(str(source), outs[0], **options))  # type: ignore[arg-type]
    in_place.run(folders.Config(str(source), outs[1], in_place=True, **options))  # type: ignore[arg-type]
    assert rows(outs[0]) == rows(outs[1])
    assert check.run(check.Config(outs[1], decode=True)).ok
    return rows(outs[0])


def refused(tmp_path: Path, source: Path | str, what: str, ways: tuple[bool, ...] = (False, True)) -> None:
    for way in ways:
        with pytest.raises(ValueError, match=what) as error:
            (in_place if way else folders).run(folders.Config(str(source), str(tmp_path / "out"), in_place=way))
        assert "\n" not in str(error.value)


# --- which picture, which labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "label"),
    [
        ({"input.jpg": None, "output.cls": b"4", "meta.json": b'{"label": 9}'}, ["4"]),
        ({"JPG": None, "CLS": b"4"}, ["4"]),
        ({"jpeg": None, "a.cls": b"4", "b.cls": b"5"}, ["4", "5"]),
        ({"png": None, "meta.json": b'{"labels": [4, "x"]}'}, ["4", "x"]),
        ({"webp": None, "caption.txt": b"a cat"}, ["a cat"]),
        ({"jpg": None, "cls": b"4", "other.cls": b"5"}, ["4"]),
    ],
)
def test_a_samples_picture_and_labels(tmp_path: Path, fields: dict[str, bytes | None], label: list[str]) -> None:
    kinds = {"png": "PNG", "webp": "WEBP"}
    members = [
        (f"s{at}.{name}", body if body is not None else picture(at, kinds.get(name, "JPEG")))
        for at in range(3)
        for name, body in fields.items()
    ]
    found = both(tmp_path, pack(tmp_path / "a.tar", members))
    first = next(name for name, body in fields.items() if body is None)
    assert found == [(f"a.tar/s{at}.{first}", label, "kept") for at in range(3)]


def test_dots_in_keys(tmp_path: Path) -> None:
    members: Members = []
    for at in range(3):
        members += [(f"img.{at}.jpg", picture(at)), (f"img.{at}.cls", b"%d" % at)]
        members += [(f"v1.0_{at}.jpg", picture(10 + at)), (f"v1.0_{at}.cls", b"7")]
        members += [(f"x.left{at}.jpg", picture(20 + at)), (f"x.left{at}.cls", b"8")]
    found = both(tmp_path, pack(tmp_path / "a.tar", sorted(members)))
    assert [labels for _, labels, _ in found] == [["0"], ["1"], ["2"], *[["7"]] * 3, *[["8"]] * 3]


def test_two_pictures_of_one_name_are_asked_about(tmp_path: Path) -> None:
    two = pack(tmp_path / "a.tar", [("k.jpg", picture(1)), ("k.png", picture(2, "PNG")), ("k.cls", b"1")])
    refused(tmp_path, two, "a.tar: k has two pictures, k.jpg and k.png$")


def test_two_pictures_of_which_none_is_the_sample_are_one_named_row(tmp_path: Path) -> None:
    members = [("k.left.jpg", picture(1)), ("k.right.jpg", picture(2)), ("k.cls", b"1")]
    members += [("l.jpg", picture(3)), ("l.cls", b"2"), ("m.cls", b"3")]
    found = both(tmp_path, pack(tmp_path / "a.tar", members))
    assert found == [
        ("a.tar/k", ["1"], "unsupported"),
        ("a.tar/l.jpg", ["2"], "kept"),
        ("a.tar/m", ["3"], "not_an_image"),
    ]


def test_members_apart_are_joined_by_copying_and_refused_in_place(tmp_path: Path) -> None:
    members = [(f"s{at}.jpg", picture(at)) for at in range(3)] + [(f"s{at}.cls", b"%d" % at) for at in range(3)]
    apart = pack(tmp_path / "a.tar", members)
    refused(tmp_path, apart, "s0.cls is apart from the other members of s0: import it without --in-place", (True,))
    folders.run(folders.Config(str(apart), str(tmp_path / "copied")))
    assert rows(str(tmp_path / "copied")) == [(f"a.tar/s{at}.jpg", [str(at)], "kept") for at in range(3)]


def test_a_sample_that_was_appended_again_is_two(tmp_path: Path) -> None:
    members = [("a.jpg", picture(1)), ("a.cls", b"1"), ("b.jpg", picture(2)), ("b.cls", b"2")]
    found = both(tmp_path, pack(tmp_path / "t.tar", [*members, ("a.jpg", picture(3)), ("a.cls", b"3")]))
    assert found == [("t.tar/a.jpg", ["1"], "kept"), ("t.tar/a.jpg", ["3"], "kept"), ("t.tar/b.jpg", ["2"], "kept")]


# --- what is no member of a sample ---------------------------------------------------------------------------------


def test_leftovers_and_other_members_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [("__MACOSX/._s.jpg", b"x"), ("._s.jpg", b"x"), ("PaxHeaders.7/s.jpg", b"x"), ("d/.DS_Store", b"x")]
    members += [("s.jpg", picture(1)), ("s.cls", b"1"), ("s.depth.npy", b"x"), ("README", b"x"), ("s.caption.txt", b"")]
    path = pack(tmp_path / "a.tar", members, format=tarfile.PAX_FORMAT)
    assert both(tmp_path, path) == [("a.tar/s.jpg", ["1"], "kept")]
    for way in ([], ["--in-place"]):
        assert cli.main(["import", str(path), "--out", str(tmp_path / f"cli{len(way)}"), *way]) == 0
        said = capsys.readouterr().out
        assert "1 class: 1" in said
        for kind in ("4 leftovers of macOS, tar and others", "1 depth.npy", "1 without an ending", "1 caption.txt"):
            assert kind in said


def test_links_are_named(tmp_path: Path) -> None:
    (tmp_path / "s0.jpg").write_bytes(picture(0))
    (tmp_path / "s0.cls").write_bytes(b"5")
    (tmp_path / "s1.cls").write_bytes(b"6")
    (tmp_path / "s1.jpg").hardlink_to(tmp_path / "s0.jpg")
    (tmp_path / "s2.jpg").symlink_to("s0.jpg")
    names = ["s0.jpg", "s0.cls", "s1.jpg", "s1.cls", "s2.jpg"]
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "a.tar", *names], check=True)
    assert both(tmp_path, tmp_path / "a.tar") == [
        ("a.tar/s0.jpg", ["5"], "kept"),
        ("a.tar/s1", ["6"], "unsupported"),
        ("a.tar/s2", [], "unsupported"),
    ]
    (tmp_path / "s3.jpg").write_bytes(picture(3))
    (tmp_path / "s3.cls").hardlink_to(tmp_path / "s0.cls")
    subprocess.run(["tar", "-C", tmp_path, "-cf", tmp_path / "b.tar", *names, "s3.jpg", "s3.cls"], check=True)
    refused(tmp_path, tmp_path / "b.tar", "s3.cls is a link: pack the tar again with --hard-dereference")


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_members_are_refused(tmp_path: Path, form: str) -> None:
    with (tmp_path / "s.bmp").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x")
    (tmp_path / "s.cls").write_bytes(b"5")
    how = ["--sparse", f"--format={form}", "-C", tmp_path, "-cf", tmp_path / "a.tar"]
    subprocess.run(["tar", *how, "s.bmp", "s.cls"], check=True)
    refused(tmp_path, tmp_path / "a.tar", "pack it again without --sparse")


# --- folders and tars as classes -----------------------------------------------------------------------------------


def test_folders_in_a_tar_are_classes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [(f"./{c}/x/{at}.jpg", picture(at)) for c in ("cat", "dog") for at in range(2)])
    assert [labels for _, labels, _ in both(tmp_path, path)] == [["cat"], ["cat"], ["dog"], ["dog"]]
    (tmp_path / "deep").mkdir()
    assert {tuple(row[1]) for row in both(tmp_path / "deep", path, label_from="parent")} == {("x",)}


def test_one_folder_of_everything_is_no_class(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [(f"images/{at}.jpg", picture(at)) for at in range(2)])
    refused(tmp_path, path, "images/0.jpg has no label: add a member images/0.cls, say where", (False,))
    assert [labels for _, labels, _ in both(tmp_path, path, labels=False)] == [[], []]
    (tmp_path / "asked").mkdir()
    assert {tuple(row[1]) for row in both(tmp_path / "asked", path, label_from="folder")} == {("images",)}


def test_splits_in_a_tar_are_no_classes(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [(f"{split}/cat/1.jpg", picture(1)) for split in ("train", "val")])
    refused(tmp_path, path, "train, val look like splits, not classes")


def test_a_tar_a_class(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        pack(tmp_path / "wnids" / f"{name}.tar", [(f"./{name}_{at}.JPEG", picture(at)) for at in range(2)])
    for name in ("cat", "dog"):
        pack(tmp_path / "named" / f"{name}.tar", [(f"{at}.jpg", picture(at)) for at in range(2)])
    assert {tuple(row[1]) for row in both(tmp_path, tmp_path / "wnids")} == {("n01440764",), ("n01443537",)}
    refused(tmp_path, tmp_path / "named", "0.jpg has no label: .* --label-from", (False,))
    (tmp_path / "asked").mkdir()
    found = both(tmp_path / "asked", tmp_path / "named", label_from="tar")
    assert {tuple(row[1]) for row in found} == {("cat",), ("dog",)}


# --- which tars ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["train-*.tar", "train-{0000..0002}.tar", "train-000[0-2].tar", "train-{0000,*}.tar"]
)
def test_patterns_wherever_a_source_is_named(tmp_path: Path, pattern: str) -> None:
    for at in range(3):
        pack(tmp_path / f"train-{at:04d}.tar", [(f"s{at}.jpg", picture(at)), (f"s{at}.cls", b"1")])
    assert len(both(tmp_path, tmp_path / pattern)) == 3


def test_a_tar_that_a_pattern_names_and_is_not_there(tmp_path: Path) -> None:
    pack(tmp_path / "train-0000.tar", [("s.jpg", picture(1)), ("s.cls", b"1")])
    refused(tmp_path, tmp_path / "train-{0000..0002}.tar", "names .*train-0001.tar, which does not exist")


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.zip", "a.tar.zst"])
@pytest.mark.parametrize("with_tar", [True, False])
def test_compressed_archives_are_named(tmp_path: Path, name: str, with_tar: bool) -> None:
    path = pack(tmp_path / "set" / "b.tar", [("s.jpg", picture(1)), ("s.cls", b"1")])
    (tmp_path / "set" / name).write_bytes(gzip.compress(path.read_bytes()))
    if not with_tar:
        path.unlink()
    refused(tmp_path, tmp_path / "set", rf"{name} is compressed: unpack it \(")
    refused(tmp_path, tmp_path / "set" / name, rf"{name} is compressed: unpack it \(")


def test_tars_next_to_folders_of_pictures_are_refused(tmp_path: Path) -> None:
    pack(tmp_path / "set" / "b.tar", [("s.jpg", picture(1)), ("s.cls", b"1")])
    (tmp_path / "set" / "cat").mkdir()
    assert len(both(tmp_path, tmp_path / "set")) == 1
    (tmp_path / "set" / "cat" / "1.jpg").write_bytes(picture(2))
    refused(tmp_path, tmp_path / "set", r"holds tars \(b.tar\) and folders of pictures \(cat\): give one as SOURCE")


# --- any members at all --------------------------------------------------------------------------------------------

NAMES = st.builds(
    lambda folder, stem, ending: f"{folder}{stem}{ending}",
    st.sampled_from(["", "", "./", "a/", "b/", "train/", "val/"]),
    st.sampled_from(["a", "b", "a.1", "a.x", "._a", "é", "n01440764_1"]),
    st.sampled_from([".jpg", ".png", ".JPG", ".cls", ".CLS", ".out.cls", ".json", ".txt", ".npy", "", ".in.jpg"]),
)
BODY = picture(1)
BODIES = {"jpg": BODY, "png": BODY, "cls": b"7", "json": b'{"label": 8}', "txt": b"nine"}


def _outcome(tar: Path, way: bool, labels: bool) -> tuple[str, list[tuple[str, tuple[str, ...]]], int]:
    """Why it is refused, or the rows; and how many members were counted."""
    config = folders.Config(str(tar), "out", in_place=way, labels=labels)
    try:
        if way:
            indexed = in_place._index(config, str(tar), None, lambda: False)
            assert indexed is not None
            found = [(row[1], tuple(row[3])) for row in indexed.rows]
            return "", sorted(found), indexed.unused.kinds.total()
        unused = tars.Unused()
        found = list(sources._in_tar(tar, None, folders.how(config), unused))
        return "", sorted((each.name, each.labels) for each in found), unused.kinds.total()
    except ValueError as error:
        return str(error), [], 0


@pytest.mark.parametrize("labels", [True, False])
@settings(max_examples=200, deadline=None, derandomize=True)
@given(names=st.lists(NAMES, max_size=8))
def test_whatever_a_tar_holds_both_ways_agree(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], labels: bool
) -> None:
    endings = [name.rpartition(".")[2].lower() for name in names]
    path = pack(
        tmp_path_factory.getbasetemp() / "any.tar",
        [(name, BODIES.get(ending, b"x")) for name, ending in zip(names, endings)],
    )
    (why, copied, unused), (other, placed, unused_too) = _outcome(path, False, labels), _outcome(path, True, labels)
    if other:
        assert why or "is apart from" in other
    elif why:
        assert "has no label" in why
        assert labels
    else:
        assert (copied, unused) == (placed, unused_too)
        samples, seen = [], tars.Unused()
        for sample in tars.samples(Source(pieces(str(path))), "x", seen, lambda member: b"7", adjacent=True):
            samples.append(sample)
            found = tars.picture_of(sample, seen, labelled=False)
            seen.add("pictures", isinstance(found, tuple))
        assert seen.kinds.total() == sum(1 for _ in walk(Source(pieces(str(path))))) == len(names)
        assert len(samples) == len(placed)
