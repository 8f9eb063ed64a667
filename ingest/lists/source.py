"""URL lists -> the rows of a dataset's plan: links with unique keys, in one pass, in batches of columns.

The list's other columns follow those of the plan, under prefixed names (`ingest.lists.columns`).

`ingest.lists.rows`, `tables`, `json_lists` and `parquet_lists` read the rows. Here their URLs are checked and quoted,
their keys made unique, and lines whose classes are not wanted left out. A line without a usable link becomes a bad
line with its number, never an exception. Plain rows, nearly all, are handled by the column; the others one by one, by
the same rules.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ingest import wordnet
from ingest.lists import carry, files, keys
from ingest.lists.columns import KEPT, Columns, require
from ingest.lists.datasets import dataset_rows, is_dataset
from ingest.lists.files import list_name
from ingest.lists.json_lists import json_rows
from ingest.lists.parquet_lists import parquet_rows
from ingest.lists.rows import REST, ROWS, lists_of, text_rows
from ingest.lists.tables import table_rows
from ingest.lists.where import Rule
from ingest.record import BadLine, Link, from_plan
from shards.dataset import PLAN_SCHEMA
from shards.url_secrets import masked

MAX_URL = 4096  # bytes after quoting
MAX_LABEL = 200  # characters

# Nearly all URLs that check_url accepts and quote leaves unchanged.
_PLAIN_URL = r"https?://[A-Za-z0-9][A-Za-z0-9.-]*(?::(?:[0-9]{1,4}|[1-5][0-9]{4}))?(?:/[!-\"$-~]*)?"
_PLAIN = re.compile(_PLAIN_URL)
_UNQUOTED = re.compile(r"[\0- \x7f]")


@dataclass(frozen=True)
class Planned:
    """The next links of a list, and how many lines before and between them were left out."""

    links: pa.Table  # PLAN_SCHEMA, then the list's other columns
    left_out: Mapping[str, int]  # lines, by the rule that left them out: "classes", or a part of --where

    @property
    def not_chosen(self) -> int:
        return sum(self.left_out.values())


def read_links(
    urls: str,
    format: str = "auto",  # noqa: A002 named as the flag
    url_column: str | None = None,
    id_column: str | None = None,
    label_column: str | None = None,
) -> Iterator[Link | BadLine]:
    """The links of a list in order, with unique keys. Columns are header names, or numbers from 0 without a header.

    Raises ValueError when the list is missing, has another format than its name says, or has no such column.
    """
    for planned in plan_batches(urls, format, Columns(url_column, id_column, label_column)):
        yield from links_of(planned.links)


def links_of(table: pa.Table, columns: pa.Table | None = None, hashed: str | None = None) -> Iterator[Link | BadLine]:
    """The rows of a plan as links, with the list's other columns; `hashed` names the column of hashes."""
    cells = [table[name].to_pylist() for name in ("key", "url", "labels", "row", "line", "why")]
    if columns is None:
        return map(from_plan, *cells)
    return map(from_plan, *cells, carry.json_objects(columns), carry.expected(columns, hashed))


def plan_units(
    urls: str,
    unit: int,
    format: str = "auto",  # noqa: A002
    columns: Columns = Columns(),  # noqa: B008 it is frozen
    classes: Collection[str] | None = None,
    where: Sequence[Rule] = (),
) -> Iterator[Planned]:
    """`plan_batches` in pieces of `unit` links. The last may have fewer, or none if it only counts lines that were left
    out."""
    held: list[pa.Table] = []
    count, left_out = 0, Counter[str]()
    for planned in plan_batches(urls, format, columns, classes, where):
        held.append(planned.links)
        count += len(planned.links)
        left_out.update(planned.left_out)
        if count < unit:
            continue
        table = carry.joined(held)
        whole = count - count % unit
        for start in range(0, whole, unit):
            yield Planned(table.slice(start, unit), dict(left_out))
            left_out.clear()
        held, count = [table.slice(whole)], count - whole
    if count or left_out:
        yield Planned(carry.joined(held), dict(left_out))


def plan_batches(
    urls: str,
    format: str = "auto",  # noqa: A002
    columns: Columns = Columns(),  # noqa: B008
    classes: Collection[str] | None = None,
    where: Sequence[Rule] = (),
) -> Iterator[Planned]:
    """The links of a list as rows of the plan, some ten thousand at a time; rows are numbered over the whole list.

    `classes` selects lines that have one of these labels, and bad lines without labels; `where` selects lines that
    meet all its rules. A line is counted under the first rule that leaves it out. Raises ValueError as `read_links`.
    """
    seen = keys.Seen()
    row = 0
    rules: list[tuple[str, Callable[[pa.RecordBatch], pa.BooleanArray]]] = []
    if classes is not None:
        rules.append((carry.CLASSES, lambda judged: _of_classes(judged, classes)))
    rules += [(rule.text, rule.takes) for rule in where]
    for judged in _judged(urls, format, columns):
        rows = np.arange(row, row + len(judged))
        row += len(judged)
        left_out: Counter[str] = Counter()
        for name, takes in rules:
            wanted = takes(judged)
            left_out[name] += len(judged) - wanted.true_count
            judged, rows = judged.filter(wanted), rows[wanted.to_numpy(zero_copy_only=False)]
        yield Planned(_plan(judged, rows, seen), +left_out)


def _of_classes(judged: pa.RecordBatch, classes: Collection[str]) -> pa.BooleanArray:
    lost = pc.and_(judged["why"].is_valid(), pc.equal(pc.list_value_length(judged["labels"]), 0))
    return pc.or_(wordnet.takes(judged["labels"], classes), lost)


def _plan(judged: pa.RecordBatch, rows: np.ndarray, seen: keys.Seen) -> pa.Table:
    """Judged rows as rows of the plan."""
    named = judged["name"].is_valid().to_numpy(zero_copy_only=False)
    key = seen.unique(keys.clean(judged["name"], rows), rows, named)
    good = judged["why"].is_null()
    line = pc.if_else(good, pa.scalar(None, pa.int64()), judged["line"])
    labels = _only(judged["labels"], good)
    plan = pa.table([key, judged["url"], labels, pa.array(rows), line, judged["why"]], schema=PLAN_SCHEMA)
    for name in judged.schema.names[len(_JUDGED) :]:
        if name.startswith(KEPT):
            plan = plan.append_column(name, judged[name])
    return plan


def _only(labels: pa.ListArray, keep: pa.BooleanArray) -> pa.ListArray:
    """The labels of the rows to keep, none for the others."""
    lengths = labels.value_lengths().to_numpy(zero_copy_only=False)
    kept = keep.to_numpy(zero_copy_only=False)
    if kept.all():
        return labels
    return lists_of(lengths * kept, labels.flatten().filter(pa.array(np.repeat(kept, lengths))))


def label_counts(
    urls: str,
    format: str = "auto",  # noqa: A002
    columns: Columns = Columns(),  # noqa: B008
) -> Counter[str]:
    """How many good links of a list have each label, in one pass."""
    counts: Counter[str] = Counter()
    for judged in _judged(urls, format, columns):
        good = judged.filter(judged["why"].is_null())
        for entry in pc.value_counts(good["labels"].flatten()).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


# --- rows -> judged rows ---------------------------------------------------------------------------------------------

_JUDGED = pa.schema(
    [
        ("line", pa.int64()),
        ("name", pa.binary()),  # its id; null where the list has none
        ("url", pa.string()),  # quoted; of a bad row the original text, cut and printable
        ("labels", pa.list_(pa.string())),  # of bad rows too, where they are known
        ("why", pa.string()),  # why the row is bad; null if it is good
    ]
)


def _judged(urls: str, format: str, columns: Columns) -> Iterator[pa.RecordBatch]:  # noqa: A002
    if format not in files.FORMATS:
        raise ValueError(f"list format {format!r} is unknown: use one of {', '.join(files.FORMATS)}")
    if format == "auto" and is_dataset(urls):
        for rows in dataset_rows(urls, columns):
            if len(rows):
                yield _judge(rows, "")
        return
    found = files.list_files(urls)
    for file in found:
        for rows in rows_of_file(file, format, columns):
            if len(rows):
                yield _judge(rows, f"{list_name(file)}: " if len(found) > 1 else "")


def rows_of_file(url: str, format: str, columns: Columns) -> Iterator[pa.RecordBatch]:  # noqa: A002
    """The entries of one file in order, as batches of ROWS; empty lines are skipped."""
    kind = files.kind_of(url) if format == "auto" else format
    if kind == "parquet":
        return parquet_rows(url, columns)
    if kind == "text":
        require(url, (REST,), columns)
        return text_rows(url, columns.mark(REST))
    if kind in ("json", "jsonl"):
        return json_rows(url, columns)
    return table_rows(url, "," if kind == "csv" else "\t", columns)


def _judge(rows: pa.RecordBatch, where: str) -> pa.RecordBatch:
    """The rows with their URLs quoted, or with a reason why they are bad; `where` is put before each reason."""
    url = rows["url"]
    fine = pc.and_(pc.match_substring_regex(url, f"^(?:{_PLAIN_URL})$"), pc.less_equal(pc.binary_length(url), MAX_URL))
    text = _bytes_of(url)
    if b"&" in text and b"&amp;" in text:  # searching for one byte is much faster
        fine = pc.and_not(fine, pc.match_substring(url, "&amp;"))
    odd = ~pc.and_(fine, rows["why"].is_null()).to_numpy(zero_copy_only=False)
    why = rows["why"]
    if odd.any():
        some = rows.filter(pa.array(odd))
        judged = [_judge_one(*row) for row in zip(*(some[name].to_pylist() for name in ("name", "url", "why")))]
        urls, whys = zip(*judged)
        url = pc.replace_with_mask(url, odd, pa.array([each.encode() for each in urls], pa.binary()))
        whys = [reason and where + reason for reason in whys]
        why = pc.replace_with_mask(why, odd, pa.array(whys, pa.string()))
    columns = [rows["line"], rows["name"], url.cast(pa.string()), _text_lists(rows["labels"]), why]
    if rows.num_columns == len(ROWS):
        return pa.record_batch(columns, schema=_JUDGED)
    others = list(rows.schema)[len(ROWS) :]
    return pa.record_batch([*columns, *rows.columns[len(ROWS) :]], schema=pa.schema([*_JUDGED, *others]))


def _bytes_of(cells: pa.BinaryArray) -> bytes:
    """The bytes of all cells, concatenated: one search finds what hardly any cell has."""
    if not len(cells):
        return b""
    offsets = np.frombuffer(cells.buffers()[1], np.int32)[cells.offset :]
    return bytes(memoryview(cells.buffers()[2])[offsets[0] : offsets[len(cells)]]) if cells.buffers()[2] else b""


def _judge_one(name: bytes | None, url: bytes, why: str | None) -> tuple[str, str | None]:
    """The URL to put into the plan, and why it is bad; None if it is good."""
    text = url.decode("utf-8", "surrogateescape").replace("&amp;", "&")  # as copied from a page's source
    quoted = quote(text)
    why = why or ("NUL byte" if "\0" in quoted else check_url(quoted))
    if why is None:
        return quoted, None
    return _printable(masked(text or (name or b"").decode("utf-8", "surrogateescape")), 200), why


def _text_lists(labels: pa.ListArray) -> pa.ListArray:
    flat = labels.flatten()
    codes = np.frombuffer(_bytes_of(flat), np.uint8)
    longest = pc.max(pc.binary_length(flat)).as_py() or 0
    if not longest or (codes.min() >= 0x20 and codes.max() < 0x7F and longest <= MAX_LABEL):
        return labels.cast(pa.list_(pa.string()))
    text = [_printable(label.decode("utf-8", "surrogateescape"), MAX_LABEL) for label in flat.to_pylist()]
    return lists_of(labels.value_lengths().to_numpy(zero_copy_only=False), pa.array(text, pa.string()))


# --- one URL -------------------------------------------------------------------------------------------------------


def check_url(url: str) -> str | None:
    """Why this URL must not be requested; None if it may be. The same rule for lists, plans and redirects."""
    if len(url) > MAX_URL:
        return f"url of {len(url)} bytes, more than {MAX_URL}"
    if _PLAIN.fullmatch(url):
        return None
    if not url.isascii() or _UNQUOTED.search(url):
        return "url with unquoted characters"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"not a url: {error}"
    if parts.scheme not in ("http", "https"):
        return f"scheme {parts.scheme[:20]!r} is not http or https" if parts.scheme else "url without scheme"
    if not host:
        return "url without host"
    if "@" in parts.netloc or "\\" in parts.netloc:
        return "url with user name"
    return None


def quote(url: str) -> str:
    """Percent-encode the characters that a URL must not contain, byte for byte, so that a latin-1 list keeps its bytes.
    Host names are IDNA-encoded instead."""
    url = url.strip(" \t\r\n")
    if url.isascii() and "#" not in url and " " not in url:
        return url
    scheme, mark, rest = url.partition("://")
    host = _HOST.match(rest)[0]  # type: ignore[index]
    path = rest[len(host) :]
    if mark and not host.isascii():
        host = _ascii_host(host)
        if not host:
            return url  # which check_url rejects
    raw = f"{scheme}{mark}{host}{path}".encode("utf-8", "surrogateescape").partition(b"#")[0]
    return "".join(chr(b) if b < 0x80 and b != 0x20 else f"%{b:02X}" for b in raw)


_HOST = re.compile(r"[^/?#]*")
# Characters that browsers drop from host names (Unicode TS 46, table "ignored").
_IGNORED = re.compile("[\u00ad\u034f\u180b-\u180f\u200b\u2060\u2064\ufe00-\ufe0f\ufeff]")
_DOTS = re.compile("[\u3002\uff0e\uff61]")
_FORBIDDEN = re.compile(r"[\0-\x20\"#%/:<>?@\[\\\]^`{|}\x7f]")  # in a host (the URL standard, 3.5)


def _ascii_host(host: str) -> str:
    """A host name in ASCII as browsers encode it: UTS 46, non-transitional, so that `faß` keeps its ß. Empty if it is
    invalid: a label that is too long, or that would gain a character that ends a host."""
    name, colon, port = host.partition(":")
    if "@" in host or (colon and not port.isdigit()):
        return ""
    mapped = unicodedata.normalize("NFKC", _IGNORED.sub("", name).lower())
    mapped = unicodedata.normalize("NFC", mapped.lower())
    labels = []
    for label in _DOTS.sub(".", mapped).split("."):
        try:
            text = label if label.isascii() else "xn--" + label.encode("punycode").decode("ascii")
        except UnicodeError:  # a lone surrogate
            return ""
        if _FORBIDDEN.search(label) or len(text) > 63 or (label and unicodedata.category(label[0])[0] == "M"):
            return ""
        labels.append(text)
    return ".".join(labels) + colon + port


def _printable(text: str, length: int) -> str:
    cut = text[:length].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\ufffd" for c in cut)
