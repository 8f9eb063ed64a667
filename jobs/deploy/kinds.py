"""Every kind of file: made from values, checked, and as text; and checks of edited files."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import jsonschema
import yaml

from jobs.deploy import aws, rayjob
from jobs.deploy.schema import RAYJOB, wrong
from jobs.deploy.values import Values
from jobs.flags import nearest

KINDS = ("ray-up-aws", "rayjob-ingest", "rayjob-train", "iam", "iam-head", "bucket-policy")
_JOBS = {"rayjob-ingest": (rayjob.ingest, rayjob.INGEST), "rayjob-train": (rayjob.train, rayjob.TRAIN)}
_FILES: dict[str, Callable[[Values], dict[str, Any]]] = {
    "ray-up-aws": aws.ray_up,
    "iam": aws.node_policy,
    "iam-head": aws.head_policy,
    "bucket-policy": aws.bucket_policy,
}


def make(kind: str, values: Values, check: Callable[[Sequence[str]], None] = lambda words: None) -> str:
    """The text of one file; `check` validates the words of a job. Raises ValueError for values that would not work."""
    if kind in _JOBS:
        build, usual = _JOBS[kind]
        words = rayjob.words_of(values, usual)
        check(words)
        made = build(values, words)
    else:
        made = _FILES[kind](values)
    require(made, kind)
    if kind in ("iam", "iam-head", "bucket-policy"):
        return json.dumps(made, indent=2) + "\n"
    return f"# Made by xtra deploy {kind}; docs/cluster.md says how to use it.\n" + _yaml(made)


def require(made: Any, name: str) -> None:
    """Raises ValueError, in one line, for a file that Ray, Kubernetes or AWS would not accept."""
    if not isinstance(made, dict):
        raise ValueError(f"{name}: is not a file of xtra deploy")
    if made.get("kind") == "RayJob" or "spec" in made:
        _matches(made, RAYJOB, name)
        if why := wrong(made):
            raise ValueError(f"{name}: {why}")
    elif "provider" in made:
        _require_ray_up(made, name)
    elif set(made) != {"Version", "Statement"}:
        raise ValueError(f"{name}: is neither a RayJob, nor a file for ray up, nor an AWS policy")


def _require_ray_up(made: dict[str, Any], name: str) -> None:
    """Checks by the schema in the Ray wheel (private in Ray 2.60; `ray up` has no dry run)."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            validate_config(prepare_config(json.loads(json.dumps(made))))
    except jsonschema.ValidationError as error:
        raise ValueError(f"{name}: {_complaint(error)}") from None
    except (RuntimeError, KeyError, TypeError, AttributeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None
    if made["available_node_types"][made["head_node_type"]]["resources"].get("CPU") != 0:
        raise ValueError(f"{name}: the head has CPUs for work: set its resources to CPU: 0")


def _matches(made: Any, schema: dict[str, Any], name: str) -> None:
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema).iter_errors(made))
    if error is not None:
        raise ValueError(f"{name}: {_complaint(error)}")


def _complaint(error: jsonschema.ValidationError) -> str:
    """The place of the error, with the nearest known field for an unknown one."""
    where = ".".join(map(str, error.absolute_path)) or "the file"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {})) if isinstance(error.schema, dict) else []
        for field in (field for field in error.instance if field not in known):
            return f"{where}.{field} is not a field{nearest(str(field), known)}"
    return f"{where}: {error.message[:300]}"


class _Dumper(yaml.SafeDumper):
    """Indents list items by two spaces, and writes no aliases."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(made: dict[str, Any]) -> str:
    return yaml.dump(made, Dumper=_Dumper, sort_keys=False, width=110)
