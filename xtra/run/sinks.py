"""Additional destinations for a run's metrics: TensorBoard, MLflow, Weights & Biases.

One interface: a sink is made from (run folder, config) and receives rows of numbers at a count of samples seen.
Libraries are imported only if requested (extras tensorboard, mlflow and wandb); each is configured by its own
environment variables.

The run folder has everything, so a sink never fails a run: one that fails is dropped for the rest of the attempt, and
an event records it. Rows are sent once the run folder has them. A resumed run continues its earlier attempts' records,
and sends no row that the run folder had before it. So a sink may permanently miss rows: those after it failed, which is
reported when the run resumes, and those that a killed process had not sent yet.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from shards import store, typed_json
from xtra.run import records
from xtra.run.folder import Parts

SINKS = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow", "wandb": "wandb"}  # name -> module
READERS = 16


class Sink(Protocol):
    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        self.writer = _library("tensorboard").SummaryWriter(str(Path(store.local_path(run), "tensorboard")))

    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, samples_seen)

    def close(self) -> None:
        self.writer.close()


class MLflow:
    """A run named after the run folder, under MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME; its tag xtra.run is the
    folder, by which later attempts find it."""

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        self.mlflow = _library("mlflow")
        folder = store.absolute(run)
        quoted = folder.replace("'", "\\'")
        found = self.mlflow.search_runs(
            filter_string=f"tags.`xtra.run` = '{quoted}'", max_results=1, output_format="list"
        )
        if found:
            self.mlflow.start_run(run_id=found[0].info.run_id)
        else:
            self.mlflow.start_run(run_name=_name(run), tags={"xtra.run": folder})
            self.mlflow.log_params(flat(config))

    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None:
        self.mlflow.log_metrics(dict(numbers), step=samples_seen)

    def close(self) -> None:
        self.mlflow.end_run()


class WandB:
    """A run named after the run folder, under WANDB_PROJECT; its id comes from the folder, so attempts share it."""

    def __init__(self, run: str, config: Mapping[str, Any]) -> None:
        wandb = _library("wandb")
        digest = hashlib.sha256(store.absolute(run).encode()).hexdigest()[:8]
        self.run = wandb.init(id=f"{_name(run)}-{digest}", name=_name(run), config=dict(config), resume="allow")
        self.run.define_metric("*", step_metric="samples_seen")

    def log(self, numbers: Mapping[str, float], samples_seen: int) -> None:
        self.run.log({**numbers, "samples_seen": samples_seen})

    def close(self) -> None:
        self.run.finish()


def require(names: tuple[str, ...], run: str) -> None:
    """Raises ValueError for a sink that is unknown, not installed, or cannot be used for this run. Starts nothing."""
    for name in names:
        if name not in SINKS:
            raise ValueError(f"sinks has {name!r}; each must be one of {', '.join(SINKS)}")
        if name == "tensorboard" and not store.is_local(run):
            raise ValueError(
                f"sinks has tensorboard, which writes to a local folder, but {run} is not one: leave it out"
            )
        _library(name)


def open_sinks(names: tuple[str, ...], run: str, config: Mapping[str, Any]) -> dict[str, Sink]:
    """Start the sinks. Raises what `require` raises, and ValueError naming one that does not start."""
    require(names, run)
    kinds = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
    assert kinds.keys() == SINKS.keys()
    opened: dict[str, Sink] = {}
    for name in names:
        try:
            opened[name] = kinds[name](run, config)
        except Exception as error:  # from the library: no account, no server, no such experiment
            said = " ".join(str(error).split())
            raise ValueError(f"sinks has {name}, which does not start ({type(error).__name__}: {said})") from None
    return opened


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names: {"optim.lr": …}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _library(extra: str) -> Any:
    try:
        return importlib.import_module(SINKS[extra])
    except ImportError as error:
        raise ValueError(
            f"sinks has {extra}, which is not installed ({error}): pip install 'xtra-pretrain[{extra}]', "
            f"or {extra} alone"
        ) from None


def _name(run: str) -> str:
    return run.rstrip("/").rsplit("/", 1)[-1]


def recorded(run: str) -> int:
    """The samples seen of the latest row in the run folder's metrics by earlier attempts; 0 without any."""
    folder = store.join(run, "metrics")
    latest: dict[str, str] = {}
    for name in records.ours(store.names(folder), records.PART):
        latest[name.partition("-")[0]] = name  # names are sorted: an attempt's last segment
    rows = [typed_json.last_line(store.join(folder, name)) for name in latest.values()]
    seen = [row.get("samples_seen") for row in rows if isinstance(row, dict)]
    return max((each for each in seen if isinstance(each, int)), default=0)


def gaps(run: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """A remark for each of these sinks that an earlier attempt dropped."""
    folder = store.join(run, "events")
    parts = records.ours(store.names(folder), records.PART) if names else []
    with ThreadPoolExecutor(READERS, thread_name_prefix="events") as pool:
        texts = list(pool.map(lambda name: store.read(store.join(folder, name)), parts))
    events = [event for text in texts for event in typed_json.lines(text) if isinstance(event, dict)]
    lost = {event.get("sink"): event.get("error") for event in events if event.get("event") == "sink lost"}
    return tuple(
        f"{run}: {name} misses rows, because an earlier attempt dropped it ({lost[name]}); the run folder has them"
        for name in names
        if name in lost
    )


class Recorder:
    """Writes rows of a run's metrics to its metrics files and to the sinks; a context manager that closes them.

    `on_event` receives an event when a sink is dropped.
    """

    def __init__(
        self, metrics: Parts, names: tuple[str, ...], config: Mapping[str, Any], on_event: Callable[[dict], None]
    ) -> None:
        self.metrics, self.on_event = metrics, on_event
        self.rows: list[dict[str, Any]] = []  # not yet sent to the sinks
        self.sent = recorded(metrics.attempt.run) if names else 0
        self.sinks = open_sinks(names, metrics.attempt.run, config)

    def add(self, row: dict[str, Any]) -> None:
        self.metrics.add(row)
        if self.sinks and row["samples_seen"] > self.sent:
            self.rows.append(row)

    def flush(self) -> None:
        """Write the segment, then send its rows to the sinks."""
        self.metrics.flush()
        rows, self.rows = self.rows, []
        for name in tuple(self.sinks):
            self._try(name, lambda sink: [_send(sink, row) for row in rows])

    def _try(self, name: str, work: Callable[[Sink], object]) -> None:
        try:
            work(self.sinks[name])
        except Exception as error:  # from the library: the run must continue
            del self.sinks[name]
            self.on_event({"event": "sink lost", "sink": name, "error": f"{type(error).__name__}: {error}"})

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()
        for name in tuple(self.sinks):
            self._try(name, lambda sink: sink.close())


def _send(sink: Sink, row: Mapping[str, Any]) -> None:
    sink.log({name: value for name, value in row.items() if name != "samples_seen"}, row["samples_seen"])
