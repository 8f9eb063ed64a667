"""The rules of the house (docs/design.md): no circles, nothing climbs, nobody reaches past a door, no file is a maze.

All of it is read from the source; only the last test imports anything. `make check` runs this file.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

ROOMS = ("shards", "ingest", "xtra", "jobs")
MAY_IMPORT = {"shards": (), "ingest": ("shards",), "xtra": ("shards",), "jobs": ("shards", "ingest", "xtra")}
HEAVY = {"shards": {"torch", "ray", "pycurl"}, "ingest": {"torch", "ray"}, "xtra": {"ray", "pycurl"}}
FILES = 24  # at one level
LINES = 460  # of a file
FUNCTION = 70  # lines
LOOP = ("xtra/train.py", "run")  # the one visible loop may be longer


@cache
def modules() -> dict[str, Path]:
    """Every module of the four rooms."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@cache
def doors() -> dict[str, dict[str, str]]:
    """Every door: what it hands out, and the module that each name is of."""
    found = {}
    for stub in (stub for room in ROOMS for stub in sorted((ROOT / room).rglob("__init__.pyi"))):
        package = ".".join(stub.parent.relative_to(ROOT).parts)
        lines = [line for line in tree(stub).body if isinstance(line, ast.ImportFrom)]
        assert len(lines) == len(tree(stub).body), stub
        assert all(line.level == 1 for line in lines), stub
        found[package] = {
            alias.name: f"{package}.{line.module or alias.name}" for line in lines for alias in line.names
        }
    return found


def door_of(module: str) -> str | None:
    """The innermost door that a module is behind."""
    behind = [door for door in doors() if module.startswith(f"{door}.")]
    return max(behind, key=len, default=None)


@cache
def imports() -> list[tuple[str, str, str, str]]:
    """(importer with its line, importer, module or door as written, name or "") of every import between our files, also
    those inside functions and those of types."""
    found = []
    for module, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import):
                pairs = [(alias.name, "") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                pairs = [(node.module, alias.name) for alias in node.names]
            else:
                continue
            at = f"{path.relative_to(ROOT)}:{node.lineno}"
            found += [(at, module, source, name) for source, name in pairs if source.split(".")[0] in ROOMS]
    return found


def defined_in(source: str, name: str) -> str:
    """The module that an import really leads to: through a door, into the file behind it."""
    if source in doors() and name:
        return doors()[source].get(name, f"{source}.{name}")
    return f"{source}.{name}" if f"{source}.{name}" in modules() else source


def test_no_circle() -> None:
    graph = defaultdict(set)
    for _, importer, source, name in imports():
        graph[importer].add(defined_in(source, name))
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle: " + " -> ".join((*way[way.index(module) :], module))
        if module not in done:
            for other in sorted(graph[module] - {module}):
                visit(other, (*way, module))
            done.add(module)

    for module in modules():
        visit(module, ())
    assert len(done) == len(modules()) > 150


def test_nothing_climbs() -> None:
    climbing = [
        (at, source)
        for at, importer, source, _ in imports()
        if (room := importer.split(".")[0]) != source.split(".")[0] and source.split(".")[0] not in MAY_IMPORT[room]
    ]
    assert climbing == []


def test_nobody_reaches_past_a_door() -> None:
    past = []
    for at, importer, source, name in imports():
        door = source if source in doors() else door_of(source)
        if door is None or importer == door or importer.startswith(f"{door}."):
            continue
        if source != door or (name and name not in doors()[door]):
            past.append(f"{at}: {source} {name}: {door} does not hand that out")
    assert past == []


def test_a_door_hands_out_what_is_used_from_outside_and_nothing_else() -> None:
    used: dict[str, set[str]] = defaultdict(set)
    for _, importer, source, name in imports():
        if source in doors() and not importer.startswith(f"{source}."):
            used[source].add(name)
    for module, path in modules().items():  # `from xtra import probe`, then `probe.run`
        bound = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
            if f"{node.module}.{alias.name}" in doors() and not module.startswith(f"{node.module}.{alias.name}.")
        }
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in bound:
                used[bound[node.value.id]].add(node.attr)
    used["jobs.bench.gpu"] |= {"Config", "run"}  # a subject of `xtra bench`, which looks them up by name
    assert {door: set(names) for door, names in doors().items()} == {door: used[door] for door in doors()}


def test_a_door_imports_nothing_until_asked_and_then_has_all_it_names() -> None:
    script = f"""
import sys
import {", ".join(sorted(doors()))}
doors = [sys.modules[name] for name in {sorted(doors())!r}]
for door in doors:
    assert not hasattr(door, "no_such_name")
    assert sorted(door.__all__) == sorted(dir(door))
early = [name for name in sys.modules if name.rpartition(".")[0] in {set(doors())!r} and sys.modules[name] not in doors]
assert not early and not {{"torch", "ray", "pycurl", "pyarrow", "numpy"}} & set(sys.modules), early
for door in doors:
    for name in door.__all__:
        assert getattr(door, name) is not None
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_name_of_a_door_is_no_other_module_of_its_folder() -> None:
    """Python puts a submodule into its package under its own name as soon as anybody imports it."""
    for door, names in doors().items():
        for name, home in names.items():
            assert home == f"{door}.{name}" or f"{door}.{name}" not in modules(), f"{door}: {name} is two things"


def test_levels_files_and_functions_are_small() -> None:
    for folder in {path.parent for path in modules().values()}:
        level = [path for path in folder.iterdir() if path.suffix in (".py", ".c", ".h")]
        assert len(level) <= FILES, f"{folder.relative_to(ROOT)}: {len(level)} files"
    for path in [*modules().values(), *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "docs").rglob("*.py"))]:
        where = str(path.relative_to(ROOT))
        assert len(path.read_text().splitlines()) <= LINES, f"{where} is longer than {LINES} lines"
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (where, node.name) != LOOP:
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                assert length <= FUNCTION, f"{where}: {node.name} has {length} lines"


def test_test_files_have_unique_names() -> None:
    """pytest imports them by their bare names, and so do they their helpers."""
    names = [path.stem for path in (ROOT / "tests").rglob("*.py") if path.stem != "conftest"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("room", sorted(HEAVY))
def test_every_config_of_a_room_comes_without_what_the_room_may_not_have(room: str) -> None:
    """Also through what it imports from other rooms and libraries: `xtra ingest` starts without torch."""
    holding = sorted(
        module
        for module, path in modules().items()
        if module.split(".")[0] == room
        and any(isinstance(node, ast.ClassDef) and node.name.endswith("Config") for node in ast.walk(tree(path)))
    )
    assert holding
    script = f"import sys, {', '.join([room, *holding])}\nprint(*({HEAVY[room]!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")
