"""The head of a running cluster, through its dashboard's job server: its address, token and version.

Ray's own client waits for ever for a server that accepts but does not answer, prefers an address in the environment to
the one that it is given, and raises any error of its libraries. Here every request has a time limit, and an error is
one line.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import requests
from ray.job_submission import JobDetails, JobInfo, JobSubmissionClient

from jobs.cluster.wanted import TryLater

ANSWER_SECONDS = 30.0
UPLOAD_SECONDS = 300.0
ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
VERSION_LABEL = "xtra-pretrain"  # of a node, and its value this package's version there; deploy/Containerfile sets it


for _name in ("job.sdk", "dashboard_sdk"):  # they report every closed connection of a log
    logging.getLogger(f"ray.dashboard.modules.{_name}").setLevel(logging.WARNING)


class Away(TryLater):
    """The head does not answer now, as `why` says."""

    def __init__(self, why: str) -> None:
        super().__init__(f"{why}: the same command may work later")
        self.why = why


@dataclass(frozen=True)
class ClusterNode:
    """A node that is alive, as the head knows it."""

    name: str
    host: str  # its machine's, or its container's
    session: str  # folder in which Ray keeps what belongs to the node
    version: str  # of this package there, where the node's labels have it, else ""


class Head:
    """One cluster's job server. Methods raise Away if it does not answer in time, and ValueError if it refuses."""

    def __init__(self, address: str) -> None:
        """Connect. Raises ValueError without an answer, with a missing or wrong token, or another version of Ray."""
        self.address = address
        _find_token()
        try:
            version = self._ask_version()
            with _environment("RAY_API_SERVER_ADDRESS", address):  # Ray prefers this to its argument
                self.client = _Client(address)
        except (requests.RequestException, ConnectionError, TimeoutError) as error:
            raise ValueError(
                f"{address}: no Ray dashboard answers within {ANSWER_SECONDS:.0f} s ({_words(error)}): start the "
                "cluster, forward its port (ray dashboard CONFIG.yaml), or give another --address"
            ) from None
        except RuntimeError as error:  # also Ray's AuthenticationError, and a version of Ray without jobs
            raise ValueError(f"{address}: {_refused(error)}") from None
        if version != ray.__version__:
            raise ValueError(
                f"{address} runs Ray {version}, this is Ray {ray.__version__}: use an image of this version, or the "
                "xtra that the cluster's image has"
            )

    def _ask_version(self) -> str:
        reply = requests.get(f"{self.address}/api/version", headers=_token_headers(), timeout=ANSWER_SECONDS)
        if reply.status_code in (401, 403):
            raise RuntimeError(reply.text)
        try:
            return str(reply.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise RuntimeError(f"answers with status {reply.status_code}, and is not a Ray dashboard") from None

    def jobs(self) -> list[JobDetails]:
        """The submitted jobs, oldest first."""
        with _errors(self.address):
            found = [job for job in self.client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def nodes(self) -> list[ClusterNode]:
        with _errors(self.address):
            reply = self.client._do_request("GET", "/nodes?view=summary")  # the dashboard's own, of Ray 2.60 (private)
            if reply.status_code != 200:  # a head that has just started
                raise RuntimeError(f"status code {reply.status_code} for its nodes")
            found = [node["raylet"] for node in reply.json()["data"]["summary"]]
        return [
            ClusterNode(
                name=node["nodeName"] or node["nodeManagerAddress"],
                host=node["nodeManagerHostname"],
                session=node["sessionDir"],
                version=node["labels"].get(VERSION_LABEL, ""),
            )
            for node in found
            if node.get("state") == "ALIVE"
        ]

    def info(self, job: str) -> JobInfo | None:
        """None if the cluster has no such job."""
        with _errors(self.address):
            try:
                return self.client.get_job_info(job)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def log(self, job: str) -> str:
        """All its output so far; "" if that cannot be read now."""
        with contextlib.suppress(Away, ValueError), _errors(self.address):
            return self.client.get_job_logs(job)
        return ""

    def submit(self, job: str, **more: Any) -> bool:
        """Submit it; False if that id is already taken."""
        with _errors(self.address):
            try:
                self.client.submit_job(submission_id=job, **more)
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                if "No available agent" in str(error):  # a head that has just started
                    raise
                why = " ".join(str(error).split())[:300]
                raise ValueError(f"{self.address}: refused {job}: {why}") from None
        return True

    def stop(self, job: str) -> None:
        with _errors(self.address):
            self.client.stop_job(job)


class _Client(JobSubmissionClient):
    def _do_request(self, method: str, endpoint: str, **more: Any) -> Any:
        """Ray 2.60's own (private), with a time limit."""
        more.setdefault("timeout", UPLOAD_SECONDS if method == "PUT" else ANSWER_SECONDS)
        return super()._do_request(method, endpoint, **more)


def find(address: str) -> str:
    """The URL of a cluster's dashboard, as given or from the environment. Raises ValueError if it is not valid."""
    name = "--address"
    if not address:
        name = next((name for name in ADDRESSES if os.environ.get(name)), "")
        address = os.environ.get(name, "")
    if not address:
        raise ValueError(f"--address is missing, and {' and '.join(ADDRESSES)} are not set: give http://HOST:8265")
    if not re.fullmatch(r"https?://[^/\s@]+/?", address):
        raise ValueError(f"{name} is {address!r}; it must be the dashboard's address, such as http://HOST:8265")
    return address.rstrip("/")


def _find_token() -> None:
    """Use the token that `ray start` stored or the environment names: Ray's client does neither by itself.

    A process that has joined a cluster keeps that cluster's token, or its connections would break.
    """
    import ray

    if ray.is_initialized():
        return
    there = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if "RAY_AUTH_MODE" not in os.environ and (there or (Path.home() / ".ray" / "auth_token").is_file()):
        os.environ["RAY_AUTH_MODE"] = "token"
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")  # replace what an earlier `import ray` read from the environment
    AuthenticationTokenLoader.instance().reset_cache()


def _token_headers() -> dict[str, str]:
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    return get_auth_headers_if_auth_enabled({})


@contextlib.contextmanager
def _environment(name: str, value: str) -> Any:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update({} if before is None else {name: before})


@contextlib.contextmanager
def _errors(address: str) -> Any:
    try:
        yield
    except (requests.RequestException, ConnectionError, TimeoutError) as error:
        raise Away(f"{address} does not answer now ({_words(error)})") from None
    except RuntimeError as error:
        if re.search(r"status code 5\d\d", str(error)):
            raise Away(f"{address} does not answer now ({_words(error)})") from None
        raise ValueError(f"{address}: {_refused(error)}") from None


def _refused(error: RuntimeError) -> str:
    text = str(error)
    if "Missing authentication token" in text or "Authentication required" in text:
        return "requires a token, and there is none here: put it into RAY_AUTH_TOKEN or ~/.ray/auth_token"
    if "Invalid authentication token" in text or "Authentication failed" in text:
        return "refuses the token of RAY_AUTH_TOKEN or ~/.ray/auth_token: it is another cluster's"
    return _words(error)


def _words(error: BaseException) -> str:
    """The innermost reason of errors that contain each other as text."""
    words = " ".join(str(error).split())
    inner = re.findall(r"\[Errno [-\d]+\] ([^'\")]+)|(timed out|Read timed out)", words)
    return next((part for pair in reversed(inner) for part in pair if part), words[:200] or type(error).__name__)
