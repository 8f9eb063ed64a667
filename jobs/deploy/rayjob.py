"""Kubernetes: a RayJob (KubeRay, ray.io/v1), which starts its own cluster, runs one command and removes the cluster."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from jobs.deploy.values import Values

STOP_SECONDS = 120  # for a job to save, as in jobs/cluster/submit.py
INGEST = "ingest --urls {root}/lists/list.txt --out {root}/data --fetch.contact you@example.org --workers 1..{cpus}"
TRAIN = "train h14_in21k --data {root}/data --out {root}/runs/h14 --workers 1..{places}"


def words_of(v: Values, usual: str) -> list[str]:
    """The job's command: the given one, or an example."""
    cpus = v.workers * v.cpus
    return shlex.split(v.command or usual.format(root=v.root, cpus=cpus, places=v.workers * v.gpus or cpus))


def ingest(v: Values, words: Sequence[str]) -> dict[str, Any]:
    """Workers are added one by one while there is work, and removed when idle, because units are independent."""
    group = _group(v, replicas=max(v.least, 0), least=v.least, most=v.workers, gpus=0)
    return _rayjob(v, words, group, autoscaled=True)


def train(v: Values, words: Sequence[str]) -> dict[str, Any]:
    """Workers start all together: as one replica of several hosts, or admitted by a Kueue queue."""
    if v.queue:
        group = _group(v, replicas=v.workers, least=v.workers, most=v.workers, gpus=v.gpus)
    else:
        group = _group(v, replicas=1, least=1, most=1, gpus=v.gpus) | {"numOfHosts": v.workers}
    return _rayjob(v, words, group, autoscaled=False)


def _rayjob(v: Values, words: Sequence[str], group: dict[str, Any], autoscaled: bool) -> dict[str, Any]:
    labels = {"labels": {"kueue.x-k8s.io/queue-name": v.queue}} if v.queue else {}
    cluster: dict[str, Any] = {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token", "secretName": v.token_secret},
        "enableInTreeAutoscaling": autoscaled,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(v, "ray-head", "2", "8Gi", "2Gi", gpus=0, spot=False),
        },
        "workerGroupSpecs": [group],
    }
    if autoscaled:
        cluster["autoscalerOptions"] = {"version": "v2", "idleTimeoutSeconds": v.idle}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": v.name, "namespace": v.namespace, **labels},
        "spec": {
            "entrypoint": shlex.join(["xtra", *words]),
            "runtimeEnvYAML": f'env_vars:\n  RAY_JOB_STOP_WAIT_TIME_S: "{STOP_SECONDS}"\n',
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 600,
            "backoffLimit": v.retries,
            "rayClusterSpec": cluster,
        },
    }


def _group(v: Values, replicas: int, least: int, most: int, gpus: int) -> dict[str, Any]:
    return {
        "groupName": "workers",
        "replicas": replicas,
        "minReplicas": least,
        "maxReplicas": most,
        "rayStartParams": {"num-cpus": str(v.cpus)},
        "template": _pod(v, "ray-worker", str(v.cpus), v.memory, v.shm, gpus, spot=bool(v.spot)),
    }


def _pod(v: Values, role: str, cpus: str, memory: str, shm: str, gpus: int, spot: bool) -> dict[str, Any]:
    resources = {"cpu": cpus, "memory": memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    env = {
        "AWS_REGION": v.region,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(v.drain),
        "RAY_worker_niceness": "0",
    }
    container: dict[str, Any] = {
        "name": role,
        "image": v.image,
        "resources": {"limits": resources, "requests": dict(resources)},
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if v.secret:
        container["envFrom"] = [{"secretRef": {"name": v.secret}}]
    if role == "ray-worker":
        # KubeRay starts Ray in a shell that does not forward signals; this asks Ray to drain, and waits for it.
        drain = f"pkill -TERM -f '/ray[ ]start'; sleep {v.drain}"
        container["lifecycle"] = {"preStop": {"exec": {"command": ["/bin/sh", "-c", drain]}}}
    label, _, value = (v.spot if spot else v.on_demand).partition("=")
    pod: dict[str, Any] = {
        "serviceAccountName": v.service_account,
        "nodeSelector": {label: value},
        "terminationGracePeriodSeconds": v.notice if role == "ray-worker" else STOP_SECONDS + 30,
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": shm}}],
    }
    if role == "ray-worker" and not spot:
        del pod["nodeSelector"]
    if gpus:
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"spec": pod}
