"""Run once by `make setup`: replace Pillow by pillow-simd if this machine can build it with all codecs.

pillow-simd has no wheels and provides the same `PIL` package, so exactly one of the two is installed. It replaces
Pillow only if a trial build, with AVX2, reports every codec of Pillow's own wheels; otherwise nothing changes and
`xtra doctor` names what is missing. No feature and no verdict depends on the choice (docs/design.md, section 4).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PILLOW_SIMD = "pillow-simd==12.1.1.post0"
HEADERS = ("jpeglib.h", "zlib.h", "webp/decode.h", "lcms2.h", "tiffio.h")
FEATURES = ("jpg", "libjpeg_turbo", "zlib", "webp", "littlecms2", "libtiff")
_REPORT = "import sys; from PIL import features; sys.exit(not all(features.check(f) for f in sys.argv[1:]))"


def missing_headers() -> list[str]:
    """The C headers that the build needs and the compiler does not find."""
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        return ["a C compiler", *HEADERS]
    return [name for name in HEADERS if not _compiles(compiler, f"#include <stdio.h>\n#include <{name}>\n")]


def _compiles(compiler: str, source: str) -> bool:
    done = subprocess.run([compiler, "-E", "-x", "c", "-"], input=source.encode(), capture_output=True, check=False)
    return done.returncode == 0


def has_avx2() -> bool:
    try:
        return " avx2 " in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def build_environment() -> dict[str, str]:
    """The environment for building pillow-simd. CFLAGS replaces Python's own flags including -O3, without which
    pillow-simd resizes ten times slower than Pillow instead of four times faster."""
    return os.environ | {"CFLAGS": f"-O3 -DNDEBUG -fwrapv {os.environ.get('CFLAGS', '')} -mavx2"}


def main() -> int:
    missing = missing_headers()
    if missing or not has_avx2():
        why = f"no {', '.join(missing)}" if missing else "this processor has no AVX2"
        print(f"PIL: Pillow ({why} for pillow-simd; see xtra doctor)")
        return 0
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    with tempfile.TemporaryDirectory(prefix="pillow-simd-") as aside:
        # No cache: pip might use a wheel that was built with other flags.
        build = [*pip, "wheel", "--no-cache-dir", "--no-deps", "--no-binary", "pillow-simd", "-w", aside, PILLOW_SIMD]
        built = subprocess.run(build, env=build_environment(), capture_output=True, check=False)
        wheels = list(Path(aside).glob("*.whl"))
        if built.returncode or not wheels:
            print("PIL: Pillow (pillow-simd did not build here)")
            return 0
        trial = Path(aside) / "trial"
        subprocess.run([*pip, "install", "--no-deps", "--target", str(trial), str(wheels[0])], check=True)
        isolated = os.environ | {"PYTHONPATH": str(trial)}
        if subprocess.run([sys.executable, "-c", _REPORT, *FEATURES], env=isolated, check=False).returncode:
            print("PIL: Pillow (the pillow-simd built here misses a codec)")
            return 0
        subprocess.run([*pip, "uninstall", "-y", "pillow"], check=True)
        subprocess.run([*pip, "install", "--no-deps", str(wheels[0])], check=True)
    print(f"PIL: {PILLOW_SIMD}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
