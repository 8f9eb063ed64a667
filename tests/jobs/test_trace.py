"""`xtra trace` on a dataset: every verdict, the place, and what each version says; words that name nothing are said."""

import json
from pathlib import Path

import pytest
from made_datasets import make_dataset, plan_unit, retry, rows_of, rule, write_unit

from ingest.config import Config
from ingest.http import FetchConfig
from ingest.run import run
from jobs import cli, trace
from shards import store
from shards.manifest import add_version


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two units, a retry of rows 3 and 7 that keeps 7, a version without row 12, and a unit that is only planned."""
    base = str(tmp_path_factory.mktemp("data"))
    first = make_dataset(base, [10, 8], bad=(3, 7))
    again = retry(first, [3, 7], bad=(3,))
    ruled = rule(again, {1: [(12, "excluded", None)]})
    assert add_version(ruled, "select")
    plan_unit(base, 3, rows_of(18, 4))
    return base


def of(dataset, *words, **more):
    return trace.run(trace.Config(dataset, words, **more))


def test_a_life_has_every_verdict_the_place_and_what_versions_say(dataset):
    found = of(dataset, "k000007", "http://example.org/12.jpg")
    seven, twelve = found.lives
    assert (seven.row, seven.labels, seven.named_by) == (7, ("c2",), ("k000007",))
    assert [(a.unit, a.reason) for a in seven.answers] == [(0, "http_404"), (2, "kept")]
    assert [v.state for v in seven.versions] == ["http_404", "selected", "selected"]
    kept = seven.kept
    tar = Path(kept.tar).read_bytes()
    assert tar[kept.offset : kept.offset + kept.length] == rows_of(7, 1)[0]["body"]
    assert [(v.number, v.state) for v in twelve.versions] == [(1, "selected"), (2, "selected"), (3, "excluded")]
    assert not found.unknown


def test_a_sha256_finds_the_answers_before_the_one_that_it_names(dataset):
    sha256 = of(dataset, "k000007").lives[0].kept.sha256
    (life,) = of(dataset, sha256).lives
    assert [(a.unit, a.reason) for a in life.answers] == [(0, "http_404"), (2, "kept")]


def test_what_is_not_asked_for_yet_waits_and_what_is_nowhere_is_unknown(dataset, tmp_path):
    list_of = tmp_path / "withdrawn.txt"
    list_of.write_text("# asked for on Monday\nk000019\nhttp://example.org/nowhere.jpg\n")
    found = of(dataset, file=str(list_of))
    assert [(life.key, life.waiting, life.answers) for life in found.lives] == [("k000019", 3, ())]
    assert found.unknown == ("http://example.org/nowhere.jpg",)


def test_hosts_name_all_of_theirs_and_long_answers_are_short_lines(dataset):
    found = of(dataset, "example.org")
    assert [life.row for life in found.lives] == list(range(22))
    lines = trace.text(found).splitlines()
    assert lines[3].startswith("k000003  row 3: http_404, newest version: http_404")
    assert len(lines) == 22


def test_the_command_prints_json_and_exits_1_for_a_word_that_names_nothing(dataset, capsys):
    assert cli.main(["trace", dataset, "k000012", "nothing", "--json"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"k000012  in {dataset}"
    assert any(line.startswith("  stored   ") and "k000012.jpg at" in line for line in out)
    assert "unknown  nothing names no link" in out
    reported = json.loads(out[-1])
    assert (reported["lives"][0]["key"], reported["unknown"]) == ("k000012", ["nothing"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to trace is given"),
        (["%%"], "names no sample"),
        (["k000001", "--file", "/nowhere.txt"], "/nowhere.txt: there is no such file"),
        (["k000001", "--runs", "/nowhere"], "/nowhere: contains no run"),
    ],
)
def test_a_mistake_is_one_line(dataset, words, message, capsys):
    assert cli.main(["trace", dataset, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_place_that_is_neither_is_refused(tmp_path, capsys):
    assert cli.main(["trace", str(tmp_path), "k1"]) == 2
    assert "is neither a dataset nor a run" in capsys.readouterr().err


def test_a_damaged_index_is_named(tmp_path):
    base = str(tmp_path)
    make_dataset(base, [4])
    write_unit(base, 1, rows_of(4, 3))
    (index,) = Path(base, "shards").glob("000001-*.parquet")
    index.write_bytes(b"torn")
    assert of(base, "k000001").problems[0].startswith(f"{store.join(base, 'shards')}/000001-a1.parquet: is damaged")


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("list.txt", "\n\nhttp://127.0.0.1:9/a.jpg\n\nno url\nhttp://127.0.0.1:9/b.jpg\n", 6),
        ("list.csv", 'url,caption\nhttp://127.0.0.1:9/a.jpg,"two\nlines"\nx,y\nhttp://127.0.0.1:9/b.jpg,z\n', 5),
    ],
)
def test_the_list_names_the_line_of_a_link_and_another_list_is_refused(tmp_path, name, text, place):
    (tmp_path / name).write_text(text)
    out, urls = str(tmp_path / "out"), str(tmp_path / name)
    run(Config(urls, out, fetch=FetchConfig(allow_private=("127.0.0.1",), retries=0, outage_limit=0)))
    word = "http://127.0.0.1:9/b.jpg"
    (life,) = of(out, word, urls=urls).lives
    assert (life.row, life.line, life.answers[0].reason) == (2, f"{urls}:{place}", "connect")
    assert f"row 2, {urls}:{place}" in trace.text(of(out, word, urls=urls))
    (tmp_path / name).write_text(text + "http://127.0.0.1:9/c.jpg\n")
    assert of(out, word, urls=urls).problems[0].startswith(f"{urls}: is not the list that {out} was ingested from")
