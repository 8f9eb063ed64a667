"""Run folders -> typed rows: what was trained, on exactly which data, at what cost, and its probe results.

Nothing is filled in: a number that no file contains is None and stays an empty cell. A file that cannot be read is a
line in `Ledger.problems`, never a silent gap. A run whose checkpoint was trained on another manifest than run.json
names is refused, because every later number would be about the wrong data.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from jobs.report.comparable import settings_digest
from shards import store, typed_json
from shards.manifest import read_manifest
from shards.stream import shown_of_each
from xtra.flops import Shape, flops_per_image, parameters
from xtra.probe import read_result
from xtra.run import Metric, read_metrics, records

_SAMPLES = re.compile(r"\d{12,}")
HOLD_OUT = "hold-out"


@dataclass(frozen=True)
class Run:
    """One run as its folder has it: two JSON files, its committed checkpoints, its log, its probes.

    Of a run that only rows are left of (rows/), it is as much as they say.
    """

    url: str
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    shape: Shape
    checkpoints: Mapping[int, Mapping[str, Any]]  # samples seen -> COMMIT.json
    attempts: tuple[Mapping[str, Any], ...]
    metrics: tuple[Metric, ...]  # by samples seen; where attempts overlap, the highest one's
    probes: tuple[Mapping[str, Any], ...]
    unstated: str = ""  # digest of its settings, where no file states them: rows of another machine

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def samples_seen(self) -> int:
        """Of the newest committed checkpoint; without one, of the last logged step; else 0."""
        return max(self.checkpoints, default=self.metrics[-1].samples_seen if self.metrics else 0)


@dataclass(frozen=True)
class LedgerRow:
    """One run and one of its probes. `None` (an empty cell) means that no file has the value."""

    run: str
    name: str
    recipe: str
    variant: str  # "xtra", or "aim" where a block is one token; and "-prefix" with prefix attention
    size: str
    params: int
    image: int
    patch: int
    block: int
    dataset: str
    manifest: str  # digest; equal in run.json and in the checkpoint
    unique_images: int  # seen so far, exactly: the order repeats none before it has shown all
    samples_seen: int  # of the probed checkpoint; 0 for baselines
    epochs: float
    flops: int
    seconds: float | None
    samples_per_s: float | None
    loss: float | None  # mean over the last tenth of the samples
    val_loss: float | None
    world: int
    seed: int  # the first of the seeds of weights, order and probe that is not 0
    git: str
    settings: str  # digest of all settings except variant, seed, samples and data: equal means comparable
    set: str = ""  # "" in all fields below: a run without probes
    head: str = ""
    encoder: str = ""
    accuracy: float | None = None
    low: float | None = None
    high: float | None = None
    total: int | None = None
    classes: int | None = None
    lr: float | None = None
    layers: int | None = None  # number of last layers whose mean the head saw
    protocol: str = ""  # how the grid point was chosen: hold-out; published; published, warm-up defect
    how: str = ""  # all settings of the probe, in words
    shared_sha256: int | None = None  # test images that trained the head too, byte for byte
    shared_phash: int | None = None  # further near-duplicates
    probe_seconds: float | None = None  # of the whole probe, which its heads share
    probe_train: str = ""  # digest of the set that trained the head
    probe_eval: str = ""
    arm: str = ""  # name of the variant in comparisons
    order: str = "raster"  # of the blocks
    selected: int = 0  # images of the manifest
    trunk: str = ""  # name of the run that this one branches from
    trained: int = 0  # samples that this run itself trained; its trunk trained those before
    cpu_seconds: float | None = None
    order_seed: int = 0  # of the data
    probe_seed: int | None = None
    remark: str = ""  # what a reader of the accuracy should know, such as a best rate at the edge of its grid
    file: str = ""  # of the probe, in the run's folder
    weights_seed: int | None = None  # of weights and crops
    rates: str = ""  # learning rates that the probe tried
    decays: str = ""
    depths: str = ""  # numbers of last layers that it tried
    probe_epochs: int | None = None


@dataclass(frozen=True)
class Ledger:
    """The contents of a folder of runs, or of rows; `problems` are one line each and name the file."""

    runs: tuple[Run, ...] = ()
    rows: tuple[LedgerRow, ...] = ()
    problems: tuple[str, ...] = field(default=())
    others: tuple[Mapping[str, Any], ...] = ()  # probes of foreign encoders, from folders of their own
    lacks: tuple[str, ...] = ()  # what rows do not have of the run folders they came from, in sentences
    unprobed: tuple[LedgerRow, ...] = ()  # of tables in which nothing is probed, as a sweep's: they count as cost

    @property
    def from_rows(self) -> bool:
        return bool(self.lacks)


def results_of(ledger: Ledger) -> dict[tuple[str, str], Mapping[str, Any]]:
    """The probe behind each row, by the row's run and the name of its file (`probe_key`)."""
    return {(run.url, p["_file"].rpartition("/")[2]): p for run in ledger.runs for p in run.probes}


def probe_key(row: LedgerRow) -> tuple[str, str]:
    return row.run, row.file.rpartition("/")[2]


def read_runs(root: str) -> Ledger:
    """Every run folder directly under `root` (or `root` itself, if it is one).

    A run that mixes manifests is a problem, not a run. Raises ValueError if the folder has no run and no probe.
    """
    root = root.rstrip("/")
    folders = run_folders(root)
    problems: list[str] = []
    runs = [run for url in folders if _is_run(url) and (run := _read_or_note(url, problems)) is not None]
    others = [
        *(p for url in folders if not _is_run(url) for p in _foreign_probes(url, problems)),
        *(p for run in runs for p in run.probes if not _is_ours(p)),
    ]
    if not runs and not problems and not others:
        raise ValueError(
            f"{root}: contains no run (no run.json in it or one folder below) and no ledger: "
            "give the --out of a training run, or a folder of rows"
        )
    rows = tuple(row for run in runs for row in _rows(run, problems))
    return Ledger(tuple(runs), rows, tuple(problems), tuple(others))


def run_folders(root: str) -> list[str]:
    """The folder itself if it is a run, or else all that is in it."""
    return [root] if _is_run(root) else [store.join(root, n) for n in store.names(root)]


def holds_runs(root: str) -> bool:
    """Whether the folder has a run or a probe of its own."""
    return any(_is_run(url) or _has_probes(url) for url in run_folders(root.rstrip("/")))


def _has_probes(url: str) -> bool:
    with contextlib.suppress(store.StoreError):  # a file among the run folders
        return bool(store.names(store.join(url, "probes")))
    return False


def _foreign_probes(url: str, problems: list[str]) -> list[dict[str, Any]]:
    with contextlib.suppress(store.StoreError):  # a file among the run folders
        return _read_each(_probe, _json_files(store.join(url, "probes")), problems)
    return []


def _read_or_note(url: str, problems: list[str]) -> Run | None:
    try:
        return read_run(url, problems)
    except ValueError as error:
        problems.append(str(error))
        return None


# ---- one run folder ----


def _is_run(url: str) -> bool:
    return store.exists(store.join(url, "config.json")) or store.exists(store.join(url, "run.json"))


def read_run(url: str, problems: list[str]) -> Run | None:
    """One run folder; what cannot be read is appended to `problems`. None if its two JSON files cannot be read."""
    try:
        config, info = records.read_settings(url), records.read_facts(url)
        shape = shape_of(config, store.join(url, "config.json"))
    except ValueError as error:
        problems.append(f"{error} (run skipped)")
        return None
    commits: dict[int, Mapping[str, Any]] = {}
    for seen in filter(_SAMPLES.fullmatch, store.names(store.join(url, "checkpoints"))):
        where = store.join(url, "checkpoints", seen, "COMMIT.json")
        if store.exists(where):  # a checkpoint without a commit does not count
            for commit in _read_each(lambda url: typed_json.read_object(records.Commit, url), [where], problems):
                _same_manifest(url, info["manifest"], commit.get("manifest"), where)
                commits[int(seen)] = commit
    probes = _read_each(_probe, _json_files(store.join(url, "probes")), problems)
    names = records.ours(store.names(store.join(url, "attempts")), records.NUMBERED)
    begun = [store.join(url, "attempts", name) for name in names]
    attempts = _read_each(lambda url: typed_json.read_object(records.Begun, url), begun, problems)
    return Run(url, config, info, shape, commits, tuple(attempts), read_metrics(url, problems), tuple(probes))


def _probe(url: str) -> dict[str, Any]:
    return read_result(url, ("set", "head", "encoder", "accuracy", "total"))


def _json_files(folder: str) -> list[str]:
    return [store.join(folder, name) for name in store.names(folder) if name.endswith(".json") and name[0] not in "._"]


def _read_each(read: Callable[[str], dict[str, Any]], urls: Iterable[str], problems: list[str]) -> list[dict[str, Any]]:
    """The objects that can be read, each with its URL under `_file`; the others become problems."""
    found = []
    for url in urls:
        try:
            found.append(read(url) | {"_file": url})
        except ValueError as error:
            problems.append(str(error))
    return found


def _same_manifest(run: str, ours: str, theirs: Any, where: str) -> None:
    if theirs != ours:
        raise ValueError(
            f"{run}: run.json names manifest {ours} but {where} was made with {theirs}: "
            "use a separate run folder for each manifest, or move this run away"
        )


# ---- a run -> rows ----


def _is_ours(probe: Mapping[str, Any]) -> bool:
    """Whether it probes a run's encoder, trained or not, or raw pixels; the size of a foreign encoder is unknown."""
    return probe.get("encoder") in ("trained", "random", "none")


def _rows(run: Run, problems: list[str]) -> list[LedgerRow]:
    rows: list[LedgerRow] = []
    for probe in [p for p in run.probes if _is_ours(p) or not isinstance(p.get("encoder"), str)] or (None,):
        try:
            rows.append(_probe_row(run, probe) if probe else _row(run, run.samples_seen))
        except ValueError as error:
            problems.append(str(error))
        except (TypeError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
            where = probe["_file"] if probe else run.url
            problems.append(f"{where}: cannot be read ({error!r}): it is damaged, or from another version")
    return rows


def _probe_row(run: Run, probe: Mapping[str, Any]) -> LedgerRow:
    where = probe["_file"]
    encoder = typed_json.get(probe, "encoder", str, where)
    return _row(
        run,
        typed_json.get(probe, "samples_seen", int, where) if encoder == "trained" else 0,
        set=typed_json.get(probe, "set", str, where),
        head=typed_json.get(probe, "head", str, where),
        encoder=encoder,
        accuracy=typed_json.get(probe, "accuracy", float, where),
        low=typed_json.get(probe, "low", float, where),
        high=typed_json.get(probe, "high", float, where),
        total=typed_json.get(probe, "total", int, where),
        classes=typed_json.get(probe, "classes", int, where),
        lr=typed_json.maybe(probe, "lr", where),
        layers=typed_json.count(probe, "layers", where),
        protocol=protocol(probe),
        how=str(probe.get("protocol") or ""),
        shared_sha256=typed_json.count(probe, "shared_sha256", where),
        shared_phash=typed_json.count(probe, "shared_phash", where),
        probe_seconds=typed_json.maybe(probe, "seconds", where),
        probe_train=typed_json.get(probe, "manifest_train", str, where),
        probe_eval=typed_json.get(probe, "manifest_eval", str, where),
        probe_seed=typed_json.count(probe, "seed", where),
        remark=str(probe.get("remark") or ""),
        rates=_tried(probe, "lr"),
        decays=_tried(probe, "weight_decay"),
        depths=_tried(probe, "layers"),
        probe_epochs=typed_json.count(probe, "epochs", where),
        file=f"probes/{where.rpartition('/')[2]}",
    )


def _tried(probe: Mapping[str, Any], name: str) -> str:
    """The values of one setting in the probe's grid."""
    values = {point[name] for point in probe.get("selection") or () if point.get(name) is not None}
    return " ".join(f"{value:g}" for value in sorted(values))


def protocol(probe: Mapping[str, Any]) -> str:
    """How the grid point was chosen; only probes with equal protocols are comparable."""
    mask = f", mask {probe['mask']}" if probe.get("mask") else ""
    how = "published, warm-up defect" if probe.get("warmup_defect") else "published"
    return (how if probe.get("selected_on", "holdout") == "eval" else HOLD_OUT) + mask


def _row(run: Run, samples_seen: int, **probe: Any) -> LedgerRow:
    info, config, where = run.info, run.config, store.join(run.url, "run.json")
    log = [m for m in run.metrics if m.samples_seen <= samples_seen]
    selected = typed_json.get(info, "manifest_samples", int, where)
    seconds, rate, cpu = _cost(log)
    last = [m.loss for m in log if m.samples_seen > 0.9 * samples_seen]
    fork = _fork(config) if config.get("branch") else 0
    recipe = str(info.get("recipe", config.get("recipe", "")))
    seed, order = typed_json.get(config, "seed", int, store.join(run.url, "config.json")), config.get("order") or {}
    return LedgerRow(
        run=run.url,
        name=run.name,
        recipe=recipe,
        arm=str(config.get("arm") or recipe),
        variant=run.shape.variant,
        size=run.shape.size,
        params=parameters(run.shape),
        image=run.shape.image,
        patch=run.shape.patch,
        block=run.shape.block,
        order=str(config["model"].get("order", "raster")),
        dataset=str(info.get("dataset", config.get("data", ""))),
        manifest=info["manifest"],
        selected=selected,
        unique_images=_unique(info, samples_seen, int(order.get("seed", 0)), where),
        samples_seen=samples_seen,
        epochs=samples_seen / selected if selected else 0.0,
        flops=samples_seen * flops_per_image(run.shape),
        trunk=str(config.get("branch") or "").rstrip("/").rsplit("/", 1)[-1],
        trained=max(0, samples_seen - fork),
        seconds=seconds,
        samples_per_s=rate,
        cpu_seconds=cpu,
        loss=sum(last) / len(last) if last else None,
        val_loss=next((m.val_loss for m in reversed(log) if m.val_loss is not None), None),
        world=typed_json.get(info, "world", int, where),
        seed=seed or int(order.get("seed", 0)) or int(probe.get("probe_seed") or 0),
        order_seed=int(order.get("seed", 0)),
        weights_seed=seed,
        git=str(info.get("git") or ""),
        settings=settings_digest(config),
        **probe,
    )


def _fork(config: Mapping[str, Any]) -> int:
    """The samples after which a branch left its trunk."""
    from xtra.optim import OptimConfig, decay_start  # it loads torch

    return decay_start(OptimConfig(**config["optim"]), config["samples"], config["batch"])


def _unique(info: Mapping[str, Any], samples_seen: int, seed: int, where: str) -> int:
    """Different images among the first samples. Substitutes for bad images are not counted separately."""
    if "mixture" not in info:
        return min(samples_seen, info["manifest_samples"])
    parts = info["mixture"]
    if any("samples" not in part for part in parts):  # written by an older build
        parts = [p | {"samples": read_manifest(f"{p['dataset']}@{p['manifest']}").samples} for p in parts]
    shown = shown_of_each(tuple(typed_json.get(part, "of_4096", int, where) for part in parts), seed, samples_seen)
    return sum(min(n, part["samples"]) for n, part in zip(shown, parts))


def _cost(log: Sequence[Metric]) -> tuple[float | None, float | None, float | None]:
    """Seconds of training, samples a second, CPU seconds; work that a later attempt repeated is not counted."""
    lasts = {m.attempt: m for m in log}.values()
    seconds = sum(m.seconds for m in lasts)
    if not seconds:
        return None, None, None
    cpu = [m.cpu_seconds for m in lasts if m.cpu_seconds is not None]
    rate = sum(m.seconds * m.samples_per_s for m in lasts) / seconds
    return seconds, rate, sum(cpu) if len(cpu) == len(lasts) else None


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    model = config["model"]
    names = [f.name for f in fields(Shape) if f.type == "int" and (f.default is MISSING or f.name in model)]
    found = Shape(
        **{name: typed_json.get(model, name, int, where) for name in names},
        prefix=bool(model.get("prefix")),
        mlp_ratio=typed_json.get({"mlp_ratio": 4.0} | model, "mlp_ratio", float, where),
        dec_mlp_ratio=typed_json.get({"dec_mlp_ratio": 0.0} | model, "dec_mlp_ratio", float, where),
    )
    try:
        parameters(found), flops_per_image(found)
    except (ArithmeticError, ValueError, AssertionError) as error:
        raise ValueError(f"{where}: 'model' describes no model ({error!r}): the file is damaged") from None
    return found
