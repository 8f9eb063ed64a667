"""How the ranks of one machine find each other: by a file that only their user can open.

torch's usual rendezvous is a server at rank 0 that listens on every interface and believes everybody.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend


def _meet(backend: str, path: str, rank: int, ranks: int, seconds: int) -> None:
    dist.init_process_group(
        backend, store=dist.FileStore(path, ranks), rank=rank, world_size=ranks, timeout=timedelta(seconds=seconds)
    )


class _LoopbackBackend(_TorchBackend):
    """Ray Train's own, but for where the ranks meet; it lives in the controller, one for each start of the group."""

    folder = ""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        import ray

        self.folder = tempfile.mkdtemp(prefix="xtra-ranks-")  # mode 0700; a new one for each start of the group
        path, ranks = str(Path(self.folder, "rendezvous")), len(worker_group)
        backend, seconds = backend_config.backend, backend_config.timeout_s
        worker_group.execute(_set_torch_distributed_env_vars)
        ray.get([worker_group.execute_single_async(n, _meet, backend, path, n, ranks, seconds) for n in range(ranks)])

    def on_shutdown(self, worker_group: Any, backend_config: TorchConfig) -> None:
        super().on_shutdown(worker_group, backend_config)
        shutil.rmtree(self.folder, ignore_errors=True)


class _LoopbackConfig(TorchConfig):
    @property
    def backend_cls(self) -> type[_LoopbackBackend]:
        return _LoopbackBackend


def loopback(backend: str) -> TorchConfig:
    """TorchConfig for a cluster that is one machine; `backend` is gloo or nccl."""
    return _LoopbackConfig(backend)
