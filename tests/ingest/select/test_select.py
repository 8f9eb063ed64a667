"""Selecting: every kept picture stays, or goes for a reason, and one that stands for others has their labels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st
from made_datasets import make_dataset, plan_unit, retry, write_unit
from origin import unpacked

from ingest.filter import FilterConfig, judge
from ingest.record import Fetched, Link
from ingest.select import apply, columns as kept
from ingest.select.apply import Config, SelectConfig
from ingest.wordnet import ClassConfig
from shards import check, store
from shards.dataset import DatasetInfo, write_info
from shards.manifest import Manifest, make_version, read_manifest
from shards.selection import selected_index, subset
from shards.stream.stream import once

FAR = [0x0123456789ABCDEF, 0x5A5A5A5A0F0F0F0F, 0xFFFF0000FFFF0000, 0x3333CCCC55559999]  # > 20 bits apart


def picture(row: int, body: str | None = None, labels: tuple[str, ...] = (), **more) -> dict:
    return {
        "key": f"k{row}",
        "url": f"http://example.org/{row}",
        "labels": list(labels),
        "row": row,
        "reason": "kept",
        "width": 40,
        "height": 30,
        "body": (body or f"picture {row}").encode(),
    } | more


def dataset_of(base, *units: list[dict]) -> Manifest:
    base = str(base)
    for unit, rows in enumerate(units):
        plan_unit(base, unit, rows)
        write_unit(base, unit, rows)
    write_info(base, DatasetInfo("list", "0" * 64, len(units), 10, "c", "t"))
    return make_version(base, "test")


def rows_of(manifest: Manifest) -> dict[int, list[str]]:
    """Selected row -> its labels."""
    tables = [selected_index(manifest, shard, ["labels"]) for shard in range(len(manifest.shards))]
    rows = [row for table in tables for row in table.to_pylist()]
    assert len(rows) == manifest.samples == manifest.kept - sum(manifest.deselected.values())
    return {row["row"]: row["labels"] for row in rows}


def test_the_lowest_of_equal_rows_stays_with_the_labels_of_all(base):
    manifest = dataset_of(
        base,
        [picture(0, "a", ("x",)), picture(1, "b", ("x",)), picture(2, "a", ("y", "x"))],
        [picture(3, "c", ("z",)), picture(4, "a", ("w",)), picture(5, "b", ("x",))],
    )
    chosen = apply.select(manifest, SelectConfig())
    assert rows_of(chosen) == {0: ["x", "y", "w"], 1: ["x"], 3: ["z"]}
    assert chosen.deselected == {"duplicate": 3}
    assert chosen.rules is not None
    assert chosen.rules.rows == 4, "row 1 has all the labels there are, and needs no rule"
    assert read_manifest(base) == chosen, "it is the newest version"
    streamed = {sample.row: sample.labels for batch in once(chosen, 2) for sample in batch}
    assert streamed == {0: ("x", "y", "w"), 1: ("x",), 3: ("z",)}


def test_without_duplicates_everything_stays(tmp_path):
    rows = [picture(row, "same", phash=7) for row in range(5)]
    chosen = apply.select(dataset_of(tmp_path, rows), SelectConfig(duplicates=False))
    assert (chosen.samples, chosen.deselected) == (5, {})


def test_the_same_rules_on_the_same_units_are_the_same_version(tmp_path):
    manifest = dataset_of(tmp_path, [picture(0, "a"), picture(1, "a"), picture(2, "b", phash=FAR[0])])
    once_ = apply.select(manifest, SelectConfig())
    assert apply.select(manifest, SelectConfig()).digest == once_.digest
    assert apply.select(once_, SelectConfig()) is once_
    plain = apply.select(once_, SelectConfig(duplicates=False))
    assert (plain.samples, once_.samples) == (3, 2), "rules replace the parent's, they do not add to them"
    assert apply.select(plain, SelectConfig()).digest == once_.digest
    assert store.names(f"{tmp_path}/versions") == [f"00000{n}.json" for n in (1, 2, 3, 4)]


def test_known_placeholders_go_with_all_their_copies(tmp_path, monkeypatch):
    gone = hashlib.sha256(b"gone").hexdigest()
    monkeypatch.setattr(kept, "PLACEHOLDERS", {gone: "of a test"})
    reencoded = picture(4, "gone, but as PNG")
    manifest = dataset_of(
        tmp_path, [picture(0, "gone", ("x",)), picture(1, "b"), picture(2, "gone", ("y",)), reencoded]
    )
    chosen = apply.select(manifest, SelectConfig())
    assert (list(rows_of(chosen)), chosen.deselected) == ([1, 4], {"placeholder": 2})


def test_one_picture_under_many_urls_is_a_placeholder(tmp_path):
    rows = [
        *(picture(row, "gone") for row in range(5)),
        *(picture(row, "popular") for row in range(5, 9)),
        *(picture(row, "one URL again and again", url="http://example.org/same") for row in range(9, 18)),
    ]
    chosen = apply.select(dataset_of(tmp_path, rows), SelectConfig(placeholder_from=5))
    assert chosen.deselected == {"duplicate": 11, "placeholder": 5}
    assert list(rows_of(chosen)) == [5, 9]


def test_one_picture_under_many_labels_is_a_placeholder(tmp_path):
    rows = [
        *(picture(row, "gone", (f"class {row}",)) for row in range(4)),
        *(picture(row, "one class", ("x", "y")) for row in range(4, 9)),
    ]
    chosen = apply.select(dataset_of(tmp_path, rows), SelectConfig(placeholder_labels=4))
    assert chosen.deselected == {"duplicate": 4, "placeholder": 4}
    never = SelectConfig(placeholder_labels=0, placeholder_from=0)
    assert apply.select(chosen, never).deselected == {"duplicate": 7}


@pytest.mark.parametrize("captions", [1, 20])
def test_one_url_under_many_labels_is_one_sample_with_all_of_them(tmp_path, captions):
    labels = [f"/m/{row}" for row in range(20)]
    rows = [picture(row, "many", (label,), url="http://example.org/same") for row, label in enumerate(labels)]
    rows += [picture(20 + row, "other", ("x",), url=f"http://example.org/{row % 2}") for row in range(captions)]
    chosen = apply.select(dataset_of(tmp_path, rows), SelectConfig())
    assert chosen.deselected == {"duplicate": 19 + captions - 1}
    assert rows_of(chosen) == {0: labels, 20: ["x"]}


def test_one_picture_on_many_sites_is_popular_and_no_placeholder(tmp_path):
    """Twenty shops show it with captions of their own; one site shows another under twenty of its URLs."""
    shops = [f"https://www.shop{row}.co.uk/a.jpg" if row % 2 else f"http://shop{row}.com:80/a.jpg" for row in range(20)]
    gone = [f"http://farm{row % 9}.static.example.org/{row}.jpg" for row in range(30)]
    rows = [picture(row, "popular", (f"caption {row}",), url=url) for row, url in enumerate(shops)]
    rows += [picture(20 + row, "gone", (f"caption {row}",), url=url) for row, url in enumerate(gone)]
    chosen = apply.select(dataset_of(tmp_path, rows), SelectConfig())
    assert chosen.deselected == {"duplicate": 19, "placeholder": 30}
    assert rows_of(chosen) == {0: [f"caption {row}" for row in range(20)]}


def test_the_site_of_a_url():
    same = [
        ["http://a.example.org/x", "https://b.c.example.org:8080", "HTTP://EXAMPLE.ORG?x=a.b/c"],
        ["http://www.shop.co.uk/x", "http://shop.co.uk/y"],
        ["http://127.0.1.1:9/x", "http://127.0.1.1/y"],
        ["http://127.0.1.2/x"],
        ["http://[::1]:80/x", "http://[::1]/"],
        ["file:///a.b/c", "/data/a.jpg", None, "http://localhost/x"],
    ]
    for group in same:
        assert len(set(kept.sites(pa.chunked_array([pa.array(group, pa.string())])).tolist())) == 1, group
    firsts = kept.sites(pa.chunked_array([pa.array([group[0] for group in same], pa.string())]))
    assert len(set(firsts.tolist())) == len(same)


def test_pictures_that_look_alike_are_one(tmp_path):
    near, further = FAR[0] ^ 0b1111, FAR[0] ^ 0b11111
    rows = [
        picture(0, labels=("x",), phash=FAR[0]),
        picture(1, labels=("y",), phash=near),
        picture(2, labels=("z",), phash=FAR[0], width=400, height=300),
        picture(3, labels=("3",), phash=further),
        picture(4, labels=("4",), phash=FAR[0], width=30, height=40),
        picture(5, labels=("5",), phash=near, width=30, height=40, orientation=6),
        picture(6, labels=("6",), phash=0),
        picture(7, labels=("7",), phash=0),
        picture(8, labels=("8",)),
        picture(9, labels=("9",), phash=FAR[1]),
    ]
    manifest = dataset_of(tmp_path, rows[:5], rows[5:])
    chosen = apply.select(manifest, SelectConfig())
    kept = rows_of(chosen)
    assert list(kept) == [0, 3, 4, 6, 7, 8, 9], "5 bits apart, another shape, or of unknown hash: other pictures"
    assert kept[0] == ["x", "y", "z", "5"]
    assert chosen.deselected == {"near_duplicate": 3}
    assert apply.select(manifest, SelectConfig(near_distance=-1)).samples == 10
    assert list(rows_of(apply.select(manifest, SelectConfig(near_distance=0)))) == [0, 1, 3, 4, 6, 7, 8, 9]


def test_a_duplicate_of_a_near_duplicate_hands_its_labels_all_the_way(tmp_path):
    rows = [
        picture(0, "a", ("x",), phash=FAR[0]),
        picture(1, "b", ("y",), phash=FAR[0] ^ 1),
        picture(2, "b", ("z",), phash=FAR[0] ^ 1),
        picture(3, "c", ("w",), phash=FAR[0] ^ 1),
    ]
    chosen = apply.select(dataset_of(tmp_path, rows), SelectConfig())
    assert rows_of(chosen) == {0: ["x", "y", "z", "w"]}
    assert chosen.deselected == {"duplicate": 1, "near_duplicate": 2}


def test_a_row_that_a_retry_kept_leads_though_its_shard_comes_later(tmp_path):
    first = make_dataset(tmp_path, [6, 6], bad=(2,))
    again = retry(first, [2])
    twins = [picture(12, labels=("late",)), picture(13)]
    twins[0]["body"] = b"as row 14"
    write_unit(str(tmp_path), 3, [*twins, picture(14, "as row 14")])
    manifest = make_version(str(tmp_path), "more")
    chosen = apply.select(manifest, SelectConfig())
    assert (again.kept, manifest.kept, chosen.samples) == (12, 15, 14)
    # A unit planned later may hold a lower row: it is the row that says who stays.
    write_unit(str(tmp_path), 4, [picture(20, "early", ("b",), phash=FAR[0])])
    write_unit(str(tmp_path), 5, [picture(19, "early", ("a",), phash=FAR[0]), picture(18, "e", ("c",), phash=FAR[0])])
    kept = rows_of(apply.select(make_version(str(tmp_path), "retry"), SelectConfig()))
    assert kept[18] == ["c", "a", "b"]
    assert not {19, 20} & set(kept)


def test_classes_are_chosen_and_small_ones_left_out(tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    labels = [("cat",), ("cat",), ("dog",), ("eel",), (), ("cat", "eel"), ("eel",), ("dog",), ("cat",)]
    rows = [picture(row, labels=some) for row, some in enumerate(labels)]
    rows[7]["body"] = rows[6]["body"] = b"eel and dog"  # row 6 is a dog, too, once labels are joined
    manifest = dataset_of(tmp_path / "d", rows)
    chosen = apply.select(manifest, SelectConfig(classes=ClassConfig(file=str(tmp_path / "classes.txt"))))
    assert list(rows_of(chosen)) == [0, 1, 2, 5, 6, 8]
    assert chosen.deselected == {"class": 2, "duplicate": 1}
    large = apply.select(manifest, SelectConfig(min_per_class=4))
    assert list(rows_of(large)) == [0, 1, 5, 8]
    assert large.deselected == {"duplicate": 1, "small_class": 4}
    three = apply.select(manifest, SelectConfig(min_per_class=3))
    assert list(rows_of(three)) == [0, 1, 3, 5, 6, 8], "eel has rows 3, 5 and 6; row 6 counts once"
    assert rows_of(three)[6] == ["eel", "dog"]
    counted = apply.select(manifest, SelectConfig(classes=ClassConfig(min_count=4)))
    assert list(rows_of(counted)) == [0, 1, 5, 8]
    (tmp_path / "classes.txt").write_text("cat\n")
    fewer = apply.select(chosen, SelectConfig(classes=ClassConfig(file=str(tmp_path / "classes.txt"))))
    assert list(rows_of(fewer)) == [0, 1, 5, 8], "the file is read again"
    assert fewer.digest != chosen.digest


def test_scratch_is_made_cleared_of_the_dead_and_named_where_it_fails(tmp_path, monkeypatch):
    manifest = dataset_of(tmp_path / "d", [picture(0), picture(1)])
    scratch = tmp_path / "a" / "scratch"
    dead = scratch / "xtra-ingest-00000000-dead"
    dead.mkdir(parents=True)
    for name in ("lock", "sha"):
        (dead / name).write_bytes(b"")
    apply.select(manifest, SelectConfig(), scratch)
    assert list(scratch.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot hold scratch files"):
        apply.select(manifest, SelectConfig(duplicates=False), tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(apply, "read_kept", full)
    with pytest.raises(ValueError, match=r"scratch: cannot hold the columns of this dataset \(No space left"):
        apply.select(manifest, SelectConfig(duplicates=False), scratch)


def test_rules_that_leave_nothing_are_refused(tmp_path):
    manifest = dataset_of(tmp_path, [picture(0), picture(1)])
    with pytest.raises(ValueError, match="these rules leave none of 2 pictures"):
        apply.select(manifest, SelectConfig(min_per_class=1))
    for setting in ({"near_distance": 7}, {"placeholder_from": 1}, {"placeholder_labels": -1}, {"min_per_class": -1}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            SelectConfig(**setting)


def test_an_index_that_lost_rows_is_named(tmp_path):
    manifest = dataset_of(tmp_path, [picture(0), picture(1)], [picture(2)])
    (tmp_path / "shards" / manifest.shards[0].index).write_bytes(
        (tmp_path / "shards" / manifest.shards[1].index).read_bytes()
    )
    with pytest.raises(store.StoreError, match=f"{manifest.shards[0].index}: keeps 1 rows, the manifest says 2"):
        apply.select(manifest, SelectConfig())


def test_rules_and_subsets_go_together_either_way(tmp_path):
    rows = [picture(row, f"picture {row % 70}", (f"c{row % 7}",)) for row in range(100)]
    manifest = dataset_of(tmp_path, rows[:50], rows[50:])
    ruled = apply.select(manifest, SelectConfig())
    assert ruled.samples == 70
    part = subset(ruled, 30, seed=3)
    assert set(rows_of(part)) < set(rows_of(ruled))
    assert part.rules == ruled.rules
    other = subset(manifest, 40, seed=3)
    both = apply.select(other, SelectConfig())
    assert set(rows_of(both)) == set(rows_of(other)) & set(rows_of(ruled))
    assert both.deselected["duplicate"] == 30
    assert read_manifest(str(tmp_path)) == ruled, "a subset is not the newest version"
    assert read_manifest(both.address) == both
    for version in (ruled, part, both):
        assert check.run(check.Config(version.address)).problems == ()


def test_the_verb_makes_a_version_or_a_subset(tmp_path):
    manifest = dataset_of(tmp_path, [picture(row, f"picture {row % 20}") for row in range(30)])
    reports = []
    chosen = apply.run(Config(str(tmp_path), scratch=str(tmp_path)), lambda *what: reports.append(what))
    assert (chosen.samples, read_manifest(str(tmp_path))) == (20, chosen)
    assert ("shards read", 1, 1) in reports
    part = apply.run(Config(manifest.address, subset=10, seed=2))
    assert part.digest == subset(manifest, 10, 2).digest
    with pytest.raises(ValueError, match="use one, then apply the other"):
        Config(str(tmp_path), subset=10, rules=SelectConfig(duplicates=False))
    assert not list(tmp_path.glob("select-*"))


def test_duplicates_among_real_pictures_go_and_nothing_else(shared, tmp_path):
    """What ImageNet's URLs really returned, and a picture with its saved-again copy; verdicts as written there."""
    corpus = unpacked(shared, "dirty", tmp_path / "corpus")
    made = json.loads((corpus / "verdicts.json").read_text())["files"]
    copies = [entry for entry in made if entry["verdict"] == "near-duplicate"]
    originals = {entry["of"] for entry in copies}
    entries = [("files", entry) for entry in made if entry["file"] in originals] + [("files", e) for e in copies]
    returned = json.loads((corpus / "crawl-clock.verdicts.json").read_text())["files"]
    rows, gone = [], set()
    for folder, entry in entries + [("crawl-clock", e) for e in returned if e["verdict"] in ("keep", "duplicate")]:
        body = (corpus / folder / entry["file"]).read_bytes()
        link = Link(f"k{len(rows)}", f"http://a/{len(rows)}", (entry["file"],), len(rows))
        found = judge(Fetched(link, body, None, "", 200, link.url, 1, 5, 1.5), FilterConfig()).picture
        assert found is not None, entry["file"]
        looks = {name: getattr(found, name) for name in ("width", "height", "orientation", "phash")}
        rows.append(picture(link.row, labels=link.labels) | looks | {"body": found.body})
        if entry["verdict"] != "keep":
            gone.add(entry["file"])
    manifest = dataset_of(tmp_path / "d", rows)
    chosen = apply.select(manifest, SelectConfig())
    # Kept there, but seen by eye to be the same clocks in the same photographs.
    alike = {"data100.jpg", "data141.jpg"}
    assert {row["labels"][0] for row in rows} - {rows[row]["labels"][0] for row in rows_of(chosen)} == gone | alike
    assert chosen.deselected == {"duplicate": 4, "near_duplicate": 1 + len(alike)}
    assert apply.select(manifest, SelectConfig(near_distance=-1)).deselected == {"duplicate": 4}


PICTURE = st.tuples(
    st.integers(0, 6),  # its bytes
    st.sampled_from([0, FAR[0], FAR[0] ^ 1, FAR[0] ^ 0b11110, FAR[1], FAR[1] ^ (0b111 << 60)]),
    st.lists(st.sampled_from("abcd"), max_size=2, unique=True),
    st.booleans(),  # upright
    st.booleans(),  # its URL is one that others have
    st.integers(0, 2),  # unit
)


@settings(max_examples=60, deadline=None)
@given(drawn=st.lists(PICTURE, min_size=1, max_size=14), shuffled=st.randoms(use_true_random=False))
def test_selecting_is_what_the_rules_say(tmp_path_factory, drawn, shuffled):
    config = SelectConfig(placeholder_from=4, placeholder_labels=3)
    numbers = list(range(len(drawn)))
    shuffled.shuffle(numbers)  # rows are in no order across units, as after a retry
    # Rows of the same bytes look the same.
    looks = {body: (phash, upright) for body, phash, _, upright, _, _ in drawn}
    pictures = []
    for row, (body, _, labels, _, shared, unit) in zip(numbers, drawn):
        phash, upright = looks[body]
        size = {"width": 40, "height": 30} if upright else {"width": 30, "height": 40}
        url = {"url": "http://example.org/shared"} if shared else {}
        pictures.append((unit, picture(row, f"body {body}", tuple(labels), phash=phash, **size, **url)))
    units = [sorted((p for u, p in pictures if u == unit), key=lambda p: p["row"]) for unit in range(3)]
    manifest = dataset_of(tmp_path_factory.mktemp("d"), *(unit for unit in units if unit))
    expected, reasons = by_hand([p for _, p in pictures], config)
    if not expected:
        with pytest.raises(ValueError, match="leave none"):
            apply.select(manifest, config)
        return
    chosen = apply.select(manifest, config)
    assert chosen.deselected == reasons
    assert rows_of(chosen) == expected


def by_hand(pictures: list[dict], config: SelectConfig) -> tuple[dict[int, list[str]], dict[str, int]]:
    """Row -> labels of what stays, and the reasons of what goes, straight from the rules' words."""
    pictures = sorted(pictures, key=lambda p: p["row"])
    reasons: Counter[str] = Counter()
    stays: list[dict] = []
    for picture_ in pictures:
        copies = [p for p in pictures if p["body"] == picture_["body"]]
        urls, labels = {p["url"] for p in copies}, {label for p in copies for label in p["labels"]}
        if len(urls) >= config.placeholder_from or min(len(urls), len(labels)) >= config.placeholder_labels:
            reasons["placeholder"] += 1
            continue
        first = next((p for p in stays if p["body"] == picture_["body"]), None)
        reason = "duplicate"
        if picture_ is not copies[0]:
            first = first or copies[0]
        elif picture_["phash"]:
            reason = "near_duplicate"
            first = next((p for p in stays if same(p, picture_, 0)), None) or next(
                (p for p in stays if same(p, picture_, config.near_distance)), None
            )
        if first is None:
            stays.append(picture_ | {"all": dict.fromkeys(picture_["labels"])})
            continue
        reasons[reason] += 1
        while "all" not in first:  # it went itself
            first = next(p for p in stays if p["row"] == first["stands"])
        first["all"] |= dict.fromkeys(picture_["labels"])
        picture_["stands"] = first["row"]
    by_row = {p["row"]: [*p["all"]] for p in stays}
    return by_row, dict(sorted(reasons.items()))


def same(one: dict, other: dict, distance: int) -> bool:
    upright = one["width"] == other["width"]
    return bool(one["phash"]) and upright and (one["phash"] ^ other["phash"]).bit_count() <= distance
