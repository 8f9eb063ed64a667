"""Whether two builds make the same of the same input: verdicts, tars, orders, losses of 1 and 2 workers, probes.

    git worktree add ../older REVISION
    python tests/same_results.py --checkout ../older

Each build runs the same commands from its own tree, in this environment, one after the other; what they wrote is read
as plain tables and JSON and compared to the bit. One line for each kind of result; exit 1 where any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), *(str(ROOT / "tests" / below) for below in ("", "shards", "ingest"))]

import pyarrow.parquet as pq  # noqa: E402
from origin import Origin  # noqa: E402
from test_fall import draw, labelled_folder  # noqa: E402

JUNK = ["/status/404", "/status/500", "/html", "/cut/a.jpg", "/truncated", "/loop", "/empty", "/redirect/3", "/reset"]
PROBED = ("head", "accuracy", "total", "chosen", "samples_seen")
CLOCKS = ("fetched_at", "elapsed_ms", "seconds", "time")  # columns and fields that go by the clock
ORDER = """
import sys, shards
found = shards.open(sys.argv[1])
for seed, epoch in ((0, 0), (0, 1), (7, 0)):
    print(seed, epoch, *(sample.key for sample in found.shuffled(seed=seed, epoch=epoch)))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True, help="of the other build")
    given = parser.parse_args()
    trees = {"theirs": given.checkout.resolve(), "ours": ROOT}
    made = {}
    with tempfile.TemporaryDirectory(prefix="same-results-") as folder, Origin() as origin:
        links = make_list(origin, Path(folder))
        labelled = labelled_folder(Path(folder, "labelled"))
        for name, tree in trees.items():
            out = Path(folder, name)
            fetched = ingested(tree, links, labelled, out)
            # An order is a function of a dataset's version, which names its files: both train on the same one.
            made[name] = fetched | trained(tree, Path(folder, "theirs"), out)
    differ = 0
    for what, theirs in made["theirs"].items():
        ours = made["ours"][what]
        same = ours == theirs
        differ += not same
        print(f"{what:<24} {len(theirs):>6} {'equal' if same else 'DIFFERENT'} {short(ours)} {short(theirs)}")
        for one, other in [(o, t) for o, t in zip(ours, theirs) if o != t][:3] if not same else []:
            print(f"  ours   {str(one)[:300]}\n  theirs {str(other)[:300]}")
    return 1 if differ else 0


def make_list(origin: Origin, folder: Path) -> Path:
    lines = ["url,label"]
    for number in range(300):
        path = folder / "one"
        draw(number).resize((120, 100)).save(path, "JPEG" if number % 3 else "PNG")
        origin.files[f"{number}.jpg"] = path.read_bytes()
        lines.append(f"{origin.url(f'/file/{number}.jpg')},class{number % 7}")
        lines.append(f"{origin.url(JUNK[number % len(JUNK)])}?{number},junk")
    (folder / "list.csv").write_text("\n".join([*lines, "ftp://127.0.0.1/x.jpg,junk", "no link,junk"]) + "\n")
    return folder / "list.csv"


def ingested(tree: Path, links: Path, labelled: Path, out: Path) -> dict[str, list]:
    """What one build keeps of a list."""
    data = out / "data"
    fetch = ["--fetch.allow-private=127.0.0.0/8", "--fetch.retries=1", "--fetch.backoff=0.05", "--unit=64"]
    xtra(tree, "ingest", "--urls", links, "--out", data, "--label-column=label", *fetch)
    xtra(tree, "import", labelled, "--out", out / "evaluation")
    rows = [row for path in sorted((data / "shards").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {
        "verdicts": [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows],
        "tars": [(path.name[:6], sha256(path)) for path in sorted((data / "shards").glob("*.tar"))],
    }


def trained(tree: Path, sets: Path, out: Path) -> dict[str, list]:
    """What one build's training and probe make of a dataset."""
    order = subprocess.run(
        [sys.executable, "-c", ORDER, sets / "data"], env=environment(tree), capture_output=True, text=True, check=True
    )
    train = ["--samples=960", "--batch=32", "--checkpoint-every=480", "--threads=1", "--device=cpu"]
    for workers in (1, 2):
        run = out / f"run{workers}"
        xtra(tree, "train", "demo32", *train, "--data", sets / "data", f"--workers={workers}", "--out", run)
    probe = ["--train", sets / "evaluation", "--eval", sets / "evaluation", "--epochs=2", "--views=1", "--batch=20"]
    xtra(tree, "probe", out / "run1", *probe, "--device=cpu", "--lrs", 0.05, 0.3)
    weights = sorted(out.glob("run*/checkpoints/*/*/*.safetensors"))
    probes = [json.loads(path.read_text()) for path in sorted((out / "run1" / "probes").glob("*.json"))]
    return {
        "orders": order.stdout.splitlines(),
        "losses, 1 worker": losses(out / "run1"),
        "losses, 2 workers": losses(out / "run2"),
        "weights": [(str(path.relative_to(out)), sha256(path)) for path in weights],
        "probes": [[probe[name] for name in PROBED] for probe in probes],
    }


def losses(run: Path) -> list[tuple]:
    lines = [line for path in sorted((run / "metrics").iterdir()) for line in path.read_text().splitlines()]
    return [(row["samples_seen"], row["loss"], row["grad_norm"]) for row in map(json.loads, lines)]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def xtra(tree: Path, *words: object) -> None:
    command = [sys.executable, "-m", "jobs.cli", *map(str, words)]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}


def short(rows: list) -> str:
    return hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
