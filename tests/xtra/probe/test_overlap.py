"""Pictures that two sets share are counted once each, by bytes and by look, and those that say nothing are not."""

import numpy as np
import pytest
from made_datasets import plan_unit, rows_of, write_unit

from shards.dataset import DatasetInfo, write_info
from shards.manifest import make_version
from shards.pixels.phash import NEAR
from shards.selection import subset
from xtra.probe import overlap

HALF = 0x00FF_F0F0_CCCC_AAAA  # 32 of 64 bits


def hashes(count: int, seed: int) -> list[int]:
    """Random hashes of 32 bits, as those of real pictures are."""
    rng = np.random.default_rng(seed)
    return [sum(1 << int(bit) for bit in rng.choice(64, 32, replace=False)) for _ in range(count)]


def moved(value: int, bits: int, seed: int = 0) -> int:
    """Another hash of 32 bits, that many bits away."""
    rng, half = np.random.default_rng(seed), bits // 2
    ones = [bit for bit in range(64) if value >> bit & 1]
    zeros = [bit for bit in range(64) if not value >> bit & 1]
    for bit in [*rng.choice(ones, half, replace=False), *rng.choice(zeros, half, replace=False)]:
        value ^= 1 << int(bit)
    return value


def write(folder, first: int, phashes: list[int | None], unit: int = 7):
    """A dataset of pictures first, first + 1, … (one number, one picture) in units of a few."""
    rows = rows_of(first, len(phashes))
    for row, value in zip(rows, phashes):
        row |= {"phash": value, "key": f"{folder.name}-{row['row']}"}
    parts = [rows[at : at + unit] for at in range(0, len(rows), unit)]
    write_info(str(folder), DatasetInfo(folder.name, "0" * 64, len(parts), unit, "c", "test"))
    for number, part in enumerate(parts):
        plan_unit(str(folder), number, part)
        write_unit(str(folder), number, part)
    return make_version(str(folder), "test")


def test_equal_bytes_and_alike_pictures_are_counted_once_and_named(tmp_path):
    ours, theirs = hashes(20, 1), hashes(30, 2)
    theirs[29] = moved(ours[3], NEAR, seed=1)
    theirs[0] = moved(ours[4], NEAR + 2, seed=2)  # too far
    theirs[11] = ours[15]
    theirs[12] = ours[19]  # the pictures 119 are the same bytes as well
    train = write(tmp_path / "train", 107, theirs)  # picture 119 is its row 12
    evaluation = write(tmp_path / "eval", 100, ours)
    found = overlap.shared(train, evaluation)
    assert found.sha256 == 13, "the pictures 107 to 119"
    assert found.phash == 1, "number 103; 115 looks like 118 too, and is counted by its bytes"
    assert found.total == 14
    assert found.keys[0] == ("train-136", "eval-103")
    assert found.keys[1] == ("train-107", "eval-107")
    assert len(found.keys) == 14
    assert str(found).startswith("13 evaluation images are in the training set too, 1 more look alike (eval-103 = tr")


@pytest.mark.parametrize("bits", [0, 2, NEAR])
def test_no_pair_within_reach_is_missed_wherever_its_bits_lie(tmp_path, bits):
    ours = hashes(300, 3)
    theirs = [moved(value, bits, seed) for seed, value in enumerate(ours)]
    found = overlap.shared(write(tmp_path / "train", 1000, theirs, 64), write(tmp_path / "eval", 0, ours, 100))
    assert (found.sha256, found.phash) == (0, 300)


def test_crowds_are_compared_in_pieces_and_all_found(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "_PAIRS", 7)
    ours = [HALF] * 20 + hashes(5, 4)
    found = overlap.shared(write(tmp_path / "train", 100, [HALF] * 30), write(tmp_path / "eval", 0, ours))
    assert found.phash == 20
    assert found.keys[0] == ("train-100", "eval-0"), "the first training picture is the one that is named"


def test_a_hash_that_says_nothing_matches_nothing(tmp_path):
    plain = 0xFF  # of a picture so plain that coefficients tie
    train = write(tmp_path / "train", 100, [plain, None, HALF])
    found = overlap.shared(train, write(tmp_path / "eval", 0, [plain, None, ~HALF & (1 << 64) - 1]))
    assert (found.sha256, found.phash, found.keys) == (0, 0, ())


def test_sets_without_hashes_say_that_nobody_knows(tmp_path):
    train = write(tmp_path / "train", 0, [None] * 4)
    found = overlap.shared(train, write(tmp_path / "eval", 3, hashes(4, 5)))
    assert (found.sha256, found.phash, found.total) == (1, None, 1)
    assert "not known how many look alike" in str(found)


def test_a_picture_twice_in_evaluation_counts_twice_and_what_is_not_selected_not_at_all(tmp_path):
    evaluation = write(tmp_path / "eval", 0, [None] * 40)
    train = write(tmp_path / "train", 0, [None] * 40)
    assert overlap.shared(subset(train, 10), evaluation).sha256 == subset(train, 10).samples
    rows = [{**rows_of(0, 1)[0], "key": key, "row": row} for row, key in enumerate(("one", "two"))]
    twice = str(tmp_path / "twice")
    write_info(twice, DatasetInfo("twice", "0" * 64, 1, 2, "c", "test"))
    plan_unit(twice, 0, rows)
    write_unit(twice, 0, rows)
    assert overlap.shared(train, make_version(twice, "test")).sha256 == 2
