"""Keys, tokens and passwords are planted wherever a user may have some, the whole path is run, and all is searched.

Searched are all objects in the bucket, run folders on disk, what commands print, the command lines of all processes
while they run, the temporary folder with Ray's sessions in it, and what Ray's control service holds of the cluster.
"""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from buckets import bucket
from origin import Origin
from places import ROOT
from test_fall import labelled_folder

from shards import store_remote

# The environment of a user: all of it reaches the workers, nothing of it may reach a file, a screen or an argument.
KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "WANDB_API_KEY",
    "HF_TOKEN",
    "RAY_AUTH_TOKEN",
)
LONGEST = 1200  # seconds of one command, on a machine that does much else
# Of URLs: a line's user and password, where a server redirects to, places that are refused, a list that is refused.
URLS = ("user", "password", "redirect", "place", "list")

# Starts the cluster, runs a command in it, and writes down what Ray's control service knows.
IN_CLUSTER = """
import sys
from jobs import cli
from jobs.cluster import start_ray
start_ray()
code = cli.main(sys.argv[2:])
import ray
from ray._private import state
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list
with open(sys.argv[1], "w") as out:
    print(state.state.job_table(), state.state.node_table(), state.state.actor_table(None), file=out)
    print(ray.get_runtime_context().runtime_env, ray.cluster_resources(), file=out)
    for space in (None, b"fun", b"job", b"session", b"cluster", b"dashboard", b"tracing", b"package", b"workflow"):
        for key in _internal_kv_list(b"", namespace=space):
            print(space, key, _internal_kv_get(key, namespace=space), file=out)
sys.exit(code)
"""


class Planted:
    """Unique strings, the commands that run with them, and where any of them was seen."""

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder, self.temporary = folder, temporary
        self.secrets = {name: "x" + secrets.token_hex(15) for name in (*KEYS, *URLS)}
        self.secrets["AWS_ACCESS_KEY_ID"] = "AKIA" + secrets.token_hex(8).upper()
        self.secrets["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        self.seen: list[str] = []
        self.screens: list[str] = []
        self.commands = 0  # command lines of other processes that were looked at
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {name: self.secrets[name] for name in KEYS}
        self.environment |= {"RAY_AUTH_MODE": "token", "RAY_TMPDIR": str(temporary), "TMPDIR": str(temporary)}
        self.environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def search(self, where: str, body: bytes) -> None:
        self.seen += [f"{name} in {where}" for name, value in self.secrets.items() if value.encode() in body]

    def xtra(
        self, *words: object, ok: int = 0, script: tuple[str, ...] = ("-m", "jobs.cli"), watch: bool = True
    ) -> str:
        """Run a command while the command lines of all processes are read (`watch`); returns what it printed."""
        command = [sys.executable, *script, *map(str, words)]
        with tempfile.TemporaryFile(dir=self.folder) as out:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
            ended = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(ended,))
            if watch:
                watcher.start()
            try:
                process.wait(timeout=LONGEST)
            finally:
                process.kill()
                process.wait()
                ended.set()
                if watch:
                    watcher.join()
            out.seek(0)
            printed = out.read()
        self.search(f"the screen of {words[0]}", printed)
        assert process.returncode == ok, printed.decode()
        return printed.decode()

    def _watch(self, ended: threading.Event) -> None:
        own = str(os.getpid())
        while not ended.wait(0.5):
            for folder in Path("/proc").iterdir():
                if folder.name.isdigit() and folder.name != own:
                    try:
                        line = (folder / "cmdline").read_bytes()
                    except OSError:  # it has ended
                        continue
                    self.commands += b"ray" in line
                    self.search(f"a command line: {line[:60]!r}", line)

    def refused(self, *words: object) -> None:
        """The words hold a secret: it is on this command's own line, and must come no further."""
        assert "would be stored" in self.xtra(*words, ok=2, watch=False)


@pytest.fixture
def planted(on_moto: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    # A short name, as Ray's sockets lie below it; what a cluster that is ending still writes there is no matter.
    with tempfile.TemporaryDirectory(prefix="xs", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        found = Planted(tmp_path, Path(temporary))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
            monkeypatch.setenv(name, found.secrets[name])
        monkeypatch.setattr(store_remote, "_filesystems", {})
        found.environment |= {name: os.environ[name] for name in ("AWS_ENDPOINT_URL", "AWS_REGION")}
        yield found


def bodies_of_bucket(base: str) -> Iterator[tuple[str, bytes]]:
    fs, path = store_remote.client(base)
    for key in fs.find(path):
        yield key, in_clear(key, fs.cat_file(key))


def bodies_of(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path), in_clear(path.name, path.read_bytes())


def in_clear(name: str, body: bytes) -> bytes:
    """The bytes, and what a Parquet file says, which is compressed."""
    return body + (str(pq.read_table(io.BytesIO(body)).to_pydict()).encode() if name.endswith(".parquet") else b"")


def nothing_is_found(planted: Planted, base: str, control: Path, *folders: Path) -> None:
    """In the bucket, Ray's sessions, what its control service knew, and folders on disk."""
    sessions = dict(bodies_of(planted.temporary))
    assert any("/session_" in name and "/logs/" in name for name in sessions), "Ray's sessions were not looked at"
    assert b"fun" in control.read_bytes()
    assert planted.commands > 0
    for where, body in (*bodies_of_bucket(base), *sessions.items(), (str(control), control.read_bytes())):
        planted.search(where, where.encode() + body)
    for folder in folders:
        for where, body in bodies_of(folder):
            planted.search(where, body)
    assert sorted(set(planted.seen)) == []


def in_cluster(control: Path) -> tuple[str, ...]:
    return ("-c", IN_CLUSTER, str(control))


SMALL = ["--samples", 64, "--batch", 16, "--threads", 1]
QUICK = ["--heads", "linear", "--epochs", 1, "--views", 1, "--batch", 16]


def study(out: str, data: str, workers: int) -> list[object]:
    probing = [f"--probe.{word[2:]}" if str(word).startswith("--") else word for word in QUICK]
    sets = ["--probe.train", data, "--probe.eval", data]
    grid = ["--recipes", "demo32", "--samples", 64, "--workers", workers, "--no-pixels", "--no-random"]
    return ["scale", "--data", data, "--out", out, *grid, *sets, *probing]


@pytest.mark.slow
@pytest.mark.timeout(4 * LONGEST)
def test_no_planted_secret_is_anywhere(planted: Planted, tmp_path: Path) -> None:
    base, control, local = bucket(), tmp_path / "control", tmp_path / "runs"
    data, labelled = f"{base}/data", f"{base}/labelled"
    secret = planted.secrets
    with Origin() as origin:
        origin.signature = secret["redirect"]
        links = [*(origin.url(f"/ok/{number}.jpg") for number in range(60)), origin.url("/signed/moved.jpg")]
        (tmp_path / "list.txt").write_text("\n".join([*links, *bad_lines(secret)]) + "\n")
        fetch = ["--fetch.allow-private", "127.0.0.1", "--fetch.retries", 1, "--fetch.backoff", 0.05]
        words = ["ingest", "--out", data, "--unit", 32, "--workers", 2, *fetch, "--select.near-distance", -1]
        planted.refused(*words, "--urls", f"http://{secret['user']}:{secret['password']}@127.0.0.1:1/list.txt")
        planted.refused(*words, "--urls", f"https://127.0.0.1:1/list.txt?sig={secret['list']}")
        printed = planted.xtra(*words, "--urls", tmp_path / "list.txt", script=in_cluster(control))
        assert origin.requests[f"/ok/moved.jpg?X-Amz-Signature={secret['redirect']}"] > 0
    assert "bad_url" in printed
    planted.xtra("import", labelled_folder(tmp_path / "pictures"), "--out", labelled)
    place = f"s3://{secret['place']}@bucket/x"
    planted.refused("import", f"https://{secret['place']}@127.0.0.1/a.tar", "--in-place", "--out", labelled)
    planted.refused("train", "demo32", "--data", place, "--out", f"{base}/no")
    planted.refused(
        "probe", f"{base}/run", "--train", labelled, f"--eval={labelled}?X-Amz-Credential={secret['place']}"
    )
    planted.xtra("train", "demo32", "--data", labelled, "--out", local / "run", *SMALL)
    planted.xtra("probe", local / "run", "--train", labelled, "--eval", labelled, *QUICK)
    planted.xtra(*study(f"{base}/study", labelled, 1))
    planted.xtra("report", f"{base}/study")
    planted.xtra("report", local)
    planted.xtra("check", data)
    planted.xtra("status", "s3://no-such-bucket-here/x", ok=2)
    nothing_is_found(planted, base, control, local)


@pytest.mark.slow
@pytest.mark.timeout(2 * LONGEST)
def test_ranks_on_ray_leave_none_of_them_either(planted: Planted, tmp_path: Path) -> None:
    base, control = bucket(), tmp_path / "control"
    planted.xtra("import", labelled_folder(tmp_path / "pictures"), "--out", f"{base}/labelled")
    planted.xtra(*study(f"{base}/study", f"{base}/labelled", 2), script=in_cluster(control))
    nothing_is_found(planted, base, control)


def bad_lines(secret: dict[str, str]) -> list[str]:
    """Lines that hold no usable link: their user names, passwords and tokens are masked in all that is kept of them."""
    return [
        f"http://{secret['user']}:{secret['password']}@127.0.0.1/1.jpg",
        f"ftp://{secret['user']}@127.0.0.1/1.jpg?token={secret['password']}",
        f"not a link http://{secret['user']}:{secret['password']}@host/",
    ]
