"""Submitting without a cluster: words that are wrong, dashboards that refuse, ids, packages, what a job's end means."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from places import ROOT
from ray.job_submission import JobStatus

from jobs import cli, cluster, submit_verb
from jobs.cluster import head, package
from jobs.cluster.head import ClusterNode
from jobs.cluster.submit import Submission, next_id, refuse_nodes
from jobs.verbs import VERBS
from shards.pixels import crop

IMPORT = ["import", "/data/labelled", "--out", "s3://b/sets/mine", "--name", "held-out"]


@pytest.fixture(autouse=True)
def no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Submission]:
    """What would have gone to a cluster."""
    found: list[Submission] = []

    class Nowhere:
        def __init__(self, address: str) -> None:
            self.head = SimpleNamespace(address=address)

        def submit(self, wanted: Submission) -> str:
            found.append(wanted)
            return f"{wanted.base}-1"

    monkeypatch.setattr(cluster, "Jobs", Nowhere, raising=False)
    return found


@contextmanager
def dashboard(status: int, body: Any) -> Iterator[str]:
    """A server that answers every request the same; with status 0 it takes connections and says nothing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *words: Any) -> None:
            pass

    if not status:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield f"http://127.0.0.1:{silent.getsockname()[1]}"
        return
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("xtra submit: ")
    assert shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "VERB is missing"),
        (["nonsense"], "'nonsense' is not a verb"),
        (["trian", "demo32"], "did you mean train?"),
        (["status", "s3://b/x"], "'status' runs here, at once"),
        (["train", "nosuch"], "recipe 'nosuch' is unknown"),
        (["train", "demo32", "--data", "s3://b/d", "--optim.lrr", "1"], "--optim.lrr is not a flag; did you mean"),
        (["train", "demo32", "--data", "s3://b/d", "--batch", "x"], "--batch"),
        (["train", "demo32", "--data", "s3://b/d", "--out", "runs/1"], "--out is 'runs/1'; on a cluster"),
        (
            ["train", "demo32", "--data", "s3://b/d", "--out", "s3://b/r", "--probe.trian", "x"],
            "in the flags --probe.FLAG",
        ),
        (["ingest", "--urls", "s3://b/l", "--out", "s3://b/d", "--unit", "0"], "unit is 0"),
        (["bench", "nothing"], "'nothing' is not a subject"),
        ([*IMPORT, "--wait"], "--wait is not a flag"),
        (["--code", "there", *IMPORT], "--code"),
        (["--on", "zone", *IMPORT], "--on is 'zone'; it must be KEY=VALUE"),
        (["--driver-memory", "much", *IMPORT], "--driver-memory is 'much'"),
        (["--name", "a b", *IMPORT], "--name is 'a b'"),
        (["stop"], "ID is missing"),
        (["list", "x"], "list takes no word"),
        (["import", "/data", "--out", "s3://user:key@b/x"], "--out"),
        (IMPORT, "--address is missing, and RAY_API_SERVER_ADDRESS and RAY_ADDRESS are not set"),
        (["--address", "127.0.0.1:6379", *IMPORT], "--address is '127.0.0.1:6379'; it must be the dashboard's address"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_sent(words, complaint, capsys):
    assert cli.main(["submit", *words]) == 2
    assert complaint in one_line(capsys)


def test_what_goes_to_the_cluster(sent, capsys):
    def submit(*words: str) -> Submission:
        assert cli.main(["submit", "--address", "http://h:1", "--no-wait", *words]) == 0
        return sent[-1]

    got = submit("--on", "zone=a", "disk=ssd", *IMPORT)
    assert got.entrypoint == "xtra import /data/labelled --out s3://b/sets/mine --name held-out"
    assert (got.base, got.folder, got.cpus, got.on) == (
        "import-mine",
        "s3://b/sets/mine",
        1.0,
        {"zone": "a", "disk": "ssd"},
    )
    train = ["train", "demo32", "--data", "s3://b/d", "--out", "s3://b/runs/x y", "--workers", "2..4"]
    got = submit("--code", "here", "--name", "mine", "--driver-memory", "1.5G", *train)
    assert got.entrypoint.startswith("python -m jobs.cli train demo32 ")
    assert "'s3://b/runs/x y'" in got.entrypoint
    assert (got.base, got.cpus, got.memory) == ("mine", 0.0, 3 << 29)
    assert submit(*train).base == "train-x-y"
    assert submit("ingest", "--urls", "s3://b/l.csv", "--out", "s3://b/d", "--workers", "1..2").cpus == 0.0
    suite = ["probe", "s3://b/r", "--suite", "paper15", "--root", "s3://b/sets"]
    assert [submit(*suite, *more).cpus for more in ((), ("--workers", "2"))] == [1.0, 0.0]
    capsys.readouterr()
    assert cli.main(["submit", "--address", "http://h:1", "--no-wait", *IMPORT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"job": "import-mine-1", "address": "http://h:1"}
    assert sent[-1].words[-1] == "--json"


def test_every_verb_that_can_be_submitted_parses_its_words_before_it_works():
    """A verb that began its work before it had a config would begin it here."""
    words = {"train": ["demo32"], "bench": ["fetch"], "plan": ["demo32"]}
    for name, verb in VERBS.items():
        if name in submit_verb.HERE:
            continue
        try:
            submit_verb.check(name, verb, words.get(name, ["/a", "--out", "/b"] if verb.takes else []))
        except ValueError as error:
            complaint = str(error)
            if "flag" not in complaint:
                raise


@pytest.mark.parametrize(
    ("status", "body", "complaint"),
    [
        (401, "Unauthorized: Missing authentication token", "requires a token, and there is none here"),
        (403, "Forbidden: Invalid authentication token", "refuses the token"),
        (200, {"ray_version": "2.9.0", "version": "4"}, "runs Ray 2.9.0, this is Ray"),
        (200, "<html>", "is not a Ray dashboard"),
        (0, "", "no Ray dashboard answers within"),
    ],
)
def test_a_cluster_that_refuses_is_one_line(status, body, complaint, capsys, monkeypatch):
    monkeypatch.setattr(head, "ANSWER_SECONDS", 0.5)
    with dashboard(status, body) as address:
        assert cli.main(["submit", "--address", address, *IMPORT]) == 2
    assert complaint in one_line(capsys)


def test_an_address_at_which_nobody_listens_is_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert cli.main(["submit", "--address", f"http://127.0.0.1:{port}", "list"]) == 2
    assert "Connection refused" in one_line(capsys)


def test_an_id_in_use_says_the_three_things_to_do_and_a_finished_one_is_counted_on():
    def job(name: str, status: str) -> Any:
        return SimpleNamespace(submission_id=name, status=JobStatus(status))

    assert next_id("train-x", [job("train-x-y-7", "RUNNING"), job("other", "RUNNING")]) == "train-x-1"
    assert next_id("train-x", [job("train-x-10", "FAILED"), job("train-x-9", "STOPPED")]) == "train-x-11"
    with pytest.raises(ValueError, match="train-x-2 is running") as refused:
        next_id("train-x", [job("train-x-2", "PENDING"), job("train-x-1", "SUCCEEDED")])
    assert all(word in str(refused.value) for word in ("submit logs train-x-2", "submit stop train-x-2", "--name"))


def test_a_job_of_another_version_refuses_on_the_node(monkeypatch, capsys):
    monkeypatch.setenv(cluster.SUBMITTED_WITH, "0.0.1")
    assert cli.main(["check", "/nowhere"]) == 2
    assert "the job was submitted with 0.0.1: use the image of that version" in capsys.readouterr().err
    monkeypatch.setenv(cluster.SUBMITTED_WITH, cluster.version())
    assert cli.main(["check", "/nowhere"]) == 2
    assert "submitted with" not in capsys.readouterr().err


def test_nodes_of_another_version_and_nodes_that_share_a_folder_are_refused():
    def node(name: str, version: str = "", session: str = "/tmp/ray/session_1") -> ClusterNode:
        return ClusterNode(name, "gpu7", session, version)

    ours = cluster.version()
    refuse_nodes([node("a"), node("b", ours), node("a", ours)], "image")
    with pytest.raises(ValueError, match=f"node b has xtra-pretrain 0.0.1, this is {ours}: use the xtra"):
        refuse_nodes([node("a", ours), node("b", "0.0.1")], "image")
    refuse_nodes([node("a", "0.0.1"), node("b", session="/tmp/b/session_1")], "here")
    with pytest.raises(ValueError, match="the nodes a and a share /tmp/ray/session_1 on gpu7"):
        refuse_nodes([node("a"), node("a")], "here")  # Ray names a node by its address


# --- the package ---


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", tmp_path / "c"], check=True)
    root = tmp_path / "c"
    for name, text in {"jobs/cli.py": "1", ".env": "KEY=1", "a/.env.local": "KEY=1", ".gitignore": "data/\n"}.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "-C", root, "add", "-f", "."], check=True)
    (root / "data").mkdir()
    (root / "data/x.tar").write_text("data")
    (root / "notes.txt").write_text("not tracked")
    (root / "jobs/new.py").write_text("not tracked")
    return root


def test_a_package_has_the_tracked_files_and_no_env(checkout: Path, tmp_path: Path):
    made = package.pack(tmp_path / "1.zip", checkout)
    assert sorted(zipfile.ZipFile(made.path).namelist()) == [".gitignore", "jobs/cli.py"]
    assert made.left == ("jobs/new.py",)
    os.utime(checkout / "jobs/cli.py", (1, 1))
    assert package.pack(tmp_path / "2.zip", checkout).path.read_bytes() == made.path.read_bytes()


def test_a_package_that_is_too_large_names_the_largest(checkout: Path, tmp_path: Path):
    for number in range(7):
        with (checkout / f"big{number}").open("wb") as file:
            file.truncate((10 + number) * 1_000_000)
    subprocess.run(["git", "-C", checkout, "add", "."], check=True)
    with pytest.raises(ValueError, match=r"91.0 MB, more than 50 MB; .*: big6 16.0, big5 15.0, .*, big2 12.0: take"):
        package.pack(tmp_path / "big.zip", checkout)
    assert not (tmp_path / "big.zip").exists()


def test_a_folder_that_is_no_checkout_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="is not a git checkout"):
        package.pack(tmp_path / "x.zip", tmp_path)


def test_the_croppers_of_this_platform_go_along(tmp_path: Path):
    if not crop.library().is_file():
        pytest.skip("the croppers are not built here")
    names = zipfile.ZipFile(package.pack(tmp_path / "x.zip").path).namelist()
    assert str(crop.library().relative_to(ROOT)) in names
    assert "jobs/cli.py" in names
