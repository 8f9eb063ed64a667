"""Run folders, or their rows -> one self-contained report.html: the answer first, then all the evidence behind it.

The page has no scripts, fonts or links out, so it opens from a bucket, an e-mail or a USB stick; the ledger is inside
it. The same runs give the same bytes; dates are those of the runs.
"""

from __future__ import annotations

import base64
import gzip
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from jobs import link_counts
from jobs.config import ReportConfig as Config
from jobs.report import answer, dataset_page, findings, glossary, multipliers, papers, pictures, probes, run_list
from jobs.report.arms import Study, study
from jobs.report.compare import (
    Primary,
    comparison_lines,
    comparison_table,
    comparisons,
    primary_of,
    read_primary,
)
from jobs.report.draw import (
    RUNS,
    STYLE,
    Along,
    accuracy_axis,
    accuracy_chart,
    baselines,
    front,
    front_chart,
    held_out_charts,
    loss_charts,
    stand_alone,
    training_charts,
)
from jobs.report.html import document, escaped
from jobs.report.ledger import Ledger, LedgerRow
from jobs.report.ledger_file import ledger_csv, without_places, write_ledger
from jobs.report.measured import Measured, Point, by_cell, measured, points
from jobs.report.rows import SameData, as_one, read_ledger, read_same_data
from jobs.report.run_list import cost
from jobs.report.seeds import control_table, controls
from jobs.report.style import REPORT
from jobs.report.tables import Columns, number, points as in_points, power, table
from shards import manifest, store
from shards.dataset import read_info

MOST_BYTES = 2_000_000  # of the page
LARGE_CSV = 300_000  # bytes; a larger ledger is compressed inside the page
ROWS, FEW = 400, 50  # most rows of a table; FEW where the page would be too large
AXES: tuple[Along, ...] = ("samples_seen", "unique_images", "flops")


@dataclass(frozen=True)
class ReportResult:
    report: str
    ledger: str  # "" of a page made from rows: they are the ledger
    csv: str
    runs: int
    rows: int
    problems: tuple[str, ...]  # files that could not be read; they are on the page too
    lacks: tuple[str, ...] = ()  # what a page made from rows leaves out; it says so too
    text: tuple[str, ...] = ()  # the comparisons and the cost, where they were asked for


@dataclass(frozen=True)
class Extras:
    """Contents of the page that do not come from the ledger."""

    primary: Primary | None = None
    same: SameData = field(default_factory=SameData)
    events: Mapping[str, Counter[str]] = field(default_factory=dict)  # by run
    datasets: tuple[manifest.Manifest, ...] = ()  # the training sets that can be opened
    pictures: bool = False
    brief: bool = False  # fewer rows and charts, for a study with very many runs or sets


def run(config: Config) -> ReportResult:
    """Write ledger.parquet and ledger.csv to the folder of runs, the page, and its accuracy curves as files next to it.

    Of rows, the page and the curves alone; with `text`, nothing. Raises ValueError where no run can be read, for rows
    that are no ledger, and for a study.json whose declarations are malformed or contradict the rows.
    """
    store.require(runs=config.runs)
    ledger = read_ledger(config.runs)
    if not ledger.runs and not ledger.others:
        raise ValueError(f"{config.runs}: has no readable run: {ledger.problems[0]}")
    problems: list[str] = []
    events = {} if ledger.from_rows else {r.url: run_list.events_of(r, problems) for r in ledger.runs}
    primary = primary_of(config.primary) if config.primary else read_primary(config.runs)
    same = read_same_data(config.runs)
    extras = Extras(primary, same, events, tuple(_datasets(ledger)), config.pictures)
    ledger = replace(ledger, problems=(*ledger.problems, *problems))
    one = as_one(ledger, same)
    counts = len(ledger.runs), len(ledger.rows), ledger.problems, ledger.lacks
    if config.text:
        made = comparisons(measured(one, study(one.runs)), primary)
        lines = *comparison_lines(made), *same.said(ledger.rows), cost((*ledger.unprobed, *ledger.rows))
        return ReportResult("", "", "", *counts, lines)
    parquet, csv = ("", "") if ledger.from_rows else write_ledger(config.runs, ledger.rows)
    folder = config.runs.rpartition("/")[0] or "." if config.runs.endswith(".csv") else config.runs
    url = config.out or store.join(folder, "report.html")
    store.put(url, page(ledger, config.note, extras).encode())
    for name, svg in curves(one).items():
        store.put(store.join(url.rpartition("/")[0] or ".", f"curve-{name}.svg"), svg.encode())
    return ReportResult(url, parquet, csv, *counts)


def write_report(root: str, out: str | None = None, note: str | None = None) -> str:
    """`run` for the runs under `root`; returns the page's URL."""
    return run(Config(root, out, note)).report


def _datasets(ledger: Ledger) -> Iterable[manifest.Manifest]:
    """The dataset versions that runs were trained on and that can still be opened, each once."""
    seen: set[str] = set()
    for each in ledger.runs:
        address, digest = str(each.info.get("dataset") or ""), str(each.info["manifest"])
        if address and digest not in seen:
            seen.add(digest)
            try:
                version = manifest.read_manifest(address)
            except (ValueError, OSError):
                continue
            if version.digest == digest:
                yield version


def page(ledger: Ledger, note: str | None = None, extras: Extras | None = None) -> str:
    """The report as HTML. If it exceeds MOST_BYTES, pictures are left out, then rows and charts."""
    extras = extras or Extras()
    whole = _page(ledger, note, extras)
    if len(whole) > MOST_BYTES and extras.pictures:
        whole = _page(ledger, note, replace(extras, pictures=False))
    if len(whole) > MOST_BYTES:
        whole = _page(ledger, note, replace(extras, pictures=False, brief=True))
    return whole


def _page(ledger: Ledger, note: str | None, extras: Extras) -> str:
    rows = FEW if extras.brief else ROWS
    recorded, ledger = ledger.rows, as_one(ledger, extras.same)
    spent = f"<p>{escaped(cost((*ledger.unprobed, *recorded)))}.</p>"
    limits = [*ledger.lacks, *extras.same.said(recorded)]
    known = study(ledger.runs)
    found = measured(ledger, known)
    made = comparisons(found, extras.primary)
    said = answer.answer(ledger, found, made, extras.primary)
    titles = findings.titles(by_cell(found))
    shown_points = _largest(found, said.cell)
    sections = [
        ("accuracy", "Accuracy", _accuracy(ledger, found, extras.brief)),
        ("comparisons", "Comparisons", comparison_table(made) + control_table(controls(found))),
        ("multiplier", "Laws, and how many times fewer", multipliers.section(found, titles)),
        ("front", "What is efficient", _front(ledger, found)),
        ("training", "How the trainings went", _training(known, ledger, found, said.cell)),
        (
            "predictions",
            "What the best one predicts",
            pictures.predictions(found, ledger.runs) if extras.pictures else "",
        ),
        ("probes", "What a probe says", probes.details(ledger, extras.pictures)),
        ("papers", "Compared with the papers", _papers(ledger, shown_points)),
        (
            "runs",
            "Runs, and how they differ",
            run_list.differences(known) + spent + _folded("All runs", run_list.provenance(ledger.runs[:rows], known)),
        ),
        ("funnel", "Where the images came from", _funnel(extras.datasets)),
        ("failures", "What went wrong", run_list.failures(ledger, extras.events, found)),
        ("limits", "What this does not show", _list([*limits, *findings.not_shown(ledger, found, made)])),
        ("reproduce", "How to reproduce it", run_list.commands(known, () if ledger.from_rows else ledger.runs, found)),
        (
            "ledger",
            "All numbers",
            _folded("The ledger", _ledger_table(ledger.rows, known, rows)) + _download(recorded),
        ),
        ("glossary", "Words", glossary.section()),
    ]
    sections = [part for part in sections if part[2]]
    links = "".join(f'<a href="#{key}">{escaped(title)}</a>' for key, title, _ in sections)
    body = "\n".join(
        [
            _header(ledger, said, _hero(ledger, found, said), note, findings.shown(ledger, found, made)),
            f'<nav aria-label="contents">{links}</nav>',
            *(f'<section id="{key}"><h2>{escaped(title)}</h2>{text}</section>' for key, title, text in sections),
        ]
    )
    return document("Scaling report", body, STYLE + REPORT)


def _header(ledger: Ledger, said: answer.Answer, hero: str, note: str | None, shown: Sequence[str]) -> str:
    count = sum(bool(r.set) for r in ledger.rows)
    dates = sorted({str(a.get("since", ""))[:10] for r in ledger.runs for a in r.attempts} - {""})
    facts = [
        f"{len(ledger.runs)} runs",
        f"{count} probes",
        " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "",
        "from recorded rows" if ledger.from_rows else "",
    ]
    lead = f'<p class="note">{escaped(note)}</p>' if note else ""
    return (
        f'<header class="first"><div><p>Scaling report · {escaped(" · ".join(f for f in facts if f))}</p>{lead}'
        f"<h1>{escaped(said.question)}</h1><p>{escaped(said.data)}</p>"
        f'<p class="answer">{escaped(said.sentence)}</p>{_list(said.footing)}</div>{hero}</header>'
        f'<section id="shown"><h2>What this shows</h2>{_list(shown)}</section>'
    )


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escaped(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escaped(title)}</summary>{body}</details>" if body else ""


def _grid(figures: Iterable[str | None]) -> str:
    shown = "".join(f"<figure>{svg}</figure>" for svg in figures if svg)
    return f'<div class="grid">{shown}</div>' if shown else ""


# ---- charts ----


def _cell_rows(ledger: Ledger, cell: tuple[str, str, str, str]) -> list[LedgerRow]:
    """All rows of one evaluation set, including baselines."""
    return [r for r in ledger.rows if (r.set, r.probe_eval) == cell[:2]]


def _hero(ledger: Ledger, found: Sequence[Measured], said: answer.Answer) -> str:
    if said.cell is None:
        return ""
    at = points(by_cell(found)[said.cell])
    rules = baselines(_cell_rows(ledger, said.cell), said.cell[2])
    title = f"{said.cell[0]}, {said.cell[2]} probe: accuracy in %"
    for along in AXES:
        if svg := accuracy_chart(at, rules, along, title, size=(400, 230)):
            return f"<figure>{svg}</figure>"
    return ""


def _largest(found: Sequence[Measured], cell: tuple[str, str, str, str] | None) -> list[Point]:
    """The points of the first chart at its largest count, one for each line on the most common data."""
    if cell is None:
        return []
    at = points(by_cell(found)[cell])
    most = max(p.row.samples_seen for p in at)
    usual = Counter(m.line.manifest for m in found).most_common(1)[0][0]
    here = [p for p in at if p.row.samples_seen == most and p.line.manifest == usual]
    return list({p.line.arm.block: p for p in reversed(here)}.values())


def _accuracy(ledger: Ledger, found: Sequence[Measured], brief: bool) -> str:
    cells = by_cell(found)
    titles = findings.titles(cells)
    parts = []
    for cell, group in cells.items():
        at = points(group)
        rules = baselines(_cell_rows(ledger, cell), cell[2])
        y = accuracy_axis(at, rules)
        heads = {
            "samples_seen": "against samples seen",
            "unique_images": "against unique images",
            "flops": "against FLOPs",
        }
        figures = [
            accuracy_chart(at, rules, along, f"accuracy in % {heads[along]}", y)
            for along in AXES[: 1 if brief else len(AXES)]
        ]
        if any(figures):  # one point makes no curve: the tables have it
            total = " or ".join(f"{n:,}" for n in sorted({m.row.total for m in group if m.row.total}))
            parts.append((escaped(titles[cell]), f"<p>{total} test images.</p>{_grid(figures)}"))
    text = (
        "<p>Marks: means over seeds with 95 % intervals; small dots: single seeds. Dashed: accuracy without "
        "pretraining (a band spans the models; an arrow means that the line is below the chart). Charts side by side "
        "share one scale. A missing chart would have only one value on its axis.</p>"
    )
    shape = "<h3>{}</h3>{}" if len(parts) <= findings.SETS else "<details><summary>{}</summary>{}</details>"
    return text + "".join(shape.format(*part) for part in parts) if parts else ""


def curves(ledger: Ledger) -> dict[str, str]:
    """Accuracy against samples seen as stand-alone SVGs, by "SET-HEAD": for slides and READMEs."""
    cells = by_cell(measured(ledger, study(ledger.runs)))
    titles = findings.titles(cells)
    drawn = {}
    for cell, group in cells.items():
        rules = baselines(_cell_rows(ledger, cell), cell[2])
        if svg := accuracy_chart(points(group), rules, "samples_seen", titles[cell]):
            drawn[re.sub(r"[^A-Za-z0-9_.-]+", "_", titles[cell].removesuffix(" probe").replace(", ", "-"))] = (
                stand_alone(svg)
            )
    return drawn


def _front(ledger: Ledger, found: Sequence[Measured]) -> str:
    cells = by_cell(found)
    titles = findings.titles(cells)
    figures: list[str | None] = []
    rows: list[tuple[str, Point]] = []
    for cell, group in cells.items():
        at = points(group)
        svg = front_chart(at, titles[cell], accuracy_axis(at, ()))
        figures.append(svg)
        rows += [(titles[cell], p) for p in front(at)] if svg else []
    if not rows:
        return ""
    columns: Columns[tuple[str, Point]] = {
        "set and head": lambda r: r[0],
        "line": lambda r: r[1].line.label,
        "samples seen": lambda r: r[1].row.samples_seen,
        "FLOPs": lambda r: power(r[1].x("flops")),
        "accuracy, %": lambda r: in_points(r[1].bar.mean),
        "95 % interval": lambda r: f"{in_points(r[1].bar.low)} to {in_points(r[1].bar.high)}",
        "encoder and the rest, parameters": lambda r: r[1].row.params,
    }
    return (
        "<p>Step line: points that no other point beats at the same or a lower cost. Where intervals overlap, chance "
        "may decide which point is on it.</p>"
        + _grid(figures)
        + _folded("The points of the front", table(columns, rows, "Cheapest first."))
    )


def _training(known: Study, ledger: Ledger, found: Sequence[Measured], cell: tuple[str, str, str, str] | None) -> str:
    rows = training_charts(known, ledger.runs)
    held = held_out_charts(known, ledger.runs)
    if not rows and not held:
        return ""
    text = (
        "<p>Losses of different block sizes are means over different targets: they have separate charts, and must not "
        "be compared."
    )
    if rows:
        text += (
            " One path for each run; each point is the mean of a bin, with bins of equal width on the log axis. "
            f"At most {RUNS} runs in a chart, the longest first."
        )
    text += "</p>"
    missing = "" if held else "<p>No held-out loss was logged: --val.data measures it.</p>"
    losses = [*rows[:1], held]
    alone = all(len(row) == 1 for row in rows)
    rest = _grid(row[0] for row in rows[1:]) if alone else "".join(map(_grid, rows[1:]))
    few = sum(map(len, losses)) <= 3  # in one row of the page
    drawn = _grid(svg for row in losses for svg in row) if few else "".join(map(_grid, losses))
    against = ""
    if cell is not None:
        at = points(by_cell(found)[cell])
        figures = _grid(loss_charts(at, accuracy_axis(at, ())))
        against = _folded(f"Held-out loss and accuracy ({cell[0]}, {cell[2]} probe)", figures)
    return (
        text
        + drawn
        + missing
        + against
        + _folded("Learning rate, gradient norm, throughput and waiting for data", rest)
    )


# ---- tables ----


def _ledger_table(rows: Sequence[LedgerRow], known: Study, most: int) -> str:
    columns: Columns[LedgerRow] = {
        "run": lambda r: r.name,
        "line": lambda r: "" if r.encoder == "none" else known.line(r.run).label,
        "set": lambda r: r.set,
        "head": lambda r: r.head,
        "encoder": lambda r: r.encoder,
        "accuracy, %": lambda r: in_points(r.accuracy),
        "95 % interval": lambda r: None if r.low is None else f"{in_points(r.low)} to {in_points(r.high)}",
        "samples seen": lambda r: r.samples_seen,
        "unique images": lambda r: r.unique_images,
        "epochs": lambda r: f"{r.epochs:.3g}",
        "FLOPs": lambda r: power(r.flops) if r.flops else "0",
        "loss": lambda r: number(r.loss, ".4f"),
        "held-out loss": lambda r: number(r.val_loss, ".4f"),
        "seed": lambda r: r.seed,
        "lr": lambda r: number(r.lr, "g"),
        "grid point by": lambda r: r.protocol,
        "warning": lambda r: r.remark,
        "images/s": lambda r: number(r.samples_per_s, ".0f"),
    }
    rows = sorted(rows, key=lambda r: (known.line(r.run).style, r.samples_seen, r.seed, r.set, r.head))
    text = "An empty cell: no file states the number. Intervals cover the test images of this one probe."
    if len(rows) > most:
        text += f" The first {most} of {len(rows):,} rows; the file below has all."
    return table(columns, rows[:most], text)


def _download(rows: Sequence[LedgerRow]) -> str:
    """The ledger inside the page, as a link that saves it."""
    text = ledger_csv(without_places(rows)).encode()
    name, kind, data = "ledger.csv", "text/csv", text
    if len(text) > LARGE_CSV:
        name, kind, data = "ledger.csv.gz", "application/gzip", gzip.compress(text, mtime=0)
    link = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return (
        f'<p><a download="{name}" href="{link}">Save the ledger ({name}, {len(rows):,} rows, {len(data) / 1000:.0f} kB)'
        "</a>: all rows and columns; <code>xtra fit</code> reads it.</p>"
    )


def _papers(ledger: Ledger, ours: Sequence[Point]) -> str:
    tables = papers.benchmarks(ledger)
    if not any(p.result["set"] in papers.BENCHMARKS for p in probes.probed(ledger)):
        tables = _folded("The 15 sets, and ImageNet-1k (Tables 3 to 5)", tables)
    return papers.figure_1(ledger) + tables + _folded("Ablations (Table 6)", papers.ablations(ours))


def _funnel(versions: Sequence[manifest.Manifest]) -> str:
    parts = []
    for version in versions:
        drawn = dataset_page.funnel(link_counts.of_manifest(version, read_info(version.dataset).left_out))
        parts.append(f"<h3>{escaped(f'{version.list_name}, manifest {version.digest[:12]}')}</h3>{drawn}")
    return "".join(parts)
