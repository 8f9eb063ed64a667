"""The report's section on the runs: how their configs differ, their origin, what went wrong, how to reproduce them."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.report.arms import Line, Study, shown_value
from jobs.report.html import escaped, safe
from jobs.report.ledger import Ledger, LedgerRow, Run
from jobs.report.measured import Measured
from jobs.report.tables import Columns, number, table
from shards import store, typed_json
from xtra.run import records

ROUTINE = {"start", "resume", "stop", "done", "decoded", "checkpoint", "end"}  # events that every run has
FIELDS = 24  # most flags shown in a command


# ---- configs ----


def differences(study: Study) -> str:
    """Every setting in which the lines differ: a row for each, a column for each line."""
    names = sorted({name for line in study.lines for name in line.arm.settings})
    varied = [n for n in names if len({json.dumps(line.arm.settings.get(n)) for line in study.lines}) > 1]
    columns: Columns[str] = {
        "setting": lambda name: name,
        **{line.label: lambda name, line=line: _value(line, name) for line in study.lines},
    }
    text = (
        f"The {len(study.lines)} lines of the charts; all of their other "
        f"{len(names) - len(varied)} settings are the same. Seeds, lengths and machines do not count as settings."
        if len(study.lines) > 1
        else "There is one line: all runs here were trained alike."
    )
    return table(columns, ["called in the configs", "images", "manifest", *varied], text)


def _value(line: Line, name: str) -> str:
    special = {"called in the configs": line.name, "images": f"{line.images:,}", "manifest": line.manifest[:12]}
    return special.get(name) or shown_value(line.arm.settings.get(name))


def provenance(runs: Sequence[Run], study: Study) -> str:
    columns: Columns[Run] = {
        "run": lambda r: r.name,
        "line": lambda r: study.line(r.url).label,
        "seed": lambda r: r.config.get("seed"),
        "samples": lambda r: r.samples_seen,
        "planned": lambda r: int(r.config.get("samples") or 0) or None,
        "branch of": lambda r: str(r.config.get("branch") or "").rstrip("/").rpartition("/")[2] or None,
        "minutes": lambda r: number(_minutes(r), ".1f"),
        "since": lambda r: str(r.attempts[0].get("since", ""))[:16].replace("T", " ") if r.attempts else None,
        "attempts": lambda r: len(r.attempts) or None,
        "commit": lambda r: str(r.info.get("git") or "")[:12],
        "versions": lambda r: ", ".join(f"{k} {v}" for k, v in sorted((r.info.get("versions") or {}).items())),
        "images by": lambda r: r.info.get("image_build"),
        "hardware": lambda r: r.info.get("hardware"),
        "threads": lambda r: r.info.get("threads"),
        "world": lambda r: r.info.get("world"),
        "recipe": lambda r: r.info.get("recipe"),
        "dataset": lambda r: str(r.info.get("dataset") or "").rstrip("/").rpartition("/")[2],
        "manifest": lambda r: str(r.info.get("imported") or r.info["manifest"])[:16],
    }
    return table(
        {name: of for name, of in columns.items() if any(of(run) not in (None, "") for run in runs)},
        runs,
        "Manifest: the first 16 digits of the digest that identifies exactly the images a run was trained on.",
    )


def _minutes(run: Run) -> float | None:
    lasts = {m.attempt: m for m in run.metrics}
    return sum(m.seconds for m in lasts.values()) / 60 if lasts else None


def cost(rows: Iterable[LedgerRow]) -> str:
    """What all runs and probes took, in words; heads of one probe share its seconds."""
    rows = list(rows)
    trained = {r.run: r for r in rows if r.seconds is not None}.values()
    probed = {(r.run, r.set, r.encoder, r.samples_seen): r for r in rows if r.probe_seconds is not None}.values()

    def hours(seconds: Iterable[float | None]) -> str:
        return f"{math.fsum(s or 0.0 for s in seconds) / 3600:.1f} h"

    return (
        f"{len(trained)} runs: {hours(r.cpu_seconds for r in trained)} of CPU, {hours(r.seconds for r in trained)} of "
        f"the clock; {len(probed)} probes: {hours(r.probe_seconds for r in probed)} of the clock"
    )


# ---- what went wrong ----


def events_of(run: Run, problems: list[str]) -> Counter[str]:
    """How often each kind of event happened in a run, without the kinds that every run has."""
    found: Counter[str] = Counter()
    folder = store.join(run.url, "events")
    for name in records.ours(store.names(folder), records.PART):
        url = store.join(folder, name)
        for at, line in enumerate(store.read(url).splitlines(), 1):
            try:
                kind = typed_json.decode(records.Happened, line, f"{url} line {at}").event
            except store.StoreError as error:
                problems.append(f"{error} (line skipped)")
                continue
            if kind not in ROUTINE:
                found[kind] += 1
    return found


def failures(ledger: Ledger, events: Mapping[str, Counter[str]], found: Sequence[Measured]) -> str:
    """Runs that are unfinished or were interrupted, events, and unreadable files; "None" where there are none."""
    unfinished = [r for r in ledger.runs if r.samples_seen < int(r.config.get("samples") or 0)]
    lines = [
        f"{run.name} is unfinished: {run.samples_seen:,} of {int(run.config['samples']):,} samples."
        for run in unfinished
    ]
    probed = {m.run.url for m in found}
    trunks = {str(r.config.get("branch") or "").rstrip("/").rpartition("/")[2] for r in ledger.runs}
    expected = [r for r in ledger.runs if r not in unfinished and r.name not in trunks]
    if silent := [r.name for r in expected if r.url not in probed]:
        lines.append(f"No probe of a trained encoder: {_some(silent)}.")
    if again := [r for r in ledger.runs if len(r.attempts) > 1]:
        several = f"{len(again)} runs were" if len(again) > 1 else "One run was"
        names = _some([f"{r.name} ({len(r.attempts)} attempts)" for r in again])
        lines.append(f"{several} interrupted and went on: {names}.")
    total = sum(events.values(), Counter())
    lines += [
        *(f"{n:,} events “{kind.replace('_', ' ')}”." for kind, n in sorted(total.items())),
        *(
            f"{m.run.name}, {m.row.file}: its record of right images contradicts its accuracy, and is not used."
            for m in found
            if m.damaged
        ),
        *(f"Could not be read: {problem}" for problem in ledger.problems),
    ]
    if ledger.from_rows:
        lines.insert(0, "How often the runs were interrupted, and events, are in run folders alone.")
    if not lines:
        return "<p>None: every run finished in one attempt, and every file could be read.</p>"
    return "<ul>" + "".join(f"<li>{safe(line, 600)}</li>" for line in lines) + "</ul>"


def _some(names: Sequence[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# ---- how to reproduce ----


def commands(study: Study, runs: Sequence[Run], found: Sequence[Measured]) -> str:
    """For each line the command of its longest run, and the probes' protocols in words. Without runs (rows have no
    whole configs) the protocols alone."""
    parts = _commands(study, runs) if runs else []
    if protocols := sorted({(m.row.set, m.row.head, m.row.how) for m in found}):
        items = [f"<li>{escaped(f'{name}, {head}: {how}')}</li>" for name, head, how in protocols[:12]]
        parts += ["<h3>Probes</h3><ul>", *items, "</ul>"]
    what, same = ("RUNS", "run folders") if runs else ("ROWS", "rows")
    parts.append(f"<p>This page: <code>xtra report {what}</code>; the same {same} give the same bytes.</p>")
    return "".join(parts)


def _commands(study: Study, runs: Sequence[Run]) -> list[str]:
    longest: dict[int, Run] = {}
    for run in sorted(runs, key=lambda r: (r.samples_seen, r.name)):
        longest[study.line(run.url).style] = run
    parts = [
        "<p>The command of each line's longest run. DATA is a dataset with the manifest that the table names; "
        "the same manifest, config and seed give the same run. Other seeds and counts: <code>--seed</code>, "
        "<code>--order.seed</code> and <code>--samples</code>.</p>"
    ]
    for line in study.lines:
        run = longest[line.style]
        trunk = str(run.config.get("branch") or "").rstrip("/").rpartition("/")[2]
        both = [r for r in runs if r.name == trunk and trunk] + [run]
        words = "\n".join(f"xtra train {shlex.join(command_words(r))}" for r in both)
        parts.append(f"<h3>{escaped(line.label)}</h3><pre><code>{_lines(words)}</code></pre>")
    return parts


def _lines(text: str) -> str:
    return "\n".join(map(escaped, text.splitlines()))


def command_words(run: Run) -> list[str]:
    """The recipe, and every flag that differs from it."""
    from xtra import recipes

    name = str(run.config.get("recipe") or "")
    words = [name or "custom", "--data", "DATA", "--out", run.name]
    try:
        base = json.loads(json.dumps(dataclasses.asdict(recipes.get(name))))
    except ValueError:  # a recipe from another build
        base = {}
    changed = [
        (flag, value)
        for flag, value in _flags("", run.config, base)
        if flag.partition(".")[0]
        not in ("data", "out", "recipe", "sinks", "compile", "attention")  # affects speed, not results
    ]
    for flag, value in changed[:FIELDS]:
        head, dot, last = flag.replace("_", "-").rpartition(".")
        if flag == "compile" and isinstance(value, bool):  # from an older build
            value = "on" if value else "off"
        if isinstance(value, bool):
            words.append(f"--{head}{dot}{'' if value else 'no-'}{last}")
            continue
        words.append(f"--{head}{dot}{last}")
        words += [shown_value(v) for v in value] if isinstance(value, list) else [shown_value(value)]
    return words


def _flags(path: str, config: Mapping[str, Any], base: Any) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in config.items():
        before = base.get(name) if isinstance(base, Mapping) else None
        if isinstance(value, Mapping):
            found += _flags(f"{path}{name}.", value, before)
        elif value != before and value not in (None, "", []):
            # Without machine-specific folders.
            found.append((f"{path}{name}", value.rstrip("/").rpartition("/")[2] if isinstance(value, str) else value))
    return found
