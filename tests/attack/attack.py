"""Attack the product again, a row of docs/reliability.md at a time: `make attack ROW=fuzz-tar`.

    python tests/attack/attack.py                              the rows, and how far each is
    python tests/attack/attack.py fuzz-tar --minutes 10        go on with a row, for at most so long
    python tests/attack/attack.py fuzz-tar --again --seed 8    from round 0, with other files
    python tests/attack/attack.py fuzz-tar --odd               odd rounds once more, as of a machine that stood still

Round n of a row is a pure function of the row, the seed and n. Results are written every few seconds, so a row that
was stopped goes on where it was. Rows that kill, fill disks or run twice are those of campaign.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), *(str(folder) for folder in sorted(TESTS.rglob("*")) if folder.is_dir())]
    sys.path.insert(0, str(TESTS))

import fuzz_rows  # noqa: E402
import other_rows  # noqa: E402

RESULTS = ROOT / "docs" / "campaigns" / "attack.json"
PAGE = ROOT / "docs" / "reliability.md"
MARK, END = "<!-- table: python tests/attack/attack.py --page -->", "<!-- end -->"
WORLDS_MARK, WORLDS_END = "<!-- worlds: python tests/attack/attack.py --page -->", "<!-- end of worlds -->"
KILLS = (  # of campaign.py: fault, --how, --store
    ("killed before, inside or after a change to the disk", "points", "disk"),
    ("the same over S3 that fails one request in sixteen", "points", "s3"),
    ("killed at random times, up to three times", "random", "disk"),
    ("two of one command at once", "twice", "disk"),
    ("a full disk of 14 sizes", "full-disk", "disk"),
)
MINUTES = 30.0  # of one call
EVERY = 10.0  # seconds between writings of the results
KEPT = 8  # faults that are listed
FEW = 64  # rounds of a row whose outcomes are all kept
Rounds = Callable[[Path, int, int, int], Iterator[str]]  # folder, seed, first, last -> outcome by outcome


@dataclass(frozen=True)
class Row:
    """A fault, and how often it is to be tried. An outcome is "fine", "refused", or a fault in words."""

    what: str
    rounds: int
    run: Rounds


ROWS = {
    "fuzz-jpeg": Row("mutated JPEGs through entropy.c and crop.c, under ASAN and UBSAN", 200_000, fuzz_rows.jpegs),
    "fuzz-image": Row("mutated PNG, WebP, GIF, BMP and TIFF, judged", 2_000, fuzz_rows.images),
    "fuzz-tar": Row("mutated tars, imported in place", 20_000, fuzz_rows.tars),
    "fuzz-parquet": Row("mutated indexes, plans, manifests and rules, read", 5_000, fuzz_rows.tables),
    "fuzz-json": Row("wrong JSON in a dataset, a run or a probe result, read by a verb", 5_000, fuzz_rows.objects),
    "fuzz-pickle": Row("mutated checkpoints of torch.save, opened", 500, fuzz_rows.checkpoints),
    "fuzz-robots": Row("mutated robots.txt, 20 URLs each", 2_000, fuzz_rows.robots),
    "guard": Row("ways to name a private address, redirects to them, names that rebind", 314, other_rows.guard),
    "secrets": Row("verbs on S3 with planted keys and tokens, everything searched", 1, other_rows.secrets),
    "interrupts": Row(
        f"Ctrl-C at three random moments, then run again: {', '.join(other_rows.INTERRUPTED)}",
        other_rows.MOMENTS * len(other_rows.INTERRUPTED),
        other_rows.interrupts,
    ),
    "small-worlds": Row("verbs with few descriptors, little memory, without HOME and the like", 36, other_rows.worlds),
    "bad-input": Row("the tests of bad input", 1, other_rows.bad_input),
}


class Results:
    """The file of results: a row's state, and how far it is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else {}

    def write(self) -> None:
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps({"rows": dict(sorted(self.rows.items()))}, indent=1) + "\n")
        aside.replace(self.path)


def attack(name: str, seed: int, minutes: float, results: Results, again: bool = False) -> dict[str, Any]:
    """Go on with a row until it is whole or the time is up; returns its state."""
    row = ROWS[name]
    state = results.rows.get(name)
    if state is None or again or state["seed"] != seed:
        state = {"seed": seed, "rounds": 0, "outcomes": {}, "faults": [], "seconds": 0.0}
    results.rows[name] = state
    began, until = time.monotonic(), time.monotonic() + 60 * minutes
    before, written = state["seconds"], time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="xtra-attack-") as folder:
            for outcome in row.run(Path(folder), seed, state["rounds"], row.rounds):
                _count(state, outcome, few=row.rounds <= FEW)
                state["seconds"] = round(before + time.monotonic() - began, 1)
                if time.monotonic() - written > EVERY:
                    written = time.monotonic()
                    results.write()
                if time.monotonic() > until:
                    break
    finally:  # also where it is interrupted
        if state["rounds"]:
            results.write()
    return state


def _count(state: dict[str, Any], outcome: str, few: bool = False) -> None:
    """With `few`, each outcome is kept, in order."""
    kind = outcome if outcome in ("fine", "refused") else "fault"
    state["outcomes"][kind] = state["outcomes"].get(kind, 0) + 1
    if few:
        state.setdefault("each", []).append(kind)
    if kind == "fault" and len(state["faults"]) < KEPT:
        state["faults"].append(f"round {state['rounds']}: {outcome}"[:400])
    if not state["rounds"]:
        _stamp(state)
    state["rounds"] += 1


def redo(name: str, results: Results) -> dict[str, Any]:
    """Do the odd rounds that are listed once more: each is a pure function of the row, the seed and its number."""
    state = results.rows[name]
    numbers = [int(fault.removeprefix("round ").partition(":")[0]) for fault in state["faults"]]
    rounds, state["faults"] = state["rounds"], []
    for number in numbers:
        with tempfile.TemporaryDirectory(prefix="xtra-attack-") as folder:
            (outcome,) = ROWS[name].run(Path(folder), state["seed"], number, number + 1)
        state["outcomes"]["fault"] -= 1
        state["rounds"] = number
        _count(state, outcome)
        if "each" in state:
            state["each"][number] = outcome if outcome in ("fine", "refused") else "fault"
    state["rounds"], state["redone"] = rounds, state.get("redone", 0) + len(numbers)
    results.write()
    return state


def _stamp(state: dict[str, Any]) -> None:
    """When and where the row was begun, and on which commit."""
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    state["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
    state["commit"] = commit.stdout.strip()
    state["machine"] = f"{os.cpu_count()} CPU cores, {platform.machine()}"


def line(name: str, state: dict[str, Any] | None) -> str:
    row = ROWS[name]
    if state is None:
        return f"{name:<14} 0 of {row.rounds:,} rounds: {row.what}"
    found = ", ".join(f"{n:,} {kind}" for kind, n in sorted(state["outcomes"].items()))
    cost = f"{state['seconds']:,.0f} s, {state['commit']}"
    return f"{name:<14} {state['rounds']:,} of {row.rounds:,} rounds: {found}; {cost}"


def table(rows: dict[str, dict[str, Any]], kills: dict[str, dict[str, Any]]) -> list[str]:
    """The table of docs/reliability.md, as Markdown."""
    lines = ["| fault | rounds | outcome | command | when, commit |", "|---|---|---|---|---|"]
    for what, how, store in KILLS:
        found = {name.split()[0]: row for name, row in kills.items() if name.split()[1:] == [how, store]}
        rounds = sum(row["rounds"] for row in found.values())
        odd = sum(row["differences"] + row["half_files"] for row in found.values())
        when = (
            f"{max(row['date'] for row in found.values())}, {', '.join(sorted({r['commit'] for r in found.values()}))}"
        )
        command = f"`campaign.py VERB --how {how}{' --store s3' if store == 's3' else ''}`"
        lines.append(f"| {what}: {', '.join(found)} | {rounds:,} | {odd} odd | {command} | {when} |")
    for name, row in ROWS.items():
        state = rows.get(name)
        if state is None:
            lines.append(f"| {row.what} | 0 of {row.rounds:,} | not run | `make attack ROW={name}` | – |")
            continue
        done = f"{state['rounds']:,}" + (f" of {row.rounds:,}" if state["rounds"] < row.rounds else "")
        counts = state["outcomes"]
        outcome = (
            f"{counts.get('fault', 0)} odd ({counts.get('fine', 0):,} exit 0, {counts.get('refused', 0):,} one line)"
            + (f"; {state['redone']} done again" if state.get("redone") else "")
        )
        when = f"{state['date']}, {state['commit']}"
        lines.append(f"| {row.what} | {done} | {outcome} | `make attack ROW={name}` | {when} |")
    machine = next((state["machine"] for state in rows.values()), "")
    return [*lines, "", f"Machine: {machine}, shared with other work."]


def worlds(state: dict[str, Any] | None) -> list[str]:
    """The table of small worlds: what each verb did in each of them."""
    words = {"fine": "works", "refused": "one line", "fault": "**odd**"}
    each, verbs = (state or {}).get("each", []), [verb for verb, _ in other_rows.VERBS]
    lines = [f"| | {' | '.join(verbs)} |", "|---" * (len(verbs) + 1) + "|"]
    for number, (world, _) in enumerate(other_rows.WORLDS):
        cells = [words[kind] for kind in each[number :: len(other_rows.WORLDS)]]
        lines.append(f"| {world} | {' | '.join(cells)} |")
    return lines


def write_page(results: Results) -> None:
    text = PAGE.read_text()
    before, _, rest = text.partition(WORLDS_MARK + "\n")
    text = f"{before}{WORLDS_MARK}\n" + "\n".join(worlds(results.rows.get("small-worlds")))
    text += f"\n{WORLDS_END}{rest.partition(WORLDS_END)[2]}"
    head, _, rest = text.partition(MARK + "\n")
    kills = json.loads((RESULTS.parent / "kills.json").read_text())["rows"]
    PAGE.write_text(f"{head}{MARK}\n" + "\n".join(table(results.rows, kills)) + f"\n{END}{rest.partition(END)[2]}")


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], metavar="ROW")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--odd", action="store_true", help="only the odd rounds, once more")
    parser.add_argument("--page", action="store_true", help="write the table of docs/reliability.md")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # folders are removed on the way out
    results = Results(args.out)
    for name in args.rows or ROWS:
        state = results.rows.get(name)
        if args.rows:
            again = redo(name, results) if args.odd and state else None
            state = again or attack(name, args.seed, args.minutes, results, args.again)
        print(line(name, state), *(f"\n    {fault}" for fault in (state or {}).get("faults", ())), flush=True)
    if args.page:
        write_page(results)
    return int(any(results.rows[name]["faults"] for name in args.rows))


if __name__ == "__main__":
    sys.exit(main())
