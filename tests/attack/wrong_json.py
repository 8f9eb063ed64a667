"""Every wrong value in every JSON object of a dataset and of a run, read by the verbs that read it.

`dataset_values` and `run_values` yield what is wrong and what the command did: "read", "one line" (exit 2), or the
traceback. Nothing is random: the values are all that `WRONG` and `RAW` make of each field.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import shutil
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from run_folders import write_probe, write_run

from ingest.sets import folders
from jobs import cli

WRONG = (None, [], {}, "x", -1, 10**30, 1.5, True, "../../../etc/passwd", float("nan"))
WHOLE = ([], 5, "x", None)
RAW = (b"", b"{", b"\xff\xfe", b"[" * 100_000)
POINTS = ([{}], [{"lr": "x", "accuracy": "y"}], [{"lr": -1, "accuracy": 2}], "$\\frac{")  # of probes' grids and labels


@dataclass(frozen=True)
class Found:
    file: str
    verb: str
    what: str
    outcome: str

    @property
    def bad(self) -> bool:
        return self.outcome not in ("read", "one line")


def command(*words: str) -> tuple[str, str]:
    """What one command did, in this process, and what it said."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            code = cli.main(list(words))
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})"[:300], out.getvalue()
    said = out.getvalue()
    if code == 2:
        lines = [line for line in said.splitlines() if line.startswith("xtra ")]
        return ("one line" if len(lines) == 1 else f"exit 2 with {len(lines)} lines"), said
    return ("read" if code in (0, 1) else f"exit {code}"), said


def mutations(original: dict[str, Any], wrong: tuple[Any, ...] = WRONG) -> Iterator[tuple[str, bytes]]:
    for whole in WHOLE:
        yield f"whole = {whole!r}", json.dumps(whole).encode()
    for key in original:
        for value in wrong:
            changed = copy.deepcopy(original)
            changed[key] = value
            yield f"{key} = {value!r}"[:60], json.dumps(changed).encode()
        yield f"without {key}", json.dumps({name: value for name, value in original.items() if name != key}).encode()
    yield "a newer field", json.dumps(original | {"a_newer_field": 1}).encode()
    whole = json.dumps(original).encode()
    for raw in (*RAW, whole[:-5]):
        yield f"bytes {raw[:8]!r} ({len(raw)})", raw


def make_dataset(folder: Path) -> Path:
    """A dataset of two units with a version of every row and one that rules made."""
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 24, 3)).astype(np.uint8)
        path = folder / f"set/{'cat' if number % 2 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    shutil.copy(folder / "set/cat/1.png", folder / "set/cat/9.png")
    out = folder / "dataset"
    folders.run(folders.Config(str(folder / "set"), str(out), unit=5))
    assert command("select", str(out), "--rules.near-distance", "0")[0] == "read"
    return out


def _read_by(dataset: Path) -> list[tuple[str, tuple[str, ...]]]:
    newest = sorted(path.name for path in (dataset / "versions").iterdir())[-1]
    digest = json.loads((dataset / "versions" / newest).read_text())["digest"]
    url = str(dataset)
    page = str(dataset.parent / "peek.html")
    return [
        ("dataset.json", ("peek", url, "--out", page)),
        ("commits/000001.json", ("status", url)),
        ("commits/000001.json", ("sweep", url, "--dry-run")),
        ("commits/000001.json", ("check", url)),
        ("latest.json", ("status", url)),
        (f"versions/{newest}", ("peek", url, "--out", page)),
        (f"versions/{newest}", ("status", url)),
        (f"manifests/{digest}.json", ("peek", url, "--out", page)),
        (f"manifests/{digest}.json", ("check", url)),
        (f"manifests/{digest}.json", ("check", url, "--repair", "--dry-run")),
    ]


def dataset_values(folder: Path) -> Iterator[Found]:
    dataset = make_dataset(folder)
    for name, words in _read_by(dataset):
        yield from _changed(dataset / name, name, words)


def _changed(path: Path, name: str, words: tuple[str, ...], wrong: tuple[Any, ...] = WRONG) -> Iterator[Found]:
    whole = path.read_bytes()
    for what, body in mutations(json.loads(whole), wrong):
        path.write_bytes(body)
        yield Found(name, words[0], what, command(*words)[0])
    path.write_bytes(whole)


def make_run(folder: Path) -> Path:
    run = write_run(folder / "runs/one", samples=1280)
    probe(run)
    return run


def probe(run: Path) -> Path:
    """A result with all that one has."""
    grid = [{"lr": lr, "weight_decay": 0.1, "accuracy": 0.1 * lr} for lr in (0.1, 0.3, 1.0)]
    more = {"selection": grid, "per_class": [0.2, 0.4], "labels": ["cat", "dog"], "layers": 1, "chosen": grid[0]}
    more |= {
        "selected_on": "holdout",
        "shared_sha256": 0,
        "shared_phash": 1,
        "epochs": 2,
        "fingerprint": "f",
        "image": 64,
    }
    more |= {"remark": "", "seed": 0, "eval": "s3://b/tin", "confused": [[0, 1, 3]], "mistakes": [[7, 0, 1]]}
    return write_probe(run, 0.31, **more)


def run_values(folder: Path) -> Iterator[Found]:
    """A run's own objects, read by the report on it and by its status."""
    run = make_run(folder)
    seen = sorted(path.name for path in (run / "checkpoints").iterdir())[-1]
    for name in ("config.json", "run.json", f"checkpoints/{seen}/COMMIT.json", "attempts/000001.json"):
        for words in (("report", str(run)), ("status", str(run)), ("sweep", str(run), "--dry-run")):
            yield from _changed(run / name, name, words)


def probe_values(folder: Path) -> Iterator[Found]:
    """A probe result next to good runs: the page stays whole, and has a line with the file's name."""
    root = folder / "runs"
    probe(write_run(root / "good", samples=1280))
    path = probe(write_run(root / "other", samples=1280, seed=1))
    name = path.name
    whole = path.read_bytes()
    for what, body in mutations(json.loads(whole), WRONG + POINTS):
        path.write_bytes(body)
        outcome, said = command("report", str(root))
        page = (root / "report.html").read_text() if outcome == "read" else ""
        if outcome == "one line":
            outcome = f"no page: {said.strip()}"
        elif outcome == "read" and "good" not in page:
            outcome = "the page lacks the good run"
        yield Found(f"probes/{name}", "report", what, outcome)
    path.write_bytes(whole)
