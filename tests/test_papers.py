"""What the papers name exists: files, make targets, verbs; and the licence goes with the package."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from places import ROOT

from jobs import cli
from jobs.verbs import VERBS

PAPERS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("*.cff"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.yml")]
)
ENDINGS = r"(?:py|pyi|c|md|svg|png|toml|lock|cff|yml|yaml)"
PATTERNS = {"KEY.jpg", "KEY.png", "KEY.webp", "utils.py"}  # names of no file of this tree


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


def exists(name: str, beside: Path) -> bool:
    return (ROOT / name).exists() or (beside.parent / name).exists()


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_paper_names_exists(paper: Path) -> None:
    text = paper.read_text()
    named = set(re.findall(rf"(?<![\w/.:<>*-])((?:[\w.-]+/)+[\w.-]*\.{ENDINGS})(?![\w/])", text))
    named |= set(re.findall(rf"`([\w.-]+\.{ENDINGS})`", text)) - PATTERNS
    named |= {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    by_name = {Path(path).name for path in tracked()}
    missing = [name for name in sorted(named) if not exists(name, paper) and ("/" in name or name not in by_name)]
    assert missing == []


def headings(paper: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    text = re.sub(r"^```.*?^```", "", paper.read_text(), flags=re.M | re.DOTALL)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("paper", PAPERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_section_that_a_paper_links_to_is_there(paper: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)#([^)]+)\)", paper.read_text())
    missing = [f"{name}#{at}" for name, at in links if at not in headings(paper.parent / name if name else paper)]
    assert missing == []


def test_the_readme_is_short_and_its_layout_names_every_folder() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 180
    for name in ("README.md", "docs/layout.md", "docs/stream.md", "docs/train.md", "docs/probe.md"):
        assert [line for line in (ROOT / name).read_text().splitlines() if len(line) > 130] == [], name
    layout = text[text.index("## Layout") :].split("```")[1]
    folders = {path.split("/")[0] for path in tracked() if "/" in path and path[0] != "."}
    assert {line.split("/")[0] for line in layout.strip().splitlines()} == folders


def test_every_file_of_the_layout_is_there_and_every_room_file_is_in_the_layout() -> None:
    layout = (ROOT / "docs" / "layout.md").read_text().split("```")[1]
    named = set(re.findall(r"\b(\w+\.(?:py|c|h))\b", layout))
    rooms = {path for path in tracked() if path.split("/")[0] in ("shards", "ingest", "xtra", "jobs")}
    there = {Path(path).name for path in rooms if path.endswith((".py", ".c", ".h"))}
    assert named - there - {"test_fall.py", "test_house.py", "moves.py"} == set()
    hidden = {
        "__init__.py",
        "__main__.py",
        "crop.py",
        "entropy.py",
        "native.py",
        "door.py",
    }  # said with their .c, or small
    listed = [path for path in rooms if path.endswith(".py") and "/bench/" not in path and "/layouts/" not in path]
    assert {Path(path).name for path in listed} - named - hidden == set()


def test_every_target_and_verb_that_a_paper_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for paper in PAPERS:
        text = paper.read_text()
        used = {a or b for a, b in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.M)}
        assert used - targets == set(), paper.name
        verbs = {a or b for a, b in re.findall(r"^xtra ([a-z]+)|`xtra ([a-z]+)", text, re.M)}
        assert verbs - set(VERBS) == set(), paper.name


def commands(paper: Path) -> list[list[str]]:
    """The lines of a paper's code blocks that begin with `xtra`, as words, without remarks and what is left out."""
    blocks = paper.read_text().split("```")[1::2]
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [
        line.partition("#")[0].removeprefix("$ ").split() for line in lines if line.removeprefix("$ ")[:5] == "xtra "
    ]


@functools.cache
def flags(verb: str, first: str) -> frozenset[str]:
    """Those that the help of a verb names."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        cli.main([verb, *first.split(), "--help"])
    found = frozenset(re.findall(r"--[a-z][\w.-]*", said.getvalue()))
    assert "--json" in found, f"xtra {verb} {first} --help"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("paper", [p for p in PAPERS if p.suffix == ".md"], ids=lambda p: str(p.relative_to(ROOT)))
def test_every_flag_of_a_command_in_a_paper_is_one_of_its_verb(paper: Path) -> None:
    unknown = []
    for words in commands(paper):
        verb, rest = words[1], words[2:]
        if verb in ("submit", "deploy"):  # of another verb's words, which have tests of their own
            continue
        known = flags(verb, rest[0] if verb in ("train", "bench") and rest and rest[0][0] != "-" else "")
        given = {word.strip("[]").partition("=")[0] for word in rest if word.strip("[]").startswith("--")}
        unknown += [f"xtra {verb} {flag}" for flag in sorted(given - known)]
    assert unknown == []


def test_the_licence_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text().split("\n")[1]
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_lock_takes_no_file_whose_hash_it_does_not_know() -> None:
    """torch apart, of which people bring their own build."""
    entries = re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text().strip())
    assert len(entries) > 100
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+==\S+", entry), entry.split("\n")[0]
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.split("\n")[0]
    assert not [entry for entry in entries if entry.startswith("torch==")]
    assert "--require-hashes -r requirements.lock" in (ROOT / "Makefile").read_text()
