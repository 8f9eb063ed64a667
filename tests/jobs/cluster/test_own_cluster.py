"""A private cluster on this machine: no other user reaches it, and nothing of it outlives its driver."""

import ipaddress
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_datasets import make_dataset
from places import ROOT

from jobs.cluster import start_ray
from jobs.cluster.reaper import below, processes
from jobs.cluster.start import on_one_machine
from shards import store

TRAIN = ["demo32", "--samples=100000", "--batch=16", "--checkpoint-every=160", "--threads=1", "--workers=2"]
ASK = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).get_all_node_info(timeout=5)
print("let in")
"""


def listening(pids: list[int]) -> dict[int, list[str]]:
    """The addresses on which these processes wait for connections, each with its port, from Linux's tables."""
    addresses = {}
    for table, words in (("/proc/net/tcp", 1), ("/proc/net/tcp6", 4)):
        for row in map(str.split, Path(table).read_text().splitlines()[1:]):
            if row[3] == "0A":
                host, port = row[1].split(":")
                raw = b"".join(bytes.fromhex(host[n * 8 : n * 8 + 8])[::-1] for n in range(words))
                addresses[row[9]] = f"{ipaddress.ip_address(raw)}:{int(port, 16)}"
    found = {}
    for pid in pids:
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        found[pid] = [addresses[link[8:-1]] for link in links if link[:8] == "socket:[" and link[8:-1] in addresses]
    return found


def loopback(address: str) -> bool:
    host = ipaddress.ip_address(address.rpartition(":")[0])
    return (getattr(host, "ipv4_mapped", None) or host).is_loopback


def ask(address: str, **env: str) -> str:
    """What Ray's control service answers to a process that knocks there."""
    child = [sys.executable, "-c", ASK, address]
    return subprocess.run(child, capture_output=True, text=True, timeout=120, env=os.environ | env).stdout


@pytest.mark.slow
@pytest.mark.timeout(900)  # several starts of Ray, which a busy machine makes long
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_two_ranks_listen_on_loopback_ask_for_a_token_and_die_with_their_driver(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)  # of the cluster that other tests share
    make_dataset(tmp_path / "data", [40, 37])
    places = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "jobs.cli", "train", *TRAIN, *places]
    home = str(tmp_path / "home")
    env = os.environ | {"HOME": home}
    with open(tmp_path / "log", "wb") as log:
        driver = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 400
        while not store.names(str(tmp_path / "run" / "checkpoints")):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.5)
        started = below(driver.pid)
        at = listening([pid for pid, _ in started])
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in at}
        assert sum(len(found) for found in at.values()) > 5, at
        assert [(names[pid], address) for pid in at for address in at[pid] if not loopback(address)] == []
        assert [b"--disable-frontend" in name for name in names.values() if b"dashboard.py" in name] == [True]
        (command_of_raylet,) = (name for name in names.values() if b"--raylet_socket_name=" in name)
        socket = Path(command_of_raylet.partition(b"--raylet_socket_name=")[2].partition(b"\0")[0].decode())
        assert any(up.stat().st_mode & 0o777 == 0o700 for up in socket.parents), f"{socket} is open to other users"
        port = next(address.rpartition(":")[2] for pid in at for address in at[pid] if b"gcs_server" in names[pid])
        for stranger in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            assert "let in" not in ask(f"127.0.0.1:{port}", **stranger)
        (raylet,) = (pid for pid in at if b"--raylet_socket_name=" in names[pid])
        variables = Path(f"/proc/{raylet}/environ").read_bytes().decode().split("\0")
        (secret,) = (value.partition("=")[2] for value in variables if value.startswith("RAY_AUTH_TOKEN="))
        assert "let in" in ask(f"127.0.0.1:{port}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secret)
        assert not [name for name in names.values() if secret.encode() in name]
        assert not Path(home, ".ray").exists()
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        deadline = time.monotonic() + 20
        while left := started & processes().keys():
            assert time.monotonic() < deadline, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid, _ in left]
            time.sleep(0.5)
    finally:
        driver.kill()
        driver.wait()


def test_without_a_token_no_cluster_of_our_own_is_started(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match=r"RAY_AUTH_MODE is 'disabled': .*: unset it, or set RAY_ADDRESS"):
        start_ray()


@pytest.mark.parametrize(
    ("address", "alone"),
    [("127.0.0.1:6379", True), ("[::1]:6379", True), ("10.0.0.4:6379", False), ("head.lab.org:6379", False)],
)
def test_a_cluster_is_one_machine_where_its_address_is_a_loopback_one(monkeypatch, address, alone):
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    assert on_one_machine() is alone
