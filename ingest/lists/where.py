"""`--where "similarity > 0.3 and width >= 256"`: a condition on a list's columns, parsed here and never run as code.

    condition  = and-part ("or" and-part)*
    and-part   = not-part ("and" not-part)*
    not-part   = "not" not-part | "(" condition ")" | comparison
    comparison = value ("<" | "<=" | ">" | ">=" | "=" | "==" | "!=") value
               | value ["not"] "in" "(" literal ("," literal)* ")"
               | column "is" ["not"] "null"
    value      = column | literal
    column     = a word, or any name in `backticks`
    literal    = a number | "text" | 'text' | true | false

Text that is compared with a number is parsed as a number. A missing value, or text that is not a number, compares as
unknown, as in SQL; a row is taken only where the condition is true.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ingest.lists.columns import ASKED, KEPT

DEEPEST = 50  # nested parentheses and nots
LONGEST = 10_000  # characters of a condition
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))"
    r"|(?P<text>'[^']*'|\"[^\"]*\")|`(?P<quoted>[^`]+)`|(?P<word>[^\W\d][\w.\-]*)|(?P<sign><=|>=|==|!=|[<>=(),]))"
)
_NUMBER = r"^\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*$"
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    **{"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal},
    **{"=": pc.equal, "==": pc.equal, "!=": pc.not_equal},
}
_WORDS = ("and", "or", "not", "in", "is", "null", "true", "false")

Test = Callable[[pa.RecordBatch], Any]  # rows -> boolean [rows]; null: unknown


@dataclass(frozen=True)
class Rule:
    """One of the parts of the condition that "and" joins: its text, the columns it needs, and its test."""

    text: str
    columns: tuple[str, ...]
    test: Test

    def takes(self, rows: pa.RecordBatch) -> pa.BooleanArray:
        """The rows for which it is true, and bad rows in which all its columns are null: those are counted as bad."""
        true = pc.fill_null(self.test(rows), False)
        lost = rows["why"].is_valid()
        for name in self.columns:
            lost = pc.and_(lost, pc.is_null(_column(rows, name)))
        return pc.or_(true, lost)


def parse(text: str) -> tuple[Rule, ...]:
    """The rules of a condition, all of which a row must meet. Raises ValueError that quotes the wrong place."""
    return _Parser(text).rules()


class _Token(NamedTuple):
    kind: str  # "number", "text", "column", "end", or the sign or word itself, such as "and"
    value: str
    start: int
    end: int


class _Value(NamedTuple):
    """A column's name, or a literal."""

    column: str | None
    literal: Any = None


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = self._tokens()
        self.at = 0
        self.columns: list[str] = []  # of the rule that is being parsed
        self.depth = 0

    def wrong(self, why: str, at: int) -> ValueError:
        near = self.text[max(0, at - 20) : at + 20].strip()
        return ValueError(
            f"--where {self.text[:80]!r}: {why} at {near!r}: write it like similarity > 0.3 and width >= 256"
        )

    def _tokens(self) -> list[_Token]:
        if len(self.text) > LONGEST:
            raise ValueError(f"--where has {len(self.text):,} characters: give at most {LONGEST:,}")
        found, at = [], 0
        end = len(self.text.rstrip())
        while at < end:
            match = _TOKEN.match(self.text, at)
            if match is None:
                raise self.wrong("cannot be parsed", at)
            kind = str(match.lastgroup)
            value, start = match[kind], match.start(kind)
            if kind == "word" and value.lower() in _WORDS:
                kind = value = value.lower()
            elif kind in ("word", "quoted"):
                kind = "column"
            elif kind == "sign":
                kind = value
            found.append(_Token(kind, value, start, match.end()))
            at = match.end()
        return [*found, _Token("end", "", end, end)]

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def take(self, *kinds: str) -> _Token | None:
        token = self.next
        if token.kind not in kinds:
            return None
        self.at += 1
        return token

    def need(self, *kinds: str) -> _Token:
        token = self.take(*kinds)
        if token is None:
            raise self.wrong(f"{' or '.join(kinds)} is missing", self.next.start)
        return token

    # --- the grammar ---

    def rules(self) -> tuple[Rule, ...]:
        start = self.at
        parts = self._and_parts()
        if self.next.kind == "or":  # "and" binds more tightly, so the whole condition is one rule
            self.at, self.columns = start, []
            whole = self._either()
            parts = [Rule(self.text.strip(), tuple(dict.fromkeys(self.columns)), whole)]
        self.need("end")
        return tuple(parts)

    def _and_parts(self) -> list[Rule]:
        parts = []
        while True:
            first = self.next.start
            self.columns = []
            test = self._not()
            text = self.text[first : self.tokens[self.at - 1].end].strip()
            parts.append(Rule(text, tuple(dict.fromkeys(self.columns)), test))
            if not self.take("and"):
                return parts

    def _either(self) -> Test:
        test = self._both()
        while self.take("or"):
            test = _joined(pc.or_kleene, test, self._both())
        return test

    def _both(self) -> Test:
        test = self._not()
        while self.take("and"):
            test = _joined(pc.and_kleene, test, self._not())
        return test

    def _not(self) -> Test:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"--where: more than {DEEPEST} nested parentheses: write it flatter")
        if self.take("not"):
            inner = self._not()
            test: Test = lambda rows: pc.invert(inner(rows))  # noqa: E731
        elif self.take("("):
            test = self._either()
            self.need(")")
        else:
            test = self._comparison()
        self.depth -= 1
        return test

    def _comparison(self) -> Test:
        left = self._value()
        if left.column is not None and self.take("is"):
            name, negated = left.column, self.take("not") is not None
            self.need("null")
            check = pc.is_valid if negated else pc.is_null
            return lambda rows: check(_column(rows, name))
        negated = self.take("not") is not None
        if negated or self.next.kind == "in":
            self.need("in")
            return self._among(left, negated)
        sign = self.need(*_COMPARE).kind
        right = self._value()
        if left.column is None and right.column is None:
            raise self.wrong("no column is compared", self.tokens[self.at - 1].start)
        return lambda rows: _compared(sign, left, right, rows)

    def _among(self, left: _Value, negated: bool) -> Test:
        self.need("(")
        tests = [self._equal(left)]
        while self.take(","):
            tests.append(self._equal(left))
        self.need(")")
        any_of = tests[0]
        for test in tests[1:]:
            any_of = _joined(pc.or_kleene, any_of, test)
        return (lambda rows: pc.invert(any_of(rows))) if negated else any_of

    def _equal(self, left: _Value) -> Test:
        right = self._value()
        if left.column is None or right.column is not None:
            raise self.wrong("`in` compares a column with literals", self.tokens[self.at - 1].start)
        return lambda rows: _compared("=", left, right, rows)

    def _value(self) -> _Value:
        token = self.need("column", "number", "text", "true", "false")
        if token.kind == "column":
            self.columns.append(token.value)
            return _Value(token.value)
        if token.kind == "number":
            whole = token.value.lstrip("+-").isdigit() and len(token.value) < 19
            return _Value(None, int(token.value) if whole else float(token.value))
        return _Value(None, token.value[1:-1] if token.kind == "text" else token.kind == "true")


def _joined(join: Callable[[Any, Any], Any], one: Test, other: Test) -> Test:
    return lambda rows: join(one(rows), other(rows))


# --- rows ----------------------------------------------------------------------------------------------------------


def _column(rows: pa.RecordBatch, name: str) -> pa.Array:
    """The column, or nulls if these rows do not have it: entries of JSON may have different columns."""
    for mark in (KEPT, ASKED):
        if mark + name in rows.schema.names:
            return rows[mark + name]
    return pa.nulls(len(rows), pa.string())


def _compared(sign: str, left: _Value, right: _Value, rows: pa.RecordBatch) -> Any:
    one, other = (value.literal if value.column is None else _column(rows, value.column) for value in (left, right))
    if not isinstance(one, pa.Array) or not isinstance(other, pa.Array):
        column, literal = (one, other) if isinstance(one, pa.Array) else (other, one)
        name = left.column or right.column or ""
        column, literal = _alike(name, column, literal)
        one, other = (column, literal) if isinstance(one, pa.Array) else (literal, column)
        return _COMPARE[sign](one, other)
    if _is_text(one) and _is_text(other):  # as numbers in rows where both are numbers, else as text
        numbers = _COMPARE[sign](_numbers(one), _numbers(other))
        return pc.coalesce(numbers, _COMPARE[sign](one, other))
    one, other = (_numbers(values) if _is_text(values) else values for values in (one, other))
    if pa.types.is_floating(one.type) or pa.types.is_floating(other.type):
        one, other = _floats(one), _floats(other)
    try:
        return _COMPARE[sign](one, other)
    except pa.ArrowNotImplementedError:
        raise ValueError(
            f"--where: {left.column} ({one.type}) and {right.column} ({other.type}) cannot be compared: "
            "use columns of one type"
        ) from None


def _alike(name: str, column: pa.Array, literal: Any) -> tuple[pa.Array, pa.Scalar]:
    """The column and the literal as values of one type. Raises ValueError where their types cannot be compared."""
    kind, types = column.type, pa.types
    if types.is_null(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if _is_text(column):
        if isinstance(literal, bool):
            return pc.utf8_lower(column), pa.scalar(str(literal).lower())
        return (
            (column, pa.scalar(literal)) if isinstance(literal, str) else (_numbers(column), pa.scalar(float(literal)))
        )
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    if number and isinstance(literal, int | float) and not isinstance(literal, bool):
        if isinstance(literal, int) and types.is_integer(kind) and (literal >= 0 or kind != pa.uint64()):
            return column, pa.scalar(literal, kind if kind == pa.uint64() else None)
        return _floats(column), pa.scalar(float(literal))
    if types.is_boolean(kind) and isinstance(literal, bool):
        return column, pa.scalar(literal)
    if types.is_temporal(kind) and isinstance(literal, str):
        try:
            return column, pa.scalar(literal).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    raise ValueError(
        f"--where: the column {name!r} holds {kind} and cannot be compared with {literal!r}: give a {kind}"
    )


def _is_text(column: pa.Array) -> bool:
    return pa.types.is_string(column.type) or pa.types.is_large_string(column.type)


def _floats(column: pa.Array) -> pa.Array:
    """Numbers as float64, rounded if they do not fit exactly."""
    number = pa.types.is_integer(column.type) or pa.types.is_decimal(column.type)
    return column.cast(pa.float64(), safe=False) if number else column


def _numbers(text: pa.Array) -> pa.Array:
    """The texts as float64; null where a text is not a number."""
    fine = pc.match_substring_regex(text, _NUMBER)
    return pc.utf8_trim_whitespace(pc.if_else(fine, text, pa.scalar(None, text.type))).cast(pa.float64())
