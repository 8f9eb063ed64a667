"""Poison samples, which kill the process that decodes them: found after two deaths, then replaced like any bad sample.

While samples are decoded, their numbers are in a mapped file in the node's temporary folder, which outlives the process
(`shards.pixels.isolate`). The next attempt's processes publish the numbers that dead ones left on their node. A sample
that was in flight when two attempts died is suspect. The next time it is due, it is decoded in a child process, and the
verdict goes into the run folder, where every later attempt finds it, at any world size:

bad       the reference decoder dies: the sample is replaced
careful   only a fast decoder dies, here or on a device: from now on the reference decoder decodes it
cleared   neither dies. An attempt that was killed from outside leaves numbers as well

    <run>/killers/deaths/<attempt>-<rank>.json       samples in flight when that process died
    <run>/killers/judged/<sample>-<attempt>.json     the verdict on a suspect
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from shards import store, typed_json
from shards.pixels import Child, InFlight, Killed, alive, image, private_folder, suspects
from shards.stream import Sample
from xtra.data import Augment, RandomCrop, augmented, decode_reference
from xtra.distributed import sum_numbers
from xtra.run import records
from xtra.run.folder import Attempt

R = TypeVar("R", records.Death, records.Judged)
DEATHS = 2  # attempts that died with a sample in flight before it is suspect
READERS = 16
_MARKS = re.compile(r"([0-9a-f]+)-(\d+)-(\d+)")  # manifest, attempt, rank


@dataclass(frozen=True)
class Known:
    """Earlier attempts' findings about samples of a run's manifest, by number."""

    bad: Mapping[int, str]  # number -> why
    careful: frozenset[int]
    cleared: frozenset[int]
    suspects: frozenset[int]  # in flight when DEATHS attempts died since they were last judged


def find(attempt: Attempt, manifest: str, device: torch.device) -> Known:
    """Publish dead processes' samples on this node; return all nodes' findings. Every rank must call it."""
    publish(attempt.run)
    sum_numbers(torch.zeros(1, device=device)).item()  # waits until every rank has published
    return known(attempt.run, manifest)


def publish(run: str) -> None:
    """Record in the run which samples its dead processes on this node were decoding, and remove their marks."""
    prefix = _prefix(run)
    shared = Path(tempfile.gettempdir())  # older builds put them here, among other users' files
    for path in (*private_folder().glob(f"{prefix}*"), *shared.glob(f"{prefix}*")):
        name = _MARKS.fullmatch(path.name.removeprefix(prefix))
        if name is None or alive(path):
            continue
        manifest, attempt, rank = name.groups()
        death = {"manifest": manifest, "attempt": int(attempt), "samples": sorted(suspects(path))}
        if death["samples"]:  # another process of this node may write the same
            store.put_json_if_absent(store.join(run, "killers", "deaths", f"{attempt}-{rank}.json"), death)
        with contextlib.suppress(OSError):  # already gone, or not ours
            path.unlink()


def known(run: str, manifest: str) -> Known:
    """The run folder's findings about samples of the manifest with this digest."""
    bad: dict[int, str] = {}
    careful: set[int] = set()
    cleared: dict[int, int] = {}  # by which attempt
    for found in _read_all(records.Judged, store.join(run, "killers", "judged"), manifest):
        if found.verdict == "bad":
            bad[found.sample] = found.why
        elif found.verdict == "careful":
            careful.add(found.sample)
        else:
            cleared[found.sample] = max(found.attempt, cleared.get(found.sample, 0))
    died: dict[int, set[int]] = defaultdict(set)  # attempts, by sample
    for death in _read_all(records.Death, store.join(run, "killers", "deaths"), manifest):
        for sample in death.samples:
            if death.attempt >= cleared.get(sample, 0):
                died[sample].add(death.attempt)
    suspect = {sample for sample, attempts in died.items() if len(attempts) >= DEATHS}
    return Known(bad, frozenset(careful), frozenset(cleared), frozenset(suspect - bad.keys() - careful))


def _read_all(kind: type[R], folder: str, manifest: str) -> Iterator[R]:
    """The records about this manifest. Raises StoreError naming a damaged file."""
    names = records.ours(store.names(folder), records.DEATH)
    with ThreadPoolExecutor(READERS, thread_name_prefix="poison") as pool:
        for found in pool.map(lambda name: typed_json.read(kind, store.join(folder, name)), names):
            if found.manifest == manifest[:16]:
                yield found


def _prefix(run: str) -> str:
    return f"xtra-train-{hashlib.sha256(run.encode()).hexdigest()[:16]}-"


class Guard:
    """Protects this process's decoders from poison samples (`data.Guard`). A context manager; thread-safe.

    `crop`: the transform of `train_batches`; `tar_url`: shard number -> URL; `slots`: most samples in flight at once.
    """

    def __init__(
        self,
        known: Known,
        attempt: Attempt,
        rank: int,
        manifest: str,
        crop: RandomCrop,
        tar_url: Callable[[int], str],
        slots: int,
    ) -> None:
        self._bad, self._careful, self._suspects = dict(known.bad), set(known.careful), set(known.suspects)
        self._cleared = known.cleared
        self._attempt, self._manifest, self._crop, self._tar_url = attempt, manifest[:16], crop, tar_url
        self._child, self._one_at_a_time = Child("xtra.run.poison:answer"), threading.Lock()
        name = f"{_prefix(attempt.run)}{self._manifest}-{attempt.number:06d}-{rank:06d}"
        folder = private_folder()
        try:
            self._marks = InFlight(folder / name, slots)
        except OSError as error:
            raise ValueError(f"{folder}: {error.strerror}: set TMPDIR to a folder with room") from None

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *error: object) -> None:
        self._marks.close()
        self._child.close()

    def decoding(self, samples: Sequence[Sample]) -> AbstractContextManager[None]:
        """Marks these samples as in flight until the end of the block."""
        return self._marks.decoding(*[sample.sample for sample in samples])

    def risky(self, sample: Sample) -> bool:
        """Whether only `decode` may decode it."""
        number = sample.sample
        return number in self._suspects or number in self._bad or number in self._careful

    def decode(self, sample: Sample, out_3HW: np.ndarray) -> None:
        """Decode a risky sample, in a child if it is suspect. Raises image.Undecodable."""
        with self._one_at_a_time:
            if sample.sample in self._suspects:
                self._judge(sample, out_3HW)
                return
        if sample.sample in self._bad:
            raise image.Undecodable(self._bad[sample.sample])
        (draws,) = self._crop.draw(np.array([sample.epoch]), np.array([sample.sample]))
        decode_reference(sample.body, self._crop, draws, out_3HW)

    def _judge(self, sample: Sample, out_3HW: np.ndarray) -> None:
        """Decode a suspect in the child, and record the verdict. Raises image.Undecodable."""
        try:
            words, pixels = self._ask(sample, fast=False)
        except Killed as killed:
            self._bad[sample.sample] = str(killed)
            self._settle(sample, "bad", str(killed))
            raise image.Undecodable(str(killed)) from None
        verdict, why = "cleared", ""
        try:
            words, pixels = self._ask(sample, fast=True)
        except Killed as killed:
            verdict, why = "careful", str(killed)
        if sample.sample in self._cleared:
            verdict = "careful"  # cleared, yet two more attempts died: perhaps on a device, which no child tries here
        if verdict == "careful":
            self._careful.add(sample.sample)
        self._settle(sample, verdict, why)
        if "undecodable" in words:
            raise image.Undecodable(words["undecodable"])
        out_3HW[:] = np.frombuffer(pixels, np.uint8).reshape(out_3HW.shape)

    def _ask(self, sample: Sample, fast: bool) -> tuple[dict[str, Any], bytes]:
        """Decode in the child. Raises Killed."""
        words = dataclasses.asdict(self._crop) | {"epoch": sample.epoch, "sample": sample.sample, "fast": fast}
        memory = 20 * image.MAX_PIXELS + 8 * len(sample.body) + (256 << 20)  # two RGBX copies, a progressive JPEG's
        return self._child.ask(words, bytes(sample.body), memory)

    def _settle(self, sample: Sample, verdict: str, why: str) -> None:
        self._suspects.discard(sample.sample)
        record = {
            "manifest": self._manifest,
            "attempt": self._attempt.number,
            "sample": sample.sample,
            "shard": self._tar_url(sample.shard),
            "key": sample.key,
            "verdict": verdict,
            "why": why,
        }
        name = f"{sample.sample:012d}-{self._attempt.number:06d}.json"
        store.put_json_if_absent(store.join(self._attempt.run, "killers", "judged", name), record)


def answer(words: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """In the child: decode a sample like `train_batches`, or only by the reference decoder."""
    scale, ratio, flip = (words["augment"][name] for name in ("scale", "ratio", "flip"))
    augment = Augment(tuple(scale), tuple(ratio), flip)
    size, seed, epoch, sample = (words[name] for name in ("size", "seed", "epoch", "sample"))
    try:
        if words["fast"]:
            return {}, augmented(body, size, augment, seed, epoch, sample).tobytes()
        crop, pixels = RandomCrop(size, augment, seed), np.empty((3, size, size), np.uint8)
        (draws,) = crop.draw(np.array([epoch]), np.array([sample]))
        decode_reference(body, crop, draws, pixels)
    except image.Undecodable as why:
        return {"undecodable": str(why)}, b""
    return {}, pixels.tobytes()
