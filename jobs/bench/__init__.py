"""Side-by-side measurements, one file per subject; each has a Config and a run(config) that returns `result(...)`."""

from __future__ import annotations

import ast
import os
import pkgutil
import platform
import subprocess
from pathlib import Path
from typing import Any

# Modules here that are not subjects.
HELPERS = ("bucket", "gpu_table", "origin", "peers", "rounds", "stream_data", "stream_ours")


def subjects() -> list[str]:
    return sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(__path__) if m.name not in HELPERS)


def about(subject: str) -> str:
    """The docstring of a subject, without importing what it measures."""
    here = Path(__file__).with_name(subject.replace("-", "_"))
    file = here.with_suffix(".py") if not here.is_dir() else here / "__init__.py"
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def result(subject: str, rows: list[dict[str, Any]], ratios: dict[str, float]) -> dict[str, Any]:
    """Every subject's result: the measured rows, and the ratios that docs and tests rely on."""
    return {"subject": subject, "hardware": hardware(), "commit": commit(), "rows": rows, "ratios": ratios}


def hardware() -> str:
    """Processor, usable cores and, where torch sees one, the GPU."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0] if lines else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    import torch  # late: only needed once a bench runs

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{cores} cores of {model}", *gpus])


def commit() -> str:
    """The git commit of this source tree, with + where files differ from it; "unknown" outside a checkout."""

    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
