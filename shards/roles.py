"""What a setting decides: declared next to its default, and read by code that compares two settings.

    lr: float = roles.law(1e-3)
    threads: int = roles.machine(2)
    samples: int = field(metadata=roles.role("trial"))  # a setting without a default

law      shapes the result: results are comparable if their laws are equal, and a rerun must keep them
trial    which repetition it is, and how long: a rerun must keep it, a comparison varies it
data     where the input is: it is compared by the digest of its contents
machine  where, how fast, what is kept, and names: any rerun may change it

`unless`: the setting decides nothing if other settings of its Config have these values (SET: any except None), such as
`decoder_fp32` with `precision="fp32"`. `resumed`: a resumed run may change it although it is a law.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, Final, Literal, TypeVar, get_args, get_type_hints

T = TypeVar("T")
Role = Literal["law", "trial", "data", "machine"]
ROLES: tuple[Role, ...] = ("law", "trial", "data", "machine")
SET: Final = object()


def role(name: Role, unless: Mapping[str, Any] | None = None, resumed: bool = False) -> dict[str, Any]:
    """The `metadata` of a field with this role. The names in `unless` may be dotted."""
    return {"role": name, "unless": dict(unless or {}), "resumed": resumed}


def law(default: T, unless: Mapping[str, Any] | None = None) -> T:
    return field(default=default, metadata=role("law", unless))


def trial(default: T) -> T:
    return field(default=default, metadata=role("trial"))


def data(default: T) -> T:
    return field(default=default, metadata=role("data"))


def machine(default: T) -> T:
    return field(default=default, metadata=role("machine"))


def names(config: type, *roles: Role) -> tuple[str, ...]:
    """The fields of a Config class with one of these roles, without those of nested Configs."""
    return tuple(one.name for one in fields(config) if one.metadata.get("role") in roles)


def chosen(
    config: type, values: Mapping[str, Any], *roles: Role, under: Mapping[str, Any] | None = None, resumed: bool = False
) -> dict[str, Any]:
    """The values of a Config (from JSON or `asdict`) that have one of these roles and decide something, given the
    values `under` (default: the values themselves); in nested Configs too. `resumed`: also without those that a
    resumed run may change. Names that the class does not have are kept: they come from another build."""
    under, kept, inner = values if under is None else under, dict(values), nested(config)
    for one in fields(config):
        said, value = one.metadata, kept.get(one.name)
        if said.get("role") not in roles or _undecided(said["unless"], under) or (resumed and said["resumed"]):
            kept.pop(one.name, None)
        elif one.name in inner and isinstance(value, Mapping):
            theirs = under.get(one.name) or {}
            kept[one.name] = chosen(inner[one.name], value, *roles, under=theirs, resumed=resumed)
    return kept


def _undecided(unless: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    found = {name: functools.reduce(lambda inner, part: inner[part], name.split("."), values) for name in unless}
    return bool(unless) and all(found[n] is not None if v is SET else found[n] == v for n, v in unless.items())


@functools.cache
def nested(config: type) -> dict[str, type]:
    """The classes of the Configs in a Config, by the name of their field; also of those that may be None."""
    kinds = {name: (hint, *get_args(hint)) for name, hint in get_type_hints(config).items()}
    found = {name: [kind for kind in of if isinstance(kind, type) and is_dataclass(kind)] for name, of in kinds.items()}
    return {name: those[0] for name, those in found.items() if those}


@functools.cache
def defaults(config: type) -> Mapping[str, Any]:
    """The default of every setting that has one, in nested Configs too."""
    found = {one.name: one.default for one in fields(config) if one.default is not MISSING}
    return found | {name: defaults(inner) for name, inner in nested(config).items() if name not in found}
