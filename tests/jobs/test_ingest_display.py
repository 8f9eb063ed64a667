import io
import os
import pty
import re
import signal
import subprocess
import sys
import termios

import pytest
from places import ROOT
from rich.console import Console

from ingest.http.hosts import HostLoad
from ingest.run import Progress
from jobs import ingest_display
from jobs.ingest_display import Live, Pace

REASONS = {"http_404": 300, "dns": 40, "timeout": 7, "undecodable": 3}


def at(seconds: float, done_now: int, note: str = "", links: int = 10_000, before: int = 1000, **other) -> Progress:
    done = before + done_now
    counts = {"kept": done - sum(REASONS.values()), "reasons": REASONS, **other}
    return Progress(
        links, 10, done, 1, fetched_bytes=1000 * done_now, seconds=seconds, done_now=done_now, note=note, **counts
    )


def paced(*points: Progress) -> Pace:
    pace = Pace()
    for point in points:
        pace.add(point)
    return pace


def screen(p: Progress, pace: Pace | None = None, width: int = 80, height: int = 24, **how) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=False, highlight=False)
    console.print(ingest_display.drawn("xtra ingest  a list to a folder", p, pace or paced(p), width, height, **how))
    return out.getvalue().splitlines()


# ---- pace ----


def test_the_time_left_counts_only_what_this_run_did():
    """A resumed ingest found 9,000 of 10,000 links done: that took no time and promises none."""
    points = [at(second, 10 * second, before=9000) for second in range(0, 21)]
    pace = paced(*points)
    assert pace.rates(points[-1]) == pytest.approx((10, 10_000))
    assert pace.left(points[-1]) == pytest.approx((10_000 - 9200) / 10)


def test_the_rate_is_that_of_the_last_minute():
    fast = [at(second, 100 * second, links=100_000) for second in range(0, 101)]
    slow = [at(100 + second, 10_000 + 10 * second, links=100_000) for second in range(1, 101)]
    pace = paced(*fast, *slow)
    assert pace.rates(slow[-1])[0] == pytest.approx(10, rel=0.02)


def test_a_pause_is_no_work_and_nothing_is_promised_meanwhile():
    points = [at(second, 10 * second) for second in range(0, 11)]
    outage = [at(10 + second, 100, "no network since 14:02:11") for second in range(1, 301)]
    pace = paced(*points, *outage)
    assert pace.left(outage[-1]) == pytest.approx(8900 / 10, rel=0.2)
    assert ingest_display.remaining(outage[-1], pace) == "paused: 16 min of work left"
    after = at(311, 110)
    pace.add(after)
    assert pace.rates(after)[0] == pytest.approx(10, rel=0.2)
    assert ingest_display.remaining(after, pace).endswith("left")
    assert "paused" not in ingest_display.remaining(after, pace)


def test_one_worker_without_a_network_is_no_pause_of_the_others():
    points = [at(second, 10 * second, "no network since 14:02:11 (node-3)") for second in range(0, 21)]
    pace = paced(*points)
    assert pace.rates(points[-1])[0] == pytest.approx(10)
    assert ingest_display.remaining(points[-1], pace) == "15 min left"


def test_what_is_done_before_and_after_the_links_is_said_and_not_called_a_pause():
    reading = at(10, 0, "reading the list: 3,000,000 lines", before=0)
    assert ingest_display.remaining(reading, paced(reading)) == ""
    assert ingest_display.line(reading, paced(reading)).endswith("reading the list: 3,000,000 lines")
    selecting = at(10, 9000, "selecting: 3 of 9 shards read")
    assert ingest_display.remaining(selecting, paced(selecting)) == "all links done"


def test_too_little_is_no_rate():
    assert paced(at(0, 0)).left(at(0, 0)) is None
    assert ingest_display.remaining(at(0, 0), paced(at(0, 0))) == "time left not known yet"
    stuck = [at(second, 0) for second in range(20)]
    assert paced(*stuck).left(stuck[-1]) is None
    assert ingest_display.remaining(at(1, 9000), paced(at(1, 9000))) == "all links done"


# ---- the table ----

HOSTS = tuple(
    HostLoad(f"farm{n}.static.example.com", n % 5, 100 * n, 1000, 10 * n, 10**8, float(n), 0) for n in range(400)
)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 15), (200, 50), (40, 10)])
@pytest.mark.parametrize("note", ["", "no network since 14:02:11, trying again every 5 s"])
def test_the_table_fits_the_terminal(width: int, height: int, note: str):
    reasons = {f"reason_{n}": n + 1 for n in range(24)}
    p = at(10, 5000, note, kept=5700, hosts=HOSTS, reasons=reasons)
    lines = screen(p, width=width, height=height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width


def test_the_table_shows_what_people_ask_for():
    points = [at(second, 10 * second, hosts=HOSTS) for second in range(0, 11)]
    text = "\n".join(screen(points[-1], paced(*points)))
    for words in ("1,100 of 10,000 links", "1 of 10 units", "10 links/s", "10 kB/s", "100 kB fetched", "15 min left"):
        assert words in text
    assert re.search(r"kept +750 +68\.2 %", text)
    assert re.search(r"http_404 +300 +27\.3 %", text)


def test_every_link_is_in_some_line_of_the_table():
    """Reasons for which there is no space are summed up, not left out."""
    reasons = {f"reason_{n}": n + 1 for n in range(24)}
    p = at(10, 5000, kept=5700, reasons=reasons)
    lines = screen(p, height=14)
    numbers = [int(n.replace(",", "")) for line in lines[5:] for n in re.findall(r" ([\d,]+) +[<\d.]+ %", line)]
    assert sum(numbers) == 5700 + sum(reasons.values())
    assert "more reasons" in "\n".join(lines)


def test_busy_slow_and_paused_hosts_stand_out():
    hosts = [
        *HOSTS[:50],
        HostLoad("slow.example.org", 0, 0, 10, 0, 10**6, 600.0, 0),
        HostLoad("paused.example.org", 0, 9_999_999, 10, 0, 10**6, 1.0, 4e9),
    ]
    text = screen(at(10, 100, hosts=tuple(hosts)))
    assert re.search(r"paused\.example\.org .* wait [\d,.]+ d", next(line for line in text if "paused" in line))
    assert any("slow.example.org" in line and "60.00 s" in line for line in text)
    assert not any("farm0." in line for line in text)


def test_strangers_cannot_write_to_the_terminal():
    evil = HostLoad("\x1b]0;owned\x07\x1b[2J[red]evil.example.com", 8, 0, 1, 0, 1, 1.0, 0)
    p = at(10, 100, "\x1b[31mno network", hosts=(evil,))
    text = "\n".join(screen(p))
    assert "\x1b" not in text + ingest_display.line(p, paced(p))
    assert "[red]evil.example.com" in text  # and no markup either


# ---- where it is shown ----


def test_anywhere_else_it_is_a_line_now_and_then():
    out = io.StringIO()
    points = [at(second, 10 * second, note="no network" if second == 20 else "") for second in range(21)]
    with Live("title", out, every=0.0) as table:
        for point in points:
            table(point)
    first, *lines = out.getvalue().splitlines()
    assert first == "going on at 1,000 of 10,000 links"
    assert len(lines) == 21
    assert lines[10].startswith("1,100 of 10,000 links (11.0 %)  10 links/s  10 kB/s  kept 68.2 %  15 min left")
    assert lines[20].endswith("15 min left  no network")
    quiet = io.StringIO()
    with Live("title", quiet, every=1000.0) as table:
        for point in points:
            table(point)
    assert quiet.getvalue() == f"{first}\n"


def test_an_import_counts_pictures():
    out = io.StringIO()
    with Live("title", out, every=0.0, things="pictures") as table:
        for second in range(12):
            table(at(second, 10 * second))
    assert "links" not in out.getvalue()
    assert "going on at 1,000 of 10,000 pictures" in out.getvalue()
    assert "10 pictures/s" in out.getvalue()


DRAWS = """
import sys, time
sys.path[:0] = ["tests", "tests/jobs"]
from test_ingest_display import at
from jobs import cli, verbs
def run(call):
    from jobs.ingest_display import Live
    stop = call.stoppable()
    with Live("xtra ingest  here to there") as table:
        call.on_stop = table.stop
        for second in range(4000):
            table(at(second, 10 * second))
            time.sleep(0.02)
            if stop.is_set() and second % 50 == 0:
                break
        call.on_stop = None
    print("closing")
verbs.VERBS["draw"] = verbs.Verb("", "", run)
sys.exit(cli.main(["draw"]))
"""


def test_on_a_terminal_it_draws_and_ctrl_c_gives_the_terminal_back():
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(ours)
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRAWS], cwd=ROOT, env=env, stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
    )
    try:
        drawn = read_until(ours, "links/s")
        process.send_signal(signal.SIGINT)
        drawn += read_until(ours, "stopped by SIGINT")
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
        after = termios.tcgetattr(ours)
        os.close(theirs)
        os.close(ours)
    assert process.returncode == 130
    assert out == "closing\n", "results go to stdout alone"
    assert ingest_display.STOPPING in drawn
    assert drawn.rindex("\x1b[?25h") > drawn.rindex("\x1b[?25l"), "the cursor is shown again"
    assert "\x1b[?1049h" not in drawn, "what was on the terminal before stays there"
    assert before == after


def read_until(terminal: int, words: str) -> str:
    text = ""
    while words not in text:
        text += os.read(terminal, 4096).decode(errors="replace")
    return text
