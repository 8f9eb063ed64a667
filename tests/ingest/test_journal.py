"""What open units had fetched when their run ended is taken up by the next one, and by none that it does not belong to;
the result is that of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from ingesting import FETCH, MIXED, balance, rows_of, tars_of, write_list
from origin import Origin

from ingest import journal
from ingest.config import Config
from ingest.http import FetchConfig
from ingest.journal import Binding, Journal, replay
from ingest.record import Fetched, Link, Reason, Verdict
from ingest.run import run
from ingest.scratch import KEPT_SECONDS, scratch_folder

PATHS = [path for path in MIXED if path not in ("/status/500", "/status/429", "/flaky/1/x", "/truncated", "/reset")]
VOLATILE = ("fetched_at", "elapsed_ms", "attempts")
OURS = Binding("/d", 3, "p", "f")
LINKS = {row: Link(f"k{row}", f"http://a/{row}", (), row) for row in range(4)}


def steady(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in VOLATILE} for row in rows]


def stopped_at(config: Config, done: int) -> None:
    """Run until so many links are done, then stop as Ctrl-C does."""
    seen = [0]
    result = run(config, lambda p: seen.__setitem__(0, p.done), lambda: seen[0] >= done)
    assert result.stopped
    assert "the same command resumes them" in result.note


@pytest.fixture
def config(origin: Origin, tmp_path: Path) -> Config:
    """A list whose last link never comes to an end by itself within the test's patience."""
    paths = [*PATHS, "/slow/2/last.jpg"]
    urls = write_list(tmp_path / "list.txt", origin, paths)
    return Config(urls, str(tmp_path / "out"), unit=64, fetch=FETCH, scratch=str(tmp_path / "scratch"))


def test_a_stopped_run_is_taken_up_and_nothing_is_asked_for_twice(config: Config, origin: Origin) -> None:
    stopped_at(config, len(PATHS) - 1)
    (kept,) = Path(config.scratch or "").iterdir()
    assert kept.name.startswith("xtra-kept-")
    assert kept.stat().st_mode & 0o777 == 0o700
    before = origin.requests.copy()
    balance(run(config), len(PATHS) + 1)
    again = origin.requests - before
    assert sum(n for path, n in again.items() if path != "/robots.txt") <= 2, again
    assert list(Path(config.scratch or "").iterdir()) == [], "what was kept goes with the last unit"
    whole = replace(config, out=config.out + "-whole")
    run(whole)
    assert tars_of(config.out) == tars_of(whole.out)
    assert steady(rows_of(config.out)) == steady(rows_of(whole.out))


@pytest.mark.parametrize("harm", ["cut journal", "cut bodies", "changed bodies", "gone bodies", "changed line"])
def test_what_is_torn_or_changed_is_asked_for_again(config: Config, harm: str) -> None:
    stopped_at(config, len(PATHS) - 1)
    (unit,) = next(Path(config.scratch or "").iterdir()).iterdir()
    what, _, name = harm.partition(" ")
    file = unit / (name if name != "line" else "journal")
    body = bytearray(file.read_bytes())
    if what == "gone":
        file.unlink()
    else:
        if what == "changed":
            body[len(body) // 3 :: 977] = b"x" * len(body[len(body) // 3 :: 977])
        file.write_bytes(body if what == "changed" else body[: len(body) // 2])
    balance(run(config), len(PATHS) + 1)
    whole = replace(config, out=config.out + "-whole")
    run(whole)
    assert tars_of(config.out) == tars_of(whole.out)
    assert steady(rows_of(config.out)) == steady(rows_of(whole.out))


def test_other_settings_ask_again(config: Config, origin: Origin) -> None:
    stopped_at(config, len(PATHS) - 1)
    before = origin.requests.total()
    balance(run(replace(config, fetch=replace(FETCH, opt_out=()))), len(PATHS) + 1)
    assert origin.requests.total() - before > len(PATHS)


def test_a_dataset_begun_after_it_asks_again(config: Config, origin: Origin) -> None:
    stopped_at(config, len(PATHS) - 1)
    later = time.time() + 5
    os.utime(Path(config.out, "dataset.json"), (later, later))
    before = origin.requests.total()
    balance(run(config), len(PATHS) + 1)
    assert origin.requests.total() - before > len(PATHS)


def test_a_killed_run_is_taken_up(config: Config, origin: Origin, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "jobs.cli", "ingest", "--urls", config.urls, "--out", config.out, "--unit", "64"]
    words += [
        "--scratch",
        config.scratch or "",
        "--fetch.allow-private",
        "127.0.0.1",
        "--fetch.max-bytes",
        str(1 << 20),
    ]
    words += ["--fetch.backoff", "0.01", "--fetch.deadline", "30", "--fetch.connections", "16"]
    slow = Path(config.urls)
    slow.write_text(slow.read_text().replace("/slow/2/", "/slow/6/"))
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: sum(path.stat().st_size for path in Path(config.scratch or "").glob("*/unit-*/journal")) > 2500
        )
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = origin.requests.copy()
    done = subprocess.run([*words, "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["links"] == len(PATHS) + 1
    again = sum(n for path, n in (origin.requests - before).items() if path != "/robots.txt")
    assert again < len(PATHS) - 5
    whole = replace(config, out=config.out + "-whole", fetch=replace(FETCH, deadline=30))
    run(whole)
    assert tars_of(config.out) == tars_of(whole.out)
    assert steady(rows_of(config.out)) == steady(rows_of(whole.out))


def wait_until(true) -> None:
    until = time.monotonic() + 60
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


# --- the files -----------------------------------------------------------------------------------------------------


def made(folder: Path, binding: Binding = OURS) -> None:
    folder.mkdir()
    written = Journal(folder, binding)
    written.note(answer(0, None, Reason.TIMEOUT), Verdict(answer(0, None, Reason.TIMEOUT), None, Reason.TIMEOUT, ""))
    rejected = Verdict(
        answer(1, b""), None, Reason.NOT_AN_IMAGE, "", fetched_sha256=journal._sha256(b"html"), body=b"html"
    )
    written.note(answer(1, b"html"), rejected)
    written.flush(lambda row: None)
    written.close()


def answer(row: int, body: bytes | None, reason: Reason | None = None) -> Fetched:
    return Fetched(LINKS[row], body, reason, "said", 200, "http://a/b?sig=1", 2, 5, 7.5, 3)


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    made(tmp_path / "u")
    found = list(replay(tmp_path / "u", OURS, LINKS))
    kept = [answer(0, None, Reason.TIMEOUT), answer(1, b"html")]
    assert found == [replace(one, final_url="http://a/b") for one in kept], "except for what a URL may give away"


@pytest.mark.parametrize(
    "other",
    [replace(OURS, dataset="/e"), replace(OURS, unit=4), replace(OURS, plan="q"), replace(OURS, fetch="g")],
)
def test_another_binding_has_none_of_it(tmp_path: Path, other: Binding) -> None:
    made(tmp_path / "u")
    assert list(replay(tmp_path / "u", other, LINKS)) == []


def test_every_cut_gives_a_beginning_and_never_a_wrong_answer(tmp_path: Path) -> None:
    made(tmp_path / "u")
    whole = list(replay(tmp_path / "u", OURS, LINKS))
    for name in ("journal", "others"):
        body = (tmp_path / "u" / name).read_bytes()
        for length in range(len(body)):
            (tmp_path / "u" / name).write_bytes(body[:length])
            found = list(replay(tmp_path / "u", OURS, LINKS))
            assert found == whole[: len(found)]
        (tmp_path / "u" / name).write_bytes(body)


def test_a_plan_with_another_url_is_another_binding() -> None:
    one = [Link("a", "http://a/1", (), 0)]
    other = [Link("a", "http://a/2", (), 0)]
    assert journal.binding("/d", 0, one, FetchConfig()) != journal.binding("/d", 0, other, FetchConfig())


def test_a_folder_that_others_may_write_to_is_not_taken_up(tmp_path: Path) -> None:
    made(tmp_path / "unit-000003")
    with scratch_folder(str(tmp_path), "/d") as scratch:
        scratch.keep(tmp_path / "unit-000003")
        assert scratch.kept is not None
        scratch.kept.chmod(0o777)
        assert scratch.take("unit-000003") == []
        scratch.kept.chmod(0o700)
        assert len(scratch.take("unit-000003")) == 1
        assert scratch.take("unit-000003") == []


def test_what_nobody_comes_for_goes_after_a_week(tmp_path: Path) -> None:
    made(tmp_path / "unit-000003")
    with scratch_folder(str(tmp_path), "/d") as scratch:
        scratch.keep(tmp_path / "unit-000003")
        assert scratch.kept is not None
        (unit,) = scratch.kept.iterdir()
    with scratch_folder(str(tmp_path), "/other"):
        assert unit.exists()
    old = time.time() - KEPT_SECONDS - 60
    os.utime(unit, (old, old))
    with scratch_folder(str(tmp_path), "/other"):
        assert not unit.parent.exists()
