"""A strict schema of the RayJob fields that we use (any other is an error), and rules between fields.

Kubernetes itself silently drops a misspelt field, and the job then runs without it. The names are those of KubeRay's
ray.io/v1 and of Kubernetes' pods; only fields that our files use are listed.
"""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
SWITCH: dict[str, Any] = {"type": "boolean"}
TEXTS: dict[str, Any] = {"type": "object", "additionalProperties": TEXT}


def _fields(required: str = "", /, **fields: Any) -> dict[str, Any]:
    """The schema of an object with only these fields, of which those in `required` must be present."""
    return {"type": "object", "additionalProperties": False, "required": required.split(), "properties": fields}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": of}


QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}
RESOURCES = _fields("cpu memory", **{"cpu": QUANTITY, "memory": QUANTITY, "nvidia.com/gpu": QUANTITY})
CONTAINER = _fields(
    "name image resources",
    name=TEXT,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    resources=_fields("limits requests", limits=RESOURCES, requests=RESOURCES),
    env=_list(_fields("name value", name=TEXT, value=TEXT)),
    envFrom=_list(_fields("secretRef", secretRef=_fields("name", name=TEXT))),
    volumeMounts=_list(_fields("name mountPath", name=TEXT, mountPath=TEXT)),
    lifecycle=_fields(
        "preStop", preStop=_fields("exec", **{"exec": _fields("command", command={"type": "array", "items": TEXT})})
    ),
)
POD = _fields(
    "spec",
    metadata=_fields(labels=TEXTS, annotations=TEXTS),
    spec=_fields(
        "containers terminationGracePeriodSeconds",
        containers=_list(CONTAINER),
        serviceAccountName=TEXT,
        nodeSelector=TEXTS,
        terminationGracePeriodSeconds=COUNT,
        tolerations=_list(
            _fields(
                key=TEXT,
                operator={"enum": ["Exists", "Equal"]},
                value=TEXT,
                effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
            )
        ),
        imagePullSecrets=_list(_fields("name", name=TEXT)),
        volumes=_list(
            _fields("name emptyDir", name=TEXT, emptyDir=_fields(medium={"enum": ["", "Memory"]}, sizeLimit=QUANTITY))
        ),
    ),
)
GROUP = _fields(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts={"type": "integer", "minimum": 1},
    idleTimeoutSeconds=COUNT,
    labels=TEXTS,
    rayStartParams=TEXTS,
    template=POD,
)
CLUSTER = _fields(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=_fields("mode", mode={"const": "token"}, secretName=TEXT),
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=_fields(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=COUNT),
    headGroupSpec=_fields("rayStartParams template", rayStartParams=TEXTS, template=POD),
    workerGroupSpecs=_list(GROUP),
)
RAYJOB = _fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_fields("name", name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=_fields(
        "entrypoint shutdownAfterJobFinishes backoffLimit rayClusterSpec",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
        shutdownAfterJobFinishes=SWITCH,
        ttlSecondsAfterFinished=COUNT,
        activeDeadlineSeconds=COUNT,
        backoffLimit=COUNT,
        suspend=SWITCH,
        rayClusterSpec=CLUSTER,
    ),
)


def wrong(job: dict[str, Any]) -> str:
    """The violated rule in a RayJob with valid fields; "" if there is none."""
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    if not spec["shutdownAfterJobFinishes"]:
        return "shutdownAfterJobFinishes is false: the cluster would cost money after its job"
    if spec["backoffLimit"] < 1:
        return "backoffLimit is 0: a job whose head is lost would not resume"
    if head["rayStartParams"].get("num-cpus") != "0":
        return 'the head\'s num-cpus is not "0": work on the head ends the whole job when it uses up its memory'
    for where, pod in [
        ("head", head["template"]),
        *((g["groupName"], g["template"]) for g in cluster["workerGroupSpecs"]),
    ]:
        if why := _wrong_pod(pod["spec"], saves=where != "head"):
            return f"{where}: {why}"
    return ""


def _wrong_pod(pod: dict[str, Any], saves: bool) -> str:
    env = {entry["name"]: entry["value"] for entry in pod["containers"][0].get("env", [])}
    grace, drain = pod["terminationGracePeriodSeconds"], env.get("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")
    if saves and not 0 < int(drain) < grace:
        return f"terminationGracePeriodSeconds is {grace}, the drain time {drain}: this must be above 0 and shorter"
    for name in env:
        if any(word in name for word in ("SECRET", "TOKEN", "ACCESS_KEY", "PASSWORD")):
            return f"{name} is in the file: keys must come from a service account, or from a secret by its name"
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod.get("volumes", [])}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0].get("volumeMounts", [])}
    if not volumes.get(mounts.get("/dev/shm", ""), {}).get("sizeLimit"):
        return "/dev/shm has no volume with a sizeLimit: a container's default has 64 MB"
    return ""
