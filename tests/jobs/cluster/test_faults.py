"""What a few faults come to on real nodes: a node that goes with a notice, an ingest that loses one for good.

All faults, many times, with their seconds: python tests/jobs/soak_cluster.py.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
from cluster_faults import FAULTS, prepared

NOTICE = 200  # seconds: these go by what happens, however busy the machine


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["drain", "ingest"])
def test_what_comes_out_is_what_comes_out_undisturbed(name: str) -> None:
    fault = dataclasses.replace(FAULTS[name], notice=NOTICE)
    with prepared(fault) as made:
        fault.run(made, True, random.Random(0))
