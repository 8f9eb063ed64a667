"""What a dataset, a run, a study or a folder of vectors holds, as plain values that must be equal after any death: no
times, no names of attempts. And which of its files belong to nothing."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shards import check, dataset, store
from shards.manifest import read_manifest

ATTEMPT = re.compile(r"(\d{6,})-([A-Za-z0-9]+)(\.tar|\.parquet)")
TIMES = ("fetched_at", "elapsed_ms")  # of an index
FOLDERS = ("links", "shards", "thumbs", "commits", "generations", "manifests", "versions", "events")
OF_A_RUN = ("attempts", "metrics", "events", "checkpoints", "probes", "probes-unfinished")
SAID = ("events", "attempts", "metrics")  # one a life of the command: their number may differ, halves may not


def sha(url: str) -> str:
    return hashlib.sha256(store.read(url)).hexdigest()[:16]


# --- datasets ---


def dataset_state(url: str) -> dict[str, Any]:
    """Raises where the dataset is not finished or not sound."""
    found = check.run(check.Config(url, jobs=1, decode=True))
    version = read_manifest(url)
    units = dataset.committed_units(url)
    commits = dataset.read_commits(url, units)
    numbered = _versions(url)
    info = dataset.read_info(url)
    return {
        "problems": [str(problem) for problem in found.problems],
        "counts": [version.links, version.kept, version.samples, version.reasons, version.deselected],
        "shards": [[s.unit, s.tar_bytes, s.tar_sha256, s.links, s.kept, s.selected] for s in version.shards],
        "commits": [[c.unit, c.tar_sha256, c.links, c.kept, c.reasons, c.supersedes] for c in commits],
        "rows": [_rows(store.join(url, "shards", c.index), TIMES) for c in commits],
        "thumbs": [_thumbs(store.join(url, "thumbs", f"{c.unit:06d}-{c.attempt}.parquet")) for c in commits],
        "plan": [sha(store.join(url, "links", name)) for name in _whole(store.join(url, "links"))],
        "versions": [[n, v["why"], numbered.get(v["parent"], v["parent"])] for n, v in _read_versions(url)],
        "generations": [[g.number, g.parent, g.first_unit, g.units] for g in dataset.read_generations(url)],
        "info": [info.list_name, info.list_sha256, info.units, info.unit, info.config_digest],
    }


def _read_versions(url: str) -> list[tuple[int, dict[str, Any]]]:
    numbers = dataset.numbers(url, "versions", ".json")
    return [(n, store.read_json(store.join(url, "versions", f"{n:06d}.json"))) for n in numbers]


def _versions(url: str) -> dict[str, str]:
    """Digest -> number of every version: a digest covers the names of attempts, which are of chance."""
    return {version["digest"]: f"version {number}" for number, version in _read_versions(url)}


def _thumbs(url: str) -> list[list[Any]]:
    """[key, row, reason, detail, digest of the picture] of each; [] where there is no such table."""
    if not store.exists(url):
        return []
    rows = dataset.read_table(url).to_pylist()
    return [[*list(row.values())[:4], row["jpeg"] and hashlib.sha256(row["jpeg"]).hexdigest()[:16]] for row in rows]


def without_suspects(want: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """What is wanted, without thumbnails that `got` has no picture of: what was being decoded when a process died is
    decoded apart by the next one, and not shown."""
    if "thumbs" not in want:
        return want
    pairs = [list(zip(wanted, found)) for wanted, found in zip(want["thumbs"], got["thumbs"])]
    missing = {(unit, wanted[0]) for unit, rows in enumerate(pairs) for wanted, found in rows if found[4] is None}
    thumbs = [
        [[*row[:4], None if (unit, row[0]) in missing else row[4]] for row in rows]
        for unit, rows in enumerate(want["thumbs"])
    ]
    return want | {"thumbs": thumbs}


def _rows(url: str, without: tuple[str, ...]) -> str:
    """A table's rows as one digest."""
    table = dataset.read_table(url)
    rows = table.drop_columns([name for name in without if name in table.column_names]).to_pylist()
    return hashlib.sha256(repr(rows).encode()).hexdigest()[:16]


def _whole(folder: str) -> list[str]:
    return [name for name in store.names(folder) if not name.startswith(".")]


def dataset_files(url: str) -> list[str]:
    """The names of its objects, those of winning attempts alike, those of others as they are."""
    winners = {c.unit: c.attempt for c in dataset.read_commits(url, dataset.committed_units(url))}
    numbered = _versions(url)
    found = []
    for folder in ("", *FOLDERS):
        for entry in store.entries(store.join(url, folder) if folder else url):
            match = ATTEMPT.fullmatch(entry.name)
            name = entry.name
            if match and folder in ("shards", "thumbs") and winners.get(int(match[1])) == match[2]:
                name = f"{match[1]}-WON{match[3]}"
            if folder == "manifests" and name.partition(".")[0] in numbered:
                name = numbered[name.partition(".")[0]] + "." + name.partition(".")[2]
            found.append(f"{folder}/{name}" if folder else name)
    return _but_said(found)


def _but_said(names: list[str]) -> list[str]:
    """Without whole files of which each life of the command adds some."""
    return sorted(
        name
        for name in names
        if "/." in f"/{name}" or not any(part in SAID for part in name.split("/")[:-1]) or not name.endswith(_ENDINGS)
    )


_ENDINGS = (".json", ".jsonl")


# --- runs ---


def run_state(url: str) -> dict[str, Any]:
    """Raises where nothing is committed."""
    from xtra.run import checkpoint, read_metrics

    problems: list[str] = []
    log = read_metrics(url, problems)
    checkpoints = {}
    for seen in checkpoint.committed(url):
        folder = checkpoint.checkpoint_folder(url, seen)
        commit = store.read_json(store.join(folder, "COMMIT.json"))
        said = {name.split("/")[1]: value["sha256"] for name, value in commit["files"].items()}
        for name, value in commit["files"].items():
            body = store.read(store.join(folder, name))
            assert len(body) == value["bytes"], f"{folder}/{name}: {len(body)} bytes, committed as {value['bytes']}"
            assert hashlib.sha256(body).hexdigest() == value["sha256"], f"{folder}/{name}: another sha256"
        checkpoints[str(seen)] = said | {"manifest": commit["manifest"]}
    config = store.read_json(store.join(url, "config.json"))
    probes = {}
    for name in _whole(store.join(url, "probes")):
        result = store.read_json(store.join(url, "probes", name))
        probes[name] = {key: value for key, value in result.items() if key != "seconds"}
    return {
        "config": config,
        "checkpoints": checkpoints,
        "log": [[m.samples_seen, m.loss, m.val_loss] for m in log],
        "problems": problems,
        "probes": probes,
        "unfinished": store.names(store.join(url, "probes-unfinished")),
    }


def study_state(url: str) -> dict[str, Any]:
    return {name: run_state(store.join(url, name)) for name in sorted(_folders(url))}


def _folders(url: str) -> list[str]:
    """The runs of a study."""
    return [name for name in store.names(url) if store.exists(store.join(url, name, "config.json"))]


def study_files(url: str) -> list[str]:
    inside = [f"{name}/{file}" for name in _folders(url) for file in run_files(store.join(url, name))]
    return sorted(inside + [entry.name for entry in store.entries(url)])


def run_files(url: str) -> list[str]:
    """The names of a run's files, those of the attempts that its COMMITs name alike, those of others as they are."""
    found = [entry.name for entry in store.entries(url)]
    for folder in OF_A_RUN:
        found += [f"{folder}/{name}" for name in _below(store.join(url, folder), depth=3)]
    named = {}
    for name in found:
        if name.endswith("/COMMIT.json"):
            folder = name.rpartition("/")[0]
            named[folder] = store.read_json(store.join(url, name))["attempt"]
    plain = []
    for name in found:
        parts = name.split("/")
        if parts[0] == "checkpoints" and len(parts) == 4 and parts[2] == f"{named.get('/'.join(parts[:2]), -1):06d}":
            parts[2] = "WON"
        plain.append("/".join(parts))
    return _but_said(plain)


def _below(folder: str, depth: int) -> list[str]:
    """Every file below a folder, also hidden ones."""
    files = [entry.name for entry in store.entries(folder)]
    if depth > 1:
        for name in set(store.names(folder)) - set(files):
            files += [f"{name}/{file}" for file in _below(store.join(folder, name), depth - 1)]
    return files


# --- vectors and other files ---


def files_state(url: str) -> dict[str, Any]:
    """Nothing in them is of chance: every byte counts."""
    return {name: sha(store.join(url, name)) for name in files_files(url)}


def vectors_state(url: str) -> dict[str, Any]:
    return {name: sha(store.join(url, name)) for name in _whole(url)}


def files_files(url: str) -> list[str]:
    return sorted(entry.name for entry in store.entries(url))


# --- after a rerun ---


def settle(kind: str, url: str, tmp: str) -> dict[str, Any]:
    """What is there after the last run of the command: its state, the files that are there, those that `xtra sweep`
    leaves, and what stays in the temporary folder."""
    state: Callable[[str], dict[str, Any]]
    state, files = {
        "dataset": (dataset_state, dataset_files),
        "run": (run_state, run_files),
        "study": (study_state, study_files),
        "vectors": (vectors_state, files_files),
        "files": (files_state, files_files),
    }[kind]
    found: dict[str, Any] = {"state": state(url), "files": files(url)}
    found["sweep"] = 0 if kind == "files" else sweep(url)
    found["kept"] = files(url)
    found["tmp"] = sorted(_left_in(Path(tmp)))
    return found


def sweep(url: str) -> int:
    """`xtra sweep`, a month later by the store's clock; its exit status."""
    from jobs import cli

    clock = store.clock
    store.clock = lambda folder: clock(folder) + 30 * 86_400
    try:
        return cli.main(["sweep", url])
    finally:
        store.clock = clock


def _left_in(tmp: Path) -> list[str]:
    """The files in a temporary folder, but for marks that say nothing any more and locks."""
    found = []
    for at, _, names in os.walk(tmp):
        found += [os.path.relpath(os.path.join(at, name), tmp) for name in names]
    return found


def put_back(disk: Path) -> None:
    """As if the death had been two days ago: a rerun takes what is young for the work of a process that lives."""
    then = time.time() - 2 * 86_400
    for at, folders, names in os.walk(disk, topdown=False):
        for name in names:
            if name.startswith(".aside-"):
                os.utime(os.path.join(at, name), (then, then), follow_symlinks=False)
        for name in folders:
            if name.startswith("xtra-"):
                os.utime(os.path.join(at, name), (then, then))
