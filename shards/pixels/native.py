"""The optional C accelerators: each is one source file, compiled beside it by `make setup`, and never needed."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# What these libraries read comes from strangers: a slip should end the process, not let somebody in.
HARDENED = ("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3")
if sys.platform == "linux":
    HARDENED += ("-Wl,-z,relro,-z,now",)


def library(source: Path) -> Path:
    """Where the compiled library of this very source lies, if it was built."""
    digest = hashlib.sha256(source.read_bytes() + " ".join(HARDENED).encode()).hexdigest()[:12]
    return source.with_name(f"_{source.stem}-{sys.platform}-{platform.machine()}-{digest}.so")


def build(source: Path, target: Path, flags: Sequence[str], libraries: Sequence[str] = ()) -> str:
    """Compile it; says in a few words why that did not work, or nothing."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        return "no C compiler"
    with tempfile.TemporaryDirectory(prefix=f".{source.stem}-", dir=target.parent) as aside:
        made = Path(aside) / "made.so"
        command = [*compiler.split(), *HARDENED, *flags, "-shared", "-fPIC", "-o", str(made), str(source), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.strip().splitlines()
            return f"{compiler} refused it: {(said or ['nothing said'])[0].strip()}"
        made.replace(target)
    return ""
