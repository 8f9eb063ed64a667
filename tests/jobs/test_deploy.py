"""Files that start a cluster: what the repository has is what is made, and a misspelt field fails before a cluster sees
it. Nothing here was tried on a cloud: these tests read schemas, and run no Kubernetes."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT

from jobs import cli
from jobs.cluster.gauges import GAUGES
from jobs.cluster.head import VERSION_LABEL
from jobs.deploy import KINDS, Values, make, parse_values, require
from jobs.deploy.rayjob import STOP_SECONDS

DEPLOY = ROOT / "deploy"


def made(kind: str, **values: Any) -> dict[str, Any]:
    return yaml.safe_load(make(kind, Values(**values)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_repository_has_what_the_command_makes(kind: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["deploy", kind]) == 0
    name = f"{kind}.yaml" if kind.startswith("ray") else f"{kind}.json"
    assert capsys.readouterr().out == (DEPLOY / name).read_text()


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every object is in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if isinstance(value, dict) else []
    return found + [place for key, part in inner for place in paths(part, (*path, key))]


OPEN = ("nodeSelector", "labels", "rayStartParams", "file_mounts", "node_config", "resources", "Ebs", "MetadataOptions")


@pytest.mark.parametrize("kind", ["rayjob-ingest", "rayjob-train"])
def test_a_misspelt_field_fails_wherever_it_is(kind: str):
    whole = made(kind)
    require(whole, kind)
    tried = 0
    for path in paths(whole):
        if {"nodeSelector", "rayStartParams", "labels"} & set(path):  # any name may be there
            continue
        for field in {part for at in [path] for part in _at(whole, at)}:
            wrong = copy.deepcopy(whole)
            place = _at(wrong, path)
            place[field + "x"] = place.pop(field)
            with pytest.raises(ValueError, match=rf"^{kind}: ") as refused:
                require(wrong, kind)
            tried += "is not a field; did you mean" in str(refused.value)
    assert tried > 40


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def test_a_misspelt_field_of_ray_up_fails():
    whole = made("ray-up-aws")
    for path in ((), ("docker",), ("available_node_types", "worker")):
        for field in _at(whole, path):
            wrong = copy.deepcopy(whole)
            place = _at(wrong, path)
            place[field + "x"] = place.pop(field)
            with pytest.raises(ValueError, match=r"^ray-up-aws: "):
                require(wrong, "ray-up-aws")
    wrong = copy.deepcopy(whole)
    wrong["available_node_types"]["head"]["resources"]["CPU"] = 2
    with pytest.raises(ValueError, match="the head has CPUs for work"):
        require(wrong, "x")


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("shutdownAfterJobFinishes",), False, "would cost money after its job"),
        (("backoffLimit",), 0, "a job whose head is lost would not resume"),
        (("rayClusterSpec", "authOptions", "mode"), "disabled", "'token' was expected"),
        (("rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), "4", 'num-cpus is not "0"'),
        (
            ("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "terminationGracePeriodSeconds"),
            60,
            "terminationGracePeriodSeconds is 60, the drain time 90",
        ),
        (
            ("rayClusterSpec", "workerGroupSpecs", 0, "template", "spec", "containers", 0, "env"),
            [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
            "drain time 0",
        ),
        (
            ("rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "env"),
            [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
            "keys must come from a service account, or from a secret by its name",
        ),
        (
            ("rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "emptyDir"),
            {"medium": "Memory"},
            "/dev/shm has no volume with a sizeLimit",
        ),
    ],
)
def test_what_must_hold_is_checked_in_edited_files(path, value, complaint, tmp_path: Path, capsys):
    whole = made("rayjob-train")
    _at(whole["spec"], path[:-1])[path[-1]] = value
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(whole))
    assert cli.main(["deploy", "check", str(tmp_path / "mine.yaml")]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1


def test_a_training_has_all_of_its_workers_or_none():
    group = made("rayjob-train", workers=6)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["numOfHosts"]) == (1, 1, 6)
    queued = made("rayjob-train", workers=6, queue="gpus")
    assert queued["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    group = queued["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group.get("numOfHosts")) == (6, 6, None)
    ingest = made("rayjob-ingest", workers=6)["spec"]["rayClusterSpec"]
    assert ingest["enableInTreeAutoscaling"]
    assert ingest["autoscalerOptions"]["idleTimeoutSeconds"] == 900
    assert (ingest["workerGroupSpecs"][0]["minReplicas"], ingest["workerGroupSpecs"][0]["maxReplicas"]) == (0, 6)


@pytest.mark.parametrize("notice", [30, 120, 600])
def test_a_node_drains_within_its_notice_and_is_left_time_to_end(notice: int):
    values = Values(notice=notice)
    assert 0 < values.drain < notice
    pod = made("rayjob-train", notice=notice)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert values.drain < pod["terminationGracePeriodSeconds"] <= notice
    assert f"DRAIN_TIMEOUT_S={values.drain}" in make("ray-up-aws", values)


def test_keys_come_from_a_role_or_from_a_secret_by_its_name():
    def containers(**values: Any) -> list[dict[str, Any]]:
        cluster = made("rayjob-train", **values)["spec"]["rayClusterSpec"]
        pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        assert {pod["template"]["spec"]["serviceAccountName"] for pod in pods} == {"xtra"}
        return [pod["template"]["spec"]["containers"][0] for pod in pods]

    assert [each.get("envFrom") for each in containers()] == [None, None]
    assert [each["envFrom"] for each in containers(secret="keys")] == [[{"secretRef": {"name": "keys"}}]] * 2
    up = made("ray-up-aws")["available_node_types"]
    assert up["worker"]["node_config"]["IamInstanceProfile"] == {"Name": "xtra-node"}
    assert "InstanceMarketOptions" not in up["head"]["node_config"]
    assert up["worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_policies_name_the_bucket_and_what_is_below_the_prefix():
    policy = made("iam", bucket="pictures", prefix="team/xtra")
    objects = next(s for s in policy["Statement"] if s["Sid"] == "Objects")
    assert objects["Resource"] == "arn:aws:s3:::pictures/team/xtra/*"
    assert not any("*" in action for statement in policy["Statement"] for action in [*statement["Action"]][:1])
    whole = json.dumps(made("bucket-policy", bucket="pictures", account="210987654321"))
    assert "aws:SecureTransport" in whole
    assert "210987654321" in whole


def test_a_job_stops_as_one_that_was_submitted():
    from jobs.cluster import STOP_SECONDS as SUBMITTED

    assert STOP_SECONDS == SUBMITTED


def test_the_words_of_a_job_are_checked_and_quoted(capsys: pytest.CaptureFixture[str]):
    words = ["train", "demo32", "--data", "s3://b/a set", "--out", "s3://b/r"]
    assert cli.main(["deploy", "rayjob-train", "--set", f"command={shlex.join(words)}", "workers=2"]) == 0
    job = yaml.safe_load(capsys.readouterr().out)
    assert shlex.split(job["spec"]["entrypoint"]) == ["xtra", *words]


def test_names_of_values_may_have_dashes_as_help_shows_them():
    assert parse_values(["head-machine=m7i.xlarge", "token_secret=t"]) == Values(
        head_machine="m7i.xlarge", token_secret="t"
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "KIND is missing: give one of ray-up-aws"),
        (["rayjob"], "'rayjob' is not a kind of file; did you mean rayjob-"),
        (["iam", "--set", "bukket=x"], "there is no such value; did you mean bucket?"),
        (["iam", "--set", "bucket"], "--set is 'bucket'; it must be NAME=VALUE"),
        (["iam", "--set", "bucket=My Bucket"], "bucket is 'My Bucket'; it must match"),
        (["rayjob-train", "--set", "workers=many"], "--set workers is 'many'; it must be a whole number"),
        (["rayjob-train", "--set", "workers=0"], "workers is 0; it must be at least 1"),
        (["rayjob-ingest", "--set", "least=9"], "least is 9, workers 4"),
        (["rayjob-train", "--set", "command=trian demo32"], "'trian' is not a verb; did you mean train?"),
        (["rayjob-train", "--set", "command=train demo32 --bach 2"], "--set command: --bach is not a flag"),
        (["rayjob-train", "--workers", "3"], "--workers is not known"),
        (["check"], "FILE is missing"),
        (["check", "/nowhere.yaml"], "/nowhere.yaml: does not exist"),
    ],
)
def test_mistakes_are_one_line(words, complaint, capsys):
    assert cli.main(["deploy", *words]) == 2
    shown = capsys.readouterr()
    assert complaint in shown.err
    assert (shown.out, shown.err.count("\n")) == ("", 1)


def test_the_dashboard_asks_for_our_gauges_all_of_them_and_no_others():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    asked = {
        name for panel in board["panels"] for t in panel["targets"] for name in re.findall(r"ray_(xtra_\w+)", t["expr"])
    }
    assert asked == set(GAUGES)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])


def test_the_container_copies_what_the_repository_has_and_makes_it_as_here():
    text = (DEPLOY / "Containerfile").read_text()
    copied = [word for line in re.findall(r"^COPY --chown=ray (.*)$", text, re.M) for word in line.split()[:-1]]
    assert {"requirements.lock", "jobs", "ingest", "shards", "xtra"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
    assert "make setup" in text
    assert "ENV PATH=/opt/xtra/.venv/bin" in text  # jobs start with `xtra`, and Ray with `ray`
    (labels,) = re.findall(r"^ENV RAY_OVERRIDE_LABELS='(.*)'$", text, re.M)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert json.loads(labels) == {VERSION_LABEL: project["version"]}
    assert project["name"] == VERSION_LABEL
    assert parse_values([]) == Values()
