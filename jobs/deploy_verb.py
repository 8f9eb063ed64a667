"""The flags of `xtra deploy`: files that start a cluster, made from a few values, and checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.flags import Call, Help, describe, nearest
from jobs.submit_verb import check as check_verb
from jobs.terminal import say


def deploy(call: Call, verbs: Mapping[str, Any]) -> Any:
    """`xtra deploy KIND [--set NAME=VALUE …]` prints the file; `xtra deploy check FILE …` checks edited files."""
    from jobs import deploy

    kinds = [*deploy.KINDS, "check"]
    if "--help" in call.words or "-h" in call.words:
        _describe(kinds, call.examples)
        raise SystemExit(0)
    kind = call.first()
    if kind not in kinds:
        what = "KIND is missing" if kind is None else f"{kind!r} is not a kind of file{nearest(kind, kinds)}"
        raise ValueError(f"{what}: give one of {', '.join(kinds)}")
    if kind == "check":
        return _check(call.words)
    given = [word.removeprefix("--set=") for word in call.words if word != "--set"]  # --set may be repeated
    if wrong := [word for word in given if word.startswith("-")] or given[: "--set" not in " ".join(call.words[:1])]:
        raise ValueError(f"{wrong[0]} is not known: xtra deploy KIND --set NAME=VALUE …; --help lists the values")

    def check(words: Sequence[str]) -> None:
        name, rest = (words[0], list(words[1:])) if words else ("", [])
        if name not in verbs:
            raise ValueError(f"--set command: {name!r} is not a verb{nearest(name, list(verbs))}")
        try:
            check_verb(name, verbs[name], rest)
        except ValueError as error:
            raise ValueError(f"--set command: {error}") from None

    text = deploy.make(kind, deploy.parse_values(given), check)
    say(text.rstrip())
    return {"kind": kind, "text": text}


def _check(files: Sequence[str]) -> Any:
    import yaml

    from jobs import deploy
    from shards import store

    if not files:
        raise ValueError("FILE is missing: xtra deploy check FILE …")
    for file in files:
        try:
            documents = list(yaml.safe_load_all(store.read(file)))
        except yaml.YAMLError as error:
            raise ValueError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
        except store.Missing:
            raise ValueError(f"{file}: does not exist") from None
        for document in documents:
            deploy.require(document, file)
        say(f"{file}: is valid", file=sys.stderr)
    return {"files": list(files)}


def _describe(kinds: Sequence[str], examples: tuple[str, ...]) -> None:
    from jobs.deploy import Values

    usage = "xtra deploy KIND [--set NAME=VALUE …] > FILE"
    also = f"KIND: {', '.join(kinds[:-1])}.\nxtra deploy check FILE … checks edited files. The names and their values:"
    text = describe((Values,), (Values(),), (), Help(usage, also, examples)).replace(" [--flags]", "", 1)
    say("\n".join(line.replace("│ --", "│   ", 1) for line in text.splitlines() if "--help" not in line))
