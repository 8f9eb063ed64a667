"""The cluster that other tests use: real nodes, a token that strangers lack, and nothing left of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from nodes import cluster

from jobs.cluster.reaper import processes


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nodes_come_and_go_and_nothing_is_left() -> None:
    with cluster(1) as made:
        node = made.nodes[1]
        assert made.alive() == {"head": True, "node1": True}
        assert made.alive(RAY_AUTH_TOKEN="0" * 64) == {}
        node.drain()
        until = time.monotonic() + 60
        while node.alive():  # it has no work, so it does not wait for its notice to pass
            assert time.monotonic() < until
            time.sleep(0.2)
        assert made.alive() == {"head": True, "node1": False}
        families = [node.family for node in made.nodes]
        assert all(len(family) > 2 for family in families)
    assert not set().union(*families) & processes().keys()
    assert not Path(made.folder).exists()
