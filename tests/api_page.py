"""docs/api.md: the functions that it lists, its snippets, and the folder in which they run."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from made_datasets import jpeg
from places import ROOT

from jobs import demo

PAGE = (ROOT / "docs" / "api.md").read_text()
PICTURES = 250


def listed() -> dict[str, list[str]]:
    """Room -> the names that the page's headings have, sorted."""
    names = [re.match(r"`(\w+)\.(\w+)", title) for title in re.findall(r"^### (.*)$", PAGE, re.MULTILINE)]
    assert all(names), "every third heading is a name"
    found: dict[str, list[str]] = {}
    for room, name in sorted(match.groups() for match in names if match):
        found.setdefault(room, []).append(name)
    return found


def snippets() -> dict[str, str]:
    """The snippet of every heading, in the page's order."""
    parts = re.split(r"^### `(\w+\.\w+)", PAGE, flags=re.MULTILINE)[1:]
    found = {
        name: re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.M) for name, text in zip(*[iter(parts)] * 2)
    }
    assert all(len(one) == 1 for one in found.values()), found
    return {name: one for name, (one,) in found.items()}


@contextmanager
def folder(at: Path) -> Iterator[Path]:
    """What the page asks for, made and served as the demo does, until the end of the block."""
    for number in range(PICTURES):
        path = at / "mine" / f"digit-{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number))
    (at / "files").mkdir()
    demo._copy(at / "mine", at / "files" / "pictures")
    with demo._origin(at / "files") as port:
        demo._write_list(at / "files", port)
        yield at / "files"


def run_all(python: str | os.PathLike[str], at: Path, **env: str) -> dict[str, tuple[float, str]]:
    """Every snippet in a process of its own, as it stands: wall seconds, and what it printed."""
    done: dict[str, tuple[float, str]] = {}
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for name, text in snippets().items():
        begun = time.monotonic()
        ran = subprocess.run([python, "-c", text], cwd=at, env=clean | env, capture_output=True, text=True, timeout=250)
        assert ran.returncode == 0, f"{name}: {ran.stderr}"
        done[name] = time.monotonic() - begun, ran.stdout
    return done
