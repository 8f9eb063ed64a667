"""Kill `xtra`'s verbs at their changes to the disk, rerun them, and compare with a run that nothing disturbed.

    python tests/attack/campaign.py import select --out docs/campaigns/kills.json --points all
    python tests/attack/campaign.py train probe scale --out docs/campaigns/kills.json --points 60 --seed 7
    python tests/attack/campaign.py ingest train --out docs/campaigns/kills.json --points 20 --store s3
    python tests/attack/campaign.py import select --out docs/campaigns/kills.json --points 20 --how twice
    python tests/attack/campaign.py train probe --out kills.json --points 3 --how ctrl-c

Every round begins with an empty place (or with what the verb needs), kills the command once, runs the same command
again to its end, and compares: what is there must be equal, and no file may be left over but those that `xtra sweep`
removes. --how points: at change n, before it, inside it (half of its bytes are written) or after it. random: at random
times, up to three times. ctrl-c: one SIGINT at a random time, after which the command must end by itself, with exit
130 and one line that says how to go on. twice: one command is held at change n while another of the same words runs
to its end, then goes on. full-disk: on disks of that many sizes that are too small (needs root); then the disk is
enlarged.

The same command goes on where it was stopped. Results are rewritten after every few rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), *(str(folder) for folder in sorted(TESTS.rglob("*")) if folder.is_dir())]
sys.path.insert(0, str(TESTS))

import killer  # noqa: E402
from kill_grounds import Ground  # noqa: E402
from kill_state import put_back, without_suspects  # noqa: E402
from kill_verbs import VERBS, Verb  # noqa: E402
from killer import Outcome, Stop  # noqa: E402

HOWS = ("points", "random", "ctrl-c", "twice", "full-disk")
COUNTS = ("rounds", "missed", "kills", "differences", "half_files", "for_sweep", "in_tmp", "seconds")
KEPT_FAILURES = 8
EVERY = 10  # rounds between writings of the results


@dataclass(frozen=True)
class Round:
    """What one round found: faults are words, of which there should be none."""

    kills: int
    faults: tuple[str, ...]
    for_sweep: int = 0  # files that `xtra sweep` then removed
    in_tmp: int = 0  # files that stayed in the temporary folder


@dataclass
class Work:
    """One verb, on one ground, with what an undisturbed run of it left."""

    verb: Verb
    ground: Ground
    words: list[str]
    want: dict[str, Any]
    changes: list[tuple[str, int, str]]
    seconds: float

    @classmethod
    def begin(cls, verb: Verb, ground: Ground) -> Work:
        words = ground.words(verb)
        ground.begin(verb)
        outcome = killer.run(words, ground.place, changes=True)
        assert outcome.status == 0, f"undisturbed: {' '.join(words)}: exit {outcome.status}: {outcome.text}"
        want = ground.settle(verb)
        return cls(verb, ground, words, want, killer.read_changes(ground.place), outcome.seconds)

    def points(self) -> list[Stop]:
        found = []
        for number, (_, size, _) in enumerate(self.changes):
            found += [Stop(number, "before")] + [Stop(number, "inside")] * (size >= 2) + [Stop(number, "after")]
        return found

    def compare(self, faults: list[str], kills: int) -> Round:
        """After the last run."""
        try:
            got = self.ground.settle(self.verb)
        except RuntimeError as error:
            return Round(kills, (*faults, f"differs: {' '.join(str(error).split())[:300]}"))
        want = self.want
        state = without_suspects(want["state"], got["state"])
        if got["state"] != state:
            faults.append(f"differs: {_difference(state, got['state'])}")
        if more := sorted(set(got["kept"]) - set(want["kept"])):
            faults.append(f"left over: {' '.join(more)[:300]}")
        if less := sorted(set(want["kept"]) - set(got["kept"])):
            faults.append(f"missing: {' '.join(less)[:300]}")
        tmp = len(set(got["tmp"]) - set(want["tmp"]))
        return Round(kills, tuple(faults), len(got["files"]) - len(got["kept"]), tmp)


def _difference(want: Any, got: Any, path: str = "") -> str:
    """The first place where two JSON values differ."""
    if isinstance(want, dict) and isinstance(got, dict):
        for name in sorted({*want, *got}):
            if want.get(name) != got.get(name):
                return _difference(want.get(name), got.get(name), f"{path}/{name}")
    return f"{path}: {str(got)[:120]}, not {str(want)[:120]}"


# --- rounds ---


def killed(work: Work, stop: Stop) -> Round:
    """Kill at one point, run again."""
    work.ground.begin(work.verb)
    first = killer.run(work.words, work.ground.place, stop)
    faults: list[str] = []
    if first.status not in (0, -signal.SIGKILL):
        faults.append(f"first run: exit {first.status}: {first.last}")
    _days_later(work)
    if first.status != 0:
        _again(work, faults)
    return work.compare(faults, int(first.status == -signal.SIGKILL))


def _again(work: Work, faults: list[str]) -> Outcome:
    outcome = killer.run(work.words, work.ground.place)
    if outcome.status != 0:
        faults.append(f"rerun: exit {outcome.status}: {outcome.last}")
    return outcome


def _days_later(work: Work) -> None:
    """What is young may be of a writer that lives, and no rerun takes it for a dead one's."""
    put_back(work.ground.place.disk)


def at_random(work: Work, seed: Stop) -> Round:
    """Kill up to three times at random times, run to the end."""
    chance = random.Random(seed.change)
    work.ground.begin(work.verb)
    kills, faults = 0, []
    for _ in range(3):
        running = killer.start(work.words, work.ground.place)
        ended = running.wait(chance.uniform(0.02, 1.0) * work.seconds)
        outcome = ended or running.end()
        _days_later(work)
        if outcome.status == 0:
            break
        kills += outcome.status == -signal.SIGKILL
        if outcome.status != -signal.SIGKILL:
            faults.append(f"a run: exit {outcome.status}: {outcome.last}")
    else:
        _again(work, faults)
    return work.compare(faults, kills)


def interrupted(work: Work, seed: Stop) -> Round:
    """One Ctrl-C at a random time, then the same command again."""
    chance = random.Random(seed.change)
    work.ground.begin(work.verb)
    running = killer.start(work.words, work.ground.place)
    outcome, faults = running.wait(chance.uniform(0.02, 0.98) * work.seconds), []
    stopped = outcome is None
    if stopped:
        running.interrupt()
        outcome = running.wait()
    if outcome is None:
        faults.append(f"Ctrl-C: no end within {killer.LIMIT:.0f} s")
        outcome = running.end()
    elif outcome.status not in (0, 130, -signal.SIGINT):  # it was done; stopped; stopped before it had begun
        faults.append(f"Ctrl-C: exit {outcome.status}: {outcome.last}")
    elif outcome.status == 130 and "stopped by SIGINT: rerun the same command to go on" not in outcome.last:
        faults.append(f"Ctrl-C: says {outcome.last!r}")
    if outcome.status != 0:
        _again(work, faults)
    return work.compare(faults, int(stopped and outcome.status != 0))


def twice(work: Work, stop: Stop) -> Round:
    """Hold one command at a point while another does it all, then let it go on."""
    work.ground.begin(work.verb)
    place = work.ground.place
    one = killer.start(work.words, place, Stop(stop.change, stop.moment, signal.SIGSTOP), name="one")
    held = one.wait(stopped=True)
    other = killer.start(work.words, place, name="other")
    ended = other.wait(120)
    os.kill(one.pid, signal.SIGCONT)
    faults = [] if ended else ["the other run waits for the one that is held"]
    for name, outcome in (("the other", ended or other.wait()), ("the one held", one.wait())):
        if outcome is None or (outcome.status != 0 and not _beaten(outcome)):
            faults.append(f"{name}: {'no end' if outcome is None else f'exit {outcome.status}: {outcome.last}'}")
    return work.compare(faults, int(held is not None and held.status == -signal.SIGSTOP))


def _beaten(outcome: Outcome) -> bool:
    """A training may also be refused beside one that lives, or end because another took its run."""
    refused, beaten = "is at work on it" in outcome.last, "attempt" in outcome.last and "began" in outcome.last
    return (outcome.status == 2 and refused) or (outcome.status == 1 and beaten)


def full_disk(work: Work, share: Stop) -> Round:
    """On a disk with room for `share` per mille of what the work needs; then on a larger one."""
    disk = work.ground.place.disk
    _size(disk, 1 << 20)
    work.ground.begin(work.verb)
    base = _used(disk)
    work.ground.begin(work.verb)
    # A sweep leaves less than there was: for it the disk is simply full.
    _size(disk, base + 4 + max(0, work.want["bytes"] - base) * share.change // 1000)
    first = killer.run(work.words, work.ground.place)
    faults = []
    said = "No space left" in first.text or "free space" in first.text
    if first.status not in (0, 2) or (first.status == 2 and not (said and str(disk) in first.text)):
        faults.append(f"on a full disk: exit {first.status}: {first.last}")
    if "Traceback" in first.text:
        faults.append("a traceback")
    _size(disk, 1 << 20)
    _days_later(work)
    _again(work, faults)
    return work.compare(faults, int(first.status == 2))


def _size(disk: Path, kilobytes: int) -> None:
    flags = "remount," if os.path.ismount(disk) else ""
    disk.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"{flags}size={kilobytes}k", "tmpfs", str(disk)], check=True)


def _used(disk: Path) -> int:
    """Kilobytes."""
    about = os.statvfs(disk)
    return (about.f_blocks - about.f_bfree) * about.f_frsize // 1024


# --- the campaign ---


def choose(work: Work, how: str, points: str, seed: int) -> list[Stop]:
    """Which points: all, or so many, of each kind of change in turn, so that a thousand equal writes are not all."""
    chance = random.Random(seed)
    if how in ("random", "ctrl-c", "full-disk"):
        count = int(points)
        return [Stop(1000 * n // count if how == "full-disk" else seed * 1000 + n) for n in range(count)]
    every = work.points()
    if how == "twice":
        every = [stop for stop in every if stop.moment == "before"]
    if points == "all":
        return every
    kinds: dict[tuple[str, ...], list[Stop]] = defaultdict(list)
    for stop in every:
        call, _, path = work.changes[stop.change]
        kinds[stop.moment, call, re.sub(r"[0-9a-f]{3,}|\d+|[.-]\w{6,}", "*", path)].append(stop)
    queues = list(kinds.values())
    chance.shuffle(queues)
    for queue in queues:
        chance.shuffle(queue)
    chosen: list[Stop] = []
    moments = {moment: [queue for queue in queues if queue[0].moment == moment] for moment in killer.MOMENTS}
    while len(chosen) < min(int(points), len(every)):
        for moment, left in moments.items():
            if left and len(chosen) < int(points):
                queue = left.pop(0)
                chosen.append(queue.pop())
                moments[moment] = [*left, queue] if queue else left
    return chosen


ROUNDS: dict[str, Callable[[Work, Stop], Round]] = {
    "points": killed,
    "random": at_random,
    "ctrl-c": interrupted,
    "twice": twice,
    "full-disk": full_disk,
}


def campaign(name: str, work: Work, args: argparse.Namespace, results: Results) -> None:
    """One verb's rounds, from where they were."""
    row = results.row(name, args, work)
    try:
        _rounds(name, work, args, row, results)
    finally:
        results.write()  # a stop loses nothing but the round that it fell into
    print(
        f"{name} ({args.how}, {args.store}): {row['rounds']} rounds, {row['kills']} kills, {row['differences']} "
        f"differences, {row['half_files']} with half files; {row['seconds']:.0f} s",
        flush=True,
    )


def _rounds(name: str, work: Work, args: argparse.Namespace, row: dict[str, Any], results: Results) -> None:
    began = time.monotonic()
    while row["left"]:
        stop = Stop.parse(row["left"][0])
        found = ROUNDS[args.how](work, stop)
        row["left"].pop(0)
        if args.how in ("points", "twice", "ctrl-c") and not found.kills and not found.faults:
            row["missed"] += 1  # the command made fewer changes than the one that was measured: some go by the clock
            if args.how == "ctrl-c":  # it was done before
                row["left"].append(str(Stop(args.seed * 1000 + 500 + row["missed"])))
            elif args.points != "all":
                other = random.Random(f"{args.seed} {row['missed']}").randrange(max(1, len(work.changes) * 3 // 4))
                row["left"].append(str(Stop(other, stop.moment)))
            continue
        row["rounds"] += 1
        row["kills"] += found.kills
        row["differences"] += any(not fault.startswith("left over") for fault in found.faults)
        row["half_files"] += any(fault.startswith("left over") for fault in found.faults)
        row["for_sweep"] = max(row["for_sweep"], found.for_sweep)
        row["in_tmp"] = max(row["in_tmp"], found.in_tmp)
        for fault in found.faults:
            print(f"{name} {stop} {_at(work, args.how, stop)}: {fault}", flush=True)
        if found.faults and len(row["failures"]) < KEPT_FAILURES:
            row["failures"].append(f"{stop}: {'; '.join(found.faults)}"[:400])
        if row["rounds"] % EVERY == 0 or not row["left"]:
            row["seconds"] = round(row["seconds"] + time.monotonic() - began, 1)
            began = time.monotonic()
            results.write()


def _at(work: Work, how: str, stop: Stop) -> str:
    if how in ("random", "ctrl-c", "full-disk") or stop.change >= len(work.changes):
        return ""
    call, size, path = work.changes[stop.change]
    return f"{stop.moment} {call} {path.removeprefix(str(work.ground.place.disk))} {size or ''}".rstrip()


class Results:
    """The file of results: read, taken further, written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text())["rows"] if path.exists() else {}

    def row(self, verb: str, args: argparse.Namespace, work: Work) -> dict[str, Any]:
        name = f"{verb} {args.how} {args.store}"
        asked = {"points": args.points, "seed": args.seed}
        if any(self.rows.get(name, {}).get(key) != value for key, value in asked.items()):
            chosen = choose(work, args.how, args.points, args.seed)
            self.rows[name] = asked | {
                **_about(),
                "changes": len(work.changes),
                **dict.fromkeys(COUNTS, 0),
                "failures": [],
                "left": [str(stop) for stop in chosen],
            }
        return self.rows[name]

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        aside = self.path.with_name(self.path.name + ".new")
        aside.write_text(json.dumps({"rows": dict(sorted(self.rows.items()))}, indent=1) + "\n")
        aside.replace(self.path)

    def finished(self, name: str, args: argparse.Namespace) -> bool:
        row = self.rows.get(f"{name} {args.how} {args.store}", {})
        return (row.get("points"), row.get("seed"), row.get("left")) == (args.points, args.seed, [])


def _about() -> dict[str, Any]:
    done = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": done.stdout.strip(),
        "hardware": f"{os.cpu_count()} CPU cores, {os.uname().machine}",
    }


def import_what_is_needed(torch_too: bool) -> None:
    """Once, for all forks; nothing of it may start a thread."""
    for name in LIGHT:
        importlib.import_module(name)
    if torch_too:
        for name in HEAVY:
            importlib.import_module(name)
        importlib.import_module("torch").set_num_threads(1)
    threads = [Path(task, "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    assert len(threads) == 1, f"a fork of this process lacks its threads: {threads}"


LIGHT = (
    *("jobs.cli", "jobs.ingest_display", "jobs.report.dataset_page", "jobs.upkeep_verbs", "ingest.run"),
    *("PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.PpmImagePlugin", "PIL.PngImagePlugin"),
    *("pyarrow.acero", "pyarrow.dataset", "pyarrow.parquet", "s3fs", "tyro", "typeguard"),
)
HEAVY = (
    *("jobs.cluster.group", "jobs.lab.scale", "jobs.probe_verb", "jobs.report.ledger", "jobs.run_sweep"),
    *("torch._dynamo", "webdataset", "xtra.generate", "xtra.official.export", "xtra.recipes", "xtra.train"),
)


def _end(*_: Any) -> None:
    """Once: what is being cleared away then must not be cut short."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("verbs", nargs="+", choices=VERBS, metavar="VERB", help=", ".join(VERBS))
    parser.add_argument("--out", type=Path, required=True, help="the results, a JSON file")
    parser.add_argument("--points", default="60", help="how many rounds a verb; all: every point")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--how", choices=HOWS, default="points")
    parser.add_argument("--store", choices=("disk", "s3"), default="disk")
    args = parser.parse_args(words)
    signal.signal(signal.SIGTERM, _end)
    results = Results(args.out)
    todo = [name for name in dict.fromkeys(args.verbs) if not results.finished(name, args)]
    import_what_is_needed(any(VERBS[name].torch for name in todo) or any(VERBS[n].before == "run" for n in todo))
    with tempfile.TemporaryDirectory(prefix="xtra-kills-") as folder:
        if args.how == "full-disk":
            _size(Path(folder, "disk"), 1 << 20)
        ground = Ground.make(Path(folder), args.store == "s3", [VERBS[name] for name in todo])
        try:
            for name in todo:
                work = Work.begin(VERBS[name], ground)
                work.want["bytes"] = _used(ground.place.disk)
                campaign(name, work, args, results)
        finally:
            ground.close()
            if args.how == "full-disk":
                subprocess.run(["umount", str(ground.place.disk)], check=True)
    rows = [results.rows[f"{name} {args.how} {args.store}"] for name in args.verbs]
    return int(any(row["differences"] or row["half_files"] for row in rows))


if __name__ == "__main__":
    killer.preload()
    try:
        status = main()
    finally:
        killer.unload()
    sys.exit(status)
