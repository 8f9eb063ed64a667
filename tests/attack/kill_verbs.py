"""What the kill campaign does to each verb: its words, what is there before it, and the inputs of all."""

from __future__ import annotations

import io
import os
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from ingesting import write_list
from made_datasets import jpeg, make_dataset
from origin import Origin, picture

from shards import store

LINKS = 14
SICK = 4  # links that fail once, in the first ingest
ALLOW = ("--fetch.allow-private", "127.0.0.1", "--fetch.retries", "0", "--fetch.breaker", "99")
INGEST = ("--unit", "8", "--filter.min-side", "16", *ALLOW)
TINY = ("width=32", "depth=2", "heads=2", "bridge=32", "dec_width=32", "dec_depth=1", "dec_heads=2", "head=32")
MODEL = tuple(word for pair in TINY for word in ("--model." + pair.partition("=")[0], pair.partition("=")[2]))
TRAIN = (
    *("train", "demo32", "--data", "{data}", "--out", "{out}", "--samples", "64", "--batch", "16", *MODEL),
    *("--checkpoint-every", "16", "--keep", "2", "--threads", "1", "--device", "cpu"),
)
PROBE = (
    *("probe", "{out}", "--train", "{data}", "--eval", "{data}", "--epochs", "2", "--batch", "8", "--resize", "32"),
    *("--lrs", "1e-3", "1e-2", "--augment", "published", "--save-minutes", "0.0001", "--heads", "linear"),
    *("--threads", "1", "--no-pixels"),
)
EMBED = (
    *("embed", "{inputs}/run", "--data", "{data}", "--out", "{out}", "--rows", "8", "--encode-batch", "4"),
    *("--threads", "1", "--device", "cpu"),
)
VIEWS = (
    *("probe", "{out}", "--train", "{data}", "--eval", "{data}", "--epochs", "6", "--batch", "8", "--views", "4"),
    *("--lrs", "1e-3", "1e-2", "--heads", "linear", "knn", "--knn", "1", "2", "--encode-batch", "4"),
    *("--threads", "1", "--no-pixels"),
)
SCALE = (
    *("scale", "--data", "{data}", "--out", "{out}", "--recipes", "demo32", "--samples", "8", "16"),
    *("--probe.train", "{data}", "--probe.eval", "{data}", "--probe.epochs", "1", "--probe.views", "1"),
    *("--probe.lrs", "1e-2", "--probe.batch", "8", "--probe.heads", "linear", "--no-random", "--probe.no-pixels"),
)


@dataclass(frozen=True)
class Verb:
    """In its words, {inputs} is the folder of inputs on this disk, {data} the dataset to read, {out} the outcome."""

    words: tuple[str, ...]
    kind: str  # dataset, run, study, vectors or files
    before: str = ""  # the inputs' folder that {out} begins as a copy of
    reads: str = ""  # another of these that its words name
    torch: bool = False


VERBS = {
    "import": Verb(("import", "{inputs}/pictures", "--out", "{out}", "--unit", "6", "--threads", "1"), "dataset"),
    "in-place": Verb(
        ("import", "{tars}", "--out", "{out}", "--in-place", "--threads", "1"), "dataset", torch=True
    ),  # webdataset imports it
    "ingest": Verb(("ingest", "--urls", "{inputs}/list.tsv", "--out", "{out}", *INGEST), "dataset"),
    "retry": Verb(("ingest", "--out", "{out}", "--retry", *INGEST), "dataset", "failed"),
    "select": Verb(("select", "{out}", "--rules.near-distance", "0", "--rules.min-per-class", "2"), "dataset", "many"),
    "sweep": Verb(("sweep", "{out}", "--older-than", "1h"), "dataset", "littered"),
    "train": Verb(TRAIN, "run", torch=True),
    "probe": Verb(PROBE, "run", "run", torch=True),
    "embed": Verb(EMBED, "vectors", reads="run", torch=True),
    "scale": Verb(SCALE, "study", torch=True),
    # The same with two workers on Ray, for kills at random: what the workers write is not counted.
    "ingest-2": Verb(("ingest", "--urls", "{inputs}/list.tsv", "--out", "{out}", *INGEST, "--workers", "2"), "dataset"),
    "train-2": Verb((*TRAIN, "--workers", "2"), "run", torch=True),
    "views": Verb(VIEWS, "run", "run", torch=True),
    "generate": Verb(
        ("generate", "{inputs}/run", "--data", "{data}", "--out", "{out}", "--samples", "24", "--rows", "2"),
        "files",
        reads="run",
        torch=True,
    ),
    "export": Verb(("export", "{inputs}/run", "--out", "{out}"), "files", reads="run", torch=True),
}


def make_inputs(folder: Path, origin: Origin) -> None:
    """All that needs no other verb: pictures, tars, lists, a dataset; "littered" is one that a sweep has work in."""
    (folder / "tars").mkdir(parents=True)
    for number in range(12):
        path = folder / "pictures" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number % 11))  # one of them twice
    (folder / "pictures" / "class0" / "broken.jpg").write_bytes(jpeg(1)[:200])
    for tar in range(2):
        with tarfile.open(folder / "tars" / f"s-{tar}.tar", "w", format=tarfile.USTAR_FORMAT) as made:
            for number in range(tar * 5, tar * 5 + 5):
                for name, body in ((f"p{number}.jpg", jpeg(number)), (f"p{number}.cls", b"%d" % (number % 2))):
                    about = tarfile.TarInfo(name)
                    about.size = len(body)
                    made.addfile(about, io.BytesIO(body))
    good = [f"/ok/{number}.jpg" for number in range(LINKS - 4 - SICK)]
    bad = ["/status/404", "/html", "/cut/a.jpg", "no url at all"]
    write_list(folder / "list.tsv", origin, good + bad + [f"/ok/late{number}.png" for number in range(SICK)])
    write_list(folder / "sick.tsv", origin, good + bad + [f"/sick/{SICK}/{number}.jpg" for number in range(SICK)])
    make_dataset(folder / "data", [14, 10])
    littered = folder / "littered"
    make_dataset(littered, [4, 4], bad=(2,))
    losers = [f"shards/00000{n}.{ending}" for n in ("0-b2", "0-c3", "1-b2", "1-c3") for ending in ("tar", "parquet")]
    stale = ["shards/000002-d4.tar", ".probe-1-2", "shards/.aside-xyz", f"manifests/{'0' * 64}.rules.parquet"]
    for name in losers + stale:
        store.put(store.join(str(littered), name), picture(name))
        os.utime(littered / name, (time.time() - 86_400,) * 2)


# What other verbs make for some to begin with.
MADE = {
    "failed": ("ingest", "--urls", "{inputs}/sick.tsv", "--out", "{inputs}/failed", *INGEST),
    "many": ("import", "{inputs}/pictures", "--out", "{inputs}/many", "--unit", "6", "--threads", "1"),
    "run": tuple({"{out}": "{inputs}/run", "{data}": "{inputs}/data"}.get(word, word) for word in TRAIN),
}
