"""The optional C accelerators: `make setup` compiles each source file into its own folder."""

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

# These libraries read untrusted data: a memory error should end the process, not be exploitable.
HARDENED = ("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3")
if sys.platform == "linux":
    HARDENED += ("-Wl,-z,relro,-z,now",)


def library(source: Path) -> Path:
    """The path of the library compiled from this exact source and the headers beside it, if it was built."""
    read = b"".join(path.read_bytes() for path in (source, *sorted(source.parent.glob("*.h"))))
    digest = hashlib.sha256(read + " ".join(HARDENED).encode()).hexdigest()[:12]
    return source.with_name(f"_{source.stem}-{sys.platform}-{platform.machine()}-{digest}.so")


def build(source: Path, target: Path, flags: Sequence[str], libraries: Sequence[str] = ()) -> str:
    """Compile `source` to `target`; returns why it could not be compiled, or ""."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        return "no C compiler"
    with tempfile.TemporaryDirectory(prefix=f".{source.stem}-", dir=target.parent) as aside:
        made = Path(aside) / "made.so"
        command = [*compiler.split(), *HARDENED, *flags, "-shared", "-fPIC", "-o", str(made), str(source), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.strip().splitlines()
            return f"{compiler} failed: {(errors or ['no message'])[0].strip()}"
        made.replace(target)
    return ""
