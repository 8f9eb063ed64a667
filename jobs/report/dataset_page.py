"""A dataset -> one HTML page: what happened to the links and why, by example; hosts, sizes, kept and rejected pictures.

The page is self-contained (no scripts, fonts or links out), so it opens from a bucket, an e-mail or a USB stick. The
list, its hosts and their replies are untrusted: all of it is escaped, none of it becomes a link, and a
Content-Security-Policy blocks anything that slips through.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import shlex
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from ingest.config import Config
from ingest.events import read_events
from ingest.record import RETRYABLE, Event, Reason
from jobs import link_counts
from jobs.link_counts import Account
from jobs.report.draw import histogram, ranked
from jobs.report.html import document, escaped, safe
from jobs.report.survey import Class, Example, Host, Survey, Thumb, survey
from shards import manifest, store
from shards.dataset import KEPT, read_info
from shards.figures import percent, size
from shards.manifest import Manifest
from shards.pixels import image

NAME = "ingest.html"
EVENTS = 60  # the newest ones are shown; all are counted
ROUTINE = frozenset({"unit"})  # one per unit: counted, not listed
MOST_BYTES = 2_000_000  # of the page
PICTURES = 1_150_000  # bytes of pictures in it, before base64 adds a third
NAMED = 24  # up to this many classes are all named; beyond it, only the NAMED_ENDS largest and smallest
NAMED_ENDS = 5
TINY = 40  # pixels; a smaller picture is enlarged without smoothing
LONGEST_LINK = 2_000  # characters

MEANINGS: dict[str, str] = {
    KEPT: "a picture in the shards",
    Reason.DNS: "the host's name could not be resolved",
    Reason.CONNECT: "no connection to the host, or it broke off",
    Reason.TIMEOUT: "the link took longer than the deadline, or hardly sent anything",
    Reason.TLS: "no trusted encryption: an expired, wrong or self-signed certificate",
    Reason.HTTP_429: "the host asked us to slow down",
    Reason.HTTP_5XX: "the server had an error",
    Reason.TRUNCATED_BODY: "the reply ended before its announced length",
    Reason.HTTP_404: "not found",
    Reason.HTTP_410: "gone for good",
    Reason.HTTP_4XX: "refused in another way, such as 401, 403 or 451",
    Reason.BLOCKED_ADDRESS: "leads to an address that is not public, or to a port that is not allowed",
    Reason.BAD_URL: "the line has no usable http or https URL",
    Reason.TOO_MANY_REDIRECTS: "redirected in a circle or too often",
    Reason.ROBOTS: "the host's robots.txt forbids fetching it",
    Reason.OPT_OUT: "the reply says that it is not for training (X-Robots-Tag)",
    Reason.TOO_LARGE: "the reply is larger than the cap",
    Reason.NOT_AN_IMAGE: "the reply is something else, often a web page",
    Reason.UNDECODABLE: "a damaged picture: truncated, or corrupt",
    Reason.TOO_SMALL: "a side is shorter than the minimum",
    Reason.TOO_MANY_PIXELS: "more pixels than the cap",
    Reason.BAD_ASPECT: "too long and thin",
    Reason.UNSUPPORTED: "a picture in a format or sample type that is not supported",
    Reason.PLACEHOLDER: "shows nothing: a 'photo removed' image, one flat colour, a notice, or far too few bytes",
    Reason.DUPLICATE: "the same bytes as an earlier link, which took over its labels",
    Reason.HASH_MISMATCH: "the bytes do not match the hash in the list",
    # Only a selection gives these, and `duplicate`:
    "near_duplicate": "looks like a picture of an earlier link, which took over its labels",
    "class": "not in a requested class",
    "small_class": "in classes with too few pictures",
    "excluded": "named by an exclusion list",
    "subset": "not in the random subset",
}


@dataclass(frozen=True)
class Happened:
    """The events of a dataset's runs: how many of each kind, and the newest ones."""

    counts: dict[str, int]
    newest: tuple[Event, ...]


def happened(events: Iterable[Event], most: int = EVENTS) -> Happened:
    """Count events, and keep the newest `most`, in constant memory."""
    counts: Counter[str] = Counter()
    newest: deque[Event] = deque(maxlen=most)
    for event in events:
        counts[event.kind] += 1
        if event.kind not in ROUTINE:
            newest.append(event)
    return Happened(dict(counts.most_common()), tuple(sorted(newest, key=lambda event: event.at)))


def write(dataset: str, settings: Mapping[str, str] | None = None) -> str:
    """Write the page of a dataset's newest version as DATASET/ingest.html; return its URL. Raises StoreError."""
    version = manifest.read_manifest(dataset)
    url = store.join(dataset, NAME)
    account = link_counts.of_manifest(version, read_info(dataset).left_out)
    store.put(url, page(version, account, survey(version), happened(read_events(dataset)), settings or {}).encode())
    return url


def page(version: Manifest, account: Account, seen: Survey, events: Happened, settings: Mapping[str, str]) -> str:
    what = "links" if seen.largest else "pictures"  # an import has no hosts
    read = f"From {seen.shards_read:,} of {seen.shards:,} shards, evenly spaced ({seen.rows:,} {what})."
    sample = "" if seen.whole else read
    seen = _lighter(seen)
    kind = "Ingest" if seen.largest else "Import"
    parts = [
        _header(version, account, kind, what),
        _section(f"Where the {what} went", funnel(account, what) + _retry(account, version.dataset, settings)),
        _section("Reasons, by example", _reasons(account, seen.examples, what), sample),
        _section("Hosts", _hosts(seen), sample),
        _section("Kept pictures", _shapes(seen) + _thumbs(seen.thumbs.get(KEPT, ()), captions=False), sample),
        _section("Classes", _classes(seen, version.classes), sample),
        _section("Rejected pictures", _rejected(seen), sample),
        _section("What happened on the way", _events(events)),
        _section("Where it came from", _facts(version, settings)),
    ]
    return document(f"{kind} of {version.list_name}", "\n".join(parts))


def _lighter(seen: Survey) -> Survey:
    """Drop pictures until the page stays below MOST_BYTES; the first ones of each reason and class are kept."""
    left, turn, kept = PICTURES, 0, set()
    groups = [*seen.thumbs.values(), *(c.thumbs for c in seen.shown)]
    for turn in range(max(map(len, groups), default=0)):
        for group in groups:
            if turn < len(group) and len(group[turn].jpeg) <= left:
                left -= len(group[turn].jpeg)
                kept.add(id(group[turn]))

    def some(thumbs: Sequence[Thumb]) -> tuple[Thumb, ...]:
        return tuple(thumb for thumb in thumbs if id(thumb) in kept)

    return dataclasses.replace(
        seen,
        thumbs={reason: some(thumbs) for reason, thumbs in seen.thumbs.items()},
        shown=tuple(dataclasses.replace(c, thumbs=some(c.thumbs)) for c in seen.shown),
    )


def settings(config: Any, prefix: str = "") -> dict[str, str]:
    """Every field of a Config by flag name, without possible secrets: a URL's user, password and query."""
    found: dict[str, str] = {}
    for f in dataclasses.fields(config):
        value, name = getattr(config, f.name), f"{prefix}{f.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            found |= settings(value, f"{name}.")
        elif isinstance(value, tuple | list | frozenset | set):
            found[name] = " ".join(_unsecret(str(v)) for v in value)
        else:
            found[name] = "" if value is None else _unsecret(str(value))
    return found


def retry_command(dataset: str, given: Mapping[str, str]) -> str:
    """The command that retries links that may work later, with the last run's non-default settings that a retry needs
    (filter.* and fetch.*)."""
    words = ["xtra", "ingest", "--retry", "--out", shlex.quote(dataset)]
    usual = settings(Config())
    for name, value in given.items():
        if not name.startswith(("fetch.", "filter.")) or value == usual.get(name, value) or "…@" in value:
            continue
        if value in ("True", "False"):
            room, _, flag = name.partition(".")
            words.append(f"--{name}" if value == "True" else f"--{room}.no-{flag}")
        else:
            words += [f"--{name}", *map(shlex.quote, value.split())]
    return " ".join(words)


def _unsecret(text: str) -> str:
    return re.sub(r"(?<=://)[^/@]*@", "…@", text).partition("?")[0] if "://" in text else text


# ---- sections ----


def _header(version: Manifest, a: Account, kind: str, what: str) -> str:
    shards = version.shards
    tiles = [
        (f"{a.links:,}", what),
        (f"{a.kept:,}", f"kept, {percent(a.kept, a.links)} of the {what}"),
        (f"{a.samples:,}", "samples in this version"),
        (size(sum(s.tar_bytes for s in shards)), f"in {len(shards):,} shard{'s' if len(shards) != 1 else ''}"),
    ]
    body = "".join(f"<div><b>{safe(number)}</b><span>{safe(what)}</span></div>" for number, what in tiles)
    return (
        f"<header><p>{kind}</p><h1>{safe(version.list_name)}</h1><p><code>{safe(version.address)}</code></p>"
        f'<div class="tiles">{body}</div></header>'
    )


def funnel(a: Account, what: str = "links") -> str:
    """Stages, and the losses between them, as bars relative to the list's lines; `what` names its usable lines."""
    rows: list[str] = []
    if a.not_chosen:
        rows.append(_bar("lines in the list", a.lines, a, "stage"))
        rows += [_bar(rule, n, a, "fell") for rule, n in link_counts.left_out(a)]
    rows.append(_bar(what, a.links, a, "stage"))
    for meaning, total, reasons in a.grouped():
        rows.append(_bar(meaning, total, a, f"fell {KINDS[meaning]}"))
        rows += [_bar(reason, n, a, f"why {KINDS[meaning]}") for reason, n in reasons.items()]
    rows.append(_bar(KEPT, a.kept, a, "stage kept"))
    rows += [_bar(reason, n, a, "fell content") for reason, n in link_counts.ordered(a.deselected).items()]
    rows.append(_bar("samples", a.samples, a, "stage kept"))
    return f'<table class="funnel"><tbody>{"".join(rows)}</tbody></table>'


KINDS = dict(zip(link_counts.GROUPS, ("retryable", "final", "content")))  # classes of the page's style


def _bar(name: str, n: int, a: Account, kind: str) -> str:
    width = 100 * n / max(1, a.lines)
    return (
        f'<tr class="{kind}"><th>{safe(name)}</th><td class="bar"><i style="width:{width:.2f}%"></i></td>'
        f'<td class="n">{n:,}</td><td class="n">{percent(n, a.links) if n <= a.links else ""}</td></tr>'
    )


def _retry(a: Account, dataset: str, settings: Mapping[str, str]) -> str:
    if not a.retryable:
        return ""
    return (
        f"<p>{a.retryable:,} link{'s' if a.retryable > 1 else ''} may work later. This asks for them again:</p>"
        f'<p><code class="command">{safe(retry_command(dataset, settings), LONGEST_LINK)}</code></p>'
    )


def _reasons(a: Account, examples: Mapping[str, Sequence[Example]], what: str) -> str:
    counts = link_counts.ordered(Counter(a.reasons) + Counter(a.deselected))
    rows = []
    for reason, n in counts.items():
        items = "".join(example(e.key, e.url, e.detail, e.status) for e in examples.get(reason, ()))
        again = " May work later." if reason in RETRYABLE else ""
        rows.append(
            f"<details><summary><b>{safe(reason)}</b> <span>{safe(MEANINGS.get(reason, ''))}.{again}</span>"
            f"<em>{n:,}</em></summary><ul>{items or '<li>none among the links that were read</li>'}</ul></details>"
        )
    return f'<div class="reasons">{"".join(rows)}</div>' if rows else f"<p>Every {what[:-1]} was kept.</p>"


def example(key: str, url: str, detail: str, status: int | None = None, linked: bool = False) -> str:
    """A link as a list item. Its URL is plain text, so that it is not followed by accident, unless `linked`."""
    said = " · ".join(filter(None, (key, f"HTTP {status}" if status else "", detail)))
    return f"<li><code>{link(url) if linked else safe(url, 300)}</code><br>{safe(said, 300)}</li>"


def link(url: str, words: str = "", most: int = 300) -> str:
    """An untrusted URL as a link without referrer if its scheme is http or https, else as text."""
    text = safe(words or url, most)
    try:
        parts = urlsplit(url)
    except ValueError:
        return text
    usable = parts.scheme in ("http", "https") and parts.netloc and url.isprintable() and len(url) <= LONGEST_LINK
    return f'<a href="{escaped(url)}" rel="noreferrer noopener nofollow">{text}</a>' if usable else text


def _hosts(seen: Survey) -> str:
    tables = [
        ("with the most links", seen.largest),
        ("that failed most", seen.failing),
        ("that were slowest", seen.slowest),
    ]
    drawn = "".join(_host_table(title, hosts) for title, hosts in tables if hosts)
    return f'<div class="grid">{drawn}</div>' if drawn else ""


def _host_table(title: str, hosts: Sequence[Host]) -> str:
    rows = "".join(
        f'<tr><td class="host">{safe(h.name, 80)}</td><td class="n">{h.links:,}</td>'
        f'<td class="n">{percent(h.kept, h.links)}</td><td class="n">{percent(h.failed, h.links)}</td>'
        f'<td class="n">{h.seconds:.2f} s</td></tr>'
        for h in hosts
    )
    head = "".join(f'<th class="n">{name}</th>' for name in ("links", "kept", "failed", "time"))
    return (
        f'<div class="wide"><h3>{safe(title)}</h3><table><thead><tr><th>host</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


ASPECTS = ("1:3", "1:2", "2:3", "3:4", "0.95", "1.05", "4:3", "3:2", "2:1", "3:1")


def _shapes(seen: Survey) -> str:
    formats = ", ".join(f"{name} {percent(n, sum(seen.formats.values()))}" for name, n in seen.formats.items())
    figures = [
        histogram(title, found.counts, edges, "pictures")
        for title, found, edges in (
            ("shorter side, pixels", seen.sides, [f"{edge:g}" for edge in seen.sides.edges]),
            ("width / height", seen.aspects, ASPECTS),
            ("bytes stored", seen.sizes, [_short_size(edge) for edge in seen.sizes.edges]),
        )
    ]
    words = f"<p>Formats as they came: {safe(formats)}.</p>" if formats else ""
    return f'{words}<div class="grid">{"".join(figures)}</div>'


def _short_size(count: float) -> str:
    return f"{count / 1e6:g}M" if count >= 1e6 else f"{count / 1e3:g}k"


def _classes(seen: Survey, known: Sequence[str] | None) -> str:
    """The number of pictures in each class, and example pictures of some classes."""
    if not seen.classes:
        return ""
    counts = list(seen.classes.values())
    middle = sorted(counts)[len(counts) // 2]
    words = (
        f"{len(counts):,} classes, from {counts[0]:,} pictures down to {counts[-1]:,}; half have {middle:,} or more."
    )
    empty = [name for name in known or () if name not in seen.classes] if seen.whole else []
    equal = len(counts) > NAMED and counts[0] == counts[-1]
    if equal:
        words = f"{len(counts):,} classes of {middle:,} picture{'s' if middle != 1 else ''} each."
    if len(counts) == 1:
        words = f"One class, {counts[0]:,} picture{'s' if counts[0] != 1 else ''}."
    if empty:
        named = ", ".join(empty[:NAMED_ENDS]) + (", …" if len(empty) > NAMED_ENDS else "")
        words += f" No picture of {len(empty):,} more: {named}."
    all_ = list(seen.classes.items())
    if equal:
        bars = ""
    elif len(all_) <= NAMED:
        bars = _named(all_, counts[0])
    else:
        largest, smallest = _named(all_[:NAMED_ENDS], counts[0]), _named(all_[-NAMED_ENDS:], counts[0])
        bars = (
            f'<div class="grid">{ranked("classes", counts, "pictures")}<div><h3>the largest</h3>{largest}</div>'
            f"<div><h3>the smallest</h3>{smallest}</div></div>"
        )
    shown = "".join(map(_class, (c for c in seen.shown if c.thumbs)))
    more = "" if len(seen.shown) == len(counts) else f"<h3>{len(seen.shown)} of them, by example</h3>"
    return f'<p>{safe(words)}</p>{bars}{more}<div class="grid">{shown}</div>'


def _named(classes: Sequence[tuple[str, int]], most: int) -> str:
    rows = "".join(
        f'<tr class="stage"><th title="{safe(name, 200)}">{safe(name, 80)}</th><td class="bar">'
        f'<i style="width:{100 * n / most:.2f}%"></i></td><td class="n">{n:,}</td></tr>'
        for name, n in classes
    )
    return f'<table class="funnel named"><tbody>{rows}</tbody></table>'


def _class(c: Class) -> str:
    name = f'<span title="{safe(c.name, 200)}">{safe(c.name, 80)}</span><em>{c.pictures:,}</em>'
    return f'<div class="class"><h3>{name}</h3>{_thumbs(c.thumbs, captions=False)}</div>'


def _rejected(seen: Survey) -> str:
    return "".join(
        f"<h3>{safe(reason)}</h3><p>{safe(meaning)}{NEARLY.get(reason, '')}</p>" + _thumbs(seen.thumbs[reason])
        for reason, meaning in MEANINGS.items()
        if reason != KEPT and seen.thumbs.get(reason)
    )


NEARLY = {str(Reason.UNDECODABLE): "; shown as far as they decode"}


def _thumbs(thumbs: Sequence[Thumb], captions: bool = True) -> str:
    figures = "".join(thumb(t, safe(t.detail or t.key, 80) if captions else "") for t in thumbs)
    return f'<div class="thumbs">{figures}</div>' if figures else ""


def thumb(t: Thumb, caption: str = "") -> str:
    """A picture as a figure with an HTML caption; hovering shows its source. Tiny pictures are enlarged without
    smoothing, in a frame."""
    about = safe(" · ".join(filter(None, (t.key, t.detail, t.url))), 400)
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    data = base64.b64encode(t.jpeg).decode()
    kind = ' class="tiny"' if _side(t.jpeg) < TINY else ""
    return f'<figure title="{about}"><img{kind} alt="{about}" src="data:image/jpeg;base64,{data}">{words}</figure>'


def _side(jpeg: bytes) -> int:
    try:
        header = image.header(jpeg)
    except image.Undecodable:
        return TINY
    return max(header.width, header.height)


def _events(events: Happened) -> str:
    if not events.counts:
        return ""
    kinds = ", ".join(f"{safe(kind)} {n:,}" for kind, n in events.counts.items())
    rows = "".join(
        f"<tr><td>{datetime.fromtimestamp(e.at, UTC):%Y-%m-%d %H:%M:%S}</td><td>{safe(e.kind)}</td>"
        f"<td>{safe(e.about, 100)}</td><td>{safe(e.detail, 200)}</td></tr>"
        for e in events.newest
    )
    listed = sum(n for kind, n in events.counts.items() if kind not in ROUTINE)
    some = "" if len(events.newest) == listed else f" The last {len(events.newest)}:"
    return f'<p>{kinds}.{some}</p><div class="wide"><table class="events"><tbody>{rows}</tbody></table></div>'


def _facts(version: Manifest, given: Mapping[str, str]) -> str:
    facts = {
        "dataset": version.address,
        "list": version.list_name,
        "its sha256": version.list_sha256,
        "classes": "" if version.classes is None else f"{len(version.classes):,}",
    }
    return _pairs(facts) + ("<h3>Flags of the last run</h3>" + _pairs(given) if given else "")


def _pairs(pairs: Mapping[str, str]) -> str:
    rows = "".join(f"<tr><th>{safe(name)}</th><td>{safe(value)}</td></tr>" for name, value in pairs.items() if value)
    return f'<div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div>'


def _section(title: str, body: str, note: str = "") -> str:
    words = f"<p>{safe(note)}</p>" if note and body else ""
    return f"<section><h2>{safe(title)}</h2>{words}{body}</section>" if body else ""
