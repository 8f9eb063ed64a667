"""The code of this checkout as one zip, for `xtra submit --code here`: the files that git tracks.

The compiled croppers, which git ignores, are added if this machine built them. Their names contain the platform and a
digest of their source, so a node of another platform does not load them and decodes with Pillow, to the same bytes.
"""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from shards.pixels import crop, entropy

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 50_000_000
NAMED = 5  # files that an error names
_DATE = (1980, 1, 1, 0, 0, 0)  # date of every member: equal files make equal zips, which are sent once


@dataclass(frozen=True)
class Package:
    path: Path
    files: int
    bytes: int
    left: tuple[str, ...] = ()  # code that git neither tracks nor ignores: it is not sent


def pack(target: Path, root: Path = ROOT) -> Package:
    """Write the zip. Raises ValueError if `root` is not a checkout, or its files exceed MOST_BYTES."""
    files = [name for name in _tracked(root) if not Path(name).name.startswith(".env")]
    files += [str(path.relative_to(root)) for path in _croppers(root)]
    sizes = {name: (root / name).stat().st_size for name in files if (root / name).is_file()}
    if (total := sum(sizes.values())) > MOST_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:NAMED]
        listed = ", ".join(f"{name} {sizes[name] / 1e6:.1f}" for name in largest)
        raise ValueError(
            f"--code here: the tracked files have {total / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f} MB; the "
            f"largest in MB: {listed}: take data out of the repository, or use --code image"
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        for name in sorted(sizes):
            member = zipfile.ZipInfo(name, _DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = ((root / name).stat().st_mode & 0o777) << 16
            made.writestr(member, (root / name).read_bytes())
    left = _listed(root, "--others", "--exclude-standard", "--", "*.py", "*.pyi", "*.c", "*.h")
    return Package(target, len(sizes), total, tuple(left))


def _tracked(root: Path) -> list[str]:
    found = _listed(root)
    if not found:
        raise ValueError(f"--code here: {root} is not a git checkout: run xtra from one, or use --code image")
    return found


def _listed(root: Path, *words: str) -> list[str]:
    """Paths below the root; none if it is not a checkout."""
    command = ["git", "-C", str(root), "ls-files", "-z", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        raise ValueError("--code here needs the command git: install it, or use --code image") from None
    return [name for name in done.stdout.split("\0") if name] if done.returncode == 0 else []


def _croppers(root: Path) -> list[Path]:
    found = [path for path in (crop.library(), entropy.library()) if path.is_file()]
    return [path for path in found if path.is_relative_to(root)]
