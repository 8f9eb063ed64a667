"""Move a tree from the flat layout of c9ee78b to the folders behind doors: one table, two steps.

    python docs/moves.py files      # git mv, nothing else: commit this alone, so that git follows every file
    python docs/moves.py imports    # imports, module names and paths in comments and papers
    ruff check --select I --fix . ; ruff format .

Work that was begun on the flat layout is carried over by running both steps on its branch before it is merged. Needs
Python alone. Names that a door does not hand out yet are reported by `make check`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOMS = ("shards", "ingest", "xtra", "jobs")

# folder -> its files: "new" keeps its name, "old -> new" changes it. Tests follow their module.
FOLDERS = {
    "shards": "remote -> store_remote, ranged -> store_ranged",
    "shards/pixels": "image, jpeg, crop, entropy, native, phash, isolate",
    "shards/stream": "stream, order, reader, index, slab, cache, mixture, encoded -> sample",
    "ingest/http": "fetch -> fetcher, fetch_config -> config, schedule, hosts, transfer, robots, resolver, outage, "
    "address",
    "ingest/lists": "source, rows, tables, keys, lists -> files",
    "ingest/select": "select -> apply, duplicates, kept -> columns",
    "ingest/dry_run": "dry_run, forecast",
    "ingest/sets": "sets -> folders, in_place, pictures, benchmarks, import_benchmark",
    "xtra": "slots -> batch_memory, ranks -> distributed",
    "xtra/probe": "probe, probe_config -> config, encoders, features, augmented -> augmented_features, heads, "
    "quick -> knn_logreg, evaluate, probe_result -> result, leakage -> overlap, official_probe, official_evaluation, "
    "unfinished -> resume",
    "xtra/official": "official -> weights, unpickle, export",
    "xtra/run": "run_folder -> folder, checkpoint, saver -> checkpoint_writer, killers -> poison, sinks, meter",
    "jobs": "simd -> pillow_simd, live -> ingest_display, accounting -> link_counts, probing -> probe_verb",
    "jobs/report": "report -> scaling, probe_report -> probes, document -> html, ingest_page -> dataset_page, "
    "paper -> published, settings -> comparable, charts, findings, tables, ledger, survey, peek",
    "jobs/cluster": "cluster -> group, units -> ingest",
    "jobs/lab": "scale, suite, follow, probes -> existing",
    "jobs/bench/gpu": "gpu -> bench, gpu_checks -> checks, gpu_data -> data, gpu_floor -> floor, gpu_step -> step, "
    "gpu_table -> table",
    "jobs/bench/peers": "peers -> environments, stream_peers -> stream, decode_peer -> decode",
}
WHOLE = {  # what is not one Python file of a room
    "ingest/layouts": "ingest/sets/layouts",
    "shards/crop.c": "shards/pixels/crop.c",
    "shards/entropy.c": "shards/pixels/entropy.c",
    "jobs/recipes.py": "xtra/recipes.py",
    "tests/shards/datasets.py": "tests/shards/made_datasets.py",
    "tests/shards/ranks.py": "tests/shards/stream/ranks.py",
    "tests/shards/stream_soak.py": "tests/shards/stream/stream_soak.py",
    "tests/ingest/benchmark_copies.py": "tests/ingest/sets/benchmark_copies.py",
    "tests/xtra/timm_files.py": "tests/xtra/timm_files.py",
    "tests/jobs/run_folders.py": "tests/jobs/run_folders.py",
}
# test -> folder and name, where it does not follow from its module's
TESTS = {
    "shards/pixels": "crop, entropy, image, in_flight, jpeg, phash",
    "shards/stream": "cache, elastic, mixture, order, reader, stream, stream_damage, stream_soak",
    "ingest/http": "fetch -> fetcher, guard, hostile, hosts, manners, robots",
    "ingest/lists": "keys, lists -> list_files, source",
    "ingest/select": "duplicates, select",
    "ingest/dry_run": "dry_run",
    "ingest/sets": "benchmarks, in_place, sets -> class_folders",
    "xtra/probe": "encoders, heads, leakage -> overlap, official_probe, probe, quick -> knn_logreg",
    "xtra/official": "official -> official_weights, parity",
    "xtra/run": "checkpoint, killers -> poison, sinks",
    "xtra": "",
    "jobs": "live -> ingest_display",
    "jobs/report": "ingest_page -> dataset_page, ledger, paper -> published, peek, probe_report, report",
    "jobs/cluster": "cluster, units -> ingest_units",
    "jobs/lab": "follow, scale, suite",
    "jobs/bench": "bench_bucket, bench_checkpoint, bench_decode, bench_fetch, bench_gpu, bench_gpu_decode, "
    "bench_memory, bench_origin, bench_precision, bench_probe, bench_select, bench_stream, bench_train",
}
ALSO_TESTS = {"tests/jobs/test_recipes.py": "tests/xtra/test_recipes.py"}
# Modules whose door is used as the module was: `from xtra import probe; probe.run(...)`.
AS_BEFORE = {"shards.stream", "ingest.select", "ingest.dry_run", "xtra.probe", "xtra.official", "jobs.cluster"}
# What shards.manifest handed on of shards.dataset: imported from where it is defined.
DATASET = {
    *("Commit", "DatasetInfo", "FORMAT", "Generation", "INDEX_SCHEMA", "KEPT", "PLAN_SCHEMA", "commit"),
    *("committed_units", "numbers", "planned_units", "read_commit", "read_commits", "read_generations"),
    *(
        "read_info",
        "read_plan",
        "read_table",
        "table_bytes",
        "unit_name",
        "write_generation",
        "write_info",
        "write_plan",
    ),
}
SENT = {"sent"}  # of xtra.slots, into xtra.device


def _pairs(table: dict[str, str]) -> list[tuple[str, str, str]]:
    """Of a table: (folder, old name, new name)."""
    rows = []
    for folder, names in table.items():
        for name in filter(None, (part.strip() for part in names.split(","))):
            old, _, new = name.partition(" -> ")
            rows.append((folder, old, new or old))
    return rows


def _home(folder: str) -> str:
    """Where the files of a new folder were: flat in their room, or in jobs/bench."""
    return "jobs/bench" if folder.startswith("jobs/bench/") else folder.split("/")[0]


def paths() -> dict[str, str]:
    """Old path -> new path, of every file and folder that moves."""
    moved = {f"{_home(folder)}/{old}.py": f"{folder}/{new}.py" for folder, old, new in _pairs(FOLDERS)}
    tests = {
        f"tests/{folder.split('/')[0]}/test_{old}.py": f"tests/{folder}/test_{new}.py"
        for folder, old, new in _pairs(TESTS)
    }
    return {old: new for old, new in (moved | WHOLE | tests | ALSO_TESTS).items() if old != new}


def modules() -> dict[str, str]:
    """Old module -> new module."""
    moved = {}
    for old, new in paths().items():
        if old.endswith(".py") and not old.startswith("tests/"):
            moved[_dotted(old)] = _dotted(new)
    for name in ("arrays", "cars", "folders", "found", "lists", "parquet", "wilds"):
        moved[f"ingest.layouts.{name}"] = f"ingest.sets.layouts.{name}"
    return moved | {"ingest.layouts": "ingest.sets.layouts"}


def _dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def _helpers() -> dict[str, str]:
    """Modules that tests import from other tests, by their bare names."""
    moved = {Path(old).stem: Path(new).stem for old, new in paths().items() if old.startswith("tests/")}
    return {old: new for old, new in moved.items() if old != new}


MODULES = modules()
DOORS = {".".join(folder.split("/")) for folder in FOLDERS if "/" in folder}


def door_of(module: str) -> str | None:
    """The door that `module` is behind."""
    return next((door for door in sorted(DOORS, key=len, reverse=True) if module.startswith(f"{door}.")), None)


# ---- step 1 ----


def move_files() -> None:
    for old, new in paths().items():
        if Path(old).exists():
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["git", "mv", old, new], check=True)
        elif not Path(new).exists():
            print(f"{old}: is not here")


# ---- step 2 ----


class Source:
    """One Python file, whose imports and the names that they bind are to be rewritten."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, path.read_text().splitlines(keepends=True)
        self.tree = ast.parse("".join(self.lines))
        self.is_test = path.parts[0] not in ROOMS
        self.module = "" if self.is_test else _dotted(str(path)).removesuffix(".__init__")
        self.inside = door_of(f"{self.module}.x")
        names = [node for node in ast.walk(self.tree) if isinstance(node, ast.Name)]
        arguments = {node.arg for node in ast.walk(self.tree) if isinstance(node, ast.arg)}
        self.taken = arguments | {node.id for node in names}
        self.stored = arguments | {node.id for node in names if isinstance(node.ctx, ast.Store)}
        self.renamed: dict[str, str] = {}  # a module's name in this file -> its new one
        self.manifest: ast.ImportFrom | None = None  # the line that binds shards.manifest
        self.edits: dict[int, tuple[int, list[str]]] = {}  # first line -> last line, what takes their place

    def rewrite(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                new = [self.whole(alias) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                new = [self.part(node, alias) for alias in node.names]
            else:
                continue
            if new != [ast.unparse(self.single(node, alias)) for alias in node.names]:
                self.edits[node.lineno] = (node.end_lineno or node.lineno, self.indented(node, new))
        self.rename()
        for first, (last, new) in sorted(self.edits.items(), reverse=True):
            self.lines[first - 1 : last] = new
        self.path.write_text("".join(self.lines))

    @staticmethod
    def single(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
        return ast.Import([alias]) if isinstance(node, ast.Import) else ast.ImportFrom(node.module, [alias], 0)

    @staticmethod
    def indented(node: ast.stmt, lines: list[str]) -> list[str]:
        return [" " * node.col_offset + line + "\n" for line in lines]

    def whole(self, alias: ast.alias) -> str:
        """`import NAME`."""
        if alias.name in _helpers() and not alias.asname:
            self.renamed[alias.name] = _helpers()[alias.name]
        name = MODULES.get(alias.name, _helpers().get(alias.name, alias.name))
        return f"import {name}" + (f" as {alias.asname}" if alias.asname else "")

    def part(self, node: ast.ImportFrom, alias: ast.alias) -> str:
        """`from SOURCE import NAME`: of a module that moved, or a module itself."""
        source, name, asname = node.module or "", alias.name, alias.asname
        full = f"{source}.{name}"
        if full in MODULES:
            source, name = self.led_to(full).rsplit(".", 1)
            if asname is None and name != alias.name:
                if alias.name in self.stored or name in self.taken:
                    print(f"{self.path}:{node.lineno}: {name}, once {alias.name}, is a variable here: kept by `as`")
                    asname = alias.name
                else:
                    self.renamed[alias.name] = name
        elif source == "shards.manifest" and name in DATASET and self.module != "shards.manifest":
            source = "shards.dataset"
        elif source == "xtra.slots" and name in SENT:
            source = "xtra.device"
        elif source in MODULES:
            door = door_of(MODULES[source])
            source = door if door and door != self.inside and not self.is_test else MODULES[source]
        source = _helpers().get(source, source)
        if full == "shards.manifest" and asname is None:
            self.manifest = node
        return f"from {source} import {name}" + (f" as {asname}" if asname else "")

    def led_to(self, module: str) -> str:
        """The module where it is now, or its door where that is used as the module was."""
        door = door_of(MODULES[module])
        return door if door and module in AS_BEFORE and door != self.inside and not self.is_test else MODULES[module]

    def rename(self) -> None:
        """The uses of modules with new names, and `manifest.NAME` of what shards.dataset defines."""
        spots, bare = [], set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Name) and node.id in self.renamed:
                spots.append((node, self.renamed[node.id]))
            elif (
                self.manifest is not None
                and isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and (node.value.id, node.attr in DATASET) == ("manifest", True)
            ):
                spots.append((node, node.attr))
                bare.add(node.attr)
        for node, name in sorted(spots, key=lambda spot: (spot[0].lineno, spot[0].col_offset), reverse=True):
            raw = self.lines[node.lineno - 1].encode()
            self.lines[node.lineno - 1] = (raw[: node.col_offset] + name.encode() + raw[node.end_col_offset :]).decode()
        if bare and self.manifest is not None:
            first, last = self.manifest.lineno, self.manifest.end_lineno or self.manifest.lineno
            last, new = self.edits.get(first, (last, self.lines[first - 1 : last]))
            extra = self.indented(self.manifest, [f"from shards.dataset import {', '.join(sorted(bare))}"])
            self.edits[first] = (last, [*new, *extra])


def rename_in_text(path: Path) -> None:
    """Paths (`shards/image.py`) and, in strings and comments, modules (`shards.image`)."""
    text = path.read_text()
    for old, new in paths().items():
        text = re.sub(rf"(?<![\w/]){re.escape(old)}(?![\w/])", new, text)
    keep = AS_BEFORE | {"ingest.lists", "ingest.sets", "jobs.report", "jobs.bench.gpu", "jobs.bench.peers"}
    lines = text.splitlines(keepends=True)
    for at, line in enumerate(lines):
        if old := re.match(r"\s*from ([\w.]+) import ", line):  # in a script that a test holds as text
            lines[at] = line.replace(old[1], MODULES.get(old[1], old[1]) if old[1] not in keep else old[1], 1)
            continue
        for old, new in MODULES.items():
            if old not in keep:
                line = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)(?=[\"'`: .)])(?!\.(py|html|ckpt))", new, line)
        lines[at] = line
    path.write_text("".join(lines))


def main() -> None:
    if sys.argv[1:] == ["files"]:
        move_files()
    elif sys.argv[1:] == ["imports"]:
        tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True).stdout.split()
        for path in (Path(name) for name in tracked if name != "docs/moves.py" and Path(name).exists()):
            if path.suffix == ".py":
                Source(path).rewrite()
            if path.suffix in (".py", ".c", ".md", ".toml") or path.name in ("Makefile", ".gitignore"):
                rename_in_text(path)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
