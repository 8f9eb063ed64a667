"""Whatever stops a run, and on however many ranks it goes on: the same global batches, keys and crops, and every epoch
holds each sample once, except those that do not decode, which are named."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from buckets import bucket
from ranks import Expected, Setting, begin, prove, small_set

from shards.stream import ReadConfig
from shards.stream.order import Order

BROKEN = (70, 133)
WORLDS = (1, 2, 3, 4, 8)


def keys_of_the_store() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@pytest.mark.parametrize(
    ("place", "seed", "attempts"), [("local", 0, 11), pytest.param("moto", 1, 5, marks=pytest.mark.slow)]
)
def test_stops_and_other_world_sizes_change_nothing(
    place: str, seed: int, attempts: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if place == "moto":
        request.getfixturevalue("on_moto")
    base = str(tmp_path / "data") if place == "local" else bucket() + "/data"
    manifest = small_set(base, [61, 40, 50, 30], BROKEN)
    read = ReadConfig(cache=str(tmp_path / "cache")) if place == "moto" else ReadConfig()
    order = Order(seed=3, lanes=6, chunk=4, window=4)
    length = 3 * manifest.samples
    setting = Setting(manifest.address, tmp_path / "seen", 12, length, order, read, keys_of_the_store(), pace=0.005)
    run, plan, chosen = begin(setting), random.Random(seed), random.Random()
    worlds = [world for _ in range(attempts) for world in plan.sample(WORLDS, len(WORLDS))]
    for world in worlds[:attempts]:
        run.attempt(world, plan.choice([0, 1, 1, 2]), plan.choice(["kill", "kill", "term"]), chosen)
        assert not run.done
    run.attempt(worlds[attempts], None, "term", chosen)
    assert run.done
    prove(run, Expected(manifest, setting, BROKEN))
