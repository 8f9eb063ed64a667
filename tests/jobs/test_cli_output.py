"""What the command prints: JSON that parses, a bar on a terminal, lines elsewhere."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

from jobs import cli
from jobs.progress import Progress


def test_json_has_no_number_that_json_does_not_have():
    @dataclass(frozen=True)
    class Inner:
        loss: float

    value = {"a": (Inner(float("nan")), Inner(1.5)), "path": Path("x"), 3: None, "ok": True}
    assert json.loads(json.dumps(cli.plain(value), allow_nan=False)) == {
        "a": [{"loss": None}, {"loss": 1.5}],
        "path": "x",
        "3": None,
        "ok": True,
    }


def test_progress_is_lines_where_there_is_no_terminal():
    out = io.StringIO()
    with Progress("links", out, every=0.0) as progress:
        progress(10, 40, note="8 kept")
        progress(40, 40)
    first, second = out.getvalue().splitlines()
    assert first.startswith("10 of 40 (25.0 %) links")
    assert first.endswith("8 kept")
    assert second.startswith("40 of 40 (100.0 %) links")


def test_progress_is_quiet_between_its_lines():
    out = io.StringIO()
    with Progress("links", out, every=60.0) as progress:
        for done in range(100):
            progress(done, 100)
    assert out.getvalue() == ""


def test_progress_is_a_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    with Progress("images", out) as progress:
        progress(0, 4, "encoding")
        progress(4, 4, "encoding", note="fine")
    assert "encoding: 100%" in out.getvalue()
    assert "4/4" in out.getvalue()
