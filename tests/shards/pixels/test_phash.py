"""A hash that survives re-encoding and rescaling, and little else."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from origin import unpacked
from PIL import Image

from shards.pixels import image
from shards.pixels.phash import NEAR, distance, phash


def photo(seed: int, width: int = 400, height: int = 300) -> Image.Image:
    """Smooth random colours: like a photograph, most of the energy is in low frequencies."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(pixels: Image.Image, kind: str = "JPEG", **options: int) -> bytes:
    out = io.BytesIO()
    pixels.save(out, kind, **options)
    return out.getvalue()


def glanced(body: bytes) -> int:
    return phash(image.check(body))


@pytest.mark.parametrize(
    "copy",
    [
        lambda p: encode(p, quality=20),
        lambda p: encode(p, "PNG"),
        lambda p: encode(p.convert("L")),
        lambda p: encode(p.resize((200, 150))),
        lambda p: encode(p.resize((64, 64))),
        lambda p: encode(p.resize((900, 675))),
    ],
)
def test_copies_are_near(copy: Callable[[Image.Image], bytes]) -> None:
    found = [distance(glanced(encode(photo(seed))), glanced(copy(photo(seed)))) for seed in range(20)]
    assert max(found) <= 2 * NEAR
    assert sum(far > NEAR for far in found) <= 2


def test_others_are_far() -> None:
    hashes = [phash(photo(seed)) for seed in range(100)]
    assert min(distance(a, b) for at, a in enumerate(hashes) for b in hashes[:at]) > 2 * NEAR
    assert distance(phash(photo(0)), phash(photo(0).transpose(Image.Transpose.FLIP_LEFT_RIGHT))) > 2 * NEAR


def test_a_hash_is_64_bits_of_which_half_are_set() -> None:
    for seed in range(20):
        found = phash(photo(seed))
        assert 0 < found < 1 << 64
        assert found.bit_count() == 32
    assert phash(Image.new("RGB", (50, 70), "gray")) == 0


def test_the_hash_does_not_change_between_versions() -> None:
    """Hashes lie in datasets and are compared with those of later ones."""
    y, x = np.mgrid[0:32, 0:32]
    pixels = Image.fromarray(((x * 7 + y * 13 + x * y) % 256).astype(np.uint8))
    assert phash(pixels) == GOLDEN


GOLDEN = 0x4001851D67FDF9E6


def test_distance_counts_bits() -> None:
    assert (distance(0, 0), distance(0b1011, 0b0001), distance(0, (1 << 64) - 1)) == (0, 2, 64)


def test_near_duplicates_of_two_real_sets(shared: Path, tmp_path: Path) -> None:
    """Photographs that are in both, found by correlating pixels; only squashed ones show all of the picture twice."""
    folder = unpacked(shared, "meta", tmp_path)
    pairs = json.loads((folder / "near_duplicates_in1k_tiny.json").read_text())["pairs"]
    squashed = [(a, b) for correlation, a, b, how, _ in pairs if how == "squash" and correlation > 0.96]
    wanted = {name for pair in squashed for name in pair}
    hashes = {}
    shards = {"in1k-256-00000" if name.startswith("in1k") else f"{name[:10]}0000{name[12]}" for name in wanted}
    for shard in shards:
        with tarfile.open(shared / "data" / f"{shard}.tar.gz") as tar:
            for member in tar:
                if member.name in wanted:
                    hashes[member.name] = glanced(tar.extractfile(member).read())  # type: ignore[union-attr]
    assert len(squashed) >= 4
    assert max(distance(hashes[a], hashes[b]) for a, b in squashed) <= NEAR + 2
