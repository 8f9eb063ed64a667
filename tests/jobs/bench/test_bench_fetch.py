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


DAFT = """#!{python}
import os, sys, urllib.request
import pyarrow as pa, pyarrow.parquet as pq
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[2:])
os.makedirs(flags["out"])
bodies = [urllib.request.urlopen(url.strip()).read(){damage} for url in open(flags["urls"])]
pq.write_table(pa.table({{"body": bodies}}), flags["out"] + "/0.parquet")
"""


@pytest.fixture
def standin(tmp_path, monkeypatch):
    """Call it with what the peers do to a body; `xtra bench fetch` then meets these peers."""

    def make(damage: str = "", daft_damage: str = "") -> None:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        for name, text, harm in (("img2dataset", STANDIN, damage), ("python", DAFT, daft_damage)):
            (folder / name).write_text(text.format(python=sys.executable, damage=harm))
            (folder / name).chmod(0o755)
        monkeypatch.setattr(environments, "build", lambda _peer: folder / "python")

    monkeypatch.setattr(fetch, "SIDES", {"keep": "1500", "resize": "1500"})
    return make


@pytest.mark.slow
def test_a_run_gives_rows_and_ratios_that_fit(standin, tmp_path):
    standin()
    done = fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))
    (row,) = json.loads(json.dumps(done))["rows"]
    assert (row["mode"], row["images"], row["short_list"]) == ("keep", 50, 10)
    ratios = done["ratios"]
    assert ratios["keep_vs_img2dataset"] == pytest.approx(row["img2dataset_cpu_ms"] / row["ours_cpu_ms"])
    assert ratios["keep_vs_daft_marginal"] == pytest.approx(row["daft_cpu_ms_marginal"] / row["ours_cpu_ms_marginal"])
    peers = ("img2dataset", "daft")
    assert set(ratios) == {f"keep_vs_{peer}{end}" for peer in peers for end in ("", "_marginal")} | {
        "keep_start_up_s",
        *(f"keep_start_up_s_{peer}" for peer in peers),
    }
    whole = row["daft_start_up_s"] + row["images"] * row["daft_cpu_ms_marginal"] / 1000
    assert whole == pytest.approx(row["images"] * row["daft_cpu_ms"] / 1000)
    assert done["subject"] == "fetch"
    assert not list(tmp_path.glob("xtra-bench-*"))


@pytest.mark.slow
def test_a_peer_that_keeps_other_bytes_is_no_peer(standin, tmp_path):
    standin("[:-1]")
    with pytest.raises(ValueError, match="keep: ours and img2dataset kept different bodies"):
        fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))
    standin("", "[:-1]")
    with pytest.raises(ValueError, match="keep: ours and daft kept different bodies"):
        fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))


def test_a_peer_that_fails_is_named_with_its_last_words(standin, tmp_path):
    standin("; sys.exit('out of luck')")
    with pytest.raises(ValueError, match="img2dataset failed with status 1: out of luck"):
        fetch.run(fetch.Config(images=50, rounds=1, modes=("keep",), scratch=str(tmp_path)))


def test_the_full_check_has_its_older_name_too():
    row = {"mode": "decode", "ours_start_up_s": 1.0}
    for peer in ("img2dataset", "daft"):
        row |= {f"{peer}_ratio": 2.0, f"{peer}_ratio_marginal": 3.0, f"{peer}_start_up_s": 4.0}
    ratios = fetch.ratios_of([row])
    assert ratios["full_vs_daft_marginal"] == 3.0
    assert ratios["decode_check_vs_img2dataset"] == ratios["full_vs_img2dataset"] == 2.0


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


def test_a_client_keeps_its_bytecode(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in environments.environment()
