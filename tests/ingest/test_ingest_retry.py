"""A retry asks again for what may have passed, and each link counts once."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from buckets import buckets_are_slow
from ingesting import FETCH, MIXED, rows_of, write_list
from origin import Origin

from ingest import plan
from ingest.config import Config
from ingest.filter import FilterConfig
from ingest.record import Reason
from ingest.run import Progress, run
from jobs import cli
from shards import check, dataset, manifest, store


@buckets_are_slow
def test_a_retry_asks_for_what_may_have_passed_and_for_nothing_else(base: str, origin: Origin, tmp_path: Path) -> None:
    paths = [*MIXED, *(f"/flaky/{n}/{m}.jpg" for n in (1, 2, 3) for m in range(3))]
    fetch = replace(FETCH, retries=0)
    config = Config(write_list(tmp_path / "list.txt", origin, paths), base, unit=12, fetch=fetch)
    first = run(config)
    expected = Counter({**Counter(MIXED.values()), "http_5xx": 1 + 9 + 1})  # /flaky/1/x fails, too, without a retry
    assert first.reasons == dict(expected - Counter(kept=99))
    old = dict(zip(paths, rows_of(base)))
    asked = Counter(origin.requests)

    again = Config(out=base, retry=True, fetch=fetch)
    second = run(again)
    failed = {path for path, row in old.items() if row["reason"] != "kept" and Reason(row["reason"]).retryable}
    assert set(origin.requests - asked) == failed
    assert second.links == len(paths) == second.kept + sum(second.reasons.values())
    assert second.kept == first.kept + 4  # /flaky/1/…
    assert (second.units, second.units_done) == (first.units + 2, first.units + 2)
    assert second.version != first.version
    made = manifest.read_manifest(base)
    assert (made.digest, made.links) == (second.version, len(paths))
    assert (made.kept, made.reasons) == (second.kept, second.reasons)
    retried = rows_of(base)[len(paths) :]
    assert [row["row"] for row in retried] == sorted(old[path]["row"] for path in failed)
    for row in retried:
        was = old[paths[row["row"]]]
        assert all(row[name] == was[name] for name in ("key", "url", "labels", "row"))

    third = run(again)  # the same command again: what failed again is fetched again
    assert (third.kept, third.units) == (first.kept + 4 + 3, first.units + 3)
    assert third.links == third.kept + sum(third.reasons.values())
    assert run(replace(config, retry=True)).kept == first.kept + 10  # with the list, too
    assert run(config).kept == first.kept + 10  # and without --retry there is nothing left to do


def test_a_dataset_that_an_older_build_began_goes_on_as_that_build_would(origin: Origin, tmp_path: Path) -> None:
    out, fetch = str(tmp_path / "out"), replace(FETCH, retries=0, breaker=1000)
    paths = [f"/{'flaky/1' if n % 3 == 0 else 'ok'}/{n}.jpg" for n in range(30)]
    config = Config(write_list(tmp_path / "list.txt", origin, paths), out, unit=10, fetch=fetch)
    plan.make(config)
    store.put_json(f"{out}/dataset.json", store.read_json(f"{out}/dataset.json") | {"format": 1})
    assert run(config).kept == 20
    store.delete(f"{out}/dataset.json")  # when it is lost, the commits say what it was
    assert run(config).kept == 20
    assert run(Config(out=out, retry=True, fetch=fetch)).kept == 30
    assert dataset.read_info(out).format == 1
    for unit in dataset.committed_units(out):
        commit = store.read_json(f"{out}/commits/{unit:06d}.json")
        tar = store.read(f"{out}/shards/{commit['tar']}")
        assert ("format" in commit, commit["tar_sha256"]) == (False, hashlib.sha256(tar).hexdigest())
    assert {store.read_json(f"{out}/manifests/{name}")["format"] for name in heads_of(out)} == {1}
    assert check.run(check.Config(out)).ok


def heads_of(out: str) -> list[str]:
    return [name for name in store.names(f"{out}/manifests") if name.endswith(".json")]


def test_a_retry_that_was_cut_short_anywhere_is_finished(origin: Origin, tmp_path: Path) -> None:
    paths = [f"/flaky/1/{n}.jpg" for n in range(30)]
    out, fetch = str(tmp_path / "out"), replace(FETCH, retries=0, breaker=1000)
    config = Config(write_list(tmp_path / "list.txt", origin, paths), out, unit=10, fetch=fetch)
    assert run(config).kept == 0
    retry = Config(out=out, retry=True, fetch=fetch)
    assert run(retry).kept == 30
    versions = store.names(store.join(out, "versions"))
    whys = [store.read_json(store.join(out, "versions", name))["why"] for name in versions]
    assert whys == ["ingest", "retry", "select"], "the first has no picture that a rule could choose"
    for version in versions[1:]:
        store.delete(store.join(out, "versions", version))
    assert run(retry).kept == 30  # killed between the last commit of the retry and its version
    assert [store.read_json(store.join(out, "versions", name))["why"] for name in versions] == whys
    for lost in ("generations/000001.json", "links/000005.parquet", "commits/000005.json", "commits/000004.json"):
        store.delete(store.join(out, lost))
    for version in versions:
        store.delete(store.join(out, "versions", version))
    # Killed while it planned: unit 3 was planned and, as if by another driver, done.
    assert run(retry).kept == 30
    store.delete(store.join(out, "commits/000005.json"))
    for version in store.names(store.join(out, "versions")):
        store.delete(store.join(out, "versions", version))
    done: list[Progress] = []
    result = run(retry, done.append)  # killed in its last unit
    assert (result.kept, result.units, result.note) == (30, 6, "")
    assert (done[0].done, done[0].units_done, done[-1].done, done[-1].done_now) == (20, 5, 30, 10)


def test_a_retry_with_nothing_to_ask_for_says_so(origin: Origin, tmp_path: Path) -> None:
    config = Config(
        write_list(tmp_path / "list.txt", origin, ["/ok/1.jpg", "/status/404"]), str(tmp_path / "out"), fetch=FETCH
    )
    first = run(config)
    result = run(replace(config, urls="", retry=True))
    assert "nothing to retry: no link ended with connect, dns, http_429" in result.note
    assert replace(result, seconds=0, note="") == replace(first, seconds=0)
    with pytest.raises(ValueError, match="was made with other filter settings: a retry must use the same"):
        run(Config(out=config.out, retry=True, fetch=FETCH, filter=FilterConfig(min_side=50)))
    with pytest.raises(ValueError, match="is not a dataset"):
        run(Config(out=str(tmp_path / "none"), retry=True))


def test_named_reasons_are_asked_for_again_final_ones_too(origin: Origin, tmp_path: Path) -> None:
    paths = list(MIXED)
    out, fetch = str(tmp_path / "out"), replace(FETCH, retries=0, breaker=1000)
    config = Config(write_list(tmp_path / "list.txt", origin, paths), out, unit=7, fetch=fetch)
    first = run(config)
    for reasons, expected in (
        (("http_404", "not_an_image"), {"/status/404", "/html", "/empty"}),
        ((), {path for path, ended in MIXED.items() if ended != "kept" and Reason(ended).retryable} | {"/flaky/1/x"}),
        (("http_404",), {"/status/404"}),
        (("blocked_address", "http_5xx"), {"/goto?http://10.0.0.1/", "/status/500"}),
    ):
        asked = Counter(origin.requests)
        result = run(Config(out=out, retry=True, retry_reasons=reasons, fetch=fetch))
        assert set(origin.requests - asked) == expected
        made = manifest.read_manifest(out)
        assert (made.links, made.digest) == (len(paths), result.version)
        assert result.kept == first.kept + (
            reasons != ("http_404", "not_an_image")
        )  # /flaky/1/x, once it was asked for
    assert check.run(check.Config(out)).ok
    rows = {row["row"]: row["reason"] for row in rows_of(out)}  # the newest of each
    assert Counter(rows.values()) == Counter(MIXED.values())
    asked = origin.requests.total()
    nothing = run(Config(out=out, retry=True, retry_reasons=("tls",), fetch=fetch))
    assert nothing.note == f"{out}: nothing to retry: no link ended with tls"
    assert origin.requests.total() == asked


@pytest.mark.parametrize("reason", ["bad_url", "kept", "near_duplicate", "404"])
def test_a_reason_that_no_link_can_be_asked_for_is_refused_with_those_that_can(reason: str) -> None:
    with pytest.raises(ValueError, match=f"retry of '{reason}': give reasons .*: dns, connect, timeout"):
        Config(out="/d", retry=True, retry_reasons=(reason,))


def test_the_command_takes_reasons_after_the_flag(
    origin: Origin, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    urls, out = (
        write_list(tmp_path / "list.txt", origin, ["/status/404", "/ok/1.jpg", "/status/500"]),
        str(tmp_path / "d"),
    )
    words = ["ingest", "--out", out, "--fetch.allow-private", "127.0.0.1", "--fetch.retries", "0"]
    assert cli.main([*words, "--urls", urls]) == 0
    for more, expected in ((["http_404"], 1), (["http_404", "http_5xx"], 2), ([], 1)):
        asked = origin.requests.total()
        assert cli.main([*words[:3], "--retry", *more, *words[3:]]) == 0
        assert origin.requests.total() - asked == expected
    assert cli.main([*words, "--retry", "404"]) == 2
    assert "retry of '404'" in capsys.readouterr().err
