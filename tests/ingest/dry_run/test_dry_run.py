"""A dry run says of a whole list what a sample of it can: the truth lies in its intervals, and nothing is written."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from origin import Origin

from ingest.config import Config
from ingest.dry_run import dry_run
from ingest.dry_run.forecast import Estimate, Forecast, Outcome, Pace, Survey, forecast
from ingest.http.fetcher import FetchConfig
from ingest.record import Reason
from ingest.run import Progress
from ingest.wordnet import ClassConfig
from jobs.forecast_text import lines

FETCH = FetchConfig(allow_private=("127.0.0.0/8", "::1"), retries=0)
LINKS = 3000
TRUTH = {"kept": 0.6, "http_404": 0.2, "not_an_image": 0.1, "bad_url": 0.1}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as server:
        yield server


def write_list(path: Path, origin: Origin, links: int = LINKS) -> str:
    """Six of ten are pictures, one is no URL; every fifth of the others goes by another host name."""
    kinds = ["/ok/{}.jpg"] * 6 + ["/status/404?{}"] * 2 + ["/html/{}", "nothing"]
    with path.open("w") as out:
        for at in range(links):
            kind = kinds[at % 10]
            url = origin.url(kind.format(at)) if kind != "nothing" else kind
            out.write(f"n{at % 7:08d}_{at}\t{url.replace('127.0.0.1', 'localhost') if at // 10 % 5 == 0 else url}\n")
    return str(path)


def inside(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


def test_a_sample_tells_the_whole_and_nothing_is_written(origin: Origin, tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    scratch.mkdir()
    config = Config(write_list(tmp_path / "list.txt", origin), str(out), fetch=FETCH, scratch=str(scratch))
    told: list[Progress] = []
    found = dry_run.run(config, 300, told.append)
    assert (found.links, found.sampled, found.wanted, found.stopped) == (LINKS, 300, 300, False)
    assert origin.requests.total() == 300
    assert inside(found.kept, TRUTH["kept"] * LINKS)
    assert found.kept.high - found.kept.low < 0.15 * LINKS
    assert found.reasons.keys() == TRUTH.keys() - {"kept"}
    assert found.reasons["bad_url"] == Estimate(300, 300, 300)  # counted, not estimated
    values = [found.kept.value, *(estimate.value for estimate in found.reasons.values())]
    assert sum(values) == pytest.approx(LINKS)
    assert found.requests == 2702  # robots.txt of both hosts
    assert {host.name: host.links for host in found.hosts} == {"127.0.0.1": 2160, "localhost": 540}
    assert 0 < found.seconds_each < 1
    assert found.host_seconds == pytest.approx(found.hosts[0].links * found.hosts[0].seconds_each / 8)

    assert not out.exists()
    assert list(scratch.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.txt", "scratch"]
    assert told
    assert told[0].links == 300

    assert dry_run.run(config, 300).kept == found.kept  # the same links for the same seed
    assert dry_run.run(config, 300, seed=1).kept != found.kept


def test_intervals_hold_the_truth_as_often_as_they_say(origin: Origin, tmp_path: Path) -> None:
    config = Config(write_list(tmp_path / "list.txt", origin), fetch=FETCH)
    held = []
    for seed in range(8):
        found = dry_run.run(config, 60, seed=seed)
        estimates = {"kept": found.kept, **found.reasons}
        assert estimates.keys() == TRUTH.keys()
        held += [inside(estimates[name], TRUTH[name] * LINKS) for name in TRUTH if name != "bad_url"]
    assert sum(held) >= 21  # of 24 at 95 %


def test_bytes_are_those_of_the_whole_list(origin: Origin, tmp_path: Path) -> None:
    config = Config(write_list(tmp_path / "list.txt", origin, 200), fetch=FETCH)
    found = dry_run.run(config, 1000)  # more than there are: all of them, so the numbers are exact
    assert (found.sampled, found.wanted) == (180, 180)
    assert found.kept.value == 120
    sent = sum(len(body) for body in bodies(origin))
    assert found.fetched_bytes.value == pytest.approx(sent)
    assert found.stored_bytes.value == sum(
        512 + 512 * math.ceil(len(body) / 512) + 1024 for body in bodies(origin) if body[:2] == b"\xff\xd8"
    )


def bodies(origin: Origin) -> Iterator[bytes]:
    """What the origin sent with status 200."""
    from origin import picture

    for path in origin.requests:
        if path.startswith("/ok/"):
            yield picture(path)
        elif path.startswith("/html/"):
            yield b"<!DOCTYPE html><title>gone</title>"


def test_stop_ends_it_with_what_is_known(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin)
    config = Config(urls, fetch=replace(FETCH, connections=4))
    found = dry_run.run(config, 900, stop=lambda: origin.requests.total() > 50)
    assert found.stopped
    assert 0 < found.sampled < 200
    assert any("stopped at" in line for line in lines(found))
    at_once = dry_run.run(config, 900, stop=lambda: True)
    assert at_once.stopped
    assert at_once.sampled == 0
    assert all(len(line) <= 80 for line in lines(at_once))


def test_classes_count_apart(origin: Origin, tmp_path: Path) -> None:
    urls = write_list(tmp_path / "list.txt", origin, 700)
    (tmp_path / "classes").write_text("n00000003\n")
    config = Config(urls, fetch=FETCH, classes=ClassConfig(file=str(tmp_path / "classes")))
    found = dry_run.run(config, 50)
    assert (found.links, found.not_chosen, found.bad, found.wanted) == (100, 600, 10, 50)
    assert any("600 more lines belong to other classes" in line for line in lines(found))


@pytest.mark.parametrize(
    ("change", "links", "complaint"),
    [
        ({"urls": ""}, 5, "--urls is missing"),
        ({}, 0, "dry_run is 0"),
        ({"fetch": FetchConfig()}, 1001, "set --fetch.contact"),
        ({"urls": "/nowhere/list.txt"}, 5, "there is no such list"),
        ({"scratch": "/proc/nowhere"}, 5, "set --scratch to a folder"),
    ],
)
def test_a_mistake_is_one_line(
    change: dict[str, object], links: int, complaint: str, origin: Origin, tmp_path: Path
) -> None:
    config = Config(write_list(tmp_path / "list.txt", origin, 10), fetch=FETCH)
    with pytest.raises(ValueError, match=complaint) as raised:
        dry_run.run(replace(config, **change), links)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
    assert origin.requests.total() == 0


# --- the sample and the hosts --------------------------------------------------------------------------------------


def sample_of(rows: int, size: int, seed: int, batch: int) -> list[int]:
    sample = dry_run._Sample(size, seed)
    for start in range(0, rows, batch):
        row = range(start, min(start + batch, rows))
        columns = {"key": [str(r) for r in row], "url": ["u"] * len(row), "labels": [[]] * len(row), "row": row}
        none = pa.nulls(len(row), pa.int64())
        sample.add(pa.table({**columns, "line": none, "why": none.cast(pa.string())}))
    return [link.row for link in sample.links()]


def test_the_sample_is_uniform_and_the_same_for_every_batching() -> None:
    assert sample_of(1000, 20, 7, 1000) == sample_of(1000, 20, 7, 3) == sample_of(1000, 20, 7, 64)
    assert len(set(sample_of(1000, 20, 7, 64))) == 20
    assert sorted(sample_of(15, 20, 7, 4)) == list(range(15))
    counts = Counter(row for seed in range(2000) for row in sample_of(40, 10, seed, 40))
    assert min(counts.values()) > 500 - 5 * math.sqrt(500 * 0.75)  # five standard deviations
    assert max(counts.values()) < 500 + 5 * math.sqrt(500 * 0.75)


def test_hosts_of_urls() -> None:
    urls = ["http://A.b/x", "HTTPS://a.b:8080", "http://a.b?x", "http://[::1]:80/x", "http://c.d#x"]
    assert dry_run.host_names(pa.array(urls)).to_pylist() == ["a.b", "a.b", "a.b", "[::1]", "c.d"]


def test_the_hosts_with_most_links_survive_a_bounded_count() -> None:
    rng = np.random.default_rng(0)
    names = np.array([f"h{n}" for n in range(20_000)])
    counts = dry_run.HostCounts(most=500)
    truth: Counter[str] = Counter()
    for _ in range(50):
        batch = np.concatenate([rng.choice(names, 1000), np.repeat(["big", "large"], [400, 200])])
        rng.shuffle(batch)
        truth.update(batch.tolist())
        counts.add(pa.array(batch))
        assert len(counts.counts) <= 1000
    assert [name for name, _ in counts.counts.most_common(2)] == ["big", "large"]
    assert counts.counts["big"] == truth["big"]
    assert counts.distinct >= len(truth)
    exact = dry_run.HostCounts()
    exact.add(pa.array(["a", "b", "a"]))
    assert (exact.counts, exact.distinct) == ({"a": 2, "b": 1}, 2)


# --- the arithmetic and the table ----------------------------------------------------------------------------------

SURVEY = Survey(lines=1_000_000, left_out={}, bad=0, hosts={"big": 800_000, "small": 200_000}, host_count=2)
PACE = Pace(connections=128, per_host=8, rate=0.0, cpu_seconds=1.0, robots=True)


def outcomes(n: int, seconds: float = 0.4) -> list[Outcome]:
    return [
        Outcome(
            "big" if at % 5 else "small", None if at % 2 else Reason.DNS, 1000 * (at % 2), 1500 * (at % 2), 1, seconds
        )
        for at in range(n)
    ]


def predicted(survey: Survey = SURVEY, pace: Pace = PACE, n: int = 1000, seconds: float = 0.4) -> Forecast:
    return forecast("s3://b/list.txt", survey, 1000, outcomes(n, seconds), pace, 12.0, False)


def test_the_politest_host_bounds_the_time() -> None:
    found = predicted()
    assert found.seconds == found.host_seconds == pytest.approx(800_000 * 0.4 / 8)
    assert found.connection_seconds == pytest.approx(1_000_000 * 0.4 / 128)
    assert found.cpu_seconds == pytest.approx(1000)
    assert found.requests == 1_000_002  # and robots.txt of both
    assert found.fetched_bytes.value == pytest.approx(500e6)
    assert found.fetched_bytes.low < 500e6 < found.fetched_bytes.high < 550e6
    text = "\n".join(lines(found))
    assert "bounded by one host" in text
    assert "more workers do not help" in text
    slow = predicted(pace=replace(PACE, rate=2.0))
    assert slow.host_seconds == pytest.approx(400_000)


def test_other_bounds_are_named() -> None:
    many = replace(SURVEY, hosts={f"h{n}": 10 for n in range(100_000)}, host_count=100_000)
    found = predicted(many)
    assert found.seconds == found.connection_seconds
    text = "\n".join(lines(found))
    assert "bounded by connections" in text
    assert "more workers help, up to" in text
    assert "bounded by CPU" in "\n".join(lines(predicted(many, replace(PACE, cpu_seconds=90.0))))


def test_a_host_seen_too_little_is_taken_for_an_average_one() -> None:
    rare = [*outcomes(1000), Outcome("rare", Reason.TIMEOUT, 0, 0, 3, 60.0)]
    survey = replace(SURVEY, hosts={**SURVEY.hosts, "rare": 10, "unseen": 10})
    found = {host.name: host for host in forecast("l", survey, 1001, rare, PACE, 1.0, False).hosts}
    assert found["rare"].seconds_each == found["unseen"].seconds_each == pytest.approx((1000 * 0.4 + 60) / 1001)
    assert (found["unseen"].sampled, found["big"].sampled) == (0, 800)


@pytest.mark.parametrize("scale", [1, 10**6, 10**9])
def test_the_table_fits_a_terminal(scale: int) -> None:
    name = "host-" + "x" * 200
    survey = Survey(10 * scale, {"classes": scale}, scale, {name: 8 * scale}, 8 * scale)
    odd = [Outcome(name, reason, 10**9, 10**9, 3, 59.0) for reason in Reason]
    for found in (
        forecast("s3://b/" + "y" * 200, survey, 10**9, odd, PACE, 1e6, True),
        forecast("list", survey, 10, [], PACE, 0.1, False),
    ):
        for line in lines(found):
            assert len(line) <= 80, line
            assert line == line.rstrip()
