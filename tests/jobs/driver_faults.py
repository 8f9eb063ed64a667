"""What can happen to the driver of a training, to its node, to its job and to the head, one function each.

They are as those of cluster_faults.py, which do harm to workers.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

from cluster_faults import TWO, Fault, finished, recovered, strike, undisturbed
from cluster_runs import (
    Command,
    actor,
    actors,
    attempts,
    committed,
    gone,
    once_each,
    pids_of,
    ranks,
    signal_all,
    training,
)
from nodes import Cluster, own_address

ON_JOB = ("--labels=driver=yes",)  # of a node on which the drivers of jobs run
AWAY = 300.0  # seconds in which what belongs to a dead driver must be gone, on a busy machine


def driver(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    whole = undisturbed()
    with training(cluster, "run", *TWO) as command:
        attempt, start = strike(command, upload, rng)
        command.process.kill()
        command.process.wait()
    since = time.monotonic()
    with training(cluster, "run", *TWO) as command:
        seconds = recovered(command, attempt, since)
        finished(command, whole)
    return {"seconds": seconds, "start": start}


def driver_stops(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """Workers go on meanwhile; the same command is refused, and the first goes on as if nothing had been."""
    whole = undisturbed()
    with training(cluster, "run", *TWO) as command:
        _, start = strike(command, upload, rng)
        command.process.send_signal(signal.SIGSTOP)
        since = time.monotonic()
        seconds = command.until_commit(committed(command.run)[-1] + 160) - since
        with training(cluster, "run", *TWO) as second:
            assert second.end() in (0, 2), second.said  # 0: the workers have ended the run meanwhile
            assert committed(command.run)[-1] == 1600 or "is at work on it" in second.said
        command.process.send_signal(signal.SIGCONT)
        finished(command, whole)
        assert attempts(command.run) == [1]
    return {"seconds": seconds, "start": start}


def driver_node(cluster: Cluster, upload: bool, rng: random.Random, raylet: bool = False) -> dict:
    """The node of the driver, with the desk, the controller and a rank; or only its raylet, without which Ray ends the
    driver. The same command goes on."""
    whole = undisturbed()
    victim = cluster.nodes[1]
    with training(cluster, "run", *TWO, on=victim) as command:
        attempt, start = strike(command, upload, rng)
        others = [pid for pid, node in ranks(cluster).items() if node is not victim]
        assert pids_of(victim, "ray::_Desk"), "the desk is elsewhere"
        since = time.monotonic()
        if raylet:
            os.kill(victim.pid("raylet"), signal.SIGKILL)
            assert command.end() != 0, command.said
            ended = time.monotonic() - since
        else:
            victim.kill()
            command.process.kill()
            ended = 0.0
        command.until(lambda: gone(others), AWAY, alive=False)
    if raylet:
        victim.kill()
    with training(cluster, "run", *TWO) as command:
        seconds = recovered(command, attempt, since)
        finished(command, whole)
    return {"seconds": seconds, "start": start, "ended": round(ended, 1)}


def driver_raylet(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return driver_node(cluster, upload, rng, raylet=True)


def controller(cluster: Cluster, upload: bool, rng: random.Random, number: int = signal.SIGKILL) -> dict:
    whole = undisturbed()
    with training(cluster, "run", *TWO) as command:
        attempt, start = strike(command, upload, rng)
        since = time.monotonic()
        signal_all(actors(cluster, "_Controller"), number)  # the next group's too, where it is there
        # A stopped one is only missed after a minute, in which its workers may end the run.
        if number == signal.SIGKILL:
            seconds = recovered(command, attempt, since)
        else:
            seconds = command.until(lambda: "workers were lost" in command.said) - since
        finished(command, whole)
    return {"seconds": seconds, "start": start}


def controller_stops(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return controller(cluster, upload, rng, signal.SIGSTOP)


def desk(cluster: Cluster, upload: bool, rng: random.Random, number: int = signal.SIGKILL) -> dict:
    """The desk dies, or stands still until it is replaced: nothing else happens, and the next wish still arrives."""
    whole = undisturbed()
    with training(cluster, "run", "--workers=2", "--samples=160000") as command:
        _, start = strike(command, upload, rng)
        victim = actor(cluster, "_Desk")
        os.kill(victim, number)
        since = time.monotonic()
        seconds = command.until_commit(committed(command.run)[-1] + 160) - since
        if number == signal.SIGSTOP:
            command.until(lambda: gone([victim]))
        time.sleep(3)
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == 143, command.said
        assert attempts(command.run) == [1]
    with training(cluster, "whole", *TWO) as command:
        finished(command, whole)
    return {"seconds": seconds, "start": start}


def desk_stops(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return desk(cluster, upload, rng, signal.SIGSTOP)


def supervisor(cluster: Cluster, upload: bool, rng: random.Random, node: bool = False) -> dict:
    """A job's supervisor dies, or its node: `xtra submit` submits the command again, and the run goes on."""
    whole = undisturbed()
    victim = cluster.node(1, more=ON_JOB)
    words = ("submit", "--on", "driver=yes", "train")
    with training(cluster, "run", *TWO, verb=words, **cluster.jobs) as command:
        attempt, start = strike(command, upload, rng)
        (pid,) = pids_of(victim, "ray::JobSupervisor")
        drivers = victim.pids("on_node.py")
        assert drivers, "the driver is elsewhere"
        since = time.monotonic()
        if node:
            victim.kill()
            cluster.node(1, more=ON_JOB)
        else:
            os.kill(pid, signal.SIGKILL)
        command.until(lambda: gone(drivers), AWAY)
        seconds = recovered(command, attempt, since)
        finished(command, whole)
        assert re.search(r"-1 was lost \(.*\): submitted again as .*-2$", command.said, re.M), command.said
    return {"seconds": seconds, "start": start}


def supervisor_node(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    return supervisor(cluster, upload, rng, node=True)


def gcs(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """The head's control service goes: the command ends in one line, and the same one goes on with another cluster."""
    whole = undisturbed()
    with training(cluster, "run", *TWO) as command:
        attempt, start = strike(command, upload, rng)
        since = time.monotonic()
        os.kill(cluster.head.pid("gcs_server"), signal.SIGKILL)
        ended = ended_later(command, since)
    for each in cluster.nodes:
        each.kill()
    cluster.again(2)
    return {"start": start, "ended": ended, **gone_on(cluster, attempt, whole)}


def gcs_stops(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """It stands still for 8 s, and nothing happens; in another run for longer, and the command ends in one line.

    The same one goes on once it is back.
    """
    whole = undisturbed()
    server = cluster.head.pid("gcs_server")
    with training(cluster, "run", *TWO) as command:
        attempt, start = strike(command, upload, rng)
        os.kill(server, signal.SIGSTOP)
        time.sleep(8)
        os.kill(server, signal.SIGCONT)
        finished(command, whole)
        assert attempts(command.run) == [attempt]
    endless = ("--workers=2", "--samples=1600000")
    with training(cluster, "endless", *endless) as command:
        attempt, _ = strike(command, upload, rng)
        since = time.monotonic()
        os.kill(server, signal.SIGSTOP)
        try:
            ended = ended_later(command, since)
        finally:
            os.kill(server, signal.SIGCONT)
    since = time.monotonic()
    with training(cluster, "endless", *endless) as command:
        seconds = recovered(command, attempt, since)
        command.process.send_signal(signal.SIGTERM)
        assert command.end() == 143, command.said
        once_each(command.run, committed(command.run)[-1])
    return {"start": start, "ended": ended, "seconds": seconds}


def ended_later(command: Command, since: float) -> float:
    """Seconds until the command ended because the head was gone: with one line, and exit 75."""
    assert command.end() == 75, command.said
    last = command.said.strip().splitlines()[-1]
    assert last.startswith("xtra train: "), command.said
    assert "the same command" in last, command.said
    return round(time.monotonic() - since, 1)


def gone_on(cluster: Cluster, attempt: int, whole: Path) -> dict:
    """The same command ends the run; workers go on without a head, and may have done so before."""
    since = time.monotonic()
    with training(cluster, "run", *TWO) as command:
        over = committed(command.run)[-1] == 1600
        seconds = None if over else recovered(command, attempt, since)
        finished(command, whole)
    return {"seconds": seconds}


def network(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """On nodes at an address that others could reach, where ranks meet over the network: a node goes."""
    whole = undisturbed()
    assert cluster.host != "127.0.0.1", "this machine has no address but loopback"
    with training(cluster, "run", *TWO) as command:
        attempt, start = strike(command, upload, rng)
        victims = ranks(cluster)
        since = time.monotonic()
        rng.choice([node for node in victims.values() if node is not cluster.head]).kill()
        command.until(lambda: gone(list(victims)), AWAY)
        seconds = recovered(command, attempt, since)
        finished(command, whole)
    return {"seconds": seconds, "start": start}


def waiting_to_grow(cluster: Cluster, upload: bool, rng: random.Random) -> dict:
    """A cluster without a node, and an autoscaler that may add two: the command says so, and goes on when they come."""
    whole = undisturbed()
    monitor = cluster.head.pid("monitor.py")
    with training(cluster, "run", "--workers=3", "--samples=160", "--wait-for-workers=200") as command:
        assert command.end() == 2, command.said
        assert "workers is 3; this cluster has 0 CPUs and may grow to 2" in command.said
        refused = time.monotonic() - command.began
    os.kill(monitor, signal.SIGSTOP)  # until the line is there
    with training(cluster, "run", *TWO, "--wait-for-workers=1000") as command:
        command.until(lambda: "waiting for 2 CPUs: 0 of 0 in use; the cluster may grow to 2" in command.said)
        os.kill(monitor, signal.SIGCONT)
        since = time.monotonic()
        seconds = command.until_commit(160) - since
        finished(command, whole)
    return {"seconds": seconds, "refused": round(refused, 1)}


JOBS = {"dashboard": True}
FAULTS = {
    "driver": Fault(driver),
    "driver-stops": Fault(driver_stops),
    "driver-node": Fault(driver_node, nodes=3),
    "driver-raylet": Fault(driver_raylet, nodes=3),
    "controller": Fault(controller),
    "controller-stops": Fault(controller_stops),
    "desk": Fault(desk),
    "desk-stops": Fault(desk_stops),
    "supervisor": Fault(supervisor, nodes=1, more=JOBS),
    "supervisor-node": Fault(supervisor_node, nodes=1, more=JOBS),
    "gcs": Fault(gcs),
    "gcs-stops": Fault(gcs_stops),
    "wait-grows": Fault(waiting_to_grow, nodes=0, more={"host": own_address(), "grows": 2}),
    "network": Fault(network, nodes=3, more={"host": own_address()}),
}
