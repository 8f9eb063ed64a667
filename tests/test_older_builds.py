"""What an older build wrote is read, gone on with and probed by this one, to the same numbers.

The files of tests/older_builds were written by the build that names them (older_builds/make.py). They hold an ingested
dataset with a retry, two labelled sets, a training run stopped half-way, a probe of it that was interrupted, and what
that build got when nothing was stopped.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ingest import plan
from ingest.config import Config
from ingest.http import FetchConfig
from ingest.select import SelectConfig, select
from jobs import status
from jobs.report import ledger
from shards import check, store
from shards.dataset import read_generations, read_info
from shards.manifest import read_manifest
from shards.stream import Order, once
from xtra import probe, train
from xtra.augment import Augment
from xtra.model import ModelConfig
from xtra.optim import OptimConfig
from xtra.run import checkpoint

BUILDS = sorted(path.name.removesuffix(".tar.gz") for path in (Path(__file__).parent / "older_builds").glob("*.tar.gz"))


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    with tarfile.open(Path(__file__).parent / "older_builds" / f"{request.param}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def expected(build: Path) -> dict[str, Any]:
    return json.loads((build / "expected.json").read_text())


def test_a_dataset_is_read_checked_and_selected_from(build: Path, expected: dict[str, Any]) -> None:
    then = expected["ingested"]
    dataset = str(build / "ingested")
    version = read_manifest(dataset)
    assert (version.digest, version.links) == (then["digest"], then["links"])
    assert (version.reasons, version.deselected) == (then["reasons"], then["deselected"])
    assert [sample.key for batch in once(version, 16) for sample in batch] == then["keys"]
    report = check.run(check.Config(dataset, decode=True))
    assert report.ok, report
    assert len(read_generations(dataset)) == then["generations"] == 1
    first = read_manifest(f"{dataset}@1")
    again = select(first, SelectConfig(near_distance=-1))
    then = read_manifest(f"{dataset}@2")
    assert (again.samples, again.deselected) == (then.samples, then.deselected)
    assert again.rules is not None
    assert then.rules is not None
    assert again.rules.how == then.rules.how | {"method": 3}, "its rules were method 1, which is another version"
    assert status.run(status.Config(dataset))[0]


def test_a_rerun_of_an_ingest_agrees_with_what_was_planned(build: Path, expected: dict[str, Any]) -> None:
    dataset = str(build / "ingested")
    info = read_info(dataset)
    fetch = FetchConfig(allow_private=("127.0.0.1",), retries=0, backoff=0.01, deadline=5)
    settings = Config("list.txt", dataset, unit=12, fetch=fetch, select=SelectConfig(near_distance=-1))
    assert info.config_digest == settings.digest, "a rerun by this build would be refused"
    (build / "other.txt").write_text("http://example.org/1.jpg\n")
    with pytest.raises(ValueError, match="was made with another"):
        plan.make(Config(str(build / "other.txt"), dataset, unit=12, fetch=fetch))
    assert expected["ingested"]["planned"] == info.units + sum(g.units for g in read_generations(dataset))


MODEL = ModelConfig(16, 4, 2, 16, 2, 2, bridge=16, dec_width=16, dec_depth=1, dec_heads=2, head=16, drop_path=0.2)


def settings_of(build: Path) -> train.Config:
    return train.Config(
        model=ModelConfig(
            16, 4, 2, 16, 2, 2, bridge=16, dec_width=16, dec_depth=1, dec_heads=2, head=16, drop_path=0.2
        ),
        samples=120,
        batch=10,
        data=str(build / "train-set"),
        out=str(build / "run"),
        optim=OptimConfig(lr=1e-3, warmup=0.1),
        order=Order(seed=2, lanes=4, chunk=4, window=2),
        checkpoint_every=30,
        keep=1,
        threads=1,
    )


def test_a_half_done_probe_goes_on_and_then_its_run_does(build: Path, expected: dict[str, Any]) -> None:
    config = probe.Config(
        checkpoint=str(build / "run"),
        train=str(build / "train-set"),
        eval=str(build / "eval-set"),
        lrs=(1e-3, 1e-2),
        layer_sets=(2,),
        attention_heads=2,
        batch=10,
        epochs=4,
        encode_batch=10,
        augment=Augment(scale=(0.5, 1.0)),
        save_minutes=0.0,
        threads=1,
    )
    assert "probes-unfinished" in store.names(config.checkpoint)
    steps: list[tuple[int, int]] = []
    results = probe.run(config, lambda what, n, of: steps.append((n, of)) if what == "train heads" else None)
    assert steps[0][0] > steps[0][1] // 2, "it began anew"
    found = {r.head: {"correct": r.correct, "total": r.total, "lr": r.lr} for r in results}
    assert found.keys() == expected["probe"].keys()
    for head, then in expected["probe"].items():  # to the picture on the machine that wrote it, nearly so elsewhere
        assert found[head]["total"] == then["total"]
        assert abs(found[head]["correct"] - then["correct"]) <= 1
    assert "probes-unfinished" not in store.names(config.checkpoint)
    assert all(r.samples_seen == expected["run"]["stopped_at"] for r in results)

    stopped = checkpoint.latest(config.checkpoint)
    assert stopped is not None
    result = train.run(settings_of(build))
    assert (result.samples_seen, result.attempt) == (120, 2)
    losses = {}
    for name in store.names(str(build / "run" / "metrics")):
        for line in (build / "run" / "metrics" / name).read_text().splitlines():
            row = json.loads(line)
            losses[str(row["samples_seen"])] = row["loss"]
    assert losses == pytest.approx(expected["run"]["losses"], rel=1e-5)
    assert {row.head for row in ledger.read_runs(str(build)).rows} >= {"attentive", "linear"}
