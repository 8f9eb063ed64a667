"""`xtra check --repair` and `xtra sweep` as commands: what they print, write and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_datasets import make_dataset

from jobs import cli


def test_check_repairs_what_it_can_and_then_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = make_dataset(tmp_path, [5, 5])
    commit, manifest = tmp_path / "commits/000001.json", tmp_path / "manifests" / f"{made.digest}.parquet"
    before = commit.read_bytes(), manifest.read_bytes()
    commit.unlink()
    manifest.write_bytes(b"")
    assert cli.main(["check", str(tmp_path), "--repair", "--dry-run"]) == 1, "its manifest is needed for the commit"
    assert not commit.exists()
    commit.write_bytes(before[0])
    assert cli.main(["check", str(tmp_path), "--repair", "--dry-run"]) == 0
    assert "would rebuild 1 objects, lost 0" in capsys.readouterr().out
    assert manifest.read_bytes() == b""
    assert cli.main(["check", str(tmp_path), "--repair"]) == 0
    out = capsys.readouterr().out
    assert f"rebuilt manifests/{made.digest}.parquet: is damaged" in out
    assert "2 shards, 10 samples, 10 links: sound" in out
    assert (commit.read_bytes(), manifest.read_bytes()) == before
    commit.unlink()
    assert cli.main(["check", str(tmp_path), "--repair", "--json"]) == 0
    reported = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [line["name"] for line in reported["repair"]["rebuilt"]] == ["commits/000001.json"]
    assert reported["problems"] == []


def test_what_cannot_be_rebuilt_is_one_line_each_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    made = make_dataset(tmp_path, [5, 5], bad=(7,))
    (tmp_path / "shards" / made.shards[0].tar).unlink()
    (tmp_path / "shards" / made.shards[1].index).unlink()
    assert cli.main(["check", str(tmp_path), "--repair"]) == 1
    out = capsys.readouterr().out
    assert (
        f"lost shards/{made.shards[0].tar}: is gone: its pictures are not stored elsewhere: restore it from a copy\n"
        in out
    )
    assert f"rebuilt shards/{made.shards[1].index}: is gone: rebuilt from the tar and the plan\n" in out
    assert f"lost shards/{made.shards[1].index}: rebuilt, but these columns are lost and are null: " in out
    assert "final_url, detail, http_status" in out
    assert cli.main(["check", str(tmp_path), "--repair"]) == 1, "the tar is still gone"
    assert "rebuilt 0 objects, lost 1" in capsys.readouterr().out


def test_dry_run_alone_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["check", str(tmp_path), "--dry-run"]) == 2
    assert "--dry-run needs --repair" in capsys.readouterr().err
