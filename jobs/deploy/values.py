"""The few values from which all files of a deployment are made."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.flags import nearest

_NAME = r"[a-z0-9]([-a-z0-9]{0,50}[a-z0-9])?"
_SHAPES = {
    "name": _NAME,
    "namespace": _NAME,
    "service_account": _NAME,
    "token_secret": _NAME,
    "bucket": r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]",
    "prefix": r"[A-Za-z0-9_./-]*",
    "image": r"[\w./:@-]+",
    "region": r"[a-z0-9-]+",
    "account": r"\d{12}",
    "memory": r"\d+(Mi|Gi)",
    "shm": r"\d+(Mi|Gi)",
    "on_demand": r"[\w./-]+=[\w./-]+",
    "spot": r"([\w./-]+=[\w./-]+)?",
    "queue": rf"({_NAME})?",
    "secret": rf"({_NAME})?",
}
SAVE_SECONDS = 30  # of a platform's notice that a node keeps for its own shutdown, after draining


@dataclass(frozen=True)
class Values:
    """Set with --set NAME=VALUE; others have these defaults."""

    name: str = "xtra"  # name of the cluster or the job
    image: str = "registry.example.com/xtra-pretrain:0.1.0"  # image built by make image, where the cluster can pull it
    bucket: str = "my-bucket"  # bucket of datasets and runs
    prefix: str = "xtra"  # prefix of everything in that bucket
    region: str = "us-east-1"  # AWS region of everything
    account: str = "123456789012"  # AWS account
    command: str = ""  # command of the job, without `xtra`
    workers: int = 4  # machines, each with one pod or container
    least: int = 0  # least number of an ingest's workers; more start when there is work
    gpus: int = 1  # GPUs per worker; 0: CPUs only
    cpus: int = 8  # CPUs per worker
    memory: str = "64Gi"  # memory per worker
    shm: str = "16Gi"  # size of /dev/shm, part of a worker's memory, for Ray's objects and batches between processes
    machine: str = "g6.2xlarge"  # AWS machine type of a worker
    head_machine: str = "m7i.large"  # AWS machine type of the head
    notice: int = 120  # seconds between the platform's notice and the end of a node: AWS spot 120, Google spot 30
    idle: int = 900  # seconds without work after which a node is removed: more than a checkpoint takes
    retries: int = 3  # how often a job may start again on a new cluster
    namespace: str = "default"  # Kubernetes namespace
    service_account: str = "xtra"  # Kubernetes service account that may read and write the bucket
    secret: str = ""  # Kubernetes secret with AWS_ACCESS_KEY_ID etc., if the service account has no role
    token_secret: str = "xtra-ray-token"  # Kubernetes secret with Ray's token as auth_token
    queue: str = ""  # Kueue's local queue; if empty, the workers of a training start together as one group of hosts
    on_demand: str = "eks.amazonaws.com/capacityType=ON_DEMAND"  # label of nodes that are not preempted
    spot: str = "eks.amazonaws.com/capacityType=SPOT"  # label of nodes that may be preempted; empty: any

    def __post_init__(self) -> None:
        for name, shape in _SHAPES.items():
            value = getattr(self, name)
            if not re.fullmatch(shape, value):
                raise ValueError(f"{name} is {value!r}; it must match {shape}")
        least = {"workers": 1, "least": 0, "gpus": 0, "cpus": 1, "notice": 20, "idle": 60, "retries": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {bound}")
        if self.least > self.workers:
            raise ValueError(f"least is {self.least}, workers {self.workers}: least must not exceed workers")

    @property
    def drain(self) -> int:
        """Seconds for work to save after a node got its notice: less than the notice."""
        return max(self.notice - SAVE_SECONDS, self.notice // 2)

    @property
    def root(self) -> str:
        return "/".join(part for part in (f"s3://{self.bucket}", self.prefix.strip("/")) if part)


def parse_values(texts: Sequence[str]) -> Values:
    """Raises ValueError for an unknown name, and for a value of the wrong type."""
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Values)}
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.replace("-", "_")
        if not equals:
            raise ValueError(f"--set is {text!r}; it must be NAME=VALUE")
        if name not in kinds:
            raise ValueError(f"--set {name}: there is no such value{nearest(name, kinds)}: xtra deploy lists them")
        if kinds[name] is int and not re.fullmatch(r"\d+", value):
            raise ValueError(f"--set {name} is {value!r}; it must be a whole number")
        given[name] = int(value) if kinds[name] is int else value
    return Values(**given)
