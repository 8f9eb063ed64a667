"""robots.txt as RFC 9309 says, and X-Robots-Tag headers in all their forms."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings, strategies as st

from ingest.http.robots import LIMIT, MAX_RULE, MAX_RULES, MAX_STARS, opted_out, parse


def allows(text: str, path: str) -> bool:
    return parse(text.encode("utf-8", "surrogateescape")).allows(path)


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [
        ("Disallow: /", "/a.jpg", False),
        ("Disallow:", "/a.jpg", True),
        ("Disallow: /private/", "/private/a.jpg", False),
        ("Disallow: /private/", "/private", True),
        ("Disallow: /private", "/privateer.jpg", False),
        ("Disallow: /Private", "/private", True),
        ("disallow : /a # a comment", "/a/b", False),
        ("Disallow: /p\nAllow: /p/ok", "/p/ok/a.jpg", True),  # the longest match wins, in any order
        ("Allow: /p/ok\nDisallow: /p", "/p/ok/a.jpg", True),
        ("Allow: /p\nDisallow: /p", "/p", True),  # of two as long, allow
        ("Disallow: /p\nAllow: /p", "/p", True),
        ("Disallow: /*.gif$", "/a/b.gif", False),
        ("Disallow: /*.gif$", "/a/b.gif?x", True),
        ("Disallow: /*.gif", "/a/b.gif?x", False),
        ("Disallow: *.gif", "/a/b.gif", False),
        ("Disallow: /a$", "/a", False),
        ("Disallow: /a$", "/ab", True),
        ("Disallow: /a*b*c$", "/aXbYc", False),
        ("Disallow: /a*b*c$", "/aXcYb", True),
        ("Disallow: /a*a$", "/a", True),  # the two may not share a letter
        ("Disallow: /**a***$", "/xax", False),
        ("Disallow: /$", "/", False),
        ("Disallow: /$", "/a", True),
        ("Disallow: /search?", "/search?q=1", False),
        ("Disallow: /a%3cd.jpg", "/a%3Cd.jpg", False),
        ("Disallow: /%7Ejoe/", "/~joe/a.jpg", False),
        ("Disallow: /~joe/", "/%7ejoe/a.jpg", False),
        ("Disallow: /a%2fb", "/a/b", True),  # an encoded slash is no slash
        ("Disallow: /ツ", "/%E3%83%84.jpg", False),
        ("Disallow: /caf\udce9", "/caf%E9.jpg", False),  # latin-1 in the file
        ("Disallow: /secret", "/open/../secret/a.jpg", False),  # what libcurl would ask for
        ("Disallow: /secret", "/./secret/a.jpg", False),
        ("Disallow: private", "/private", True),  # no path, no rule
        ("Noise\n\x00\nDisallow: /x", "/x", False),
        ("Disallow /x", "/x", True),
    ],
)
def test_which_paths_a_rule_means(rules: str, path: str, allowed: bool) -> None:
    assert allows(f"User-agent: *\n{rules}\n", path) is allowed


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("", True),
        ("Disallow: /", True),  # before any group
        ("User-agent: otherbot\nDisallow: /", True),
        ("User-agent: *\nDisallow: /", False),
        ("User-agent: xtra-pretrain\nDisallow: /", False),
        ("user-AGENT:XTRA-Pretrain/0.1\nDisallow: /", False),
        ("User-agent: xtra\nDisallow: /", True),  # another's name
        ("User-agent: xtra-pretrainer\nDisallow: /", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: xtra-pretrain\nAllow: /", True),  # by name, not by star
        ("User-agent: xtra-pretrain\n\nUser-agent: *\nDisallow: /", False),  # both names open one group
        ("User-agent: a\nUser-agent: xtra-pretrain\nUser-agent: b\nDisallow: /", False),
        ("User-agent: a\nDisallow: /\nUser-agent: xtra-pretrain\nDisallow: /x", True),
        ("User-agent: *\nSitemap: http://h/\nDisallow: /", False),  # no rule, so it ends no group
        ("User-agent: *\nDisallow: /x\n\nUser-agent: a\nDisallow: /y\n\nUser-agent: *\nDisallow: /", False),  # merged
        ("\ufeffUser-agent: *\r\nDisallow: /\r\n", False),
        ("User-agent: *\rDisallow: /\r", False),
        ("<html><body>User-agent: *<br>Disallow: /</body></html>", True),
        ("User-agent: *\nAllow: /a\nUser-agent: *\nDisallow: /", False),
    ],
)
def test_which_group_is_ours(text: str, allowed: bool) -> None:
    assert allows(text, "/pics/a.jpg") is allowed


def test_an_empty_group_for_us_by_name_allows_everything() -> None:
    assert allows("User-agent: xtra-pretrain\nDisallow:\n\nUser-agent: *\nDisallow: /", "/a.jpg")


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: *\nCrawl-delay: 1\nUser-agent: xtra-pretrain\nCrawl-delay: 7", 7.0),
        ("User-agent: other\nCrawl-delay: 9", 0.0),
        ("User-agent: *\nCrawl-delay: -3", 0.0),
        ("User-agent: *\nCrawl-delay: nan", 0.0),
        ("User-agent: *\nCrawl-delay: inf", 0.0),
        ("User-agent: *\nCrawl-delay: soon", 0.0),
    ],
)
def test_crawl_delay(text: str, delay: float) -> None:
    assert parse(text.encode()).crawl_delay == delay


def test_only_the_first_500_kib_count_and_no_half_line() -> None:
    head = b"User-agent: *\nDisallow: /a\n"
    line = b"Allow: /a/b"
    text = head + b"#" * (LIMIT - len(head) - 5) + b"\n" + line + b"\nDisallow: /c\n"
    assert text[:LIMIT].endswith(b"\nAllo")
    robots = parse(text)
    assert not robots.allows("/a/b")
    assert robots.allows("/c")
    assert not parse(b"User-agent: *\nDisallow: /" + b"a" * LIMIT).says_something


def test_a_hostile_file_costs_little() -> None:
    begun = time.process_time()
    stars = parse(b"User-agent: *\nDisallow: /" + b"*a" * 20_000 + b"b$\n")
    assert not stars.allows("/" + "a" * 2000)  # who writes that many stars is taken to mean everything
    many = parse(b"User-agent: *\n" + b"Disallow: /x\n" * (MAX_RULES + 1))
    assert not many.allows("/a.jpg")  # who writes that many rules wants no robots
    assert many.size < 1000
    assert time.process_time() - begun < 5


_PATTERNS = st.tuples(st.text("ab*", max_size=6), st.sampled_from(["", "$"])).map(lambda parts: "/" + "".join(parts))


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), _PATTERNS), max_size=6), st.text("ab", max_size=8).map("/{}".format))
def test_prepared_rules_say_what_they_say_one_by_one(rules: list[tuple[bool, str]], path: str) -> None:
    def fits(pattern: str) -> bool:
        body, end = (pattern[:-1], "$") if pattern.endswith("$") else (pattern, "")
        return re.match(re.escape(body).replace(r"\*", ".*") + end, path) is not None

    found = [(len(pattern), allow) for allow, pattern in rules if fits(pattern)]
    text = "".join(f"{'Allow' if allow else 'Disallow'}: {pattern}\n" for allow, pattern in rules)
    assert allows("User-agent: *\n" + text, path) is (max(found)[1] if found else True)


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ("/x" + "*y" * MAX_STARS, True),
        ("/x" + "*y" * (MAX_STARS + 1), False),
        ("/" + "x" * (MAX_RULE - 1), True),
        ("/" + "x" * MAX_RULE, False),
    ],
)
def test_a_rule_that_is_too_large_disallows_everything(rule: str, allowed: bool) -> None:
    assert allows(f"User-agent: *\nDisallow: {rule}\nAllow: /ok", "/ok") is allowed


@pytest.mark.parametrize("piece", ["*a", "*" + "a" * 100 + "b" + "a" * 50])
def test_what_would_take_too_long_to_find_out_is_disallowed_in_a_millisecond(piece: str) -> None:
    stars = "\n".join(f"Disallow: /{piece * 13}{number}x" for number in range(9_990))
    robots = parse(f"User-agent: *\n{stars}"[:LIMIT].rpartition("\n")[0].encode())
    path = "/" + "a" * 1900
    took = []
    for _ in range(20):
        began = time.process_time()
        assert not robots.allows(path)
        took.append(time.process_time() - began)
    assert min(took) < 0.001


@given(st.binary(max_size=300), st.text(max_size=40))
def test_no_bytes_make_it_fail(text: bytes, path: str) -> None:
    assert parse(b"User-agent: *\nDisallow: " + text).allows("/" + path.encode("utf-8", "replace").decode()) in (
        True,
        False,
    )


WORDS = ("noai", "noimageai")


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("noai", "noai"),
        ("NoImageAI", "noimageai"),
        ("nofollow, noai", "noai"),
        ("noindex, nofollow", None),
        ("noairlines", None),
        ("xtra-pretrain: noai", "noai"),
        ("XTRA-Pretrain: nofollow, noai", "noai"),
        ("otherbot: noai", None),
        ("otherbot: nofollow, noai", None),
        ("otherbot: noai, xtra-pretrain: noimageai", "noimageai"),
        ("*: noai", "noai"),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST, noai", "noai"),
        ("unavailable_after: Sat, 25 Jun 2010 15:00:00 GMT, noai", "noai"),
        ("unavailable_after: Saturday, 25-Jun-10 15:00:00 UTC, nofollow, noai", "noai"),
        ("unavailable_after: 2010-06-25T15:00:00+02:00, noai", "noai"),
        ("otherbot: unavailable_after: Sat, 25 Jun 2010 15:00:00 GMT, noai", None),
        ("360spider: noai", None),
        ("xtra-pretrain: unavailable_after: 25 Jun 2010 15:00:00 PST, noai", "noai"),
        ("max-snippet: 5, noai", "noai"),
        ("otherbot: unavailable_after: x, noai", None),
        ("", None),
        (",:,", None),
    ],
)
def test_x_robots_tag(tag: str, found: str | None) -> None:
    assert opted_out(tag, WORDS) == found
