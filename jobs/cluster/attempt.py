"""One Ray Train group, in the driver's own thread, on places that the driver holds.

Ray's fit() blocks and gives nobody its controller, so a group that cannot end by itself could only be ended by leaving
the cluster; a thread that is still inside fit() then reads freed memory, and the process dies of a segmentation fault.
And Ray's controller asks for its places itself: it starts from a view of the cluster that may be old, says nothing
while it waits, and leaves them taken when it is killed. What is private in Ray 2.60 is used in this file alone.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray._common.constants import RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR
from ray.train import FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from jobs.cluster.rendezvous import torch_config
from jobs.cluster.wanted import HeadLost

POLL_SECONDS = 0.5
ABORT_SECONDS = 5.0  # for the controller to end its workers before it is killed, and they with it


class Abandoned(Exception):
    """Raised by `watch` to end the group: it is killed and run() raises it again."""


@dataclass(frozen=True)
class Places:
    """Resources that are taken for a group, one place a worker."""

    held: PlacementGroup
    workers: int
    gpus: bool

    def nodes(self) -> frozenset[str]:
        """On which nodes they are, by id."""
        return frozenset(placement_group_table(self.held).get("bundles_to_node_id", {}).values())


@contextlib.contextmanager
def take(workers: int, gpus: bool, seconds: float) -> Iterator[Places | None]:
    """Places for so many workers, given back at the end of the block; None where that long none came free."""
    held = placement_group([{"GPU" if gpus else "CPU": 1}] * workers, strategy="PACK")
    try:
        yield Places(held, workers, gpus) if held.wait(seconds) else None
    except HeadLost:
        raise  # nobody is there to take them back
    except BaseException:
        _give_back(held)
        raise
    _give_back(held)


def _give_back(held: PlacementGroup) -> None:
    with contextlib.suppress(ray.exceptions.RayError):
        remove_placement_group(held)


def run(
    work: Callable[[dict[str, Any]], Any], job: dict[str, Any], places: Places, watch: Callable[[], None]
) -> Result:
    """Run `work(job)` on every rank of one group; its error, if it had one, is in the result.

    `watch` is called every half second; what it raises ends the group. Raises a RayError when the controller died.
    """
    with tempfile.TemporaryDirectory(prefix="xtra-ray-", ignore_cleanup_errors=True) as storage:
        trainer = _Trainer(
            work,
            watch=watch,
            train_loop_config=job | {"places": places.held},
            torch_config=torch_config("nccl" if places.gpus else "gloo", storage),
            scaling_config=ScalingConfig(num_workers=places.workers, use_gpu=places.gpus),
            # A name that was never used: with an old one Ray would go on from its own idea of a checkpoint.
            run_config=RunConfig(
                name=f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}",
                storage_path=storage,  # nothing of ours is in it: no worker looks there
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        with contextlib.suppress(TrainingFailedError):  # it is in the result
            trainer.fit()
        return trainer.result


def this_job() -> dict[str, str]:
    """The Ray session that this driver is in, and its job there."""
    return {"cluster": _session(), "job": ray.get_runtime_context().get_job_id()}


def job_lives(cluster: str, job: str) -> bool | None:
    """Whether a driver's job has not ended; None where this process is not in that session, or knows no such job."""
    if not ray.is_initialized() or _session() != cluster:
        return None
    return next((not row["IsDead"] for row in ray._private.state.jobs() if row["JobID"] == job), None)


def _session() -> str:
    return ray._private.worker.global_worker.node.session_name


def mistake(result: Result) -> str | None:
    """What a rank's ValueError says, if that is what ended the group: the user's to correct."""
    for failure in getattr(result.error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)  # Ray wraps it, with its traceback as text
        if isinstance(cause, ValueError):
            return str(cause)
    return None


def reason(error: BaseException | None) -> str:
    """Why a group was lost, in one line."""
    failures = getattr(error, "worker_failures", {})
    for rank, failure in failures.items():
        cause = getattr(failure, "_base_exc", None) or getattr(failure, "health_check_failure", failure)
        return f"rank {rank}: {_one_line(cause)}"
    return _one_line(getattr(error, "controller_failure", error))


def _one_line(error: BaseException | None) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, ray.exceptions.RayActorError):  # the first sentence, and where it was
        where = re.search(r"\bpid: (\d+) .*?\bip: ([\w.:]+)", words)
        return words.partition(" class_name: ")[0].rstrip(".") + (f", pid {where[1]} on {where[2]}" if where else "")
    return f"{type(error).__name__}: {words[:200]}".rstrip(": ")


class _Held(DefaultPlacementGroupHandle):
    """Places that the driver gives back itself."""

    def shutdown(self) -> None:
        pass


class _Group(WorkerGroup):
    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _Held:
        return _Held(self._train_run_context.train_loop_config["places"])


class _Controller(TrainController):
    worker_group_cls = _Group


class _Trainer(TorchTrainer):
    """Ray's trainer, whose fit() calls `watch` every half second and ends the group when that raises."""

    result: Result

    def __init__(self, loop: Callable[[dict[str, Any]], Any], *, watch: Callable[[], None], **settings: Any) -> None:
        super().__init__(loop, **settings)
        self._watch = watch

    def _create_default_callbacks(self) -> list[Any]:
        """Without a process that frees the places of a dead controller: the driver holds them."""
        return [
            callback
            for callback in super()._create_default_callbacks()
            if not isinstance(callback, PlacementGroupCleanerCallback)
        ]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        """Ray 2.60's own method but for the waiting (ray/train/v2/api/data_parallel_trainer.py; private)."""
        environment = get_env_vars_to_propagate()
        environment.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
        )
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        actor = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(_Controller)
        controller = actor.remote(**settings)
        try:
            running = controller.run.remote()
            while not ray.wait([running], timeout=POLL_SECONDS)[0]:
                self._watch()
            ray.get(running)
            self.result = ray.get(controller.get_result.remote())
        except HeadLost:
            raise  # Ray could end nothing
        except BaseException:
            with contextlib.suppress(ray.exceptions.RayError):  # the answer to abort() is that the actor is dead
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            ray.kill(controller)
            raise
        ray.kill(controller)
        return self.result
