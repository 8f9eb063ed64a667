"""A rank's place, from the environment that torchrun, srun and similar launchers set. Does not import torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PORT = 29500  # torch's own default
LEAST_PORT, PORTS = 10_000, 20_000  # range of a job's own port, below the ephemeral ports


@dataclass(frozen=True)
class Place:
    """One rank of a group started by a launcher."""

    by: str  # torchrun or srun, for messages
    rank: int
    size: int  # ranks in all
    local_rank: int  # number on this machine; also its GPU, if the rank sees several
    local_size: int  # ranks on this machine; 0: unknown
    master: str  # host of rank 0
    port: int


def find(environ: Mapping[str, str]) -> Place | None:
    """This process's place in a group; None unless a launcher has started several processes, or one for torch.

    torchrun's variables (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT; other launchers set them as well) take precedence
    over Slurm's. Raises ValueError naming a variable that is missing or wrong.
    """
    if environ.get("RANK") and environ.get("WORLD_SIZE"):
        return _of_torchrun(environ)
    if environ.get("SLURM_PROCID") and not _is_batch_shell(environ):
        return _of_srun(environ)
    return None


def require(place: Place, least: int, most: int) -> None:
    """Raises ValueError if --workers contradicts the launcher."""
    if not least <= place.size <= most:
        asked = f"{least}" if least == most else f"{least}..{most}"
        variable = "WORLD_SIZE" if place.by == "torchrun" else "SLURM_NTASKS"
        raise ValueError(
            f"--workers is {asked}, but {place.by} has started {place.size} ({variable}): leave --workers out, or start"
            " as many"
        )


def _of_torchrun(environ: Mapping[str, str]) -> Place:
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE", least=1)
    if rank >= size:
        raise ValueError(f"RANK is {rank} and WORLD_SIZE {size}: ranks count from 0 and end below the world size")
    if size > 1 and not environ.get("MASTER_ADDR"):
        raise ValueError(f"WORLD_SIZE is {size}, but MASTER_ADDR is not set: give the host of rank 0, or unset both")
    port = _number(environ, "MASTER_PORT", PORT)
    local = _number(environ, "LOCAL_RANK", 0)
    return Place(
        "torchrun", rank, size, local, _number(environ, "LOCAL_WORLD_SIZE", 0), environ.get("MASTER_ADDR", ""), port
    )


def _of_srun(environ: Mapping[str, str]) -> Place | None:
    tasks = "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    rank, size = _number(environ, "SLURM_PROCID"), _number(environ, tasks, 1, least=1)
    if size == 1:
        return None  # Slurm starts everything as at least one task
    if rank >= size:
        raise ValueError(f"SLURM_PROCID is {rank} and {tasks} {size}: ranks count from 0 and end below the tasks")
    nodes = next(filter(None, map(environ.get, ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"))), "")
    master = environ.get("MASTER_ADDR") or first_host(nodes)
    if not master:
        raise ValueError(f"{tasks} is {size}, but SLURM_NODELIST is not set: give MASTER_ADDR, the host of rank 0")
    local, port = _number(environ, "SLURM_LOCALID", 0), _number(environ, "MASTER_PORT", _port(environ))
    alone = nodes and not re.search(r"[,\[]", nodes)
    return Place("srun", rank, size, local, size if alone else 0, master, port)


def _is_batch_shell(environ: Mapping[str, str]) -> bool:
    """Whether this is sbatch's own script: it has the first task's variables, but is not a step."""
    return environ.get("ENVIRONMENT") == "BATCH" and not environ.get("SLURM_STEP_ID")


def first_host(nodes: str) -> str:
    """The first host of Slurm's compressed list: `gpu[003-007,9],login1` is gpu003. "" for an empty list."""
    depth, end = 0, len(nodes)
    for at, c in enumerate(nodes):
        depth += (c == "[") - (c == "]")
        if c == "," and not depth:
            end = at
            break
    return re.sub(r"\[(\w*)[^\]]*\]", r"\1", nodes[:end]).strip()


def _port(environ: Mapping[str, str]) -> int:
    """A port that is equal on all ranks of a step, and most likely differs from other steps' on the same node."""
    job, step = (environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    if not job.isdigit():
        return PORT
    return LEAST_PORT + (int(job) * 31 + (int(step) if step.isdigit() else 0)) % PORTS


def _number(environ: Mapping[str, str], name: str, default: int | None = None, least: int = 0) -> int:
    text = environ.get(name, "").strip()
    if not text and default is not None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name} is {text!r}; it must be a whole number from {least} on: start with torchrun or srun")
    return int(text)
