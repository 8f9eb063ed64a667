"""What a site asks of robots: robots.txt as RFC 9309 says, and X-Robots-Tag headers. Pure: text in, answers out."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from urllib.parse import urljoin

PRODUCT = "xtra-pretrain"  # our name in robots.txt and in scoped X-Robots-Tag headers
LIMIT = 500 << 10  # bytes of a robots.txt that are read (RFC 9309, 2.5)
MAX_RULES = 10_000  # for us; a file with more disallows everything, and so does one that exceeds
MAX_RULE = 2 << 10  # octets in a rule, or
MAX_STARS = 64  # stars in a rule
WORK = 700_000  # that a URL may cost in rules with stars, about a nanosecond each; with more it is disallowed
A_SEARCH = 100  # of that for a search, whatever its length
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

    def matches(self, path: str, work: list[int]) -> bool:
        """Whether the path fits; `work` holds what may still be spent on it, and less afterwards. A search is charged
        at what it costs at worst, length times length, so that the answer never depends on the machine."""
        first, *others = self.pieces
        if not path.startswith(first):
            return False
        if not others:
            return not self.end or len(path) == len(first)
        at = len(first)
        last = others.pop() if self.end else None
        for piece in others:
            work[0] -= A_SEARCH + (len(path) - at) * len(piece) // 4
            if work[0] < 0:
                return False
            at = path.find(piece, at)
            if at < 0:
                return False
            at += len(piece)
        return last is None or (path.endswith(last) and len(path) - len(last) >= at)


@dataclass(frozen=True, slots=True)
class Robots:
    """The rules for us of one origin, prepared so that a URL costs no more than a millisecond."""

    rules: tuple[_Rule, ...] = ()  # with stars, the one that decides first coming first
    crawl_delay: float = 0.0  # seconds between two requests; not part of RFC 9309, but many sites ask for it
    size: int = 0  # bytes of memory, about
    prefixes: Mapping[str, bool] = field(default_factory=dict)  # rules without a star: whether they allow
    lengths: tuple[int, ...] = ()  # of the prefixes, the longest first
    paths: Mapping[str, bool] = field(default_factory=dict)  # rules that end with $ and have no star

    @property
    def says_something(self) -> bool:
        return bool(self.rules or self.prefixes or self.paths)

    def allows(self, path: str) -> bool:
        """May this path (with its query) be asked for? Not where that would take more than WORK to find out."""
        if not self.says_something:
            return True
        if "/." in path:  # what is asked for is what is left of it (RFC 3986, 5.2.4)
            path = urljoin("http://h/", path)[8:]
        path = normal(path.split("#", 1)[0] or "/")
        decided, weight = True, -1
        for length in self.lengths:
            allow = self.prefixes.get(path[:length]) if length <= len(path) else None
            if allow is not None:
                decided, weight = allow, length
                break
        if path in self.paths:  # a character longer than any prefix, with its $
            decided, weight = self.paths[path], len(path) + 1
        work = [WORK]
        for rule in self.rules:
            if rule.weight < weight or (rule.weight == weight and decided):
                break
            if rule.matches(path, work):
                return rule.allow
            if work[0] < 0:
                return False
        return decided


def _prepared(rules: Collection[_Rule], crawl_delay: float) -> Robots:
    prefixes: dict[str, bool] = {}
    paths: dict[str, bool] = {}
    starred = []
    for rule in rules:
        if len(rule.pieces) > 1:
            starred.append(rule)
        else:
            known = paths if rule.end else prefixes
            known[rule.pieces[0]] = known.get(rule.pieces[0], False) or rule.allow  # of two that are equal, allow wins
    starred.sort(key=lambda rule: (-rule.weight, not rule.allow))
    lengths = tuple(sorted(set(map(len, prefixes)), reverse=True))
    size = sum(200 + rule.weight for rule in rules)
    return Robots(tuple(starred), crawl_delay, size, prefixes, lengths, paths)


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
    mine, delay = rules[name], delays.get(name, 0.0)
    if len(mine) > MAX_RULES or any(rule.weight > MAX_RULE or len(rule.pieces) > MAX_STARS + 1 for rule in mine):
        mine = [_rule(False, "/")]
    return _prepared(mine, delay)


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
