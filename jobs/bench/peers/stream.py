"""One reader's pass over a synthetic dataset, and writers for the formats that two of the peers need.

    python stream.py '{"verb": "read", "who": "webdataset", ...}'      prints one JSON object

This file runs as a script in the peers' environment, so it imports none of our modules; our reader (`stream_ours`)
imports `drain` from it, so that all are measured alike: user + system time of this process and of the children it
waited for, from before the dataset is opened to after its last sample, without imports.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import resource
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

NUMBER = slice(6, 14)  # the bytes of a body with its number, eight digits in a JPEG comment
CHUNK = 1 << 26  # bytes per shard of the peers: MosaicML's default, and about the size of the bench's tars


def cpu() -> float:
    """User + system seconds of this process and the children that it has waited for."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, both))


def peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


class Slot:
    """The memory of one batch, into which bodies are copied one after the other. `numbers` identifies them."""

    def __init__(self, batch: int, largest: int) -> None:
        self.flat = np.empty(batch * largest, np.uint8)
        self.view = self.flat.data
        self.numbers: list[np.ndarray] = []
        self.bytes = 0

    def fill(self, bodies: Iterable[Any]) -> int:
        """Copy one batch; returns how many bodies it had."""
        view, at, starts = self.view, 0, []
        for body in bodies:
            starts.append(at)
            end = at + len(body)
            view[at:end] = body
            at = end
        self.bytes += at
        digits = self.flat[np.array(starts, np.int64)[:, None] + np.arange(NUMBER.start, NUMBER.stop)]
        self.numbers.append(digits)
        return len(starts)

    def note(self, bodies: Iterable[Any]) -> int:
        """The same for bodies that the reader itself put into one batch's memory, as ours does."""
        digits = [bytes(body[NUMBER]) for body in bodies]
        self.bytes += sum(map(len, bodies))
        self.numbers.append(np.frombuffer(b"".join(digits), np.uint8).reshape(len(digits), -1))
        return len(digits)

    def seen(self) -> np.ndarray:
        """The number of every body so far."""
        return np.concatenate(self.numbers).astype(np.int64) @ 10 ** np.arange(7, -1, -1) - 11111111 * ord("0")


def batches(bodies: Iterable[Any], size: int) -> Iterator[list[Any]]:
    group: list[Any] = []
    for body in bodies:
        group.append(body)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def drain(open_batches: Any, spec: dict[str, Any], copied: bool = False) -> dict[str, Any]:
    """Open and read one pass, then measure `passes` more: `cpu` and `wall` cover only these.

    `copied`: the reader's batches already use one batch's memory. The source continues beyond the measured passes, so
    that a reader that prefetches does as much of it at the end as at the start. Opening and the first pass are reported
    separately. Raises AssertionError unless every sample came exactly once per pass.
    """
    images, until = spec["images"], spec["images"] * (1 + spec["passes"])
    slot = Slot(spec["batch"], spec["largest"])
    slot.flat[:] = 0  # touch its pages before the clock starts
    begun: tuple[float, ...] = (cpu(), time.perf_counter(), 0, 0)
    marks: list[tuple[float, ...]] = []
    taken, first_s = 0, 0.0
    for bodies in open_batches():
        taken += slot.note(bodies) if copied else slot.fill(bodies)
        first_s = first_s or time.perf_counter() - begun[1]
        if taken >= (images if not marks else until):
            marks.append((cpu(), time.perf_counter(), taken, slot.bytes))
            if len(marks) == 2:
                break
    assert len(marks) == 2, f"the source ended after {taken} samples"
    counts = np.bincount(slot.seen()[:until], minlength=images)
    assert len(counts) == images, "a sample was read that was never written"
    assert (counts == 1 + spec["passes"]).all(), f"samples were read {counts.min()} to {counts.max()} times"
    first, rest = ([y - x for x, y in zip(*pair)] for pair in ((begun, marks[0]), marks))
    return {
        **dict(zip(("cpu", "wall", "images", "bytes"), rest)),
        "first_cpu": first[0],
        "first_wall": first[1],
        "first_s": first_s,
        "rss": peak_rss(),
    }


# --- the peers -----------------------------------------------------------------------------------------------------


def webdataset(spec: dict[str, Any]) -> Iterator[bytes]:
    dataset = import_module("webdataset").WebDataset(spec["tars"], shardshuffle=len(spec["tars"]), seed=1).shuffle(1000)
    while True:
        for sample in dataset:
            yield sample["jpg"]


def mosaic(spec: dict[str, Any]) -> Iterator[bytes]:
    make = import_module("streaming").StreamingDataset
    common = {"shuffle": True, "batch_size": spec["batch"]}
    if "remote" in spec:
        datasets = (make(remote=spec["remote"], local=cache, **common) for cache in _caches(spec))
    else:
        datasets = itertools.repeat(make(local=spec["folder"], **common))
    return (sample["jpg"] for dataset in datasets for sample in dataset)


def litdata(spec: dict[str, Any]) -> Iterator[bytes]:
    make = import_module("litdata").StreamingDataset
    common: dict[str, Any] = {"shuffle": True, "drop_last": False}
    if "remote" in spec:
        common["storage_options"] = {"endpoint_url": os.environ.get("AWS_ENDPOINT_URL")}
        datasets = (make(input_dir=spec["remote"], cache_dir=cache, **common) for cache in _caches(spec))
    else:
        datasets = itertools.repeat(make(input_dir=spec["folder"], **common))
    return (sample["jpg"] for dataset in datasets for sample in dataset)


def hf(spec: dict[str, Any]) -> Iterator[list[memoryview]]:
    """Batches from random places of a memory-mapped table, each gathered into memory of its own."""
    table = import_module("datasets").load_from_disk(spec["folder"]).with_format("arrow")
    for turn in itertools.count():
        chosen = np.random.default_rng(turn).permutation(len(table))
        for at in range(0, len(chosen), spec["batch"]):
            column = table[chosen[at : at + spec["batch"]]]["jpg"].combine_chunks()
            _, ends, bodies = column.buffers()
            ends = np.frombuffer(ends, np.int32)[column.offset :][: len(column) + 1].tolist()
            bodies = memoryview(bodies)
            yield [bodies[begin:end] for begin, end in itertools.pairwise(ends)]


def _caches(spec: dict[str, Any]) -> Iterator[str]:
    """A new cache folder for every pass over the network: with the old one, the second pass would fetch nothing."""
    for number in itertools.count():
        os.makedirs(f"{spec['cache']}/{number}")
        yield f"{spec['cache']}/{number}"


READERS = {"webdataset": webdataset, "mosaic": mosaic, "litdata": litdata}


def prepare(who: str) -> None:
    """Import the peer, outside the measurement."""
    if who == "webdataset":
        import_module("webdataset")
    elif who == "hf":
        import_module("datasets")
    elif who == "litdata":
        os.environ["LITDATA_DISABLE_VERSION_CHECK"] = "1"  # it contacts the package index at every start
        downloader = import_module("litdata.streaming.downloader")
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # loopback's endpoint has no TLS
    else:
        import_module("transformers")  # it also looks for torchvision, and must not find the fake below
        # MosaicML's picture datasets import torchvision, which must match the installed torch; nothing here needs it.
        for name in (
            "torchvision",
            "torchvision.datasets",
            "torchvision.transforms",
            "torchvision.transforms.functional",
        ):
            sys.modules[name] = ModuleType(name)
        setattr(sys.modules["torchvision.datasets"], "VisionDataset", object)  # noqa: B010
        setattr(sys.modules["torchvision.transforms.functional"], "to_tensor", None)  # noqa: B010
        if "AWS_ENDPOINT_URL" in os.environ:
            os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]  # MosaicML's name for it
        import_module("streaming.base.util").clean_stale_shared_memory()


def read(spec: dict[str, Any]) -> dict[str, Any]:
    prepare(spec["who"])
    if spec["who"] == "hf":
        return drain(lambda: hf(spec), spec, copied=True)
    return drain(lambda: batches(READERS[spec["who"]](spec), spec["batch"]), spec)


# --- their formats -------------------------------------------------------------------------------------------------


def write(spec: dict[str, Any]) -> dict[str, Any]:
    """Write the samples of tars in a peer's own format, uncompressed like ours."""
    prepare(spec["who"])
    {"mosaic": _write_mds, "litdata": _write_litdata, "hf": _write_arrow}[spec["who"]](
        spec["folder"], _samples(spec["tars"])
    )
    return {"files": len(glob.glob(spec["folder"] + "/*"))}


def _samples(tars: list[str]) -> Iterator[dict[str, Any]]:
    for path in tars:
        with tarfile.open(path) as tar:
            body = b""
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                key, _, kind = member.name.rpartition(".")
                if kind == "json":
                    yield {"key": key, "labels": json.dumps(json.load(file)["labels"]), "jpg": body}
                else:
                    body = file.read()


def _write_mds(folder: str, samples: Iterator[dict[str, Any]]) -> None:
    columns = {"key": "str", "labels": "str", "jpg": "bytes"}
    with import_module("streaming").MDSWriter(out=folder, columns=columns, size_limit=CHUNK) as out:
        for sample in samples:
            out.write(sample)


def _write_litdata(folder: str, samples: Iterator[dict[str, Any]]) -> None:
    cache = import_module("litdata.streaming.cache").Cache(folder, chunk_bytes=CHUNK)
    for number, sample in enumerate(samples):
        cache[number] = sample
    cache.done()
    cache.merge()


def _write_arrow(folder: str, samples: Iterator[dict[str, Any]]) -> None:
    rows = list(samples)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    import_module("datasets").Dataset.from_dict(columns).save_to_disk(folder)


def main() -> None:
    spec = json.loads(sys.argv[-1])
    print(json.dumps({"read": read, "write": write}[spec["verb"]](spec)), flush=True)


if __name__ == "__main__":
    main()
