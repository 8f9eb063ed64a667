"""How c9ee78b.tar.gz was made: run in a checkout of c9ee78b with its own environment, as every import below is of then.

    .venv/bin/python make.py c9ee78b.tar.gz

It holds what that build wrote: an ingested dataset with a retry, two labelled sets, a training run that was stopped
half-way and a probe of it that was too; and expected.json, what the same build made of them uninterrupted.
"""

import contextlib
import dataclasses
import json
import os
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.append("tests")

import numpy as np
from ingest.fetch import FetchConfig
from origin import Origin
from PIL import Image
from shards.order import Order

from ingest import plan, run as ingest, sets
from ingest.select import SelectConfig
from shards import manifest, store
from shards.stream import once
from xtra import probe, train
from xtra.augment import Augment
from xtra.model import ModelConfig
from xtra.optim import OptimConfig

MODEL = ModelConfig(16, 4, 2, 16, 2, 2, bridge=16, dec_width=16, dec_depth=1, dec_heads=2, head=16, drop_path=0.2)
COLOURS = {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}
JUNK = ["/status/404", "/status/500", "/html", "/cut/a.jpg", "/truncated", "/loop", "/sick/1/x.jpg"]


def labelled(folder: Path, each: int, first: int) -> None:
    """Noise around the colour of its class."""
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for number in range(each):
            noise = np.random.default_rng(first + number).normal(0, 60, (16, 16, 3))
            picture = Image.fromarray(np.clip(noise + colour, 0, 255).astype(np.uint8))
            picture.save(folder / label / f"{number:03d}.png")


def losses(run: Path) -> dict[str, float]:
    rows = {}
    for name in store.names(str(run / "metrics")):
        for line in (run / "metrics" / name).read_text().splitlines():
            row = json.loads(line)
            rows[str(row["samples_seen"])] = row["loss"]
    return rows


class Stop(Exception):
    pass


def ingested() -> dict:
    with Origin() as origin:
        urls = [origin.url(path) for path in [*(f"/ok/{n}.jpg" for n in range(24)), "/ok/0.jpg", *JUNK]]
        Path("list.txt").write_text("".join(f"n{row % 3:08d}_{row}\t{url}\n" for row, url in enumerate(urls)))
        fetch = FetchConfig(allow_private=("127.0.0.1",), retries=0, backoff=0.01, deadline=5)
        select = SelectConfig(near_distance=-1)
        settings = ingest.Config("list.txt", "ingested", unit=12, fetch=fetch, select=select)
        ingest.run(settings)
        ingest.run(dataclasses.replace(settings, retry=True))
    version = manifest.read_manifest("ingested")
    return {
        "digest": version.digest,
        "links": version.links,
        "reasons": version.reasons,
        "deselected": version.deselected,
        "keys": [sample.key for batch in once(version, 16) for sample in batch],
        "generations": len(manifest.read_generations("ingested")),
        "planned": plan.make(settings).units,
    }


def trained() -> dict:
    config = train.Config(
        model=MODEL,
        samples=120,
        batch=10,
        data="train-set",
        out="run",
        optim=OptimConfig(lr=1e-3, warmup=0.1),
        order=Order(seed=2, lanes=4, chunk=4, window=2),
        checkpoint_every=30,
        keep=1,
        threads=1,
    )
    train.run(dataclasses.replace(config, out="whole"))
    steps = iter(range(99))
    stopped = train.run(config, stop=lambda: next(steps) == 6)
    return {"losses": losses(Path("whole")), "stopped_at": stopped.samples_seen}


def probed() -> dict:
    config = probe.Config(
        checkpoint="run",
        train="train-set",
        eval="eval-set",
        lrs=(1e-3, 1e-2),
        layer_sets=(2,),
        attention_heads=2,
        batch=10,
        epochs=4,
        encode_batch=10,
        augment=Augment(scale=(0.5, 1.0)),
        save_minutes=0.0,
        threads=1,
    )
    whole = probe.run(dataclasses.replace(config, out="probed"))

    def stop(what: str, done: int, total: int) -> None:
        if what == "train heads" and done >= total // 2:
            raise Stop

    with contextlib.suppress(Stop):
        probe.run(config, stop)
    return {r.head: {"correct": r.correct, "total": r.total, "lr": r.lr} for r in whole}


def main(out: Path) -> None:
    os.chdir(tempfile.mkdtemp())
    expected = {"ingested": ingested()}
    labelled(Path("pictures/train"), 20, 0)
    labelled(Path("pictures/eval"), 8, 1000)
    for name in ("train", "eval"):
        sets.run(sets.Config(f"pictures/{name}", f"{name}-set"))
    expected |= {"run": trained(), "probe": probed()}
    Path("expected.json").write_text(json.dumps(expected, indent=1))
    with tarfile.open(out, "w:gz") as archive:
        for name in ("ingested", "train-set", "eval-set", "run", "expected.json"):
            archive.add(name, filter=plain)


def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
