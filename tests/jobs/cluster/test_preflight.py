"""Before any work: each thing that a node misses or has in another version is one line, and so is a wrong address."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_datasets import make_dataset
from nodes import Cluster, cluster, free_port

from jobs.cluster import node_facts, preflight
from jobs.cluster.address import require_cluster
from jobs.doctor import GIB

HERE = {
    **{
        "host": "a",
        "python": "3.11.7",
        "torch": "2.13.0",
        "ray": "2.60.0",
        "product": "0.1.0",
        "driver": None,
        "gpus": 0,
    },
    **{"memory": 8 * GIB, "shm": 4 * GIB, "files": 65536, "aws": ["AWS_ACCESS_KEY_ID"], "clock": 100.0, "import": None},
    **{"crops": "jpeglib 80", "address": "10.0.0.1", "interface": "eth0"},
    **{"read": {"/data": None}, "out": None},
}


def said(**changes: object) -> list[tuple[str, str, str]]:
    found = list(preflight.compare("b", {**HERE, **changes}, HERE, "/runs/1"))
    assert all(check.what == "node b" for check in found)
    return [(check.level, check.detail, check.next_step) for check in found]


def test_a_node_that_is_like_this_machine_is_silent():
    assert said() == []


@pytest.mark.parametrize(
    ("changes", "level", "line"),
    [
        ({"python": "3.12.1"}, "fail", "has Python 3.12.1, this is 3.11.7"),
        ({"ray": "2.59.0"}, "fail", "has Ray 2.59.0, this is 2.60.0"),
        ({"product": None}, "fail", "has xtra None, this is 0.1.0"),
        ({"import": "No module named 'shards'"}, "fail", "cannot import the product (No module named 'shards')"),
        ({"crops": "Pillow"}, "warn", "crops with Pillow, here with jpeglib 80"),
        ({"read": {"/data": "no such object"}}, "fail", "cannot read /data (no such object)"),
        ({"out": "it is not there"}, "fail", "cannot write /runs/1 (it is not there)"),
        ({"memory": GIB // 2}, "warn", "has 0.5 GiB of memory free"),
        ({"shm": GIB // 8}, "warn", "has 0.1 GiB free in /dev/shm"),
        ({"files": 1024}, "warn", "may open 1024 files"),
        ({"clock": 160.0}, "warn", "its clock is +60 s off ours"),
        ({"aws": []}, "warn", "does not have AWS_ACCESS_KEY_ID"),
        ({"interface": None}, "warn", "no interface has its address 10.0.0.1"),
    ],
)
def test_a_difference_is_one_line_with_a_next_step(changes, level, line):
    ((found, detail, step),) = said(**changes)
    assert (found, detail) == (level, line)
    assert step


def test_what_a_node_answers_about_itself(tmp_path):
    make_dataset(tmp_path / "data", [3])
    data, out = str(tmp_path / "data"), str(tmp_path / "run")
    facts = node_facts.answer([data, str(tmp_path / "none")], out, "")
    assert facts["read"][data] is None
    assert "no such object" in facts["read"][str(tmp_path / "none")]
    assert (facts["out"], facts["import"], facts["python"]) == (None, None, ".".join(map(str, sys.version_info[:3])))
    assert node_facts.answer([], out, str(tmp_path / "mark"))["out"] == (
        "the file that the driver has just written there does not exist"
    )
    assert node_facts.interface_of("127.0.0.1") == "lo"


@pytest.fixture
def web() -> Iterator[int]:
    """A server that is no cluster."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (
            "http://head:8265",
            "RAY_ADDRESS http://head:8265: that is a dashboard's address, for jobs: give .* head:6379",
        ),
        ("ray://head:10001", "Ray Client is not supported: give .* head:6379"),
        ("head", "is not HOST:PORT"),
        ("127.0.0.1:PORT", "no Ray cluster answers there .*refused.*: start it or unset it"),
    ],
)
def test_an_address_that_leads_nowhere_is_one_line_at_once(address, message):
    since = time.monotonic()
    with pytest.raises(ValueError, match=message):
        require_cluster(address.replace("PORT", str(free_port())))
    assert time.monotonic() - since < 10


@pytest.mark.slow
def test_what_answers_and_is_no_cluster_is_named(web):
    with pytest.raises(ValueError, match="what answers there is not a Ray cluster"):
        require_cluster(f"127.0.0.1:{web}")


def test_a_port_that_swallows_everything_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("jobs.cluster.address.ANSWER_SECONDS", 0.5)
        with pytest.raises(ValueError, match="what answers there is not a Ray cluster"):
            require_cluster(f"127.0.0.1:{silent.getsockname()[1]}")


# ---- a real cluster ----


def xtra(made: Cluster, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    merged = {name: value for name, value in {**made.env, **env}.items() if value}
    command = [sys.executable, "-m", "jobs.cli", *words]  # not in ROOT: Ray gives its workers the driver's folder
    return subprocess.run(command, cwd=made.folder, env=merged, capture_output=True, text=True, timeout=300)


def without_the_product(folder: Path) -> str:
    """A PYTHONPATH on which the product cannot be imported."""
    (folder / "shards").mkdir(parents=True)
    (folder / "shards" / "__init__.py").write_text("raise ImportError('not on this node')")
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_bad_cluster_is_one_line_and_writes_nothing(tmp_path):
    make_dataset(tmp_path / "data", [40])
    train = ["train", "demo32", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--device=cpu"]
    with cluster(1) as made:
        for env, message in (
            ({"RAY_AUTH_TOKEN": "0" * 64}, "it refuses the token of this process: set RAY_AUTH_TOKEN or"),
            ({"RAY_AUTH_MODE": "disabled"}, "it requires a token, and RAY_AUTH_MODE is 'disabled'"),
            ({"HOME": str(tmp_path)}, "it requires a token, and there is none: set RAY_AUTH_MODE=token and"),
        ):
            since = time.monotonic()
            done = xtra(made, *train, **env)
            assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
            assert done.stderr.startswith(f"xtra train: RAY_ADDRESS {made.address}: {message}")
            assert time.monotonic() - since < 30 * (1 + os.getloadavg()[0] / 4)
        good = xtra(made, "doctor", "--cluster", "--url", str(tmp_path / "new"), RAY_AUTH_MODE="")
        assert "ok    cluster      2 nodes: same versions as here" in good.stdout, good.stdout + good.stderr
        assert list((tmp_path / "new").iterdir()) == []
        made.node(env={"PYTHONPATH": without_the_product(tmp_path / "bare")})
        done = xtra(made, *train, "--workers=2", AWS_ACCESS_KEY_ID="AKexample")
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "cannot import the product (not on this node): install it there, or set PYTHONPATH" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("xtra train: node node2 (")
        assert "does not have AWS_ACCESS_KEY_ID: set it where the node is started" in done.stderr
        assert "AKexample" not in done.stderr
    assert not (tmp_path / "run").exists()
