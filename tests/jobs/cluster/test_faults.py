"""The short ones of tests/jobs/soak_cluster.py: a node that goes with a notice, an ingest that loses one for good."""

from __future__ import annotations

import os
import random

import pytest
from cluster_faults import FAULTS, SHARDS
from made_datasets import make_dataset
from nodes import cluster


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("XTRA_TEST_CLUSTER"), reason="goes by the clock: XTRA_TEST_CLUSTER=1 runs it")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["drain", "ingest"])
def test_what_comes_out_is_what_comes_out_undisturbed(name: str) -> None:
    fault = FAULTS[name]
    with cluster(fault.nodes, env=fault.env, notice=fault.notice) as made:
        make_dataset(made.folder / "data", SHARDS)
        fault.run(made, True, random.Random(0))
