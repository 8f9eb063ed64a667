"""Bodies that kill, hang or starve the process that decodes them."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from origin import picture
from PIL import Image

from ingest.filter import FilterConfig, judge
from ingest.isolate import WORK, judge_apart
from ingest.record import Fetched, Link, Reason
from shards.pixels.isolate import Child, ChildBroken

# Loaded by the child at its start (Python imports `sitecustomize` by itself): a decoder with holes. What a body's last
# words ask for really happens, in C, while Pillow is decoding it.
HOLES = """
import ctypes, io, os
from PIL import ImageFile
load = ImageFile.ImageFile.load
def holed(self):
    word = self.fp.getvalue()[-4:] if isinstance(self.fp, io.BytesIO) else b""
    if word == b"SEGV":
        ctypes.string_at(0)
    if word == b"HANG":
        ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock
    if word == b"SPIN":
        ctypes.CDLL(None).sleep(600)  # gives it up, as Pillow's decoders do
    if word == b"HUGE":
        bytearray(1 << 40)
    if word == b"ENVS":
        raise OSError(" ".join(sorted(os.environ)) + " fds " + " ".join(sorted(os.listdir("/proc/self/fd"))))
    return load(self)
ImageFile.ImageFile.load = holed
"""


@pytest.fixture
def holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(HOLES)
    monkeypatch.syspath_prepend(str(tmp_path))


def fetched(body: bytes | Path | None, reason: Reason | None = None) -> Fetched:
    return Fetched(Link("k", "http://a/1", (), 7), body, reason, "", 200, "http://a/1", 1, 5, 1.5)


def gif(word: bytes = b"") -> bytes:
    return picture("a", "gif") + word


@pytest.mark.parametrize("kind", ["jpeg", "gif"])
@pytest.mark.parametrize("cut", [1.0, 0.5])
def test_a_child_comes_to_the_same_verdict(kind: str, cut: float) -> None:
    body = picture("a", kind)
    body = body[: int(cut * len(body))]
    with Child(WORK) as child:
        for config in (FilterConfig(), FilterConfig(resize=32), FilterConfig(min_side=60)):
            assert judge_apart(child, fetched(body), config) == judge(fetched(body), config)


def test_a_body_on_scratch_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(picture("a"))
    with Child(WORK) as child:
        assert judge_apart(child, fetched(path), FilterConfig()) == judge(fetched(picture("a")), FilterConfig())
        assert judge_apart(child, fetched(None, Reason.DNS), FilterConfig()).reason is Reason.DNS
    assert not path.exists()


def test_what_kills_its_decoder_is_undecodable_and_the_next_body_is_judged(holes: None) -> None:
    with Child(WORK) as child:
        assert judge_apart(child, fetched(gif()), FilterConfig()).keep
        found = judge_apart(child, fetched(gif(b"SEGV")), FilterConfig())
        assert (found.reason, found.detail) == (Reason.UNDECODABLE, "kills its decoder (SIGSEGV)")
        assert found.body == gif(b"SEGV")
        assert found.fetched.link.row == 7
        assert judge_apart(child, fetched(gif()), FilterConfig()).keep


def test_a_process_with_many_open_files_can_have_a_child() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, most[1]), most[1]))
        while stack.enter_context(open(os.devnull)).fileno() < 1024:
            pass
        with Child(WORK) as child:
            assert judge_apart(child, fetched(gif()), FilterConfig()).keep


@pytest.mark.slow
@pytest.mark.parametrize("word", [b"HANG", b"SPIN"])
def test_what_takes_too_long_is_undecodable(holes: None, word: bytes) -> None:
    with Child(WORK, seconds=2) as child:
        start = time.monotonic()
        found = judge_apart(child, fetched(gif(word)), FilterConfig())
        assert (found.reason, found.detail) == (Reason.UNDECODABLE, "takes its decoder more than 2 s")
        assert time.monotonic() - start < 30
        assert judge_apart(child, fetched(gif()), FilterConfig()).keep


def test_what_wants_all_the_memory_is_undecodable(holes: None) -> None:
    with Child(WORK) as child:
        found = judge_apart(child, fetched(gif(b"HUGE")), FilterConfig())
        assert found.reason is Reason.UNDECODABLE
        assert "MiB to decode" in found.detail


def test_the_largest_allowed_picture_fits_the_child() -> None:
    out = io.BytesIO()
    Image.effect_noise((512, 512), 50).resize((5000, 4000), 0).convert("RGB").save(out, "JPEG", progressive=True)
    with Child(WORK) as child:
        assert judge_apart(child, fetched(out.getvalue()), FilterConfig(max_pixels=20_000_000, resize=3000)).keep


def test_the_child_inherits_no_credentials_and_no_files(holes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with Path("/dev/null").open() as file, Child(WORK) as child:
        os.set_inheritable(file.fileno(), True)
        names, fds = judge_apart(child, fetched(gif(b"ENVS")), FilterConfig()).detail.split(" fds ")
    assert "PYTHONPATH" in names
    assert "AWS" not in names
    assert len(fds.split()) <= 5  # three standard ones, its own pipe, and the folder being listed


def test_a_child_that_cannot_start_says_nothing_of_a_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with Child(WORK) as child, pytest.raises(ChildBroken, match="exit status 3"):
        judge_apart(child, fetched(gif()), FilterConfig())


PARENT = """
import os, sys
from ingest.filter import FilterConfig
from ingest.isolate import WORK, judge_apart
from shards.pixels.isolate import Child
from ingest.record import Fetched, Link
body = open(sys.argv[1], "rb").read()
child = Child(WORK)
process = child._started()
print(process.pid, flush=True)
judge_apart(child, Fetched(Link("k", "", (), 0), body, None, "", 200, "", 1, 1, 0.0), FilterConfig())
"""


@pytest.mark.parametrize("word", [b"", b"SPIN"])
def test_a_child_ends_with_its_parent(holes: None, tmp_path: Path, word: bytes) -> None:
    """Whether it waits for the next body or is in the middle of one."""
    path = tmp_path / "body"
    path.write_bytes(gif(word))
    script = PARENT + ("" if word else "import time; time.sleep(600)")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.kill()
    assert within(20, lambda: not alive(pid))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def within(seconds: float, true: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()
