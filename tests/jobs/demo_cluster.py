"""`make demo-cluster`: the demo as jobs of a real Ray cluster, from a bucket and from a folder, and on one machine.

The cluster is a head of 0 CPUs and a node of 2, each a `ray start --block` on this machine, with token authentication.
The bucket is moto's, or one of the store whose endpoint XTRA_TEST_S3 names. Every command goes through `xtra submit`:
the demo's own (ingest, check, import, scale, report), and a training, a probe and a suite of its own. Then the same is
done without a cluster. What came out is printed side by side, and must be equal to the bit: links and their verdicts,
losses, accuracies and their intervals. Exit 1 where anything differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import numpy as np  # noqa: E402
from buckets import bucket, start_moto  # noqa: E402
from nodes import Cluster, cluster  # noqa: E402
from PIL import Image  # noqa: E402
from places import ROOT  # noqa: E402

from jobs import demo  # noqa: E402
from jobs.report import read_runs  # noqa: E402
from shards import store  # noqa: E402

Command = Callable[..., dict[str, Any]]
PROBE = ("--epochs", "5", "--views", "1", "--batch", "128", "--lrs", "1e-2", "1e-1")


@contextmanager
def s3() -> Iterator[dict[str, str]]:
    """The AWS variables of a store: the one that XTRA_TEST_S3 names, or moto's."""
    if os.environ.get("XTRA_TEST_S3"):
        assert os.environ.get("AWS_ENDPOINT_URL") == os.environ["XTRA_TEST_S3"], "the AWS variables name another store"
        yield {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        return
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = start_moto()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
    os.environ.update(found := {"AWS_ENDPOINT_URL": f"http://{host}:{port}", **keys})
    try:
        yield found
    finally:
        server.stop()


def submitted(made: Cluster, keys: dict[str, str]) -> Command:
    """Runs the words as a job, and gives what its --json says."""
    return lambda *words: run(("submit", *words), made.jobs | keys)


def alone() -> Command:
    """Runs the words on this machine, with as many threads as a node's processes have."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return lambda *words: run(words, bare | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def run(words: tuple[str, ...], env: dict[str, str]) -> dict[str, Any]:
    print(f"\n$ xtra {shlex.join(words)}", flush=True)
    begun = time.monotonic()
    command = [sys.executable, "-m", "jobs.cli", *words, "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    print(f"({time.monotonic() - begun:.0f} s)", flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.strip().splitlines()[-1])


def pictures(folder: Path) -> Path:
    """A labelled set for the suite, FOLDER/{train,eval}/CLASS/N.png: noise about a colour, ten classes."""
    made = np.random.default_rng(0)
    for split, count in (("train", 24), ("eval", 12)):
        for label in range(10):
            (folder / split / f"colour-{label}").mkdir(parents=True)
            for number in range(count):
                pixels = made.normal(25 * label, 60, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / f"colour-{label}" / f"{number:03d}.png")
    return folder


def everything(out: str, files: Path, sets: Path, samples: tuple[int, ...], command: Command) -> dict[str, Any]:
    """The demo, then a training, a probe and a suite; the numbers of all, by what they are."""
    ingested = demo.run(demo.Config(out=out, local=str(files), samples=samples), command)["ingest"]
    data, evaluation, single = (store.join(out, name) for name in ("data", "eval", "single"))
    trained = command(
        *("train", "demo32", "--data", data, "--out", single, "--workers", "2"),
        *("--samples", str(samples[0]), "--device", "cpu"),
    )
    probed = command("probe", single, "--train", data, "--eval", evaluation, *PROBE)
    for split in ("train", "eval"):
        command("import", str(sets / split), "--out", store.join(out, "sets", "cifar10", split))
    suite = command(
        "probe", single, "--suite", "paper15", "--root", store.join(out, "sets"), "--only", "cifar10", *PROBE
    )
    numbers: dict[str, Any] = {f"ingest: {name}": ingested[name] for name in ("links", "kept")}
    numbers |= {f"ingest: {reason}": count for reason, count in sorted(ingested["reasons"].items())}
    numbers["train: loss"] = trained["loss"]
    for name, results in (("probe", probed["probes"]), ("suite", suite["probes"])):
        numbers |= {f"{name}: {each['head']}": each["accuracy"] for each in results}
    for row in read_runs(store.join(out, "study")).rows:
        name = f"ledger: {row.recipe} {row.samples_seen} {row.head} {row.encoder}"
        numbers |= {f"{name} loss": row.loss} if row.loss is not None else {}
        numbers |= {f"{name} accuracy": (row.accuracy, row.low, row.high)} if row.accuracy is not None else {}
    return numbers


def compare(found: dict[str, dict[str, Any]]) -> list[str]:
    """Print the numbers of every place side by side; the names of those that are not equal to the bit."""
    names = list(dict.fromkeys(name for numbers in found.values() for name in numbers))
    width, differing = max(map(len, names)), []
    print(f"\n{'number':<{width}}  " + "  ".join(f"{place:>20}" for place in found) + "  equal")
    for name in names:
        values = [numbers.get(name) for numbers in found.values()]
        same = None not in values and len(set(map(repr, values))) == 1
        differing += [] if same else [name]
        print(
            f"{name:<{width}}  " + "  ".join(f"{shown(value):>20}" for value in values) + f"  {'yes' if same else 'NO'}"
        )
    return differing


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[0]:.4f} ({value[1]:.3f}-{value[2]:.3f})" if None not in value else str(value)
    return f"{value:.10f}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description="the demo on a cluster, from a bucket and a folder")
    parser.add_argument("--samples", type=int, nargs="+", default=list(demo.SAMPLES), help="that each recipe sees")
    samples = tuple(parser.parse_args().samples)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demo-") as temporary, s3() as keys:
        folder, files = Path(temporary), Path(temporary) / "files"
        sets = pictures(folder / "sets")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        found = {}
        with cluster(1, cpus=2, env={"PATH": path, **keys}, dashboard=True) as made:
            for name, place in (("jobs, a bucket", bucket()), ("jobs, a folder", str(folder / "cluster"))):
                found[name] = everything(place, files, sets, samples, submitted(made, keys))
        found["one machine"] = everything(str(folder / "alone"), files, sets, samples, alone())
    differing = compare(found)
    count = len(found["one machine"])
    assert count > 4 * len(samples), found
    print(f"\n{count} numbers, {len(differing)} of them differ; the bucket is at {keys['AWS_ENDPOINT_URL']}")
    print(f"time: {time.monotonic() - begun:.0f} s")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
