"""Check that a cluster answers at RAY_ADDRESS before Ray is used, which would retry for a minute with warnings."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0

# In a process of its own, because Ray's warnings bypass Python and it caches the absence of a token. The versions are
# those that Ray stores for its own check (private in 2.60).
_ASK = """
import json, sys
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    answer = GcsClient(address=sys.argv[1]).internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=15)
    print(json.dumps({"cluster": json.loads(answer or b"{}")}))
except AuthenticationError:
    print(json.dumps({"token": "wrong"}))
"""


def require_cluster(address: str) -> None:
    """Returns when a cluster of this Ray and Python answers and takes our token.

    Raises ValueError in one line: what RAY_ADDRESS is, what is wrong with it, the next step.
    """
    if address == "auto":
        return
    if "://" in address:
        scheme, _, rest = address.partition("://")
        known = {"ray": "Ray Client is not supported", "http": "that is a dashboard's address, for jobs"}
        why, host = known.get(scheme.rstrip("s"), "an address has no scheme"), rest.partition(":")[0].rstrip("/")
        raise ValueError(f"RAY_ADDRESS {address}: {why}: give the head's own address, such as {host or 'HOST'}:6379")
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"RAY_ADDRESS {address}: is not HOST:PORT: give the address of the head, such as HOST:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"RAY_ADDRESS {address}: no Ray cluster answers there ({error}): start it or unset it"
        ) from None
    found = _ask(address)
    if "token" in found and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # `ray start` requires one by default, but clients send none
        found = _ask(address)
    if "token" in found:
        raise ValueError(f"RAY_ADDRESS {address}: {_about_the_token(found['token'])}")
    if "cluster" not in found:
        raise ValueError(
            f"RAY_ADDRESS {address}: what answers there is not a Ray cluster: give the address of the head"
        )
    for what, mine in (("Ray", version("ray")), ("Python", platform.python_version())):
        theirs = found["cluster"].get(f"{what.lower()}_version", mine)
        if theirs != mine:
            raise ValueError(f"RAY_ADDRESS {address}: the cluster has {what} {theirs}, this is {mine}: use the same")


def _ask(address: str) -> dict:
    """{"cluster": versions}, {"token": "missing" or "wrong"}, or {} if it is not a cluster."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token" and not _has_token():
        return {"token": "missing"}  # Ray would end the process
    command = [sys.executable, "-c", _ASK, address]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS).stdout
    except subprocess.TimeoutExpired:
        return {}
    return json.loads(said.splitlines()[-1]) if said else {}


def _has_token() -> bool:
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return bool(given) or Path.home().joinpath(".ray", "auth_token").is_file()


def _about_the_token(state: str) -> str:
    if state == "missing" or not _has_token():
        return (
            "it requires a token, and there is none: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return f"it requires a token, and RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE')!r}: set it to token"
    return "it refuses the token of this process: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's"
