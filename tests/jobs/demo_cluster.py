"""`make demo-cluster`: the demo as jobs of a real Ray cluster, from a bucket and from a folder, beside one machine.

The cluster is a head of 0 CPUs and a node of 2, each a `ray start --block` on this machine, with token authentication.
The bucket is moto's, or one of the store whose endpoint XTRA_TEST_S3 names. Every command goes through `xtra submit`:
the demo's own (ingest, check, import, scale, report), and a training, a probe and a suite of its own. Then the same is
done without a cluster, and the numbers must be the same. Fails on the first difference.
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

from buckets import bucket, start_moto  # noqa: E402
from nodes import Cluster, cluster  # noqa: E402
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


def everything(out: str, files: Path, samples: tuple[int, ...], command: Command) -> dict[Any, Any]:
    """The demo, then a training, a probe and a suite; the numbers of all."""
    demo.run(demo.Config(out=out, local=str(files), samples=samples), command)
    data, evaluation, single = (store.join(out, name) for name in ("data", "eval", "single"))
    trained = command(
        *("train", "demo32", "--data", data, "--out", single, "--workers", "2"),
        *("--samples", str(samples[0]), "--device", "cpu"),
    )
    probed = command("probe", single, "--train", data, "--eval", evaluation, *PROBE)
    for part, split in (("train", "train"), ("test", "eval")):
        command("import", str(files / "pictures" / part), "--out", store.join(out, "sets", "cifar10", split))
    suite = command(
        "probe", single, "--suite", "paper15", "--root", store.join(out, "sets"), "--only", "cifar10", *PROBE
    )
    numbers: dict[Any, Any] = {"train": trained["loss"]}
    numbers |= {("probe", result["head"]): result["accuracy"] for result in probed["probes"]}
    numbers |= {("suite", result["head"]): result["accuracy"] for result in suite["probes"]}
    for row in read_runs(store.join(out, "study")).rows:
        numbers[row.recipe, row.samples_seen, row.head, row.encoder] = (row.loss, row.accuracy)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description="the demo on a cluster, from a bucket and a folder")
    parser.add_argument("--samples", type=int, nargs="+", default=list(demo.SAMPLES), help="that each recipe sees")
    samples = tuple(parser.parse_args().samples)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demo-") as temporary, s3() as keys:
        folder, files = Path(temporary), Path(temporary) / "files"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        found = {}
        with cluster(1, cpus=2, env={"PATH": path, **keys}, dashboard=True) as made:
            for place in (bucket(), str(folder / "cluster")):
                found[place] = everything(place, files, samples, submitted(made, keys))
        here = everything(str(folder / "alone"), files, samples, alone())
    assert len(here) > 2 * len(samples)
    for place, numbers in found.items():
        differing = sorted(
            map(str, {name for name in here.keys() | numbers.keys() if here.get(name) != numbers.get(name)})
        )
        assert not differing, f"{place}: {differing} differ: {[(here.get(n), numbers.get(n)) for n in here]}"
    print(f"\n{len(here)} numbers, the same from {' and '.join(found)} on the cluster as on one machine")
    print(f"time: {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main()
