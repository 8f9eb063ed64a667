"""Recorded rows -> the Ledger that their run folders made, as far as rows say it.

NAME.csv            a ledger, as `ledger_csv` writes it; columns of newer builds may be missing
NAME-right.csv      which test images each probe got right: `RIGHT`, packed as in a probe's result
NAME-settings.json  the settings behind each digest in the ledger's column `settings`, which they give

The second and third may be missing: the page then says what it does without. A row that cannot be read is a problem, as
a file of a run folder is.
"""

from __future__ import annotations

import csv
import io
import math
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any

from jobs.laws import grouped
from jobs.report.arms import arm_of
from jobs.report.comparable import digest_of, undigested
from jobs.report.ledger import Ledger, LedgerRow, Run, holds_runs, probe_key, read_runs, shape_of
from shards import store, typed_json
from xtra.flops import Shape
from xtra.probe import unpack
from xtra.run import Metric

RIGHT = ("name", "set", "head", "encoder", "samples_seen", "seed", "manifest_eval", "total", "right")
SETTINGS = "-settings.json"
BESIDE = "-right.csv"
NEEDED = tuple(f.name for f in fields(LedgerRow) if f.default is MISSING)
KINDS = {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(LedgerRow).items()}
LARGEST = 2**63  # of a column of whole numbers
WORDS = {int: "a whole number", float: "a number"}
FROM_ROWS = (
    "This page is made from rows, and leaves out what run folders alone have: pictures, losses along a run, the grids "
    "and classes of probes, events, attempts, machines and commands."
)

Probed = tuple[str, str, str, str, int, str, int]  # run, set, head, encoder, samples seen, test images, how many right


def read_ledger(root: str) -> Ledger:
    """The runs of a folder; or the rows in a folder without runs, or in one ledger's CSV.

    Raises ValueError for a folder that has neither, for a column that no ledger has, and for a damaged settings file.
    """
    root = root.rstrip("/")
    if root.endswith(".csv"):
        return _read_tables([root])
    tables = [] if holds_runs(root) else _tables(root)
    return _read_tables(tables) if tables else read_runs(root)


def _tables(folder: str) -> list[str]:
    """The ledgers of a folder, by their columns."""
    urls = [store.join(folder, name) for name in store.names(folder) if name.endswith(".csv")]
    return [url for url in urls if {*NEEDED[:2], "settings"} <= {*next(_lines(url), (0, []))[1]}]


def _read_tables(urls: Sequence[str]) -> Ledger:
    problems: list[str] = []
    tables = {url: _rows(url, problems) for url in urls}
    probed = [url for url, rows in tables.items() if any(row.set for row in rows)] or list(urls)
    _no_run_twice({url: tables[url] for url in probed})
    known = {digest: settings for url in probed for digest, settings in read_settings(_beside(url, SETTINGS)).items()}
    runs: list[Run] = []
    lacks = [FROM_ROWS]
    for url in probed:
        right = _right(url, tables[url], problems)
        if right is None:
            lacks.append(
                f"{_name(url)} has no {_name(_beside(url, BESIDE))} beside it: which test images a probe got right is "
                "not known, and no comparison is paired by image."
            )
        runs += _runs(url, tables[url], known, right or {}, problems)
    read = {run.url for run in runs}
    rows = [row for url in probed for row in tables[url] if row.run in read]
    lacks += _lacking(runs, rows)
    unprobed = [row for url in urls if url not in probed for row in tables[url]]
    return Ledger(tuple(runs), tuple(rows), tuple(problems), lacks=tuple(lacks), unprobed=tuple(unprobed))


def _no_run_twice(tables: Mapping[str, Sequence[LedgerRow]]) -> None:
    seen: dict[str, str] = {}
    for url, rows in tables.items():
        for run in {row.run for row in rows}:
            if run in seen:
                raise ValueError(f"{url}: has rows of {run}, as {_name(seen[run])} has: give one of the two")
        seen |= {row.run: url for row in rows}


def _lacking(runs: Sequence[Run], rows: Sequence[LedgerRow]) -> Iterator[str]:
    if digests := {run.unstated for run in runs} - {""}:
        yield (
            f"No *{SETTINGS} states the settings behind {', '.join(sorted(digests))}: lines with different digests "
            "differ in settings that cannot be named here."
        )
    if any(row.encoder == "trained" and not row.rates for row in rows):
        yield "Which rates a probe tried is not in all of these rows: comparisons take them as equal."


def _beside(url: str, ending: str) -> str:
    return url.removesuffix(".csv") + ending


def _name(url: str) -> str:
    return url.rpartition("/")[2]


# ---- one ledger ----


def _lines(url: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells). Raises ValueError for a file that is no CSV."""
    try:
        reader = csv.reader(io.StringIO(store.read(url).decode("utf-8"), newline=""))
        for cells in reader:
            yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{url}: is no CSV ({error}): the file is damaged") from None


def _records(url: str, needed: Iterable[str], known: Iterable[str], problems: list[str]) -> Iterator[_Record]:
    """Every line as its cells by column; a line with too few or too many is a problem."""
    lines = _lines(url)
    _, columns = next(lines, (1, []))
    for name in columns:
        if name not in known:
            raise ValueError(f"{url}: column {name!r} is not of a ledger: it is from a newer build, or no ledger")
    if missing := [name for name in needed if name not in columns]:
        raise ValueError(f"{url}: has no column {missing[0]}: it is damaged, or no ledger")
    for number, cells in lines:
        if len(cells) == len(columns):
            yield _Record(f"{url} line {number}", dict(zip(columns, cells)))
        elif cells:
            problems.append(f"{url} line {number}: has {len(cells)} cells, not {len(columns)} (row skipped)")


@dataclass(frozen=True)
class _Record:
    """One line of a table."""

    where: str
    cells: Mapping[str, str]


def _rows(url: str, problems: list[str]) -> list[LedgerRow]:
    found: list[LedgerRow] = []
    seen: set[tuple[str, str]] = set()
    for at, record in enumerate(_records(url, NEEDED, KINDS, problems)):
        try:
            row = LedgerRow(**{name: _value(name, cell) for name, cell in record.cells.items()})
            row = replace(row, file=row.file or (f"row {at}" if row.set else ""))
            _possible(row)
            if probe_key(row) in seen:
                raise ValueError(f"repeats {row.file or 'the row'} of {row.run}")
        except ValueError as error:
            problems.append(f"{record.where}: {error} (row skipped)")
            continue
        seen.add(probe_key(row))
        found.append(row)
    return found


def _value(name: str, cell: str) -> Any:
    kinds = KINDS[name]
    if kinds[0] is str:  # the quote of a text that would be a formula is no part of it
        return cell[1:] if cell[:1] == "'" and cell[1:2] in ("=", "+", "-", "@", "\t", "\r") else cell
    if not cell and type(None) in kinds:
        return None
    try:
        value = kinds[0](cell)
    except ValueError:
        value = math.nan
    if not abs(value) < (LARGEST if kinds[0] is int else math.inf):  # nor nan
        raise ValueError(f"{name} is {cell[:80]!r}, not {WORDS[kinds[0]]}")
    return value


def _possible(row: LedgerRow) -> None:
    if not row.run or not row.manifest or row.block < 1 or row.samples_seen < 0:
        raise ValueError("names no run, no manifest, or an impossible block or count")
    if not row.set and row.accuracy is not None:
        raise ValueError("has an accuracy, and names no set")
    if row.set and (row.accuracy is None or not row.total or not 0 <= row.accuracy <= 1 or row.total < 1):
        raise ValueError(f"accuracy is {row.accuracy} of {row.total} images")


# ---- what is beside it ----


def read_settings(url: str) -> dict[str, dict[str, Any]]:
    """The settings behind each digest; {} without the file. Raises ValueError for settings that do not give theirs."""
    try:
        whole = typed_json.parse(store.read(url), url)
    except store.Missing:
        return {}
    for digest, settings in whole.items() if isinstance(whole, dict) else [("", None)]:
        parts = [settings.get(part) for part in ("model", "optim")] if isinstance(settings, dict) else [None]
        if not all(isinstance(part, dict) for part in parts) or digest_of(dict(settings or {})) != digest:
            raise ValueError(f"{url}: {digest!r} is not the digest of its settings: the file is damaged")
    return whole


def _right(ledger: str, rows: Sequence[LedgerRow], problems: list[str]) -> dict[Probed, str] | None:
    """Packed bits of every probe that has them; None without the file."""
    url = _beside(ledger, BESIDE)
    if not store.exists(url):
        return None
    wanted = {_probed(row) for row in rows if row.set}
    found: dict[Probed, str] = {}
    for record in _records(url, RIGHT, RIGHT, problems):
        cells = record.cells
        try:
            total, seen = int(cells["total"]), int(cells["samples_seen"])
            correct = int(unpack(cells["right"], total).sum())
        except (ValueError, ArithmeticError) as error:
            problems.append(f"{record.where}: {str(error)[:200]} (row skipped)")
            continue
        run, name, head, encoder = (cells[column] for column in RIGHT[:4])
        key = run, name, head, encoder, seen if encoder == "trained" else 0, cells["manifest_eval"], correct
        if key not in wanted:
            what = f"{run}, {name}, {head} probe"
            problems.append(f"{record.where}: fits no row of {_name(ledger)} ({what}): one of the two is damaged")
        found[key] = cells["right"]
    return found


def _probed(row: LedgerRow) -> Probed:
    correct = round((row.accuracy or 0.0) * (row.total or 0))
    return (row.name, row.set, row.head, row.encoder, row.samples_seen, row.probe_eval, correct)


# ---- rows -> runs ----


def _runs(
    url: str,
    rows: Sequence[LedgerRow],
    known: Mapping[str, Mapping[str, Any]],
    right: Mapping[Probed, str],
    problems: list[str],
) -> Iterator[Run]:
    by_run = grouped(rows, lambda row: row.run)
    branches = {row.trunk: row.settings for row in rows if row.trunk}
    for run, mine in by_run.items():
        last = max(mine, key=lambda row: row.samples_seen)
        if len({(row.manifest, row.settings, row.block) for row in mine}) > 1:
            problems.append(f"{url}: the rows of {run} name several manifests, settings or blocks (run skipped)")
            continue
        config = _config(last, known.get(last.settings))
        sizes = Shape(last.image, last.patch, last.block, 0, 0, 0, 0, 0, 0)  # the others are in no row
        unstated = "" if last.settings in known else branches.get(last.name, last.settings)
        probes = tuple(_result(row, right) for row in mine if row.set)
        try:
            shape = sizes if unstated else shape_of(config, _beside(url, SETTINGS))
            made = Run(run, config, _info(last), shape, {}, (), _log(last), probes, unstated)
            arm_of(made)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            problems.append(f"{_beside(url, SETTINGS)}: {last.settings} describes no training ({error}; {run} skipped)")
            continue
        yield made


def _config(row: LedgerRow, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of the run's config: its settings, seeds, trunk and names."""
    model = {"block": row.block, "order": row.order, "image": row.image, "patch": row.patch, "size": row.size}
    model |= {"prefix": row.variant.endswith("-prefix")}
    known = undigested(settings, row.block) if settings is not None else {"model": model, "optim": {}}
    names = {"recipe": row.recipe, "arm": row.arm, "branch": row.trunk, "data": row.dataset}
    order = {**known.get("order", {}), "seed": row.order_seed}
    return {**known, **names, "order": order, "seed": row.seed if row.weights_seed is None else row.weights_seed}


def _info(row: LedgerRow) -> dict[str, Any]:
    return {
        "dataset": row.dataset,
        "manifest": row.manifest,
        "manifest_samples": row.selected,
        "recipe": row.recipe,
        "world": row.world,
        "git": row.git,
    }


def _log(row: LedgerRow) -> tuple[Metric, ...]:
    """The end of the run's log, which is all that a row has of it."""
    if not row.samples_seen:
        return ()
    seconds, rate = row.seconds or 0.0, row.samples_per_s or 0.0
    return (Metric(row.samples_seen, row.loss or math.nan, seconds, rate, row.val_loss, 1, row.cpu_seconds),)


def _result(row: LedgerRow, right: Mapping[Probed, str]) -> dict[str, Any]:
    """The probe's result by the names of its file."""
    known = {
        **{"set": row.set, "head": row.head, "encoder": row.encoder, "samples_seen": row.samples_seen},
        **{"accuracy": row.accuracy, "total": row.total, "low": row.low, "high": row.high, "classes": row.classes},
        **{"correct": round((row.accuracy or 0.0) * (row.total or 0)), "right": right.get(_probed(row))},
        **{"manifest_train": row.probe_train, "manifest_eval": row.probe_eval, "protocol": row.how, "lr": row.lr},
        **{"shared_sha256": row.shared_sha256, "shared_phash": row.shared_phash, "seconds": row.probe_seconds},
        **{"remark": row.remark, "epochs": row.probe_epochs, "seed": row.probe_seed, "_file": row.file},
    }
    return {name: value for name, value in known.items() if value is not None}
