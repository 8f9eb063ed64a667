"""The facts of a node that preflight.py compares. This module is sent to the node as code, because the product may be
missing there: at its top it imports only the standard library, and everything else where that may fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import resource
import shutil
import socket
import struct
import time
from importlib import metadata
from pathlib import Path
from typing import Any

SIOCGIFADDR = 0x8915  # netdevice(7)
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ROLE_ARN")


def answer(datasets: list[str], out: str, seen: str) -> dict[str, Any]:
    """Facts about the machine that this runs on.

    `datasets` are folders of datasets, `out` is where results go ("": nowhere), `seen` a file that the driver has put
    there, if `out` is a local path.
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "ray": _version("ray"),
        "product": _version("xtra-pretrain"),
        "driver": _gpu_driver(),
        "gpus": len(_listed("/proc/driver/nvidia/gpus")),
        "memory": _free_memory(),
        "shm": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else None,
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "aws": [name for name in AWS if os.environ.get(name)],
        "clock": time.time(),
        **_of_the_product(datasets, out, seen),
    }


def _of_the_product(datasets: list[str], out: str, seen: str) -> dict[str, Any]:
    try:
        from shards import store
        from shards.pixels import crop
    except ImportError as error:
        return {"import": str(error)}
    loaded = crop.loaded()
    facts: dict[str, Any] = {"import": None, "crops": loaded.codec if loaded else "Pillow"}
    with contextlib.suppress(ImportError):
        import ray

        facts["address"] = ray.util.get_node_ip_address()
        facts["interface"] = interface_of(facts["address"])
    facts["read"] = {url: _failure(store.read, store.join(url, "dataset.json")) for url in datasets}
    if seen and not Path(seen).exists():
        facts["out"] = "the file that the driver has just written there does not exist"
    elif out:
        facts["out"] = _failure(store.check_writable, out)
    return facts


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the IPv4 address, if there is one (Linux)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return None


def _failure(ask: Any, url: str) -> str | None:
    """Why `ask(url)` fails; None if it works."""
    try:
        ask(url)
    except Exception as error:  # of any kind: it is reported
        return " ".join(str(error).split()) or type(error).__name__
    return None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu_driver() -> str | None:
    with contextlib.suppress(OSError):
        return Path("/proc/driver/nvidia/version").read_text().split("Kernel Module")[-1].split()[0]
    return None


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _free_memory() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
