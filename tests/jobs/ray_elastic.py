"""The same training under Ray Train's own elasticity, to compare: ScalingConfig(num_workers=(1, 3)) around our rank.

    python tests/jobs/ray_elastic.py DATASET RUN

Ray looks for other numbers of workers every 4 s and restarts the group by itself. A line of JSON for the samples seen.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

from cluster_runs import RECIPE

from jobs.cluster.start import start_ray
from jobs.flags import parse
from xtra import recipes, train
from xtra.run import this_process

SAMPLES = 64_000  # more than it comes to
LOOK_SECONDS = 4.0
START_SECONDS = "10"  # that Ray waits for a place before it takes fewer workers; its own is 60


def main(data: str, out: str) -> None:
    os.environ |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": START_SECONDS, "GLOO_SOCKET_IFNAME": "lo"}
    start_ray()
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from jobs.cluster import attempt
    from jobs.cluster.desk import Desk
    from jobs.cluster.rank import work

    words = [*RECIPE[1:], f"--samples={SAMPLES}", f"--data={data}", f"--out={out}"]
    config = parse(train.Config, words, "ray_elastic", recipes.get(RECIPE[0]))
    desk, group = Desk(), uuid.uuid4().hex[:8]
    threading.Thread(target=show, args=(desk, group), daemon=True).start()
    job = {"configs": [config], "desk": desk.actor, "group": group, "stall": 600.0}
    job["driver"] = dataclasses.asdict(this_process()) | attempt.this_job()
    with tempfile.TemporaryDirectory(prefix="xtra-ray-") as storage:
        TorchTrainer(
            work,
            train_loop_config=job,
            torch_config=TorchConfig("gloo"),
            scaling_config=ScalingConfig(num_workers=(1, 3), elastic_resize_monitor_interval_s=LOOK_SECONDS),
            run_config=RunConfig(
                name=group,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=-1, controller_failure_limit=-1, max_preemption_failures=-1),
            ),
        ).fit()


def show(desk: Any, group: str) -> None:
    while True:
        for row in desk.turn(False, group)[1]:
            if row.get("samples_seen"):
                print(json.dumps({"samples_seen": row["samples_seen"]}), flush=True)
        time.sleep(0.2)


if __name__ == "__main__":
    main(*sys.argv[1:])
