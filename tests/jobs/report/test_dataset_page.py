import base64
import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pytest
from made_datasets import jpeg, make_dataset, rows_of, rule, write_unit

from ingest.record import CONTENT, FINAL, RETRYABLE, Event, Reason
from ingest.select.apply import Rule
from jobs import link_counts
from jobs.link_counts import Account
from jobs.report import dataset_page, peek, survey
from jobs.report.survey import HOST, Histogram
from shards import store
from shards.dataset import DatasetInfo, Generation, table_bytes, unit_name, write_generation, write_info
from shards.figures import percent
from shards.manifest import Manifest, make_version

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{body}{title}\x1b[2J"
FULL = Account(
    links=1000,
    kept=800,
    reasons={"dns": 20, "timeout": 30, "http_404": 100, "undecodable": 50},
    deselected={"duplicate": 90, "placeholder": 10},
    not_chosen={"classes": 400, "license = by": 100},
)


class Reader(HTMLParser):
    """Text, tags, attributes, and what would be fetched from elsewhere."""

    def __init__(self, html: str):
        super().__init__()
        self.text, self.tags, self.pictures, self.fetched, self.handlers = "", [], [], [], []
        self._styled = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._styled = tag == "style"
        for name, value in attrs:
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                prefix = "data:image/jpeg;base64,"
                (self.pictures if (value or "").startswith(prefix) else self.fetched).append(value)
            if name.startswith("on"):
                self.handlers.append(value)

    def handle_endtag(self, tag: str) -> None:
        self._styled = False

    def handle_data(self, data: str) -> None:
        if not self._styled:
            self.text += data


def crawl(folder: Path, units: int = 2, evil: str = "", each: int = 40) -> Manifest:
    """A dataset with hosts that differ, and links that failed in several ways."""
    row = 0
    for unit in range(units):
        rows = rows_of(row, each, bad=range(row, row + each, 4), side=48)
        for n, entry in enumerate(rows):
            entry["url"] = f"http://host{n % 3}.example.org/{entry['row']}.jpg{evil}"
            entry |= {"elapsed_ms": 100 * (n % 3 + 1), "fetched_bytes": len(entry["body"]) or None}
            if entry["reason"] != "kept":
                entry |= {"reason": ["http_404", "timeout", "undecodable"][n // 4 % 3], "http_status": 404}
                entry["detail"] = f"why {n}{evil}"
        write_unit(str(folder), unit, rows)
        row += each
    write_info(str(folder), DatasetInfo("list" + evil, "0" * 64, units, each, "c", "t", not_chosen=7))
    return make_version(str(folder), "ingest")


def read(url: str) -> Reader:
    return Reader(Path(url).read_text())


# ---- the account ----


def test_every_reason_belongs_to_one_group_and_has_a_meaning():
    assert set().union(*link_counts.GROUPS.values()) == set(Reason)
    assert sum(map(len, link_counts.GROUPS.values())) == len(Reason)
    assert {*Reason, *Rule, "kept", "subset"} == set(dataset_page.MEANINGS)
    assert set(link_counts.GROUPS.values()) == {RETRYABLE, FINAL, CONTENT}


def test_each_stage_is_what_remains_of_the_one_before():
    lines = [line.split() for line in link_counts.text(FULL).splitlines()]
    count = {" ".join(words[:-3]) if words[-1] == "%" else " ".join(words[:-1]): words for words in lines}
    number = {
        name: int(next(w for w in words if re.fullmatch(r"[\d,]+", w)).replace(",", ""))
        for name, words in count.items()
    }
    assert number["lines in the list"] - number["of no chosen class"] - number["not license = by"] == 1000
    assert number["links"] == 1000
    groups = [number[meaning] for meaning in link_counts.GROUPS]
    assert groups == [50, 100, 50]
    assert number["links"] - sum(groups) == number["kept"] == 800
    assert number["kept"] - number["duplicate"] - number["placeholder"] == number["samples"] == 700
    assert number["timeout"] + number["dns"] == 50
    assert FULL.retryable == 50
    assert max(map(len, link_counts.text(FULL).splitlines())) <= 80


def test_an_unfinished_ingest_shows_what_is_left_and_no_samples():
    text = link_counts.text(Account(10, 5, {"dns": 2}, {}, left=3))
    assert re.search(r"not done yet +3 +30\.0 %", text)
    assert "samples" not in text


# ---- the page ----


def test_the_page_is_one_file_that_fetches_and_runs_nothing(tmp_path: Path):
    crawl(tmp_path)
    seen = read(dataset_page.write(str(tmp_path)))
    assert (seen.fetched, seen.handlers) == ([], [])
    assert not {"script", "link", "iframe", "object", "a", "form"} & set(seen.tags)
    html = (tmp_path / dataset_page.NAME).read_text()
    assert not re.search(r"url\(|@import", html)
    assert "default-src 'none'" in html
    for figure in re.findall(r"<svg .*?</svg>", html, flags=re.DOTALL):
        ElementTree.fromstring(figure)


def test_the_page_says_how_many_remained_and_why(tmp_path: Path):
    version = crawl(tmp_path)
    text = read(dataset_page.write(str(tmp_path))).text
    for words in ("lines in the list", "87", "of no chosen class", "60", "75.0 %", version.address):
        assert words in text
    for reason, n in version.reasons.items():
        assert f"{reason}{n}{percent(n, 80)}" in re.sub(r"\s*\n\s*", "", text)
        assert dataset_page.MEANINGS[reason] in text
    assert "why 4" in text
    assert "http://host1.example.org/4.jpg" in text
    assert f"{version.reasons['timeout']} links may work later" in text


@dataclass(frozen=True)
class Inner:
    proxy: str = "http://user:secret@proxy.example.org:3128"
    allow: tuple[str, ...] = ("10.0.0.0/8", EVIL)


@dataclass(frozen=True)
class Settings:
    urls: str = "https://bucket.example.org/list.txt?X-Amz-Signature=secret"
    contact: str = "you@example.org"
    is_quick: bool = False
    fetch: Inner = field(default_factory=Inner)


def test_strangers_text_stays_text_everywhere(tmp_path: Path):
    version = crawl(tmp_path, evil=EVIL)
    clean = crawl(tmp_path / "clean")
    events = dataset_page.happened([Event(1.7e9, EVIL, EVIL, EVIL)])
    seen = survey.survey(version)
    seen = replace(
        seen,
        largest=(replace(seen.largest[0], name=EVIL),),
        formats={EVIL: 1},
        thumbs={r: tuple(replace(t, key=EVIL, detail=EVIL) for t in some) for r, some in seen.thumbs.items()},
    )
    account = link_counts.of_manifest(version)
    account = replace(account, reasons=account.reasons | {EVIL: 1}, deselected={EVIL: 1})
    html = dataset_page.page(version, account, seen, events, {EVIL: EVIL, **dataset_page.settings(Settings())})
    tags = set(Reader(dataset_page.page(clean, account, survey.survey(clean), events, {})).tags)
    reader = Reader(html)
    assert set(reader.tags) <= tags | {"title"}
    assert (reader.fetched, reader.handlers) == ([], [])
    assert "<script>alert(1)</script>" in reader.text, "it is shown as what it is"
    assert "\x1b" not in html
    assert html.count("</html>") == 1
    assert html.count("<main>") == 1


def test_settings_are_named_as_flags_and_hold_no_secret():
    told = dataset_page.settings(Settings())
    assert told["is-quick"] == "False"
    assert told["contact"] == "you@example.org"
    assert told["fetch.allow"].startswith("10.0.0.0/8")
    assert told["fetch.proxy"] == "http://…@proxy.example.org:3128"
    assert told["urls"] == "https://bucket.example.org/list.txt"
    assert "secret" not in str(told)


def test_events_are_counted_and_the_newest_shown():
    told = dataset_page.happened(
        (Event(float(n), "pause" if n % 2 else "outage", f"h{n}", "") for n in range(1001)), 10
    )
    assert told.counts == {"outage": 501, "pause": 500}
    assert [e.about for e in told.newest] == [f"h{n}" for n in range(991, 1001)]


# ---- the survey ----


def test_a_small_dataset_is_read_whole_and_hosts_are_counted(tmp_path: Path):
    version = crawl(tmp_path)
    seen = survey.survey(version)
    assert (seen.whole, seen.rows) == (True, 80)
    assert sum(h.links for h in seen.largest) == 80
    assert sum(h.kept for h in seen.largest) == version.kept
    assert {h.name: round(10 * h.seconds) for h in seen.slowest} == {f"host{n}.example.org": n + 1 for n in range(3)}
    assert seen.slowest[0].name == "host2.example.org"
    # a damaged picture is not its host's fault
    assert sum(h.failed for h in seen.failing) == version.reasons["http_404"] + version.reasons["timeout"]
    assert {r: len(e) for r, e in seen.examples.items()} == {"http_404": 6, "timeout": 6, "undecodable": 6}
    assert sum(seen.sides.counts) == sum(seen.aspects.counts) == sum(seen.sizes.counts) == version.kept


def test_a_large_dataset_is_sampled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    version = crawl(tmp_path, units=9, each=8)
    read: list[str] = []
    real = store.read
    monkeypatch.setattr(store, "read", lambda url: read.append(url) or real(url))
    seen = survey.survey(version, shards=3)
    assert (seen.shards_read, seen.shards, seen.rows) == (3, 9, 24)
    assert {url.rsplit("/", 1)[1][:6] for url in read if "/shards/" in url} == {"000000", "000003", "000006"}
    html = dataset_page.page(version, link_counts.of_manifest(version), seen, dataset_page.happened(()), {})
    assert "3 of 9 shards, evenly spaced (24 links)" in html
    assert "72" in Reader(html).text, "the account is of all links nevertheless"


def test_a_link_that_a_retry_asked_for_again_is_counted_once(tmp_path: Path):
    dataset = str(tmp_path)
    version = crawl(tmp_path)
    again = [row for row in range(80) if row % 4 == 0 and row // 4 % 10 % 3 == 1]
    assert len(again) == version.reasons["timeout"]
    rows = [rows_of(row, 1)[0] | {"url": "http://second.example.org/x.jpg"} for row in again]
    write_generation(dataset, Generation(1, version.digest, 2, 1))
    write_unit(dataset, 2, rows)
    commit = tmp_path / "commits" / f"{unit_name(2)}.json"
    commit.write_text(commit.read_text().replace('"supersedes": {}', f'"supersedes": {{"timeout": {len(rows)}}}'))
    newer = make_version(dataset, "retry")
    seen = survey.survey(newer)
    assert (newer.links, seen.rows) == (80, 80)
    assert "timeout" not in seen.examples
    assert sum(h.kept for h in seen.largest) == newer.kept == version.kept + len(again)


def test_what_a_version_deselects_is_shown_with_its_reason(tmp_path: Path):
    whole = crawl(tmp_path)
    version = rule(whole, {0: [(1, "duplicate", None), (2, None, ["a", "b"])], 1: [(41, "placeholder", None)]})
    seen = survey.survey(version)
    assert [e.key for e in seen.examples["duplicate"]] == ["k000001"]
    assert [e.key for e in seen.examples["placeholder"]] == ["k000041"]
    assert len(seen.thumbs["duplicate"]) == 1, "it is stored, so it can be shown"
    assert sum(h.kept for h in seen.largest) == version.samples == whole.kept - 2
    assert [row.key for row in peek.run(peek.Config(version.address, reason="duplicate")).rows] == ["k000001"]
    account = link_counts.of_manifest(version)
    text = Reader(dataset_page.page(version, account, seen, dataset_page.happened(()), {})).text
    assert dataset_page.MEANINGS["duplicate"] in text


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example.org/x", "a.example.org"),
        ("https://user:pw@a.example.org:8080?x", "a.example.org"),
        ("HTTP://A.example.org", "A.example.org"),
        ("no url", None),
        ("http://", None),
        ("x http://a.example.org/x", None),
    ],
)
def test_the_host_of_a_url(url: str, host: str | None):
    import pyarrow.compute as pc

    found = pc.extract_regex(pa.array([url]), HOST)[0].as_py()
    assert (found and found["host"]) == host


def test_histograms_have_open_ends_and_lose_nothing():
    import numpy as np

    told = survey._histogram((1.0, 2.0), [np.array([0.5, 1.0]), np.array([1.9, 2.0, 99.0])])
    assert told == Histogram((1.0, 2.0), (1, 2, 2))


# ---- pictures ----


def test_thumbnails_are_of_stored_pictures_and_of_what_the_ingest_left(tmp_path: Path):
    version = crawl(tmp_path)
    left = jpeg(7, side=20)
    rejected = [e for e in survey.read_rows(version, version.shards[0], []).to_pylist() if e["reason"] == "undecodable"]
    table = pa.table(
        {
            "key": [e["key"] for e in rejected],
            "row": [e["row"] for e in rejected],
            "reason": ["undecodable"] * len(rejected),
            "detail": [e["detail"] for e in rejected],
            "jpeg": [left, *[None] * (len(rejected) - 1)],
        }
    )
    store.put(store.join(str(tmp_path), "thumbs", version.shards[0].index), table_bytes(table))
    seen = survey.survey(version)
    assert "kept" not in seen.thumbs, "they are shown by class"
    shown = [thumb for c in seen.shown for thumb in c.thumbs]
    assert len(shown) == len({thumb.key for thumb in shown}) == survey.THUMBS_A_CLASS * len(seen.classes)
    (only,) = seen.thumbs["undecodable"]
    assert (only.jpeg, only.key) == (left, rejected[0]["key"])
    assert not seen.thumbs["http_404"]
    page = read(dataset_page.write(str(tmp_path)))
    assert len(page.pictures) == len(shown) + 1
    assert base64.b64encode(left).decode() in page.pictures[-1]


def test_a_thumbnail_is_small_and_what_cannot_be_decoded_has_none():
    from shards.pixels.image import header

    small = survey.thumbnail(jpeg(1, side=700))
    assert small is not None
    assert max(header(small).width, header(small).height) == survey.THUMB_SIDE
    assert survey.thumbnail(b"<html>") is None
    assert survey.thumbnail(jpeg(1)[:-300]) is None


def test_a_dataset_without_rejects_or_events_has_a_page_too(tmp_path: Path):
    make_dataset(tmp_path, [5])
    text = read(dataset_page.write(str(tmp_path))).text
    assert "Every link was kept" in text
    assert "What happened" not in text
    assert "Rejected pictures" not in text


def test_the_page_goes_to_a_bucket(base: str):
    make_dataset(base, [5], bad=(1,))
    url = dataset_page.write(base)
    assert url == f"{base}/ingest.html"
    assert b"http_404" in store.read(url)
