"""A real Ray cluster on one machine: every node is a `ray start --block` process that a test may kill or stop.

Nodes are started one after the other, because two starts at once time out. They keep to free ports, each to a temporary
folder of its own, and to a HOME of their own, in which Ray puts the token that every process has to show. They are
ended by the ids of the processes that were started here, and by no name.

Without `--temp-dir` a node takes the path of the head's, which on one machine is the head's folder itself. Of a job's
code each node unpacks its own copy and first removes the one that is there; what runs in it then has no working
directory, and ends at its next `import torch` (oneMKL: "Cannot load libtorch_cpu.so"). Only the folder of the logs is
shared: an agent that is asked for a job's log looks in that of the node which a driver would join, the head's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from places import ROOT

from jobs.cluster.reaper import Process, below, processes

START_SECONDS = 240.0  # on a busy machine
STARTS = 3  # Ray itself gives a node 30 s
TOO_SLOW = "timed out during startup"
END_SECONDS = 20.0
# `ray start` without Ray Client's server: nothing here uses it, Ray has no flag against it, and a head ends with it,
# which it does where the machine is too busy for a node to join within 30 s.
START = """
from ray.scripts import scripts
scripts.get_ray_client_dependency_error = lambda: "not wanted"
scripts.main()
"""
ASK = """
import sys
from ray._raylet import GcsClient
for node in GcsClient(address=sys.argv[1]).get_all_node_info(timeout=20).values():
    print(node.node_name, node.state)
"""


@dataclass
class Node:
    """One `ray start --block` and what it started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    family: set[Process] = field(default_factory=set)

    def remember(self) -> set[Process]:
        """The node's processes that are alive, those of workers among them."""
        there = processes()
        self.family |= below(self.process.pid) | {process for process in there if process[0] == self.process.pid}
        return self.family & there.keys()

    def pid(self, what: str) -> int:
        """The one process of the node whose command has this word: raylet, gcs_server, ..."""
        found = self.pids(what)
        assert len(found) == 1, f"{self.name} has {len(found)} processes {what}: {self.log.read_text()[-500:]}"
        return found[0]

    def pids(self, what: str) -> list[int]:
        """All of its processes whose command has this word."""
        return [pid for pid, _ in self.remember() if what in _program(pid)]

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal every process of the node, as when its machine goes (SIGSTOP: stands still)."""
        for pid, _ in self.remember():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if number == signal.SIGKILL:
            self.process.wait()

    def drain(self) -> None:
        """The notice that a platform gives: SIGTERM to `ray start --block`, which drains for its notice and ends."""
        self.process.send_signal(signal.SIGTERM)

    def alive(self) -> bool:
        return self.process.poll() is None


class Cluster:
    """A head of 0 CPUs, and nodes that come and go. `env` is what a command needs to use it, `jobs` what one needs to
    submit jobs, where the head has a dashboard."""

    def __init__(
        self,
        folder: Path,
        env: Mapping[str, str] = {},
        notice: int = 30,
        head: tuple[str, ...] = (),
        dashboard: bool = False,
        host: str = "127.0.0.1",
        grows: int = 0,
    ) -> None:
        """At this address of the machine; `grows` nodes of 1 CPU may be added by Ray's autoscaler."""
        self.folder, self.nodes, self.born, self.host = folder, list[Node](), 0, host
        self.address = f"{host}:{free_port()}"
        home = folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AWS_"))}
        self.env = bare | {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",  # Ray's 15 starves where others use the cores
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(notice),
            "OMP_NUM_THREADS": "1",
            **env,
        }
        token = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(token, env=self.env, check=True, capture_output=True, timeout=START_SECONDS)
        self._head = ["--head", f"--port={self.address.rpartition(':')[2]}", *head]
        if grows:
            (folder / "growth.json").write_text(json.dumps(_growth(self.address, grows)))
            self._head.append(f"--autoscaling-config={folder / 'growth.json'}")
            self.env |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        self._bin(folder / "bin")
        port = free_port()
        self._dashboard = (
            ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
            if dashboard
            else ["--include-dashboard=false"]
        )
        self.jobs = {name: value for name, value in self.env.items() if not name.startswith(("AWS_", "RAY_"))}
        self.jobs["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        self.head = self._start("head", self._head, 0)
        self.env["RAY_ADDRESS"] = self.address

    def again(self, nodes: int) -> None:
        """Another head at the same address, with nodes; those that were there are ended before."""
        for node in self.nodes:
            node.kill()
        self.head = self._start("head", self._head, 0)
        for _ in range(nodes):
            self.node()

    def node(self, cpus: int = 1, env: Mapping[str, str] = {}, more: tuple[str, ...] = ()) -> Node:
        """Start another node and wait until the cluster counts it in."""
        self.born += 1
        return self._start(f"node{self.born}", [f"--address={self.address}", *more], cpus, env)

    def alive(self, **env: str) -> dict[str, bool]:
        """Whether the head counts each node in, by its name; empty where it does not answer."""
        command = [sys.executable, "-c", ASK, self.address]
        asked = subprocess.run(command, env={**self.env, **env}, capture_output=True, text=True, timeout=90)
        return {name: state == "0" for name, state in map(str.split, asked.stdout.splitlines())}

    def _start(self, name: str, words: list[str], cpus: int, env: Mapping[str, str] = {}) -> Node:
        log = self.folder / f"{name}.log"
        command = [
            *(sys.executable, "-c", START, "start", "--block", *words, f"--num-cpus={cpus}"),
            *(f"--node-name={name}", "--num-gpus=0", f"--node-ip-address={self.host}", "--disable-usage-stats"),
            *("--min-worker-port=0", "--max-worker-port=0", f"--dashboard-agent-listen-port={free_port()}"),
            *("--object-store-memory=80000000", "--memory=2000000000", "--include-log-monitor=false"),
            *([] if any(word.startswith("--temp-dir=") for word in words) else [f"--temp-dir={self.folder / name}"]),
        ]
        if "--head" in words:
            command += self._dashboard
        elif not (folder := self.folder / name).exists():
            session = (self.folder / "head" / "session_latest").resolve()
            (folder / session.name).mkdir(parents=True)
            (folder / session.name / "logs").symlink_to(session / "logs")
        for left in reversed(range(STARTS)):
            with open(log, "wb") as out:
                process = subprocess.Popen(
                    command,
                    env={**self.env, **env, "XTRA_NODE": name},
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                    cwd=self.folder,
                )
            node = Node(name, process, log)
            self.nodes.append(node)
            if _started(node, again=left > 0):
                break
            node.kill()
            self.nodes.remove(node)
        return node

    def _bin(self, folder: Path) -> None:
        """The `xtra` of nodes, first in their PATH."""
        folder.mkdir()
        words = shlex.join([sys.executable, str(Path(__file__).with_name("on_node.py"))])
        (folder / "xtra").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / "xtra").chmod(0o755)
        self.env["PATH"] = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def close(self) -> None:
        """End every process that was started here."""
        for node in reversed(self.nodes):
            node.kill()
        until = time.monotonic() + END_SECONDS
        while any(node.family & processes().keys() for node in self.nodes) and time.monotonic() < until:
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _started(node: Node, again: bool) -> bool:
    """Wait until it has joined; False where Ray gave up on a busy machine and may be started again."""
    until = time.monotonic() + START_SECONDS
    while "--block" not in (said := node.log.read_text()):  # printed once it has joined
        node.remember()
        if again and node.process.poll() is not None and TOO_SLOW in said:
            return False
        assert node.process.poll() is None, said
        assert time.monotonic() < until, f"{node.name} did not start: {said[-2000:]}"
        time.sleep(0.1)
    node.remember()
    return True


def own_address() -> str:
    """An address of this machine by which others could reach it, where it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            return "127.0.0.1"
        return s.getsockname()[0]


def _growth(address: str, most: int) -> dict[str, Any]:
    """An autoscaler that starts nodes of 1 CPU as processes, by the provider of ray.cluster_utils.AutoscalingCluster.

    That class cannot be used: it reads a file that is not in Ray's wheel, and ends every Ray of the machine on start.
    """
    kinds = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    small = {"CPU": 1, "object_store_memory": 80_000_000}
    kinds["one"] = {"resources": small, "node_config": {}, "min_workers": 0, "max_workers": most}
    provider = {"type": "fake_multinode", "gcs_address": address, "use_node_id_as_ip": True}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "grows",
        "max_workers": most,
        "provider": provider | {"disable_node_updaters": True, "disable_launch_config_check": True},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 10,
        **{name: {} for name in ("auth", "docker", "head_node", "worker_nodes", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{f"{name}_commands": [] for name in commands},
        "file_mounts_sync_continuously": False,
    }


def _program(pid: int) -> str:
    """The name of its program, and of the script that it runs."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    return " ".join(Path(word).name for word in words[:3])


@contextlib.contextmanager
def cluster(
    nodes: int = 0,
    cpus: int = 1,
    env: Mapping[str, str] = {},
    notice: int = 30,
    head: tuple[str, ...] = (),
    dashboard: bool = False,
    host: str = "127.0.0.1",
    grows: int = 0,
) -> Iterator[Cluster]:
    """A cluster with that many nodes, in a temporary folder with a short path (sockets are in it)."""
    folder = Path(tempfile.mkdtemp(prefix="nodes-", dir=os.environ.get("XTRA_NODES_DIR", tempfile.gettempdir())))
    made = None
    try:
        made = Cluster(folder, env, notice, head, dashboard, host, grows)
        for _ in range(nodes):
            made.node(cpus)
        yield made
    finally:
        if made is not None:
            made.close()
        shutil.rmtree(folder, ignore_errors=True)
