"""What the command prints: JSON that parses, a bar on a terminal, lines elsewhere."""

import gc
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from made_datasets import jpeg, make_dataset

from jobs import cli, verbs
from jobs.progress import Progress
from shards import store
from shards.manifest import read_manifest


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


ESCAPE = "\x1b]0;owned\x07\x1b[2J"


def test_nothing_from_outside_moves_the_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Names of members, folders, lists and sets, in results, problems, errors and progress."""
    tars, out = tmp_path / "tars", str(tmp_path / "out")
    tars.mkdir()
    with tarfile.open(tars / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        for number in range(3):
            body, member = jpeg(number), tarfile.TarInfo(f"k{number}{ESCAPE}.jpg")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    codes = [cli.main(["import", str(tars), "--in-place", "--out", out, "--filter.min-side", "8"])]
    (tmp_path / "folder" / f"cat{ESCAPE}").mkdir(parents=True)
    (tmp_path / "folder" / f"cat{ESCAPE}" / "0.jpg").write_bytes(jpeg(0))
    codes.append(cli.main(["import", str(tmp_path / "folder"), "--out", f"{out}2", "--filter.min-side", "8"]))
    with (tars / "a.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"x" * 200)
    codes += [cli.main([verb, out]) for verb in ("peek", "check", "status")]
    codes += [cli.main(["check", f"{tmp_path}/{ESCAPE}"]), cli.main([f"verb{ESCAPE}"])]
    assert codes[0] == codes[1] == 0
    assert codes[-2:] == [2, 2]
    with Progress("things" + ESCAPE, every=0) as progress:
        progress(1, 2, f"what{ESCAPE}", f"note{ESCAPE}")
    said = "".join(capsys.readouterr())
    assert "owned" in said
    assert not {c for c in said if not c.isprintable()} - {"\n"}


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (MemoryError(), "there is too little memory"),
        (ImportError("x.so: failed to map segment"), "too little memory to load a library"),
        (SystemError("error return without exception set"), "probably for lack of memory: allow more (ulimit -v)"),
        (RuntimeError("can't start new thread"), "no thread can be started"),
    ],
)
def test_a_machine_that_is_too_small_is_said_in_one_line(
    error: Exception, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(call: object) -> None:
        raise error

    monkeypatch.setitem(verbs.VERBS, "status", verbs.Verb("", "", fail))
    assert cli.main(["status", "/nowhere"]) == 2
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_select_says_what_the_bare_name_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = str(tmp_path / "data")
    make_dataset(Path(data), [14, 10])

    def said(*words: str) -> list[str]:
        assert cli.main(["select", *words]) == 0
        return [line.strip() for line in capsys.readouterr().out.splitlines()[-2:]]

    first, meaning = said(data, "--subset", "8")
    assert meaning == f"{data} still means {data}@1; this one has no number: name it as above"
    assert read_manifest(first.split()[1]).samples < 24
    rules = (data, "--rules.near-distance", "0", "--rules.min-per-class", "2")
    second, meaning = said(*rules)
    assert meaning == f"{data} now means this version, {data}@2; until now it meant {data}@1"
    assert read_manifest(data).address == second.split()[1]
    still = f"{data} still means {data}@2; this one has no number: name it as above"
    assert said(f"{data}@1", "--subset", "8") == [first, still]
    assert said(*rules) == [second, f"{data} means this version, {data}@2, as before"]
    _, meaning = said(first.split()[1], "--rules.near-distance", "0")  # rules on a subset are a subset, too
    assert meaning == still


def test_an_import_speaks_of_pictures_and_says_where_it_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(6):
        path = tmp_path / "set" / f"class{number % 3}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number) if number else b"no picture")
    words = ["import", str(tmp_path / "set"), "--out", str(tmp_path / "data"), "--unit", "4"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    assert "link" not in said.out + said.err
    assert "\npictures  " in "\n" + said.out
    assert "3 classes: class0, class1, class2" in said.out
    (tmp_path / "data/commits/000001.json").unlink()  # as where it was stopped before its second unit
    assert cli.main(words) == 0
    assert capsys.readouterr().err.splitlines()[0] == "going on at 4 of 6 pictures"


def test_what_cannot_be_written_is_named_as_it_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shards.store.publish", full)
    for write in (store.clock, store.check_writable):
        with pytest.raises(store.StoreError) as refused:
            write(str(tmp_path))
        assert str(refused.value) == f"{tmp_path}: cannot write: No space left on device"


def test_an_ingest_that_is_refused_leaves_garbage_collection_on(tmp_path: Path):
    assert cli.main(["ingest", "--urls", str(tmp_path / "none.txt"), "--out", str(tmp_path / "d")]) == 2
    assert gc.isenabled()
    assert cli.main(["ingest", "--no-such-flag"]) == 2
    assert gc.isenabled()
