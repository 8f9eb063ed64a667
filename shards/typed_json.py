"""The one reader of our JSON objects: `dataset.json`, commits, versions, manifests, events, runs, probe results.

A dataclass defines the fields and types of an object, and msgspec checks them. Fields that older builds did not write
have defaults; unknown fields are ignored; a newer `format` must be refused by the caller. Anything wrong is a
`StoreError` of one line that names the object and the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import os
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from shards import store
from shards.store_remote import StoreError

T = TypeVar("T")
MAX_DEPTH = 64  # of nested objects and arrays; ours have at most 6
MAX_INTEGER = 2**64 - 1  # as a subset's threshold may be
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # fits an int64 column
Unsigned = Annotated[int, msgspec.Meta(ge=0)]  # 64 bits
Moment = Annotated[float, msgspec.Meta(ge=0, le=253_402_300_799)]  # seconds since 1970, to the end of 9999
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_PATH = re.compile(r" - at `\$\.?(.*)`$")


def read(kind: type[T], url: str) -> T:
    """The object as a `kind`. Raises Missing, and StoreError for an object that is damaged or of another kind."""
    return decode(kind, store.read(url), url)


def decode(kind: type[T], body: bytes | str, url: str) -> T:
    """A `kind` from bytes that were read from `url`. Raises StoreError."""
    return checked(kind, parse(body, url), url)


def read_object(kind: type[Any], url: str) -> dict[str, Any]:
    """The whole object, including fields that `kind` does not have; the others are checked. Raises as `read`."""
    value = parse(store.read(url), url)
    checked(kind, value, url)
    return value


def checked(kind: type[T], value: Any, url: str) -> T:
    """A JSON value as a `kind`. Raises StoreError naming the field that is missing or of another type."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, AssertionError, TypeError, ValueError, OverflowError) as error:
        text = " ".join(str(error).replace("`", "").split())[:300]
        found = _PATH.search(str(error))
        text = text.rpartition(" - at ")[0] if found else text
        field = f"field {found[1]!r}: " if found and found[1] else ""
        raise StoreError(f"{url}: {field}{text}: the file is damaged or from another version") from None


def changed(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of a Config with these settings changed; a dict changes fields of a nested Config.

    Raises ValueError for an unknown setting, and for a value of another type or one that its Config refuses.
    """
    values = _with(config, changes, "")
    try:
        return msgspec.convert(values, type(config))
    except msgspec.ValidationError as error:
        if error.__cause__ is not None:  # the Config's own error, which is complete
            raise ValueError(str(error.__cause__)) from None
        text, _, path = str(error).replace("`", "").partition(" - at $.")
        value: Any = values
        for name in re.findall(r"[^.\[\]]+", path):
            value = value[int(name) if isinstance(value, list | tuple) else name]
        choices = _choices(type(config), re.findall(r"[^.\[\]0-9][^.\[\]]*", path))
        text = f"it must be one of {', '.join(choices)}" if choices else f"{text[:1].lower()}{text[1:]}"
        raise ValueError(f"{path} is {value!r}: {text}") from None


def _choices(kind: Any, path: list[str]) -> list[str]:
    """The words that a setting may be, if its type is a Literal."""
    for name in path:
        kind = typing.get_type_hints(kind)[name]
    kinds = [kind, *typing.get_args(kind)]
    return [str(word) for one in kinds if typing.get_origin(one) is typing.Literal for word in typing.get_args(one)]


def _with(config: Any, changes: Mapping[str, Any], inside: str) -> dict[str, Any]:
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config) if field.init}
    for name, value in changes.items():
        if name not in values:
            near = difflib.get_close_matches(name, values, n=1, cutoff=0.5)
            like = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{inside}{name} is not a setting{like}: there are {', '.join(values)}")
        holds = values[name]
        if dataclasses.is_dataclass(holds) and isinstance(value, Mapping):
            value = _with(holds, value, f"{inside}{name}.")
        values[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    return {
        name: dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
        for name, value in values.items()
    }


def parse(body: bytes | str, url: str, finite: bool = True) -> Any:
    """Any JSON value within the limits of depth and numbers; `finite` refuses NaN and infinities.

    Raises StoreError.
    """
    try:
        value = json.loads(body)
        _bound(value, finite)
    except (ValueError, RecursionError, MemoryError) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise StoreError(f"{url}: is not JSON ({why}): it was not written by this program or is damaged") from None
    return value


def lines(body: bytes) -> Iterator[Any]:
    """The values of a log, one a line; damaged lines are left out, as nothing depends on them."""
    for line in body.splitlines():
        with contextlib.suppress(StoreError):
            yield parse(line, "a line", finite=False)


def last_line(url: str) -> Any:
    """The last undamaged value of a log; None if there is none. Raises Missing, StoreError."""
    return next(iter([*lines(store.read(url))][-1:]), None)


def _bound(value: Any, finite: bool) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
                _refuse_surrogates(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                _refuse_surrogates([item])
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError("a number in it is too large")
            elif finite and isinstance(item, float) and not math.isfinite(item):
                raise ValueError("a number in it is not finite")
        if not below:
            return
        level = below
    raise ValueError(f"more than {MAX_DEPTH} nested objects or arrays")


def _refuse_surrogates(texts: Any) -> None:
    """Raises UnicodeEncodeError for lone surrogates, which cannot be printed or written to a page or table."""
    for text in texts:
        if not text.isascii():
            text.encode()


# ---- one field of an object ----

N = TypeVar("N", str, int, float)


def get(values: Mapping[str, Any], name: str, kind: type[N], where: str) -> N:
    """One field of an object that was read from `where`. Raises ValueError naming it if it has another type."""
    value = values.get(name)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return kind(value)
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise ValueError(
        f"{where}: field {name!r} is {value!r}, expected {kind.__name__}: the file is damaged or from another version"
    )


def maybe(values: Mapping[str, Any], name: str, where: str) -> float | None:
    """A number, or None where there is none; as `get`."""
    return None if values.get(name) is None else get(values, name, float, where)


def count(values: Mapping[str, Any], name: str, where: str) -> int | None:
    """A whole number, or None where there is none; as `get`."""
    return None if values.get(name) is None else get(values, name, int, where)
