"""What a list names is taken out of a version, and no later version brings it back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from test_select import FAR, dataset_of, picture, rows_of

from ingest.select import apply
from ingest.select.apply import Config, SelectConfig
from jobs import cli
from shards.manifest import Manifest, read_manifest


def exclude(manifest: Manifest, tmp_path: Path, *lines: str, **options: object) -> Manifest:
    (tmp_path / "out.txt").write_text("# withdrawn\n\n" + "\n".join(lines) + "\n")
    return apply.run(Config(manifest.address, exclude=str(tmp_path / "out.txt"), **options))  # type: ignore[arg-type]


ROWS = [
    picture(0),
    picture(1, url="http://a.example/x y.jpg"),
    picture(2, url="https://b.example:8443/2.jpg?q"),
    picture(3, url="https://img.b.example/3.jpg", phash=FAR[0]),
    picture(4, phash=FAR[0] ^ 0b111, width=30, height=90),
    picture(5, final_url="http://c.example/5.jpg"),
    picture(6, url="https://notb.example/6.jpg"),
]


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        ("http://example.org/0", [0]),
        ("http://a.example/x%20y.jpg", []),
        ("http://c.example/5.jpg", [5]),
        ("k2", [2]),
        ("b.example", [2, 3]),
        ("host:img.b.example", [3]),
        ("B.EXAMPLE", [2, 3]),
        (hashlib.sha256(b"picture 4").hexdigest().upper(), [4]),
        (f"phash:{FAR[0]:016x}", [3]),
        (f"phash:{FAR[0]:016x}/3", [3, 4]),
        (f"phash:{FAR[0]:016x}/2", [3]),
        ("http://example.org/nothing", []),
    ],
)
def test_what_a_line_names(tmp_path: Path, line: str, gone: list[int]) -> None:
    chosen = exclude(dataset_of(tmp_path / "d", ROWS[:4], ROWS[4:]), tmp_path, line)
    assert chosen.deselected == ({"excluded": len(gone)} if gone else {})
    assert list(rows_of(chosen)) == [row for row in range(7) if row not in gone]


def test_no_later_version_brings_it_back(tmp_path: Path) -> None:
    rows = [picture(0, "same", ("x",)), picture(1, "same", ("y",)), picture(2, "same", ("z",)), picture(3)]
    manifest = dataset_of(tmp_path / "d", rows)
    chosen = exclude(manifest, tmp_path, "k0")
    assert rows_of(chosen) == {1: ["y", "z"], 3: []}, "what stands for copies is the lowest that stays"
    assert chosen.deselected == {"duplicate": 1, "excluded": 1}
    again = exclude(chosen, tmp_path, "k3")
    assert rows_of(again) == {1: ["y", "z"]}
    other = apply.select(again, SelectConfig(duplicates=False))
    assert list(rows_of(other)) == [1, 2]
    assert exclude(again, tmp_path, "k3").digest == again.digest, "the same lists give the same version"


def test_the_rules_of_the_version_stay(tmp_path: Path) -> None:
    manifest = dataset_of(tmp_path / "d", [picture(0, "same"), picture(1, "same"), picture(2)])
    kept = apply.select(manifest, SelectConfig(duplicates=False))
    assert list(rows_of(exclude(kept, tmp_path, "k2"))) == [0, 1]


def test_lists_that_cannot_be_followed(tmp_path: Path) -> None:
    manifest = dataset_of(tmp_path / "d", ROWS)
    for lines, what in (
        (("a b",), r"out.txt: 'a b' names no sample: give a URL, a key"),
        ((f"phash:{FAR[0]:016x}/17",), "at most 16 of 64 bits"),
        (("#",), "names nothing"),
        (tuple(f"k{row}" for row in range(7)), "leave none of 7 pictures"),
    ):
        with pytest.raises(ValueError, match=what):
            exclude(manifest, tmp_path, *lines)
    with pytest.raises(ValueError, match="there is no such file"):
        apply.run(Config(manifest.address, exclude=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="subset and exclude"):
        Config(manifest.address, subset=1, exclude="x")
    assert not (tmp_path / "d" / "excluded").exists(), "a list that was refused is not remembered"


def test_the_command_says_what_each_line_took_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = dataset_of(tmp_path / "d", ROWS)
    (tmp_path / "out.txt").write_text("b.example\nk0\nnobody\n")
    assert cli.main(["select", str(tmp_path / "d"), "--exclude", str(tmp_path / "out.txt")]) == 0
    said = capsys.readouterr().out
    assert "           2  b.example\n           1  k0\n           0  nobody\n3 lines of" in said
    assert "; 1 name no picture here" in said
    assert read_manifest(str(tmp_path / "d")).samples == manifest.samples - 3
