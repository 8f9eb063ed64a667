"""Run folders -> one report.html: curves as inline SVG, every number in a table, and what it all does not show.

The page needs nothing but itself: no script, no fonts, no links out, so it opens from a bucket, a mail or a stick.
The same run folders give the same bytes; dates are those of the runs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jobs.report import charts, findings, probes
from jobs.report.html import POLICY, escaped
from jobs.report.ledger import Ledger, LedgerRow, Run, read_runs
from jobs.report.ledger_file import write_ledger
from jobs.report.tables import Columns, number, points, table
from shards import store


@dataclass(frozen=True)
class Config:
    runs: str  # folder of run folders, or one run
    out: str | None = None  # the page; RUNS/report.html if not given
    note: str | None = None  # a paragraph to put on top


@dataclass(frozen=True)
class ReportResult:
    report: str
    ledger: str
    csv: str
    runs: int
    rows: int
    problems: tuple[str, ...]  # files that could not be read; they are on the page too


def run(config: Config) -> ReportResult:
    """Writes ledger.parquet and ledger.csv beside the runs, the page, and its first curves as files beside the page."""
    store.require(runs=config.runs)
    ledger = read_runs(config.runs)
    if not ledger.runs and not ledger.others:
        raise ValueError(f"{config.runs}: no run in it can be read: {ledger.problems[0]}")
    parquet, csv = write_ledger(config.runs, ledger.rows)
    url = config.out or store.join(config.runs, "report.html")
    store.put(url, page(ledger, config.note).encode())
    for name, svg in curves(ledger).items():
        store.put(store.join(url.rpartition("/")[0] or ".", f"curve-{name}.svg"), svg.encode())
    return ReportResult(url, parquet, csv, len(ledger.runs), len(ledger.rows), ledger.problems)


def write_report(root: str, out: str | None = None, note: str | None = None) -> str:
    """The page alone, for the runs under `root`; returns its URL."""
    return run(Config(root, out, note)).report


def page(ledger: Ledger, note: str | None = None) -> str:
    body = "\n".join(
        [
            _header(ledger, note),
            _words("What this shows", findings.shown(ledger)),
            _words("What this does not show", findings.not_shown(ledger)),
            _accuracy(ledger),
            _section("Beside the papers", probes.benchmarks(ledger)),
            _losses(ledger),
            _section("XTRA against AIM, all else equal", _comparison_table(ledger.rows)),
            _section("What a probe says", probes.details(ledger)),
            _section("All runs and probes", _ledger_table(ledger.rows)),
            _section("Where the numbers come from", _provenance(ledger.runs)),
            _words("Files that could not be read", ledger.problems),
        ]
    )
    return _PAGE.replace("{policy}", POLICY).replace("{body}", body)


def _header(ledger: Ledger, note: str | None) -> str:
    count = sum(bool(r.set) for r in ledger.rows)
    sets = sorted({r.set for r in ledger.rows if r.set})
    dates = sorted({str(a.get("since", ""))[:10] for r in ledger.runs for a in r.attempts} - {""})
    facts = [
        f"{len(ledger.runs)} runs",
        f"{count} probes" + (f" on {', '.join(sets)}" if sets else ""),
        " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
    ]
    lead = f'<p class="note">{escaped(note)}</p>' if note else ""
    return f"<header><h1>Scaling report</h1><p>{escaped(' · '.join(f for f in facts if f))}</p>{lead}</header>"


def _words(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    return _section(title, "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>")


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escaped(title)}</h2>{body}</section>" if body else ""


# ---- charts ----


def _accuracy(ledger: Ledger) -> str:
    palette = charts.colours(ledger.rows)
    parts = []
    for name, rows in findings.by_set(ledger.rows).items():
        figures: list[str | None] = []
        for axis in ("samples_seen", "unique_images", "flops"):  # a row of the page; its columns are the heads
            for head in sorted({r.head for r in rows if r.encoder == "trained"}):
                figures.append(charts.accuracy_chart(rows, head, axis, palette))
        total = " or ".join(f"{n:,}" for n in sorted({r.total for r in rows if r.total}))
        text = (
            f"{total} test images. Bars: 95 % Wilson intervals; lines join the mean of the seeds. Grey: what is "
            "reached without pretraining (a band spans the models, an arrow says that the line is below)."
        )
        if any(figures):  # one point makes no curve: the tables have it
            parts.append((escaped(name), f"<p>{text}</p>{_grid(figures)}"))
    shape = "<h3>{}</h3>{}" if len(parts) <= findings.SETS else "<details><summary>{}</summary>{}</details>"
    return _section("Accuracy", "".join(shape.format(*part) for part in parts))


def curves(ledger: Ledger) -> dict[str, str]:
    """Accuracy against samples seen as stand-alone SVGs, by "SET-HEAD": for slides and READMEs."""
    palette = charts.colours(ledger.rows)
    drawn = {}
    alone = '<svg style="background:#fff;font-family:system-ui,sans-serif" '  # what the page gives otherwise
    for name, rows in findings.by_set(ledger.rows).items():
        for head in sorted({r.head for r in rows if r.encoder == "trained"}):
            if svg := charts.accuracy_chart(rows, head, "samples_seen", palette):
                drawn[re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{name}-{head}")] = svg.replace("<svg ", alone, 1)
    return drawn


def _losses(ledger: Ledger) -> str:
    variants = sorted({r.shape.variant for r in ledger.runs}, reverse=True)
    figures = [charts.loss_chart([r for r in ledger.runs if r.shape.variant == v], v.upper()) for v in variants]
    text = "<p>One line a run; each point is the mean of a bin, the bins being equal on the log axis.</p>"
    return _section("Training loss", text + _grid(figures) if any(figures) else "")


def _grid(figures: Iterable[str | None]) -> str:
    return f'<div class="grid">{"".join(f"<figure>{svg}</figure>" for svg in figures if svg)}</div>'


# ---- tables ----


def _comparison_table(rows: Sequence[LedgerRow]) -> str:
    columns: Columns[findings.Comparison] = {
        "set": lambda p: p.set,
        "head": lambda p: p.head,
        "model": lambda p: p.size,
        "unique images": lambda p: p.unique_images,
        "samples seen": lambda p: p.samples_seen,
        "seeds": lambda p: p.seeds,
        "XTRA": lambda p: points(p.xtra),
        "AIM": lambda p: points(p.aim),
        "difference": lambda p: f"{100 * (p.xtra - p.aim):+.1f}",
        "its 95 % interval": lambda p: f"{100 * p.low:+.1f} to {100 * p.high:+.1f}",
        "verdict": lambda p: p.verdict,
    }
    return table(columns, findings.comparisons(rows), "Accuracy in %, mean of the seeds; differences in points.")


def _ledger_table(rows: Sequence[LedgerRow]) -> str:
    columns: Columns[LedgerRow] = {
        "run": lambda r: r.name,
        "set": lambda r: r.set,
        "head": lambda r: r.head,
        "encoder": lambda r: r.encoder,
        "accuracy, %": lambda r: points(r.accuracy),
        "95 % interval": lambda r: None if r.low is None else f"{points(r.low)} to {points(r.high)}",
        "samples seen": lambda r: r.samples_seen,
        "unique images": lambda r: r.unique_images,
        "epochs": lambda r: f"{r.epochs:.3g}",
        "FLOPs": lambda r: f"{r.flops:.2e}".replace("e+", "e") if r.flops else "0",
        "loss": lambda r: number(r.loss, ".4f"),
        "model": lambda r: "" if r.encoder == "none" else charts.model_name(r),
        "seed": lambda r: r.seed,
        "lr": lambda r: number(r.lr, "g"),
        "grid point by": lambda r: r.protocol,
        "images/s": lambda r: number(r.samples_per_s, ".0f"),
    }
    rows = sorted(rows, key=lambda r: (r.variant != "xtra", r.params, r.unique_images, r.samples_seen, r.seed))
    return table(columns, rows, "An empty cell is a number that no file states. The same rows are in ledger.csv.")


def _provenance(runs: Sequence[Run]) -> str:
    columns: Columns[Run] = {
        "run": lambda r: r.name,
        "manifest": lambda r: r.info["manifest"][:16],
        "dataset": lambda r: r.info.get("dataset"),
        "recipe": lambda r: r.info.get("recipe"),
        "commit": lambda r: str(r.info.get("git") or "")[:12],
        "versions": lambda r: ", ".join(f"{k} {v}" for k, v in sorted((r.info.get("versions") or {}).items())),
        "images": lambda r: r.info.get("image_build"),
        "hardware": lambda r: r.info.get("hardware"),
        "threads": lambda r: r.info.get("threads"),
        "world": lambda r: r.info.get("world"),
        "since": lambda r: str(r.attempts[0].get("since", ""))[:16].replace("T", " ") if r.attempts else None,
        "attempts": lambda r: len(r.attempts),
    }
    text = "Manifest: the first 16 digits of the digest that names exactly the images a run was trained on."
    return table(columns, runs, text)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{policy}
<title>Scaling report</title>
<style>
:root { color-scheme: light; --ink: #1f2328; --soft: #59616b; --line: #e3e6ea; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.015em; margin: 0; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 48px 0 8px; }
h2 { padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 16px; margin: 24px 0 2px; }
p { margin: 4px 0; color: var(--soft); max-width: 46em; }
p.note { color: var(--ink); font-size: 18px; margin-top: 14px; }
ul { margin: 8px 0; padding-left: 1.1em; max-width: 46em; }
li { margin: 6px 0; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 28px 40px; }
.grid { margin-top: 14px; }
figure { margin: 0; max-width: 560px; }
figure svg { width: 100%; height: auto; display: block; font-family: inherit; }
.wide { overflow-x: auto; margin-top: 10px; }
table { border-collapse: collapse; font-size: 13px; line-height: 1.35; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 14px 5px 0; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); }
th.n, td.n { text-align: right; }
.dense th, .dense td { font-size: 12px; padding-right: 9px; }
tr.ours { background: #eef4fa; }
details { border-bottom: 1px solid var(--line); padding: 7px 0; }
summary { cursor: pointer; }
summary span { color: var(--soft); }
@media (max-width: 600px) { main { padding: 24px 16px 56px; } h1 { font-size: 25px; } }
@media print { .wide { overflow: visible; } figure, tr { break-inside: avoid; } }
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
