"""What a site asks of robots: robots.txt as RFC 9309 says, and X-Robots-Tag headers. Pure: text in, answers out."""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urljoin

PRODUCT = "xtra-pretrain"  # our name in robots.txt and in scoped X-Robots-Tag headers
LIMIT = 500 << 10  # bytes of a robots.txt that are read (RFC 9309, 2.5)
MAX_RULES = 10_000  # for us; who writes more is taken to mean everything
EVERYBODY = ("*", "robots", "bots")  # names that scope an X-Robots-Tag to all
VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")  # directives with a colon

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})|[\x80-\xff]|[\x00-\x20]")
# Before a colon: the name of a robot, not the hour of a date such as `25 jun 2010 15` or `2010-06-25t15`.
_SCOPE = re.compile(r"(?![0-9t-]+$)[a-z0-9_.*/-]+")
_PRODUCT_TOKEN = re.compile(r"[A-Za-z_-]+|\*")


@dataclass(frozen=True, slots=True)
class _Rule:
    """A path pattern, cut at its stars."""

    allow: bool
    pieces: tuple[str, ...]
    end: bool  # the pattern ends with $
    weight: int  # its length in octets: the longest match wins

    def matches(self, path: str) -> bool:
        """In linear time, whatever the number of stars."""
        first, *others = self.pieces
        if not path.startswith(first):
            return False
        if not others:
            return not self.end or len(path) == len(first)
        at = len(first)
        last = others.pop() if self.end else None
        for piece in others:
            at = path.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return last is None or (path.endswith(last) and len(path) - len(last) >= at)


@dataclass(frozen=True, slots=True)
class Robots:
    """The rules for us of one origin, the one that decides first coming first."""

    rules: tuple[_Rule, ...] = ()
    crawl_delay: float = 0.0  # seconds between two requests; not part of RFC 9309, but many sites ask for it
    size: int = 0  # bytes of memory, about

    def allows(self, path: str) -> bool:
        """May this path (with its query) be asked for?"""
        if not self.rules:
            return True
        if "/." in path:  # what is asked for is what is left of it (RFC 3986, 5.2.4)
            path = urljoin("http://h/", path)[8:]
        path = normal(path.split("#", 1)[0] or "/")
        for rule in self.rules:
            if rule.matches(path):
                return rule.allow
        return True


NOTHING = Robots((_Rule(False, ("/",), False, 1),))  # nothing is allowed
ANYTHING = Robots()


def normal(path: str) -> str:
    """A path or pattern with the same percent-encoding for the same octets (RFC 9309, 2.2.2)."""
    if path.isascii() and "%" not in path:
        return path
    return _ESCAPE.sub(_normal_octet, path.encode("utf-8", "surrogateescape")).decode("ascii")


def _normal_octet(found: re.Match[bytes]) -> bytes:
    octet = int(found[1], 16) if found[1] else found[0][0]
    return bytes([octet]) if octet in _UNRESERVED else b"%%%02X" % octet


def parse(text: bytes, product: str = PRODUCT) -> Robots:
    """The rules for `product`: those of all groups that name it, else those of all groups for `*`. Never fails: what is
    no rule is passed over, so that a web page sent instead of a robots.txt allows everything."""
    rules: dict[str, list[_Rule]] = {"": [], "*": []}  # "" is for us by name
    delays: dict[str, float] = {}
    named = False
    group: set[str] = set()
    naming = False  # in the User-agent lines that open a group
    cut = text[:LIMIT]
    if len(text) > LIMIT:  # half a line may say the opposite of the whole
        cut = cut[: max(cut.rfind(b"\n"), cut.rfind(b"\r"), 0)]
    for line in re.split(r"\r\n|\r|\n", cut.decode("utf-8-sig", "surrogateescape")):
        key, colon, value = line.split("#", 1)[0].partition(":")
        key, value = key.strip().lower(), value.strip()
        if not colon:
            continue
        if key == "user-agent":
            group, naming = (group if naming else set()), True
            token = _PRODUCT_TOKEN.match(value)
            if token and token[0] == "*":
                group.add("*")
            elif token and token[0].lower() == product:
                group.add("")
                named = True
        elif key in ("allow", "disallow", "crawl-delay"):
            naming = False
            for name in group:
                if key == "crawl-delay":
                    delays[name] = max(delays.get(name, 0.0), _seconds(value))
                elif value.startswith(("/", "*")):
                    rules[name].append(_rule(key == "allow", value))
    name = "" if named else "*"
    mine = rules[name]
    if len(mine) > MAX_RULES:
        return Robots(NOTHING.rules, delays.get(name, 0.0))
    mine.sort(key=lambda rule: (-rule.weight, not rule.allow))
    return Robots(tuple(mine), delays.get(name, 0.0), sum(200 + rule.weight for rule in mine))


def _rule(allow: bool, pattern: str) -> _Rule:
    pattern = normal(pattern)
    end = pattern.endswith("$")
    pieces = tuple(re.sub(r"\*+", "*", pattern.removesuffix("$")).split("*"))
    return _Rule(allow, pieces, end, len(pattern))


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def opted_out(tag: str, directives: Collection[str], product: str = PRODUCT) -> str | None:
    """The first of `directives` that one X-Robots-Tag header applies to us, or None.

    `noai, noimageai` is for everybody; in `somebot: noai, nofollow` a name scopes what follows it, up to the next name.
    """
    ours = True
    for part in tag.split(","):
        name, colon, directive = part.strip().lower().partition(":")
        if colon and name.strip() not in VALUED and _SCOPE.fullmatch(name.strip()):
            ours = name.strip() == product or name.strip() in EVERYBODY
            name = directive
        if ours and name.strip() in directives:
            return name.strip()
    return None
