"""Join a Ray cluster, or start a private one on this machine."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.cluster.address import require_cluster
from jobs.cluster.wanted import TryLater, in_a_job
from shards.pixels import private_folder

_RAY_ENV = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every printed line of a worker appears twice
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # notice a dead worker in a quarter of a second
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # and one that does not answer in a minute
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # we watch for nodes that go ourselves, more often
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    # Stores that are not AWS refuse the newer SDKs' trailing checksums; Ray Train writes a marker with pyarrow.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
# What a node needs to find the bucket, without secrets: a node has its own keys.
_PASSED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE")
_LOOPBACK_ENV = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for "no other machines": listen only on loopback
    "GLOO_SOCKET_IFNAME": "lo",  # torch's own connections between ranks
    "NCCL_SOCKET_IFNAME": "lo",
    "RAY_worker_niceness": "0",  # Ray's 15 is for background work; ours is not
}
_LONGEST = 40  # bytes of the folder in which Ray puts its sockets, whose paths may have 107


def start_ray() -> None:
    """Join the cluster at RAY_ADDRESS, or start a private one on this machine.

    A private cluster listens only on loopback, requires a token that only its processes know, has no dashboard, and
    ends with this process, however that ends. Raises ValueError when no cluster answers at RAY_ADDRESS, or when token
    authentication is switched off for a private cluster; TryLater when that does not start in time.
    """
    os.environ.update({name: value for name, value in _RAY_ENV.items() if name not in os.environ})
    address = os.environ.get("RAY_ADDRESS", "")
    own = address in ("", "local") and not in_a_job()
    if own:
        _require_token()
    elif "ray" not in sys.modules or not sys.modules["ray"].is_initialized():
        require_cluster(address or "auto")  # before Ray is imported, so that it finds the token
    import ray

    if ray.is_initialized():
        return
    taken = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if own:
        _start_own()
    else:
        _join(address)
    if threading.current_thread() is threading.main_thread():
        for number, handler in taken.items():  # Ray takes them over, and SIGTERM would then end the work
            signal.signal(number, handler)
    # Ray prints dead workers to our standard output, even after a command's last line, and has no public switch for
    # that; we report them ourselves.
    ray._private.worker._worker_logs_enabled = False


def on_one_machine() -> bool:
    """Whether the cluster that this process is in can have no other machine: its address is a loopback one."""
    import ray

    host = ray.get_runtime_context().gcs_address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, as RAY_ADDRESS may contain: a cluster
        return False


def _join(address: str) -> None:
    import ray

    passed = {} if in_a_job() else {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    if passed:  # stores other than AWS need these two
        passed |= {name: os.environ[name] for name in _RAY_ENV if name.startswith("AWS_")}
    try:
        ray.init(log_to_driver=False, logging_level="error", runtime_env={"env_vars": passed} if passed else None)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"RAY_ADDRESS {address}: no Ray cluster answers there ({why}): start it or unset it") from None


def _require_token() -> None:
    """Set a token for this process and its children only, unless the user has set one."""
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode.lower() != "token":
        raise ValueError(
            f"RAY_AUTH_MODE is {mode!r}: with it every user of this machine could run code as you through Ray: "
            "unset it, or set RAY_ADDRESS to a cluster that you have started"
        )
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        # Ray would write one into a file that other users of this machine can read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start_own() -> None:
    import ray
    from ray._private import ray_constants
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")  # replace what an earlier `import ray` read from the environment
    AuthenticationTokenLoader.instance().reset_cache()
    ray_constants.ENABLE_RAY_CLUSTER = False
    _start_reaper()
    with _environment(**_LOOPBACK_ENV):
        try:
            ray.init(
                "local", log_to_driver=False, logging_level="error", include_dashboard=False, _temp_dir=_session_root()
            )
        except Exception as error:  # Ray raises a plain Exception if its processes do not start in time
            why = " ".join(str(error).split())[:300]
            raise TryLater(f"Ray did not start on this machine ({why}): the same command tries again") from None
    assert is_token_auth_enabled(), "Ray started without its token"


def _session_root() -> str | None:
    """Ray's folder for logs and sockets: private to this user, or from RAY_TMPDIR.

    Ray's own folder is open to every user, who could replace one of its sockets.
    """
    if os.environ.get("RAY_TMPDIR"):
        return None
    folder = private_folder() / "ray"
    if len(os.fsencode(folder)) > _LONGEST:
        folder = private_folder("/tmp") / "ray"
    return str(folder)


def _start_reaper() -> None:
    """Start a process that outlives this one, in a session of its own, where Ctrl-C does not reach it."""
    import ray

    package = str(Path(ray.__file__).parent)
    program = [sys.executable, "-I", str(Path(__file__).with_name("reaper.py")), str(os.getpid()), package]
    silent = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
    os.posix_spawn(sys.executable, program, os.environ, file_actions=silent, setsid=True)


@contextmanager
def _environment(**names: str) -> Iterator[None]:
    """Set variables for children started in the block, except those that the user has set."""
    own = {name: value for name, value in names.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]
