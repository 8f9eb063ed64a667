"""A launcher's rank: torch.distributed set up as in Ray's groups; only rank 0 prints; all ranks end together.

The ranks stop together (train.run() all-reduces the stop flag) and exit together: with the same signal, and not before
rank 0 has committed, because launchers kill the others when the first process ends with an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobs.cluster import TryLater, Workers, WorkersWords, interface_of
from jobs.flags import Call
from jobs.launch.found import Place, find, require
from jobs.terminal import say

if TYPE_CHECKING:  # torch comes with it
    from xtra.train import Config

WAIT_SECONDS = 300.0  # for all ranks to join
COLLECTIVE_SECONDS = 1800  # timeout of a collective, as in Ray Train
ECHO_SECONDS = 2.0  # signals within this time count as one: from the platform, and passed on by its launcher
HEAR_SECONDS = 5.0  # how long another rank waits to see whether rank 0 prints the same error
POLL_SECONDS = 0.2
_SAID = "xtra/said"


class _OwnMistake(ValueError):
    """An error in this rank's place that other ranks do not have."""


def heard(verb: Callable[[Call], Any]) -> Callable[[Call], Any]:
    """The verb; if a launcher has started ranks, with `call.place` set and only rank 0 printing."""

    def run(call: Call) -> Any:
        call.place = find(os.environ)
        if call.place is None:
            return verb(call)
        with _one_voice(call, call.place):
            result = verb(call)
        return result if call.place.rank == 0 else None  # --json prints one line

    return run


def workers(call: Call, words: WorkersWords) -> Workers:
    """The workers asked for. Raises ValueError where --workers contradicts what a launcher has started."""
    asked = words.wanted()
    if call.place is not None and any(word.partition("=")[0] == "--workers" for word in call.words):
        require(call.place, asked.least, asked.most)
    return asked


@contextlib.contextmanager
def joined(
    call: Call, config: Config, workers: Workers, leading: contextlib.AbstractContextManager[None]
) -> Iterator[Config]:
    """The run's config while this process is a member of its group, if any; one rank per group enters `leading`."""
    place: Place | None = call.place
    if place is None or place.size == 1:
        with leading:
            yield config
        return
    once = leading if place.rank == 0 else contextlib.nullcontext()
    with _group(call, place, config.device, workers.wait) as device, once:
        yield dataclasses.replace(config, device=device)


@contextlib.contextmanager
def _one_voice(call: Call, place: Place) -> Iterator[None]:
    """Only rank 0 prints; other ranks print only errors that rank 0 does not have, with rank and host."""
    call.echo = ECHO_SECONDS
    if place.rank == 0:
        try:
            yield
        except ValueError as error:
            _leave_word(str(error))
            raise
        return
    call.quiet = True
    with open(os.devnull, "w") as nowhere:
        out, err, sys.stdout, sys.stderr = sys.stdout, sys.stderr, nowhere, nowhere
        try:
            yield
        except ValueError as error:
            sys.stderr = err
            if isinstance(error, (_OwnMistake, TryLater)) or not _is_said(str(error)):
                where = f"rank {place.rank} on {socket.gethostname()}"
                say(f"xtra {call.verb}: {where}: {' '.join(str(error).split())}", file=err, flush=True)
            call.shown = True
            raise
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = out, err


@contextlib.contextmanager
def _group(call: Call, place: Place, device: str, wait: float | None) -> Iterator[str]:
    """The ranks' group while the block runs; yields the device, cpu or cuda, that all ranks train on.

    Raises TryLater if not all ranks join within `wait` seconds (default 300), or one is lost; ValueError if rank 0
    cannot listen, if a rank has no GPU of its own, or if only some ranks have a GPU.
    """
    import torch
    import torch.distributed as dist

    if not os.environ.get("OMP_NUM_THREADS"):  # as torchrun and Ray set it; sums depend on the number of threads
        torch.set_num_threads(1)
    if place.local_size:
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(place.local_size))  # sets the number of decoding threads
    kind = _device(device, place)
    _choose_interface(place)
    try:
        _interruptible(lambda: _meet(place, kind, WAIT_SECONDS if wait is None else wait))
        yield kind
        _leave_together(call, kind)
    except RuntimeError as error:  # also torch's DistError
        if not _is_loss(error):
            raise
        raise TryLater(
            f"another rank was lost, or did not answer ({' '.join(str(error).split())[:200]}): the same command "
            "continues from the newest checkpoint"
        ) from None
    if dist.is_initialized():
        dist.destroy_process_group()


def _device(asked: str, place: Place) -> str:
    import torch

    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return "cpu"
    seen = torch.cuda.device_count()
    if seen > 1:  # otherwise each rank sees only its own GPU, or none, which train.run() refuses
        if place.local_rank >= seen:
            raise _OwnMistake(f"local rank {place.local_rank} has no GPU of its own: this machine shows {seen} of them")
        torch.cuda.set_device(place.local_rank)
    return "cuda"


def _choose_interface(place: Place) -> None:
    """One machine: loopback. Several: the interface towards rank 0, as a host may resolve its own name to 127.0.1.1."""
    name: str | None = None
    if place.local_size == place.size:
        name = "lo"
    else:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((place.master, place.port))  # sends nothing
            address = asking.getsockname()[0]
            # rank 0's own name resolves to itself: use the host's name
            name = None if address.startswith("127.") else interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def _interruptible(work: Callable[[], None]) -> None:
    """Run it in a thread, so that a signal ends the wait: torch waits in C++, where Python's handlers do not run."""
    raised: list[BaseException] = []

    def caught() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=caught, name="meet", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_SECONDS)
    if raised:
        raise raised[0]


def _meet(place: Place, kind: str, wait: float) -> None:
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": place.master, "MASTER_PORT": str(place.port)}
    os.environ |= {"RANK": str(place.rank), "WORLD_SIZE": str(place.size)}
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=max(1.0, wait)))))
        _agree(store, place, kind)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        text = " ".join(str(error).split())
        if "in use" in text:
            raise ValueError(f"port {place.port} of {place.master} is taken: set MASTER_PORT to a free one") from None
        raise TryLater(_absent(place, wait, text)) from None
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.size,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )


def _absent(place: Place, wait: float, why: str) -> str:
    hint = " (in a script of sbatch, start it with srun)" if place.by == "srun" else ""
    return (
        f"not all of {place.size} ranks joined at {place.master}:{place.port} within {wait:.0f} s{hint}: try the same "
        f"command later, or wait longer with --wait-for-workers SECONDS ({why[:160]})"
    )


def _agree(store: Any, place: Place, kind: str) -> None:
    """Refuse different devices on different ranks, which would hang in the first collective."""
    if place.rank == 0:
        store.set("xtra/device", kind)
    first = store.get("xtra/device").decode()
    if kind != first:
        raise _OwnMistake(f"this rank trains on {kind}, rank 0 on {first}: give --device {kind}, or the same machines")


def _leave_together(call: Call, kind: str) -> None:
    """Exit after rank 0 is done, with the largest signal that any rank received."""
    import torch
    import torch.distributed as dist

    number = torch.tensor(call.signal, device=kind)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    call.signal = int(number)


def _is_loss(error: RuntimeError) -> bool:
    import torch.distributed as dist

    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "connection", "timed out"))


def _store() -> Any:
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store() if dist.is_initialized() else None


def _leave_word(text: str) -> None:
    """Store the text that rank 0 is about to print, for the other ranks."""
    if "torch" in sys.modules and (store := _store()) is not None:
        with contextlib.suppress(Exception):
            store.set(_SAID, text)


def _is_said(text: str) -> bool:
    """Whether rank 0 prints the same: before they join, all ranks parse the same words and find the same errors."""
    store = _store() if "torch" in sys.modules else None
    if store is None:
        return True
    try:
        store.wait([_SAID], timedelta(seconds=HEAR_SECONDS))
        return bool(store.get(_SAID).decode() == text)
    except Exception:  # rank 0 prints nothing, or is gone with the store
        return False
