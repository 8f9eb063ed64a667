"""`xtra submit`: the same command as a job of a cluster.

A job is only its words: access to a store comes from the nodes' own environment or role, so that no key is in an entry
point, in metadata, in a runtime environment or in a log. Its id is VERB-NAME-N, where NAME is the last part of its
output folder, so that submitting a command twice is noticed.
"""

from __future__ import annotations

import functools
import re
import shlex
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ray.job_submission import JobDetails

from jobs.cluster import package
from jobs.cluster.follow_job import Ended, Follower
from jobs.cluster.head import ClusterNode, Head, find
from jobs.cluster.wanted import SUBMITTED_WITH, version

STOP_SECONDS = 120  # between a stop and a kill: Ray's own 3 are too few to save to a bucket
GONE = 0  # exit status of a lost job whose folder is complete


@dataclass(frozen=True)
class Submission:
    """A command for a cluster, and the resources that its driver needs there."""

    words: tuple[str, ...]  # the verb and all following words
    base: str  # the id without its number
    folder: str = ""  # that the verb writes or reads
    code: Literal["image", "here"] = "image"
    cpus: float = 0.0
    gpus: float = 0.0
    memory: int = 0  # bytes
    on: Mapping[str, str] = field(default_factory=dict)  # labels of the node that its driver is to run on

    @property
    def entrypoint(self) -> str:
        return shlex.join([*(["xtra"] if self.code == "image" else ["python", "-m", "jobs.cli"]), *self.words])


class Jobs:
    """The jobs of one cluster: submitted, listed, stopped, waited for."""

    def __init__(self, address: str = "") -> None:
        """Raises ValueError for the reasons of Head."""
        self.head = Head(find(address))

    def submit(self, wanted: Submission) -> str:
        """Send it; returns its id.

        Raises ValueError for an id in use, for a package that is too large, and for what refuse_nodes() refuses.
        """
        job = next_id(wanted.base, self.head.jobs())
        if not self._submit_as(job, wanted):  # taken since the jobs were listed
            raise ValueError(in_use(job))
        return job

    def _submit_as(self, job: str, wanted: Submission) -> bool:
        """False if the id is already taken."""
        refuse_nodes(self.head.nodes(), wanted.code)
        env = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
        with tempfile.TemporaryDirectory(prefix="xtra-submit-") as folder:
            runtime: dict[str, Any] = {"env_vars": env}
            if wanted.code == "here":
                made = package.pack(Path(folder) / "code.zip")
                if made.left:
                    warnings.warn(f"{', '.join(made.left)}: git does not track it, so it is not sent", stacklevel=2)
                runtime["working_dir"] = str(made.path)
            else:
                env[SUBMITTED_WITH] = version()
            return self._send(job, wanted, runtime)

    def _send(self, job: str, wanted: Submission, runtime: dict[str, Any]) -> bool:
        return self.head.submit(
            job,
            entrypoint=wanted.entrypoint,
            runtime_env=runtime,
            metadata={
                "xtra": version(),
                "folder": wanted.folder,
                "base": wanted.base,
                "on": ",".join(f"{name}={value}" for name, value in wanted.on.items()),
                "needs": f"{wanted.cpus:g} {wanted.gpus:g} {wanted.memory}",
            },
            entrypoint_num_cpus=wanted.cpus or None,
            entrypoint_num_gpus=wanted.gpus or None,
            entrypoint_memory=wanted.memory or None,
            entrypoint_label_selector=dict(wanted.on) or None,
        )

    def known(self, job: str) -> Submission:
        """A job of the cluster as it was submitted. Raises ValueError if there is none."""
        info = self.head.info(job)
        if info is None:
            there = ", ".join(str(other.submission_id) for other in self.head.jobs()[-5:])
            raise ValueError(f"{job}: {self.head.address} has no such job; its newest: {there or 'none'}")
        noted, words = info.metadata or {}, shlex.split(info.entrypoint)
        cpus, gpus, memory = map(float, noted.get("needs", "0 0 0").split())
        here = words[:3] == ["python", "-m", "jobs.cli"]
        return Submission(
            words=tuple(words[3 if here else 1 :]),
            base=noted.get("base") or re.sub(r"-\d+$", "", job),
            folder=noted.get("folder", ""),
            code="here" if here else "image",
            cpus=cpus,
            gpus=gpus,
            memory=int(memory),
            on=dict(pair.split("=", 1) for pair in noted.get("on", "").split(",") if pair),
        )

    def wait(
        self,
        job: str,
        wanted: Submission,
        retries: int,
        done: Callable[[str], bool],
        follower: Follower,
        submitted: Callable[[str], None] = lambda job: None,
    ) -> Ended | None:
        """Follow it and its replacements to the end; None if following was stopped.

        A job whose driver's node or head died is submitted again, at most `retries` times, unless `done(folder)`.
        """
        while True:
            ended = follower.follow(job)
            if ended is None or not ended.lost:
                return ended
            if wanted.folder and done(wanted.folder):
                return Ended(job, GONE, f"{job} was lost ({ended.why}), and {wanted.folder} is done")
            if retries < 1:
                return ended
            retries -= 1
            again = follower.patiently(job, functools.partial(self._again, job, wanted))
            if again is None:
                return None
            lost, (job, how) = job, again
            follower.say(f"{lost} was lost ({ended.why}): {how} as {job}")
            submitted(job)

    def _again(self, job: str, wanted: Submission) -> tuple[str, str]:
        """Submit it under the next number, also to a new head; or use a job that another `wait` has submitted."""
        number = int(job.rpartition("-")[2]) if re.search(r"-\d+$", job) else 0
        known = {_number(wanted.base, str(other.submission_id)): other for other in self.head.jobs()}
        newest = max([number, *known])
        if newest > number and not known[newest].status.is_terminal():
            return f"{wanted.base}-{newest}", "goes on"
        job = f"{wanted.base}-{newest + 1}"
        return job, "submitted again" if self._submit_as(job, wanted) else "goes on"


def refuse_nodes(nodes: list[ClusterNode], code: str) -> None:
    """Raises ValueError where a node's image has another version of this package, and where two nodes of one machine
    share a folder: each unpacks the code of `--code here` into it, and removes what is there below a job that runs."""
    seen: dict[tuple[str, str], str] = {}
    for node in nodes:
        if code == "image" and node.version not in ("", version()):
            raise ValueError(
                f"node {node.name} has xtra-pretrain {node.version}, this is {version()}: use the xtra of that "
                "version, an image of this one, or --code here"
            )
        other = seen.get((node.host, node.session))
        seen[node.host, node.session] = node.name
        if code == "here" and other is not None:
            raise ValueError(
                f"--code here: the nodes {other} and {node.name} share {node.session} on {node.host}, where each would "
                "unpack the code over the other's: use --code image, or one node a machine"
            )


def next_id(base: str, jobs: list[JobDetails]) -> str:
    """The next unused id. Raises ValueError while the newest job with this base has not ended."""
    known = {_number(base, str(job.submission_id)): job for job in jobs}
    newest = max(known) if known else 0
    if newest and not known[newest].status.is_terminal():
        raise ValueError(in_use(f"{base}-{newest}"))
    return f"{base}-{newest + 1}"


def in_use(job: str) -> str:
    return (
        f"{job} is running: xtra submit logs {job} follows it, xtra submit stop {job} stops it, "
        f"xtra submit --name OTHER submits another"
    )


def name_of(verb: str, folder: str) -> str:
    """VERB-NAME of the last part of a folder, in letters that an id may have."""
    last = re.sub(r"[^A-Za-z0-9_.]+", "-", folder.rstrip("/").rpartition("/")[2].partition("@")[0]).strip("-.")
    return f"{verb}-{last}" if last else verb


def _number(base: str, job: str) -> int:
    found = re.fullmatch(re.escape(base) + r"-(\d+)", job)
    return int(found[1]) if found else 0
