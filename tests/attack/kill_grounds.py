"""Where the kill campaign works: on this disk, or on an S3 store behind a proxy that breaks some of its requests."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kill_state
import killer
from buckets import start_moto
from fault_proxy import FaultProxy, Rule
from kill_verbs import MADE, Verb, make_inputs
from origin import Origin

from shards import store

BUCKET = "s3://kill"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
# One request in some dozens fails, each fault in turn; what is answered late or twice is part of it.
FAULTS = tuple(
    Rule(fault, chance=0.01, after=40)
    for fault in ("slow_down", "reset", "reset_upload", "reset_reply", "cut", "lost_reply")
)


@dataclass
class Server:
    """A process beside the campaign, which starts no thread of its own: it would not be there in its forks."""

    pid: int
    url: str

    @classmethod
    def start(cls, serve: Callable[[Callable[[str], None]], None]) -> Server:
        """serve(say) says its address, and then serves until it is killed."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                serve(lambda url: os.write(write, url.encode()) and os.close(write))
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read) as file:
            return cls(pid, file.read())

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _until_orphaned() -> None:
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.2)


def serve_origin(say: Callable[[str], None]) -> None:
    with Origin() as origin:
        say(origin.url(""))
        _until_orphaned()


def serve_store(say: Callable[[str], None]) -> None:
    """The store's address, and that of the proxy before it."""
    logging.getLogger("werkzeug").disabled = True
    server = start_moto()
    host, port = server.get_host_and_port()
    with FaultProxy(f"http://{host}:{port}", *FAULTS, seed=7) as proxy:
        say(f"http://{host}:{port} {proxy.url}")
        _until_orphaned()


@dataclass(frozen=True)
class _Served:
    """What `make_inputs` needs to know of an origin in another process."""

    base: str

    def url(self, path: str) -> str:
        return self.base + path


@dataclass
class Ground:
    """Inputs, and a place for a verb to work in."""

    place: killer.Place
    inputs: Path
    direct: dict[str, str] = field(default_factory=dict)  # the environment in which the store is asked without faults
    servers: list[Server] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, remote: bool, verbs: list[Verb]) -> Ground:
        servers = [Server.start(serve_origin)]
        ground = cls(killer.Place(folder), folder / "inputs", servers=servers)
        ground.place.clear()
        killer.apart(make_inputs, ground.inputs, _Served(servers[0].url))
        needed = {name for verb in verbs for name in (verb.before, verb.reads)}
        for name in sorted(needed & set(MADE)):
            words = [word.replace("{inputs}", str(ground.inputs)) for word in MADE[name]]
            outcome = killer.run(words, ground.place)
            assert outcome.status == 0, f"{' '.join(words)}: {outcome.status}: {outcome.text}"
        if remote:
            servers.append(Server.start(serve_store))
            direct, proxied = servers[1].url.split()
            ground.direct = KEYS | {"AWS_ENDPOINT_URL": direct}
            ground.place = killer.Place(folder, KEYS | {"AWS_ENDPOINT_URL": proxied}, sockets=True)
            ground.apart(upload, str(ground.inputs), [*needed - {""}, "data", "tars"])
        return ground

    @property
    def remote(self) -> bool:
        return self.place.sockets

    @property
    def out(self) -> str:
        return f"{BUCKET}/out" if self.remote else str(self.place.out)

    def words(self, verb: Verb) -> list[str]:
        base = f"{BUCKET}/inputs" if self.remote else str(self.inputs)
        places = {"inputs": str(self.inputs), "data": f"{base}/data", "tars": f"{base}/tars", "out": self.out}
        return [word.format(**places) if word.startswith("{") else word for word in verb.words]

    def begin(self, verb: Verb) -> None:
        """As if the verb had never run."""
        self.place.clear()
        if self.remote:
            self.apart(_begin_remote, verb.before)
        elif verb.before:
            shutil.copytree(self.inputs / verb.before, self.place.out)  # with its times

    def settle(self, verb: Verb) -> dict[str, Any]:
        return self.apart(kill_state.settle, verb.kind, self.out, str(self.place.tmp))

    def apart(self, job: Callable[..., Any], *args: Any) -> Any:
        return killer.apart(job, *args, env=self.direct)

    def close(self) -> None:
        for server in self.servers:
            server.end()
        shutil.rmtree(self.place.folder, ignore_errors=True)


def upload(inputs: str, folders: list[str]) -> None:
    from shards import store_remote

    store_remote.client(BUCKET + "/x")[0].mkdir(BUCKET.removeprefix("s3://"))
    for folder in folders:
        for at, _, names in os.walk(Path(inputs, folder)):
            for name in names:
                path = Path(at, name)
                store.put(f"{BUCKET}/inputs/{path.relative_to(inputs)}", path.read_bytes())


def _begin_remote(before: str) -> None:
    from shards import store_remote

    fs, _ = store_remote.client(BUCKET + "/x")
    if fs.exists(f"{BUCKET}/out"):
        fs.rm(f"{BUCKET}/out", recursive=True)
    if before:
        for path in fs.find(f"{BUCKET}/inputs/{before}"):
            fs.copy(path, path.replace("/inputs/" + before, "/out", 1))
