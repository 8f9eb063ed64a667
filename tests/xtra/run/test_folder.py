"""What a run folder says of its run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from xtra.run import folder


def test_a_run_names_its_commit_in_a_checkout_and_outside_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XTRA_COMMIT", "0123456789ab")
    copy = tmp_path / "tree" / "folder.py"
    copy.parent.mkdir()
    shutil.copy2(folder.__file__, copy)
    monkeypatch.setattr(folder, "__file__", str(copy))
    assert folder._git() == "0123456789ab"

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "somebody's project, with a .venv in it")
    assert folder._git() == "0123456789ab"
    git("add", ".")
    git("commit", "-q", "-m", "the source tree itself")
    assert folder._git() == git("rev-parse", "HEAD")
    monkeypatch.delenv("XTRA_COMMIT")
    shutil.rmtree(tmp_path / ".git")
    assert folder._git() is None
