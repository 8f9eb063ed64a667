"""What a process was decoding when it died."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from shards.pixels import isolate
from shards.pixels.isolate import InFlight, alive, suspects

DYING = """
import ctypes, os, signal, sys
from pathlib import Path
from shards.pixels.isolate import InFlight
flight = InFlight(Path(sys.argv[1]))
with flight.decoding(3):
    pass
with flight.decoding(0), flight.decoding(41):
    if sys.argv[2] == "segv":
        ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("how", "code"), [("segv", signal.SIGSEGV), ("kill", signal.SIGKILL)])
def test_the_rows_being_judged_outlive_a_process(tmp_path: Path, how: str, code: int) -> None:
    path = tmp_path / "judging"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", DYING, str(path), how], env=env, check=False)
    assert done.returncode == -code
    assert suspects(path) == {0, 41}


def test_nobody_is_suspect_after_a_good_end_or_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "judging"
    assert suspects(path) == frozenset()
    flight = InFlight(path)
    with contextlib.suppress(OSError), flight.decoding(5):
        assert suspects(path) == {5}
        raise OSError("undecodable")
    assert suspects(path) == frozenset()
    for row in range(1000):
        with flight.decoding(row):
            pass
    assert suspects(path) == frozenset()
    flight.close()
    assert not path.exists()


WAITING = """
import sys
import tempfile
from pathlib import Path
from shards.pixels.isolate import InFlight
flight = InFlight(Path(sys.argv[1]), slots=300)
with flight.decoding(*range(300)):
    print("marked", flush=True)
    sys.stdin.read()
"""


def test_marks_belong_to_their_process_for_as_long_as_it_lives(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    assert not alive(path)
    command = [sys.executable, "-c", WAITING, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert alive(path)
        process.kill()
    assert not alive(path)
    assert suspects(path) == set(range(300))


def test_files_of_others_links_and_pipes_are_no_marks(tmp_path, monkeypatch):
    """In a temporary folder that all users of a machine share, names can be foreseen."""
    precious = tmp_path / "precious"
    precious.write_bytes(b"keep")
    for name in ("marks", "marks.new"):
        (tmp_path / name).symlink_to(precious)
    assert not isolate.alive(tmp_path / "marks")
    assert isolate.suspects(tmp_path / "marks") == frozenset()
    marks = InFlight(tmp_path / "marks")
    assert precious.read_bytes() == b"keep"
    assert isolate.alive(tmp_path / "marks")
    assert (tmp_path / "marks").stat().st_mode & 0o777 == 0o600
    marks.close()
    os.mkfifo(tmp_path / "pipe")
    assert not isolate.alive(tmp_path / "pipe"), "and it did not wait for a writer"
    assert isolate.suspects(tmp_path / "pipe") == frozenset()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    (tmp_path / "theirs").write_bytes(bytes(8))
    with pytest.raises(PermissionError), isolate.own_file(tmp_path / "theirs"):
        pass


def test_the_folder_of_marks_is_this_users_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = isolate.private_folder()
    assert folder == isolate.private_folder()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    with pytest.raises(ValueError, match="is not a private folder of yours: remove it, or set TMPDIR"):
        isolate.private_folder()
    folder.rmdir()
    (tmp_path / "other").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match="is not a private folder of yours"):
        isolate.private_folder()


def test_a_child_that_decodes_leaves_no_core(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    child = isolate.Child("test_in_flight:core_limit")
    with contextlib.closing(child):
        words, _ = child.ask({}, b"", 1 << 30)
    assert words["soft"] == 0


def core_limit(words, body):
    """The child's work."""
    return {"soft": resource.getrlimit(resource.RLIMIT_CORE)[0]}, b""
