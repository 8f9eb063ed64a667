"""`xtra bench fetch` with a stand-in for the peer: what is measured, what is compared, and that cheats are found."""

import json
import os
import sys
from pathlib import Path

import pytest

from jobs.bench import fetch
from jobs.bench.peers import environments

STANDIN = """#!{python}
import io, sys, tarfile, urllib.request
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
import os; os.makedirs(flags["output_folder"])
with tarfile.open(flags["output_folder"] + "/00000.tar", "w") as tar:
    for n, url in enumerate(open(flags["url_list"])):
        body = urllib.request.urlopen(url.strip()).read(){damage}
        info = tarfile.TarInfo(f"{{n:09}}.jpg"); info.size = len(body)
        tar.addfile(info, io.BytesIO(body))
"""


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """Call it with what the peer does to a body; `xtra bench fetch` then meets that peer."""

    def make(damage: str = "") -> None:
        script = tmp_path / "bin" / "img2dataset"
        script.parent.mkdir(exist_ok=True)
        script.write_text(STANDIN.format(python=sys.executable, damage=damage))
        script.chmod(0o755)
        monkeypatch.setattr(environments, "build", lambda _peer: script.parent / "python")

    monkeypatch.setattr(fetch, "SIDES", {"keep": "1500", "resize": "1500"})
    return make


@pytest.mark.slow
def test_a_run_gives_rows_and_ratios_that_fit(standin, tmp_path):
    standin()
    done = fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))
    (row,) = json.loads(json.dumps(done))["rows"]
    assert (row["mode"], row["images"], row["short_list"]) == ("keep", 50, 10)
    assert done["ratios"]["keep_vs_img2dataset"] == pytest.approx(row["theirs_cpu_ms"] / row["ours_cpu_ms"])
    assert set(done["ratios"]) == {"keep_vs_img2dataset", "keep_vs_img2dataset_marginal"}
    assert done["subject"] == "fetch"
    assert not list(tmp_path.glob("xtra-bench-*"))


@pytest.mark.slow
def test_a_peer_that_keeps_other_bytes_is_no_peer(standin, tmp_path):
    standin("[:-1]")
    with pytest.raises(ValueError, match="keep: the two kept different bodies"):
        fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))


def test_a_peer_that_fails_is_named_with_its_last_words(standin, tmp_path):
    standin("; sys.exit('out of luck')")
    with pytest.raises(ValueError, match="theirs failed with status 1: out of luck"):
        fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="modes has 'kepp': give some of keep, decode, resize, https"):
        fetch.Config(modes=("kepp",))
    with pytest.raises(ValueError, match="rounds is 0"):
        fetch.Config(rounds=0)


@pytest.mark.slow
def test_an_environment_is_built_once_and_again_when_half_built(tmp_path):
    peer = environments.Peer("nothing", (), "json")
    python = environments.build(peer, tmp_path)
    made = python.parent.stat().st_ino
    assert environments.build(peer, tmp_path) == python
    assert python.parent.stat().st_ino == made
    (tmp_path / "nothing" / "done.json").unlink()
    (tmp_path / "nothing" / "junk").touch()
    environments.build(peer, tmp_path)
    assert not (tmp_path / "nothing" / "junk").exists()
    with pytest.raises(ValueError, match="nosuch: its environment cannot be built"):
        environments.build(environments.Peer("nosuch", (), "no_such_module"), tmp_path)


def test_a_python_that_is_too_new_is_told_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(ValueError, match=r"img2dataset needs Python 3.11 to 3.12 \(it imports imghdr.*this is 3.14"):
        environments.interpreter(environments.IMG2DATASET)


def test_a_peer_does_not_see_our_modules(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path.cwd()))
    assert "PYTHONPATH" not in environments.environment()
