"""Sweeping runs and uploads: what dead writers left goes by the store's clock, what a living one writes stays."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest
from buckets import bucket
from made_datasets import make_dataset
from run_folders import write_run

from jobs import cli, run_sweep
from shards import store, store_remote, store_uploads, sweep
from xtra.augment import Augment
from xtra.probe.config import Config as ProbeConfig, in_words
from xtra.probe.resume import Unfinished

DAY = 86_400.0


def files(base: str | Path) -> set[str]:
    return {str(path.relative_to(base)) for path in Path(base).rglob("*") if path.is_file()}


def age(base: Path, days: float = 8, *names: str) -> None:
    for name in names or files(base):
        os.utime(base / name, (time.time() - DAY * days,) * 2)


def put(base: Path, *names: str) -> None:
    for name in names:
        store.put(str(base / name), b"left")


def swept(base: Path, older_than: str = "7d") -> sweep.SweepResult:
    return run_sweep.run(sweep.Config(str(base), older_than))


def test_checkpoints_without_a_commit_and_halves_go_by_age(tmp_path: Path) -> None:
    write_run(tmp_path / "r")
    base, before = tmp_path / "r", files(tmp_path / "r")
    left = [f"checkpoints/000000019200/000001/{name}" for name in ("model.safetensors", "part-00001.json", ".aside-x")]
    left += [
        "checkpoints/000000012800/.aside-y",
        "metrics/.aside-z",
        ".probe-1-2",
        ".write-test-1-2",
        "probes/.aside-p",
    ]
    left += ["checkpoints/000000012800/000007/optim.safetensors"]
    put(base, *left)
    assert swept(base).objects == (), "all of it is young"
    age(base)
    result = swept(base)
    assert (set(result.objects), result.beaten, result.young) == (set(left), 1, 0)
    assert files(base) == before
    assert swept(base).objects == ()


def test_a_checkpoint_under_way_stays_with_all_its_files(tmp_path: Path) -> None:
    """Its first file may be days old where another is still written, or its attempt still logs."""
    base = write_run(tmp_path / "r")
    one, two = (f"checkpoints/00000001{n}200/000001" for n in (5, 9))
    put(base, f"{one}/model.safetensors", f"{one}/optim.safetensors", f"{two}/model.safetensors")
    age(base)
    put(base, f"{one}/optim.safetensors")
    before = files(base)
    result = swept(base)
    assert (result.objects, result.young) == ((f"{two}/model.safetensors",), 2)
    put(base, f"{two}/model.safetensors", "metrics/000001-000009.jsonl")
    age(base, 8, f"{one}/optim.safetensors", f"{two}/model.safetensors")
    assert (swept(base).objects, files(base) >= before) == ((), True)
    assert swept(base).young == 3


def test_runs_below_a_folder_are_swept_and_other_folders_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a")
    write_run(tmp_path / "runs/b")
    put(tmp_path / "runs", "b/events/.aside-x", "other/.aside-y")
    age(tmp_path / "runs")
    assert swept(tmp_path / "runs").objects == ("b/events/.aside-x",)
    with pytest.raises(ValueError, match="neither a dataset nor a run"):
        swept(tmp_path)
    with pytest.raises(ValueError, match=r"older_than is 30m: .* give 1h"):
        swept(tmp_path / "runs", "30m")


def test_a_commit_that_cannot_be_read_stops_the_sweep(tmp_path: Path) -> None:
    base = write_run(tmp_path / "r")
    put(base, "checkpoints/000000012800/COMMIT.json", "events/.aside-x")
    age(base)
    with pytest.raises(store.StoreError, match="COMMIT"):
        swept(base)
    assert "events/.aside-x" in files(base)


SETTINGS = ProbeConfig(train="t", augment=Augment(scale=(0.5, 1.0)), epochs=3, heads=("attentive", "linear"))


def state(out: Path, config: ProbeConfig = SETTINGS, **other: Any) -> str:
    """The state that an interrupted probe of these settings leaves; returns its folder's name."""
    aside = {"checkpoint", "encoder", "train", "eval", "out", "threads", "save_minutes", "cache_gb", "cache_dtype"}
    aside |= {"strict", "views", "knn", "logreg", "resize"}
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in aside}
    unfinished = Unfinished(str(out), settings | {"fingerprint": "f" * 16, "train": "d" * 64} | other, 60, 0.0)
    folder = store.local_path(unfinished.folder)
    put(folder, "000000000064-ab.safetensors")
    store.put_json(
        str(folder / "state.json"), {"settings": unfinished.settings, "tensors": "000000000064-ab.safetensors"}
    )
    return folder.name


def result(out: Path, head: str, config: ProbeConfig = SETTINGS) -> None:
    grid = [{"lr": lr, "weight_decay": d, "accuracy": 0.5} for lr in config.lrs for d in config.weight_decays]
    value = {"head": head, "fingerprint": "f" * 16, "manifest_train": "d" * 64, "image": 64, "selection": grid}
    value |= {"selected_on": "holdout", "protocol": in_words(config, 64, head, grid)}
    store.put_json(str(out / f"probes/{head}.json"), value)


def test_a_state_goes_when_its_probe_has_every_result_and_no_other(tmp_path: Path) -> None:
    done = state(tmp_path)
    others = [
        state(tmp_path, dataclasses.replace(SETTINGS, lrs=(1e-3,))),
        state(tmp_path, dataclasses.replace(SETTINGS, augment=Augment(scale=(0.4, 1.0)))),
        state(tmp_path, dataclasses.replace(SETTINGS, seed=7)),
        state(tmp_path, fingerprint="e" * 16),
        state(tmp_path, from_another_build=1, epochs=9),
    ]
    put(tmp_path, f"probes-unfinished/{others[0]}/000000000032-cd.safetensors", "probes-unfinished/0a/1-b.safetensors")
    stray = {f"probes-unfinished/{others[0]}/000000000032-cd.safetensors", "probes-unfinished/0a/1-b.safetensors"}
    result(tmp_path, "attentive")
    age(tmp_path)
    assert set(swept(tmp_path).objects) == stray, "the linear head has no result yet"
    result(tmp_path, "linear")
    assert set(swept(tmp_path).objects) == {
        f"probes-unfinished/{done}/{name}" for name in ("000000000064-ab.safetensors", "state.json")
    }
    assert {path.split("/")[1] for path in files(tmp_path) if path.startswith("probes-unfinished")} == set(others)


def upload(url: str, parts: int) -> None:
    """What a writer that was killed leaves of a large object."""
    fs, path = store_remote.client(url)
    name, _, key = path.partition("/")
    begun = fs.call_s3("create_multipart_upload", Bucket=name, Key=key)
    for number in range(1, parts + 1):
        fs.call_s3("upload_part", Bucket=name, Key=key, UploadId=begun["UploadId"], PartNumber=number, Body=b"x" * 1000)


def test_uploads_that_nobody_completed_go_by_their_last_part(on_moto: None, monkeypatch: pytest.MonkeyPatch) -> None:
    root = bucket()
    base = root + "/data"
    make_dataset(base, [6])
    for name in ("data/shards/000001-a.tar", "data2/shards/000001-a.tar", "other.tar"):
        upload(f"{root}/{name}", 2)
    assert [each.name for each in store_uploads.unfinished(root)] == [
        "data/shards/000001-a.tar",
        "data2/shards/000001-a.tar",
        "other.tar",
    ]
    result = sweep.run(sweep.Config(base))
    assert (result.uploads, result.objects, result.young) == ((), (), 1), "its last part came just now"
    now = store.clock(base)
    monkeypatch.setattr(store, "clock", lambda url: now + 8 * DAY)
    would = sweep.run(sweep.Config(base, dry_run=True))
    assert (would.uploads, would.bytes, would.young) == (("shards/000001-a.tar",), 2000, 0)
    assert len(store_uploads.unfinished(base)) == 1
    assert sweep.run(sweep.Config(base)).uploads == ("shards/000001-a.tar",)
    assert store_uploads.unfinished(base) == []
    assert len(store_uploads.unfinished(root)) == 2, "those of other folders stay"
    assert sweep.run(sweep.Config(base)).uploads == ()


def test_uploads_of_a_run_go_too_and_a_store_that_lists_none_is_a_remark(
    on_moto: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = bucket() + "/run"
    store.put_json(run + "/run.json", {})
    store.put(run + "/checkpoints/000000000064/000001/model.safetensors", b"w")
    upload(run + "/checkpoints/000000000064/000001/optim.safetensors", 1)
    now = store.clock(run)
    monkeypatch.setattr(store, "clock", lambda url: now + 8 * DAY)
    assert cli.main(["sweep", run]) == 0
    assert "removed 1 objects, 1 kB: 0 of attempts that lost, 1 left by dead writers; 1 uploads" in (
        capsys.readouterr().out
    )
    assert store_uploads.unfinished(run) == []

    def refuse(url: str) -> list[store_uploads.Upload]:
        raise store.StoreError(f"{url}: cannot list incomplete uploads: access denied")

    monkeypatch.setattr(store_uploads, "unfinished", refuse)
    assert cli.main(["sweep", run]) == 0
    assert "incomplete uploads were not removed: s3://" in capsys.readouterr().err
