"""Classes are chosen by subtree, name, file and count; a mistake is one line that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from origin import Origin, unpacked

from ingest.config import Config
from ingest.http.fetcher import FetchConfig
from ingest.run import run
from ingest.wordnet import ClassConfig, chosen, read_is_a, read_words, resolve, subtree, takes
from shards import manifest
from shards.selection import selected_index

A, B, C, D, E = (f"n0000000{at}" for at in range(1, 6))


def put(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def counted() -> Mapping[str, int]:
    return {A: 3, B: 500, C: 501, D: 502}


def uncounted() -> Mapping[str, int]:
    raise AssertionError("the list was counted without need")


@pytest.fixture
def is_a(tmp_path: Path) -> str:
    """A diamond (D under B and C, both under A), and a cycle of E with itself and D."""
    return put(tmp_path / "is_a.txt", f"{A} {B}\n{A} {C}\r\n\n{B} {D}\n{C} {D}\n{D} {E}\n{E} {D}\n{E} {E}\n")


def test_no_rule_takes_everything_and_counts_nothing() -> None:
    assert chosen(ClassConfig(), uncounted) is None
    assert chosen(ClassConfig(is_a="nowhere", words="nowhere"), uncounted) is None


def test_a_subtree_is_everything_below_once(is_a: str) -> None:
    assert chosen(ClassConfig(subtree=(A,), is_a=is_a), uncounted) == {A, B, C, D, E}
    assert chosen(ClassConfig(subtree=(B,), is_a=is_a), uncounted) == {B, D, E}
    assert chosen(ClassConfig(subtree=(E, C), is_a=is_a), uncounted) == {C, D, E}


def test_rules_narrow_each_other(is_a: str, tmp_path: Path) -> None:
    file = put(tmp_path / "some.tsv", f"{C}\tanything\n\n{D} tench, Tinca tinca\nn99999999\n")
    assert chosen(ClassConfig(file=file), uncounted) == {C, D, "n99999999"}
    assert chosen(ClassConfig(file=file, subtree=(B,), is_a=is_a), uncounted) == {D}
    assert chosen(ClassConfig(min_count=501), counted) == {C, D}
    assert chosen(ClassConfig(min_count=502, file=file), counted) == {D}
    with pytest.raises(ValueError, match="no class meets all the rules"):
        chosen(ClassConfig(min_count=1000, file=file), counted)


def test_a_file_of_labels_that_are_no_wnids(tmp_path: Path) -> None:
    assert chosen(ClassConfig(file=put(tmp_path / "f", "polar bear\t7\ncat\n")), uncounted) == {"polar bear", "cat"}
    with pytest.raises(ValueError, match="names no classes"):
        chosen(ClassConfig(file=put(tmp_path / "f", "\n \n")), uncounted)


def test_names_are_looked_up(is_a: str, tmp_path: Path) -> None:
    lines = {A: "thing", B: "crane, bird", C: "crane", D: "crane, machine", E: "thing, object"}
    words = put(tmp_path / "words.txt", "".join(f"{wnid}\t{lemmas}\n" for wnid, lemmas in lines.items()))

    def of(name: str) -> frozenset[str] | None:
        return chosen(ClassConfig(subtree=(name,), is_a=is_a, words=words), uncounted)

    assert of("bird") == of("crane, bird") == of(B) == {B, D, E}
    assert of("object") == {D, E}
    with pytest.raises(ValueError, match="'crane' names 3 synsets"):
        of("crane")
    with pytest.raises(ValueError, match=r"words.txt is named 'unicorn': use a wnid"):
        of("unicorn")
    both = put(tmp_path / "words.txt", f"{A}\tcrane, bird\n{B}\tcrane, machine\n")
    with pytest.raises(ValueError, match=f"'crane' names 2 synsets: .*{A} crane, bird; {B} crane, machine$"):
        resolve("crane", read_words(both), both)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"subtree": (A,)}, r"set --classes.is-a"),
        ({"subtree": ("dog",), "is_a": "x"}, r"'dog' is not a wnid .*--classes.words"),
        ({"min_count": -1}, r"min_count is -1"),
        ({"subtree": (A,), "is_a": "/nowhere/is_a.txt"}, r"/nowhere/is_a.txt: there is no such file"),
        ({"file": "/nowhere/wnids"}, r"/nowhere/wnids: there is no such file"),
        ({"subtree": ("n99999999",), "is_a": "{is_a}"}, r"n99999999 is not in .*is_a.txt"),
        ({"subtree": (A,), "is_a": "{broken}"}, r"line 2 is 'n1 n2 n3': it must be a parent and a child"),
        ({"subtree": ("dog",), "is_a": "{is_a}", "words": "{broken}"}, r"line 1 is 'n1 n2': it must be a wnid, a tab"),
    ],
)
def test_a_mistake_is_one_line(config: dict[str, object], complaint: str, is_a: str, tmp_path: Path) -> None:
    broken = put(tmp_path / "broken.txt", "n1 n2\nn1 n2 n3\n")
    filled = {k: v.format(is_a=is_a, broken=broken) if isinstance(v, str) else v for k, v in config.items()}
    with pytest.raises(ValueError, match=complaint) as raised:
        chosen(ClassConfig(**filled), counted)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_rows_with_a_taken_label() -> None:
    labels = pa.array([["a"], [], ["b", "a"], None, ["c", "b"], ["c"]], pa.list_(pa.string()))
    assert takes(labels, {"a", "c", "x"}).to_pylist() == [True, False, True, False, True, True]
    assert takes(labels.slice(2), {"a"}).to_pylist() == [True, False, False, False]
    assert takes(labels.cast(pa.list_(pa.binary())), {"b"}).to_pylist() == [False, False, True, False, True, False]
    assert takes(labels.slice(0, 0), {"a"}).to_pylist() == []


def test_an_ingest_takes_the_chosen_classes_alone(is_a: str, tmp_path: Path) -> None:
    with Origin() as origin:
        lines = [f"{(A, B, C, D)[at % 4]}_{at}\t{origin.url(f'/ok/{at}.jpg')}\n" for at in range(12)]
        lines += [f"{A}_99\tnowhere\n", f"{D}_99\tnowhere\n", "broken\n", f"{D}_100\t{origin.url('/ok/100.jpg')}\n"]
        urls = put(tmp_path / "list.txt", "".join(lines))
        classes = ClassConfig(subtree=(B,), is_a=is_a, min_count=4)
        fetch = FetchConfig(allow_private=("127.0.0.0/8",))
        config = Config(urls, str(tmp_path / "out"), unit=3, classes=classes, fetch=fetch)
        first = run(config)
        assert (first.links, first.kept, first.reasons, first.units) == (6, 4, {"bad_url": 2}, 2)
        assert first.not_chosen == len(lines) - first.links
        assert run(config).not_chosen == first.not_chosen  # a rerun finds the same plan
        assert sorted(path for path in origin.requests if "ok" in path) == [f"/ok/{at}.jpg" for at in (100, 11, 3, 7)]
        made = manifest.read_manifest(str(tmp_path / "out"))
        tables = [selected_index(made, shard, ["labels", "row"]) for shard in range(len(made.shards))]
        assert [row for table in tables for row in table["row"].to_pylist()] == [3, 7, 11, 15]
        assert {label for table in tables for row in table["labels"].to_pylist() for label in row} == {D}
        with pytest.raises(ValueError, match="config_digest"):
            run(dataclasses.replace(config, classes=ClassConfig()))


def test_the_real_hierarchy(shared: Path, tmp_path: Path) -> None:
    """Dogs are classes 151 to 268 of ImageNet-1K; WordNet alone made them so."""
    folder = unpacked(shared, "meta", tmp_path) / "wordnet"
    children, words = read_is_a(str(folder / "wordnet.is_a.txt")), read_words(str(folder / "words.txt"))
    lists = {name: (folder / f"timm-{name}_synsets.txt").read_text().split() for name in ("imagenet", "imagenet22k")}
    dogs = subtree(["n02084071"], children, "")
    assert [at for at, wnid in enumerate(lists["imagenet"]) if wnid in dogs] == list(range(151, 269))
    assert len(dogs) == 190
    assert dogs < set(lists["imagenet22k"])
    assert resolve("Canis familiaris", words, "") == resolve("dog, domestic dog, Canis familiaris", words, "")
    with pytest.raises(ValueError, match=r"'dog' names 7 synsets: .*n02084071 dog, domestic dog"):
        resolve("dog", words, "")
    everything = subtree(["n00001740"], children, "")
    assert len(everything & set(lists["imagenet22k"])) > 21_800  # the rest are instances, not kinds
    config = ClassConfig(
        ("n02084071",), is_a=str(folder / "wordnet.is_a.txt"), file=str(folder / "timm-imagenet21k_miil_synsets.txt")
    )
    taken = chosen(config, uncounted)
    assert taken is not None
    assert len(taken) == 159
    counts = {wnid: 501 if wnid in taken else 500 for wnid in dogs}  # ImageNet-21K-P's rule gives its own classes back
    by_count = ClassConfig(("Canis familiaris",), config.is_a, str(folder / "words.txt"), min_count=501)
    assert chosen(by_count, lambda: counts) == taken
