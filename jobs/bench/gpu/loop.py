"""The training loop itself (xtra/train.py) on this device, in small runs that are compared with each other.

compiled, again    the same run twice: how far the losses of equal runs differ
resumed            stopped halfway and resumed
eager, micro, pruned, subset, flex64, block 1     one setting changed

It needs safetensors, for checkpoints.
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jobs.bench.gpu import data

if TYPE_CHECKING:
    from xtra.train import Config

RUNS = ("compiled", "again", "resumed", "eager", "micro", "pruned", "subset", "flex64", "block 1")
SHOWN = ("samples_per_s", "data_wait", "mfu_paper", "memory_bytes")


class Loop:
    """Runs in a folder that is removed when the stack exits, and the losses of the runs so far."""

    def __init__(self, stack: ExitStack, device: torch.device, compile: bool, pictures: int) -> None:  # noqa: A002
        self._stack, self._device, self._compile, self._pictures = stack, device, compile, pictures
        self._losses: dict[str, list[float]] = {}
        self._base: Config | None = None

    def measure(self, name: str) -> dict[str, Any]:
        """One of RUNS. Raises ImportError without safetensors, and what the run raises."""
        if name != "compiled" and "compiled" not in self._losses:
            self._run("compiled")  # measured by another process, but needed here for comparison
        row = self._run(name)
        if name != "compiled":
            ours, theirs = self._losses[name], self._losses["compiled"]
            row["most_apart"] = max([abs(a - b) for a, b in zip(ours, theirs)]) if len(ours) == len(theirs) else None
        return row

    def _run(self, name: str) -> dict[str, Any]:
        from xtra import train
        from xtra.run import read_metrics

        base = self._base or self._made()
        changes: dict[str, dict[str, Any]] = {
            "eager": {"compile": "off"},
            "micro": {"micro": base.batch // 3},
            "pruned": {"dropped": "skip"},
            "subset": {"dropped": "subset"},
            "flex64": {"attention": "flex64"},
            "block 1": {"model": replace(base.model, block=1)},
        }
        config = replace(base, out=f"{base.out}-{name.replace(' ', '-')}", **changes.get(name, {}))
        rows: list[dict[str, Any]] = []
        steps = -(-config.samples // config.batch)
        asked = iter(range(steps))
        begun = time.perf_counter()
        if name == "resumed":
            train.run(config, lambda: next(asked) >= steps // 2, rows.append)
        train.run(config, progress=rows.append)
        seconds = time.perf_counter() - begun
        found = read_metrics(config.out, [])
        self._losses[name] = [row.loss for row in found]
        last = [row for row in rows if "data_wait" in row][-1]
        return {
            "steps": len(found),
            "first_loss": found[0].loss,
            "last_loss": found[-1].loss,
            "val_loss": [row.val_loss for row in found if row.val_loss is not None],
            "seconds": seconds,
            "remarks": [row["remark"] for row in rows if "remark" in row],
            **{key: last[key] for key in SHOWN if key in last},
        }

    def _made(self) -> Config:
        """64 px, encoder S in 16 x 16 tokens on a GPU; the smallest model on a CPU."""
        from xtra import recipes
        from xtra.validation import Validation

        cuda = self._device.type == "cuda"
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        address = data.dataset(self._stack, "", self._pictures if cuda else 64).address
        samples, batch = (512 * 40 + 100, 512) if cuda else (16 * 3 + 5, 16)
        recipe = recipes.get("demo32")
        model = recipe.model
        if cuda:
            model = replace(
                model, image=64, patch=4, block=4, width=384, depth=12, heads=6, bridge=2048, dec_width=384,
                dec_depth=4, dec_heads=6, head=1024,
            )  # fmt: skip
        self._base = replace(
            recipe,
            model=replace(model, drop_path=0.1),
            data=address,
            out=str(folder / "run"),
            samples=samples,
            batch=batch,
            checkpoint_every=samples // 2,
            precision="bf16",
            device=self._device.type,
            threads=0 if cuda else 1,
            compile="on" if self._compile else "off",
            val=Validation(address, every=samples // 2, batch=256 if cuda else 32),
        )
        return self._base
