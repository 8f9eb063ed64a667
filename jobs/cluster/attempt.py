"""One Ray Train group, run in the driver's own thread, on resources that the driver holds.

Ray's fit() blocks and does not expose its controller, so a group that cannot end by itself could only be ended by
leaving the cluster; a thread still inside fit() would then read freed memory, and the process would die of a
segmentation fault. Ray's controller also requests its resources itself: from a view of the cluster that may be old,
without a message while it waits, and without freeing them when it is killed. Ray Train's private names (Ray 2.60) are
used only in this file.

Most of the time to a first step is spent on starting processes and importing. Three of Ray's own are left out because
our groups do not need them (one asks an autoscaler, one distributes Ray datasets, one waits for reports). The next
group's controller is started in advance.
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
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import (
    DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
    get_env_vars_to_propagate,
)
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy.fixed import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import WorkerGroup, state, worker_group
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from jobs.cluster.rendezvous import torch_config
from jobs.cluster.wanted import HeadLost, closed_by

POLL_SECONDS = 0.5
SILENT_SECONDS = 60.0  # without an answer after which a controller counts as lost
STARTING_SECONDS = 600.0  # the same while its group starts, when it cannot answer
READY_SECONDS = 5.0  # in which a controller that was started in advance must answer
ABORT_SECONDS = 5.0  # for the controller to end its workers before all are killed


class Abandoned(Exception):
    """Raised by `watch` to end the group: it is killed and run() raises it again."""


class Silent(ray.exceptions.RayError):
    """Raised for a controller that hangs."""


@dataclass(frozen=True)
class Places:
    """Resources reserved for a group, one bundle (place) per worker."""

    held: PlacementGroup
    workers: int
    gpus: bool

    def nodes(self) -> frozenset[str]:
        """The ids of their nodes."""
        return frozenset(placement_group_table(self.held).get("bundles_to_node_id", {}).values())


@contextlib.contextmanager
def take(workers: int, gpus: bool, seconds: float) -> Iterator[Places | None]:
    """Places for so many workers, freed at the end of the block; None if they are not available within `seconds`."""
    held = placement_group([{"GPU" if gpus else "CPU": 1}] * workers, strategy="PACK")

    def give_back() -> None:
        with contextlib.suppress(ray.exceptions.RayError):
            remove_placement_group(held)

    with closed_by(give_back):
        yield Places(held, workers, gpus) if held.wait(seconds) else None


def run(
    work: Callable[[dict[str, Any]], Any],
    job: dict[str, Any],
    places: Places,
    watch: Callable[[], None],
    controllers: Controllers,
) -> Result:
    """Run `work(job)` on every rank of one group; the result contains its error, if any.

    `watch` is called every half second; an exception from it ends the group. Raises a RayError if the controller died.
    """
    with tempfile.TemporaryDirectory(prefix="xtra-ray-", ignore_cleanup_errors=True) as storage:
        trainer = _Trainer(
            work,
            watch=watch,
            controllers=controllers,
            train_loop_config=job | {"places": places.held},
            torch_config=torch_config("nccl" if places.gpus else "gloo", storage),
            scaling_config=ScalingConfig(num_workers=places.workers, use_gpu=places.gpus),
            # A new name: with an old one Ray would resume from its own checkpoint record.
            run_config=RunConfig(
                name=f"{time.strftime('%Y%m%dT%H%M%S')}-{uuid.uuid4().hex[:8]}",
                storage_path=storage,  # nothing of ours is stored there
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        with contextlib.suppress(TrainingFailedError):  # the error is in the result
            trainer.fit()
        return trainer.result


def this_job() -> dict[str, str]:
    """This driver's Ray session and its job there."""
    return {"cluster": _session(), "job": ray.get_runtime_context().get_job_id()}


def job_lives(cluster: str, job: str) -> bool | None:
    """Whether a driver's job has not ended; None if this process is not in that session, or the job is unknown."""
    if not ray.is_initialized() or _session() != cluster:
        return None
    return next((not row["IsDead"] for row in ray._private.state.jobs() if row["JobID"] == job), None)


def _session() -> str:
    return ray._private.worker.global_worker.node.session_name


def mistake(result: Result) -> str | None:
    """The text of a rank's ValueError, if that ended the group: for the user to correct."""
    for failure in getattr(result.error, "worker_failures", {}).values():
        cause = getattr(failure, "_base_exc", failure)  # Ray wraps it, with its traceback as text
        if isinstance(cause, ValueError):
            return str(cause)
    return None


def reason(error: BaseException | None) -> str:
    """Why a group was lost, in one line."""
    for rank, failure in getattr(error, "worker_failures", {}).items():
        cause = getattr(failure, "_base_exc", None) or getattr(failure, "health_check_failure", failure)
        return f"rank {rank}: {_one_line(cause)}"
    return _one_line(getattr(error, "controller_failure", error))


def _one_line(error: BaseException | None) -> str:
    words = " ".join(str(error).split())
    if isinstance(error, Silent):
        return words
    if isinstance(error, ray.exceptions.RayActorError):  # the first sentence, and the process
        where = re.search(r"\bpid: (\d+) .*?\bip: ([\w.:]+)", words)
        return words.partition(" class_name: ")[0].rstrip(".") + (f", pid {where[1]} on {where[2]}" if where else "")
    return f"{type(error).__name__}: {words[:200]}".rstrip(": ")


class _Held(DefaultPlacementGroupHandle):
    """Places that the driver frees itself."""

    def shutdown(self) -> None:
        pass


class _Group(WorkerGroup):
    """Ray's worker group, on the driver's places, without the actor that synchronises the ranks' reports."""

    def _start_impl(self, builder: Any) -> None:
        worker_group.SynchronizationActor = _NoActor
        state._shutdown_sync_actor = _NoActor.end
        super()._start_impl(builder)

    def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> _Held:
        return _Held(self._train_run_context.train_loop_config["places"])


class _NoActor:
    """Replaces an actor that is never called."""

    @classmethod
    def options(cls, **settings: Any) -> type[_NoActor]:
        return cls

    @classmethod
    def remote(cls, **settings: Any) -> str:
        return "no actor"

    @staticmethod
    def end(actor: Any) -> None:
        pass


class _Fixed(FixedScalingPolicy):
    """Ray's policy, without the actor that asks an autoscaler: the driver has done that."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _Controller(TrainController):
    """Ray's controller, started before its work is known, because most of its start is imports."""

    worker_group_cls = _Group
    _worker_group: Any = None

    def __init__(self) -> None:
        pass

    async def lead(self, settings: dict[str, Any]) -> None:
        super().__init__(**settings | {"scaling_policy": _Fixed(settings["scaling_policy"].scaling_config)})
        await self.run()

    async def ready(self) -> None:
        """Answers once the process runs."""

    async def started(self) -> bool:
        """Whether the group has started; no answer while it starts."""
        return self._worker_group is not None


class Controllers:
    """The processes of Ray's controllers, on the driver's node; the next one may be started before its group."""

    def __init__(self) -> None:
        environment = get_env_vars_to_propagate()
        environment.setdefault(
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR, DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
        )
        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        self._kind = ray.remote(num_cpus=0, label_selector=here, runtime_env={"env_vars": environment})(_Controller)
        self._next: Any = None
        self._ready: Any = None  # its answer

    def prepare(self) -> None:
        """Start the next one, unless that is done."""
        if self._next is None:
            self._next = self._kind.remote()
            self._ready = self._next.ready.remote()

    def take(self) -> Any:
        """The next one, if it answers or is still starting; else a new one."""
        self.prepare()
        taken, self._next = self._next, None
        if not ray.wait([self._ready], timeout=0)[0]:
            return taken
        again = taken.ready.remote()
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.wait([again], timeout=READY_SECONDS)[0]:
                ray.get([self._ready, again])
                return taken
        ray.kill(taken)
        return self._kind.remote()

    def close(self) -> None:
        if self._next is not None:
            ray.kill(self._next)


class _Pulse:
    """Checks that a controller still answers. One that hangs would never report the end of its group."""

    def __init__(self, controller: Any) -> None:
        self._controller, self._limit = controller, STARTING_SECONDS
        self._ask()

    def _ask(self) -> None:
        self._asked, self._since = self._controller.started.remote(), time.monotonic()

    def require(self) -> None:
        """Raises a RayError if the controller died or has not answered for too long."""
        if ray.wait([self._asked], timeout=0)[0]:
            if ray.get(self._asked):
                self._limit = SILENT_SECONDS
            self._ask()
        elif time.monotonic() - self._since > self._limit:
            raise Silent(f"Ray's controller has not answered for {self._limit:.0f} s")


class _Trainer(TorchTrainer):
    """Ray's trainer, whose fit() calls `watch` every half second and ends the group if that raises."""

    result: Result

    def __init__(
        self,
        loop: Callable[[dict[str, Any]], Any],
        *,
        watch: Callable[[], None],
        controllers: Controllers,
        **settings: Any,
    ) -> None:
        super().__init__(loop, **settings)
        self._watch, self._controllers = watch, controllers

    def _create_default_callbacks(self) -> list[Any]:
        """Without the process that frees a dead controller's places (the driver holds them), and the one that
        distributes Ray datasets."""
        needless = (PlacementGroupCleanerCallback, DatasetsCallback)
        return [each for each in super()._create_default_callbacks() if not isinstance(each, needless)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        """Ray 2.60's own method except for the waiting (ray/train/v2/api/data_parallel_trainer.py; private)."""
        controller = self._controllers.take()
        try:
            running, pulse = controller.lead.remote(settings), _Pulse(controller)
            while not ray.wait([running], timeout=POLL_SECONDS)[0]:
                self._watch()
                pulse.require()
            ray.get(running)
            self.result = ray.get(controller.get_result.remote())
        except HeadLost:
            raise  # without its head, Ray can end nothing
        except BaseException:
            with contextlib.suppress(ray.exceptions.RayError):  # the answer to abort() is that the actor is dead
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            ray.kill(controller)
            raise
        ray.kill(controller)
        return self.result
