"""Where a run's numbers also go, beside its own metrics files: TensorBoard, MLflow, Weights & Biases.

One interface: a sink is made from (run folder, config) and takes rows of numbers at a count of samples seen. Libraries
are imported only when asked for (extras tensorboard, mlflow and wandb); each is told where to send things by its own
environment variables.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from shards import store
from xtra.run_folder import Parts

SINKS = ("tensorboard", "mlflow", "wandb")


class Sink(Protocol):
    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        if not store.is_local(run):
            raise ValueError(f"sinks has tensorboard, which writes to a local folder: {run} is none")
        self.writer = _library("tensorboard", "torch.utils.tensorboard").SummaryWriter(
            str(Path(store.local_path(run), "tensorboard"))
        )

    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, samples_seen)

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run named after the run folder, under MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME."""

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        self.mlflow = _library("mlflow", "mlflow")
        self.mlflow.start_run(run_name=_name(run))
        self.mlflow.log_params(flat(config))

    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None:
        self.mlflow.log_metrics(dict(numbers), step=samples_seen)

    def close(self) -> None:
        self.mlflow.end_run()


class WandB:
    """A run named after the run folder, under WANDB_PROJECT; resumed attempts join it."""

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        wandb = _library("wandb", "wandb")
        self.run = wandb.init(id=_name(run), name=_name(run), config=dict(config), resume="allow")

    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None:
        self.run.log({**numbers, "samples_seen": samples_seen})

    def close(self) -> None:
        self.run.finish()


def open_sinks(names: tuple[str, ...], run: str, config: Mapping[str, Any]) -> list[Sink]:
    """Raises ValueError naming what is not installed or not known."""
    kinds = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
    assert tuple(kinds) == SINKS
    return [kinds[name](run, config) for name in names]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim.lr": …}: nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _library(extra: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"sinks has {extra}, which is not installed ({error}): pip install {extra}") from None


def _name(run: str) -> str:
    return run.rstrip("/").rsplit("/", 1)[-1]


class Recorder:
    """Rows of a run's metrics: into its metrics files always, and into the sinks; a context that closes them."""

    def __init__(self, metrics: Parts, names: tuple[str, ...], config: Mapping[str, Any]) -> None:
        self.metrics = metrics
        self.sinks = open_sinks(names, metrics.attempt.run, config)

    def add(self, row: dict[str, Any]) -> None:
        self.metrics.add(row)
        for sink in self.sinks:
            sink.log({name: value for name, value in row.items() if name != "samples_seen"}, row["samples_seen"])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        for sink in self.sinks:
            sink.close()
