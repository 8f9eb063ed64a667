"""What help says of every verb, and how numbers and slips are read: at once, without what only the work needs."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass

import pytest
from places import ROOT

from jobs import cli, flags, submit_verb
from jobs.flags import nearest
from jobs.verbs import VERBS

HEAVY = ("torch", "ray", "numpy", "pyarrow", "PIL", "fsspec", "webdataset")
LINES = [*VERBS, "train demo32"]  # of `xtra`, without their flags


@dataclass(frozen=True)
class Counts:
    samples: int = 0
    most: int | None = None
    stages: tuple[int, ...] = ()
    rate: float = 0.0


def test_help_and_a_mistyped_flag_load_nothing_that_only_the_work_needs() -> None:
    script = f"""
import contextlib, io, sys
from jobs import cli
for line in {LINES!r}:
    for flag in ("--help", "--no-such-flag"):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
            cli.main([*line.split(), flag])
        assert said.getvalue(), line
        assert not {set(HEAVY)!r} & set(sys.modules), (line, flag, {set(HEAVY)!r} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert (name, version[0].isdigit()) == ("xtra-pretrain", True)


@pytest.mark.parametrize("line", LINES)
def test_help_ends_with_examples_that_are_right(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    verb = VERBS[line.split()[0]]
    assert len(verb.examples) in (1, 2)
    with pytest.raises(SystemExit):
        cli.main([*line.split(), "--help"])
    out = capsys.readouterr().out
    assert out.endswith("\n\nexamples:\n" + "".join(f"  {example}\n" for example in verb.examples))
    for example in verb.examples:
        _, name, *words = shlex.split(example.partition(" > ")[0])
        assert VERBS[name] is verb
        if name == "submit":
            name, *words = words
        if name in ("deploy", "list"):
            assert name == "list" or cli.main([name, *words]) == 0
            continue
        said = ""
        try:
            submit_verb.check(name, VERBS[name], words)
        except ValueError as error:
            said = str(error)
        assert not said or "on a cluster that is a path inside" in said  # the words were right until then


def test_what_must_be_given_is_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    for line, names in {
        "train demo32": ("data", "out"),
        "ingest": ("urls", "out"),
        "probe": ("train", "eval"),
        "embed": ("checkpoint", "data", "out"),
        "scale": ("data", "out", "probe.train", "probe.eval"),
        "generate": ("checkpoint", "data", "out"),
    }.items():
        with pytest.raises(SystemExit):
            cli.main([*line.split(), "--help"])
        text = " ".join(part.strip("│ ") for part in capsys.readouterr().out.splitlines())
        for name in names:
            assert text.partition(f" --{name} STR ")[2].partition(" --")[0].endswith("(required)"), (line, name)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1e6", 10**6),
        ("100k", 10**5),
        ("1.5M", 1_500_000),
        ("2.5e3", 2500),
        ("3G", 3 * 10**9),
        ("-1", -1),
        ("1_000", 1000),
    ],
)
def test_a_whole_number_may_be_short(text: str, number: int) -> None:
    made = flags.parse(
        Counts, ["--samples", text, f"--most={text}", "--stages", "7", text, "--rate", "1e-3"], "xtra test"
    )
    assert made == Counts(number, number, (7, number), 1e-3)


@pytest.mark.parametrize("text", ["1e6.5", "1.5", "1e-3", "k", "1kk", "x", "1 000"])
def test_what_is_no_whole_number_is_one_clear_line(text: str) -> None:
    with pytest.raises(ValueError, match=f"--most is '{text}'; it must be a whole number, such as 1500, 1.5k or 1e6"):
        flags.parse(Counts, ["--most", text], "xtra test")
    assert flags.parse(Counts, ["--most", "None"], "xtra test") == Counts()


def test_the_nearest_flag_begins_alike_or_is_nested() -> None:
    there = ["--workers", "--order", "--optim.lr", "--optim.warmup-lr", "--lrs", "--probe.every"]
    for word, meant in {
        "--worker": "--workers",
        "--every": "--probe.every",
        "--ordr": "--order",
        "--lr": "--lrs",
    }.items():
        assert nearest(word, there) == f"; did you mean {meant}?"
    assert nearest("--lr", there[:4]) == "; did you mean --optim.lr?"
    assert nearest("--xyzzy", there) == ""
