"""How the ranks of a group find each other.

On one machine: through a file that only their user can open, because torch's usual rendezvous is a server at rank 0
that listens on every interface without authentication. On several: through that server, on the interface that leads to
the other nodes, which the host's name may not give (it may resolve to 127.0.1.1).
"""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

from jobs.cluster.node_facts import interface_of
from jobs.cluster.start import on_one_machine


def torch_config(backend: str, folder: str) -> TorchConfig:
    """How to set up torch.distributed on this cluster; `backend` is gloo or nccl, `folder` is private to this user."""
    if not on_one_machine():
        return _NetworkConfig(backend)
    config = _LoopbackConfig(backend)
    config.folder = folder
    return config


def _meet(backend: str, path: str, rank: int, ranks: int, seconds: int) -> None:
    dist.init_process_group(
        backend, store=dist.FileStore(path, ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds)
    )


def _face_the_others() -> None:
    """Use the interface with this node's address in the cluster, unless the user has set one."""
    import ray

    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


class _NetworkBackend(_TorchBackend):
    """Ray Train's own, with the right interface. Ranks do not close their process group: they are ended at once, and
    a rank that waits for a dead one could not answer."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(_face_the_others)
        super().on_start(worker_group, backend_config)

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        pass


class _LoopbackBackend(_TorchBackend):
    """Ray Train's own, except for the rendezvous."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        import ray

        path, ranks = str(Path(backend_config.folder, "rendezvous")), len(worker_group)
        backend, seconds = backend_config.backend, backend_config.timeout_s
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get([worker_group.execute_single_async(n, _meet, backend, path, n, ranks, seconds) for n in range(ranks)])

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        pass


class _LoopbackConfig(TorchConfig):
    folder = ""  # a new one for every group

    @property
    def backend_cls(self) -> type[_LoopbackBackend]:
        return _LoopbackBackend


class _NetworkConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_NetworkBackend]:
        return _NetworkBackend
