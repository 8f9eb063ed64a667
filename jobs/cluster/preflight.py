"""Checks of every node before any work: each node of a cluster is compared with this machine; one line per difference.

What a node cannot read or write, misses or has in another version is known in seconds, and not after a group of workers
has started and died there.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.cluster import capacity, node_facts
from jobs.doctor import GIB, Check
from shards import store

NODE_SECONDS = 30.0
CLOCK_SECONDS = 5.0
FILES = 4096


def check_nodes(datasets: Sequence[str] = (), out: str = "") -> list[Check]:
    """One check for every difference between a node and this machine, or a single good one.

    `datasets` will be read and `out` written; the cluster must have been joined (start_ray()).
    """
    folders = [store.absolute(url.partition("@")[0]) for url in datasets if url]
    out = store.absolute(out) if out else ""
    with _mark(out) as seen:
        here = node_facts.answer(folders, out, seen)
        answers = _ask_all(folders, out, seen)
    if here.get("out"):
        raise ValueError(f"{out}: cannot be written here ({here['out']}): give another folder or store")
    found = [check for name, facts in answers.items() for check in compare(name, facts, here, out)]
    names = f"{len(answers)} node{'s' * (len(answers) != 1)}"
    return found or [Check("ok", "cluster", f"{names}: same versions as here, and each reads and writes what it must")]


def require(datasets: Sequence[str], out: str, say: Any) -> None:
    """Refuse to start if a node cannot do its part; `say` receives lesser differences.

    Raises ValueError naming the first node, what is wrong, and the next step.
    """
    found = check_nodes(datasets, out)
    failed = [check for check in found if check.level == "fail"]
    for check in found:
        if check.level == "warn":
            say(f"{check.what}: {check.detail}: {check.next_step}")
    if failed:
        first, more = failed[0], len(failed) - 1
        others = f" ({more} more: xtra doctor --cluster lists all)" if more else ""
        raise ValueError(f"{first.what}: {first.detail}: {first.next_step}{others}")


def compare(name: str, facts: dict[str, Any], here: dict[str, Any], out: str) -> Iterator[Check]:
    """The differences between a node and this machine that matter; `facts` and `here` are from node_facts.answer()."""
    what = f"node {name}"
    if "silent" in facts:
        yield Check("warn", what, facts["silent"], "see whether it is overloaded, or stop it")
        return
    for key, named in (("python", "Python"), ("ray", "Ray"), ("torch", "torch"), ("product", "xtra")):
        if facts[key] != here[key]:
            yield Check(
                "fail", what, f"has {named} {facts[key]}, this is {here[key]}", f"install {named} {here[key]} there"
            )
    if facts["import"]:
        yield Check(
            "fail", what, f"cannot import the product ({facts['import']})", "install it there, or set PYTHONPATH"
        )
        return
    if facts["crops"] != here["crops"]:
        yield Check(
            "warn",
            what,
            f"crops with {facts['crops']}, here with {here['crops']}",
            "make setup there, or losses differ in the last digits",
        )
    if facts["driver"] != here["driver"] and facts["driver"] and here["driver"]:
        yield Check("warn", what, f"has GPU driver {facts['driver']}, here {here['driver']}", "use one driver on all")
    for url, why in facts["read"].items():
        if why and not here["read"][url]:
            yield Check("fail", what, f"cannot read {url} ({why})", _reach(url, facts, here))
    if facts.get("out"):
        yield Check("fail", what, f"cannot write {out} ({facts['out']})", _reach(out, facts, here))
    yield from _resources(what, facts, here)


def _resources(what: str, facts: dict[str, Any], here: dict[str, Any]) -> Iterator[Check]:
    if facts["memory"] is not None and facts["memory"] < GIB:
        yield Check("warn", what, f"has {facts['memory'] / GIB:.1f} GiB of memory free", "use fewer workers there")
    if facts["shm"] is not None and facts["shm"] < GIB / 4:
        yield Check(
            "warn", what, f"has {facts['shm'] / GIB:.1f} GiB free in /dev/shm", "give its container a larger one"
        )
    if facts["files"] < FILES:
        yield Check("warn", what, f"may open {facts['files']} files", f"ulimit -n {FILES} there")
    if abs(facts["clock"] - here["clock"]) > CLOCK_SECONDS + facts.get("waited", 0.0):
        yield Check("warn", what, f"its clock is {facts['clock'] - here['clock']:+.0f} s off ours", "set it by NTP")
    if missing := [key for key in here["aws"] if key not in facts["aws"]]:
        yield Check(
            "warn",
            what,
            f"does not have {', '.join(missing)}",
            "set it where the node is started; keys are never passed on",
        )
    if facts.get("address") and not facts["interface"]:
        yield Check("warn", what, f"no interface has its address {facts['address']}", "set GLOO_SOCKET_IFNAME there")


def _reach(url: str, facts: dict[str, Any], here: dict[str, Any]) -> str:
    if store.is_local(url):
        return "use a folder that all nodes share, or a bucket"
    lacking = [key for key in here["aws"] if key not in facts["aws"]]
    return f"set {', '.join(lacking)} where the node is started" if lacking else "give the node access to it"


def _ask_all(folders: list[str], out: str, seen: str) -> dict[str, dict[str, Any]]:
    """The answers of all live nodes that are not drained, by address and name."""
    going = capacity.going()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]
    ray.cloudpickle.register_pickle_by_value(node_facts)
    try:
        ask = ray.remote(num_cpus=0, max_retries=0)(node_facts.answer)
        asked, began = {}, time.time()
        for node in nodes:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=here).remote(folders, out, seen)] = _name(node)
    finally:
        ray.cloudpickle.unregister_pickle_by_value(node_facts)
    done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_SECONDS)
    answers: dict[str, dict[str, Any]] = {}
    for reference, name in asked.items():
        answers[name] = {"silent": f"did not answer in {NODE_SECONDS:.0f} s"}
        if reference in done:
            try:
                answers[name] = ray.get(reference) | {"waited": time.time() - began}
            except ray.exceptions.RayError as error:  # the node has gone, or cannot read the question
                answers[name] = {"silent": " ".join(str(error).split())[-200:]}
        else:
            ray.cancel(reference, force=True)
    return answers


def _name(node: dict[str, Any]) -> str:
    name = node.get("NodeName") or ""
    address = node["NodeManagerAddress"]
    return address if name in ("", address) else f"{name} ({address})"


@contextmanager
def _mark(out: str) -> Iterator[str]:
    """A file in a local folder, which all nodes must see; it and new folders are removed at the end."""
    if not out or not store.is_local(out):
        yield ""
        return
    folder = store.local_path(out)
    made = [up for up in (folder, *folder.parents) if not up.exists()]
    mark = folder / f".write-test-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"{out}: cannot be written here ({error.strerror}): give another folder") from None
    try:
        yield str(mark)
    finally:
        mark.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder is in use by now
            for up in made:
                up.rmdir()
