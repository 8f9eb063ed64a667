"""One attempt at training on a Ray Train group, in the driver's own thread.

Ray's fit() blocks and gives nobody its controller, so a group that cannot end by itself could only be ended by leaving
the cluster; a thread that is still inside fit() then reads freed memory, and the process dies of a segmentation fault.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController

POLL_SECONDS = 0.5
ABORT_SECONDS = 5.0  # for the controller to end its workers before it is killed, and they with it


class Abandoned(Exception):
    """Raised by `watch` to end the attempt: the group is killed and fit() raises it again."""


class Attempt(TorchTrainer):
    """Ray's trainer, whose fit() calls `watch` every half second and ends the group when that raises."""

    def __init__(self, loop: Callable[[dict[str, Any]], None], *, watch: Callable[[], None], **settings: Any) -> None:
        super().__init__(loop, **settings)
        self._watch = watch

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        """Ray 2.60's own method but for the waiting (ray/train/v2/api/data_parallel_trainer.py; private)."""
        environment = get_env_vars_to_propagate()
        environment.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
        )
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        actor = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(TrainController)
        controller = actor.remote(**settings)
        try:
            running = controller.run.remote()
            while not ray.wait([running], timeout=POLL_SECONDS)[0]:
                self._watch()
            ray.get(running)
            return ray.get(controller.get_result.remote())
        except BaseException:
            with contextlib.suppress(ray.exceptions.RayError):  # the answer to abort() is that the actor is dead
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            ray.kill(controller)
            raise
