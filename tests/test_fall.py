"""The whole fall on the CPU: links on a bad web -> dataset -> training -> probes -> ledger -> report, and it balances.

On a folder, on moto and, where one is given, on a real S3 store: the same calls, only the URL differs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from buckets import buckets_are_slow
from origin import Origin
from PIL import Image

from ingest import run as ingest
from ingest.config import Config
from ingest.http.fetcher import FetchConfig
from ingest.select.apply import SelectConfig
from ingest.sets import folders
from jobs.cluster import Workers, group
from jobs.lab import scale
from jobs.report import ledger, scaling
from shards import check, store
from shards.dataset import read_table
from shards.manifest import Manifest, read_manifest
from shards.stream.stream import once
from xtra import probe, recipes
from xtra.run import checkpoint

CLASSES, PICTURES = 3, 90
JUNK = {  # path -> the verdict it must get
    "/status/404": "http_404",
    "/status/410": "http_410",
    "/status/503": "http_5xx",
    "/html": "not_an_image",
    "/cut/half.jpg": "undecodable",
    "/truncated": "truncated_body",
    "/loop": "too_many_redirects",
    "/goto?http://10.0.0.1/x.jpg": "blocked_address",
}


def draw(number: int) -> Image.Image:
    """Class c is stripes of its own direction and width, with a phase and a tint of each picture's own."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:32, :32]
    angle = number % CLASSES * np.pi / CLASSES
    wave = np.sin(0.7 * (x * np.cos(angle) + y * np.sin(angle)) + rng.uniform(0, 6.3))
    tint = rng.uniform(0.3, 1.0, 3)
    noisy = 127 + 100 * wave[..., None] * tint + rng.normal(0, 20, (32, 32, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make_list(origin: Origin, folder: Path) -> Path:
    """A CSV of good links and of every kind of junk."""
    lines = ["url,label"]
    for number in range(PICTURES):
        path = folder / f"{number}.png"
        draw(number).save(path)
        origin.files[path.name] = path.read_bytes()
        lines.append(f"{origin.url(f'/file/{path.name}')},class{number % CLASSES}")
    lines += [f"{origin.url(path)},junk" for path in JUNK]
    lines += ["ftp://127.0.0.1/x.jpg,junk", "not a link,junk"]
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
    return folder / "list.csv"


def labelled_folder(root: Path) -> Path:
    for number in range(1000, 1060):
        path = root / f"class{number % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(number).save(path, quality=95)
    return root


def reasons_of(manifest: Manifest) -> dict[str, str]:
    """URL -> the reason of its link."""
    tables = [read_table(store.join(manifest.dataset, "shards", shard.index)) for shard in manifest.shards]
    return {url: why for table in tables for url, why in zip(table["url"].to_pylist(), table["reason"].to_pylist())}


@buckets_are_slow
def test_the_fall(base, tmp_path):
    data, evaluation, study = (store.join(base, name) for name in ("data", "eval", "study"))

    with Origin() as origin:
        links = make_list(origin, tmp_path)
        fetch = FetchConfig(allow_private=("127.0.0.1",), retries=1, backoff=0.05)
        alike = SelectConfig(near_distance=-1)  # these drawings look alike to a perceptual hash
        settings = Config(str(links), data, unit=40, label_column="label", fetch=fetch, select=alike)
        got = ingest.run(settings)
        assert got.links == PICTURES + len(JUNK) + 2 == got.kept + sum(got.reasons.values())
        asked = origin.requests.total()
        again = ingest.run(settings)
        assert (again.version, origin.requests.total()) == (got.version, asked), "a rerun fetches nothing"

    # Wall 1: every link has the verdict it deserves, and the manifest selects exactly what was kept.
    manifest = read_manifest(data)
    assert got.kept == manifest.samples == PICTURES
    reasons = reasons_of(manifest)
    for path, reason in JUNK.items():
        assert reasons[origin.url(path)] == reason, path
    assert sum(reason == "bad_url" for reason in reasons.values()) == 2
    assert check.run(check.Config(data, decode=True)).ok

    assert folders.run(folders.Config(str(labelled_folder(tmp_path / "labelled")), evaluation)).kept == 60

    # Wall 2: an XTRA and its plain-causal twin, trained and probed.
    model = dataclasses.replace(recipes.demo32().model, width=32, depth=2, heads=2, bridge=32, dec_width=32, head=32)
    probing = probe.Config(
        "", train=data, eval=evaluation, lrs=(1e-2, 5e-2), epochs=12, views=1, batch=30, layer_sets=(2,)
    )
    runs = []
    for recipe in ("demo32", "demo32_aim"):
        base_config = recipes.get(recipe)
        small = dataclasses.replace(model, block=base_config.model.block)
        runs.append(
            dataclasses.replace(
                base_config,
                model=small,
                data=data,
                out=store.join(study, recipe),
                samples=270,
                batch=16,
                checkpoint_every=100,
            )
        )
    results = group.train_all(runs)
    assert [result.samples_seen for result in results] == [270, 270]
    for run in runs:
        newest = checkpoint.latest(run.out)
        commit = store.read_json(store.join(newest, "COMMIT.json"))
        assert (commit["samples_seen"], commit["manifest"]) == (270, manifest.digest)
        for encoder in ("trained", "random"):
            settings = dataclasses.replace(probing, checkpoint=run.out, encoder=encoder, pixels=encoder == "random")
            probe.run(settings)

    # Wall 3: the ledger names each checkpoint's manifest, and the report stands on the ledger.
    rows = ledger.read_runs(study).rows
    assert {row.manifest for row in rows} == {manifest.digest}
    assert {(row.variant, row.head, row.encoder) for row in rows} >= {
        (variant, head, encoder)
        for variant in ("xtra", "aim")
        for head in ("attentive", "linear")
        for encoder in ("trained", "random")
    }
    assert all(row.unique_images == min(row.samples_seen, PICTURES) for row in rows)
    trained = [row for row in rows if row.encoder == "trained"]
    assert max(row.accuracy for row in trained) > 1 / CLASSES
    page = store.read(scaling.write_report(study)).decode()
    assert "<svg" in page
    assert manifest.digest[:16] in page


def test_webdataset_reads_what_ingest_wrote(tmp_path):
    with Origin() as origin:
        links = make_list(origin, tmp_path)
        fetch = FetchConfig(allow_private=("127.0.0.1",), retries=0)
        settings = Config(str(links), str(tmp_path / "data"), unit=40, label_column="label", fetch=fetch)
        ingest.run(dataclasses.replace(settings, select=SelectConfig(near_distance=-1)))
    manifest = read_manifest(str(tmp_path / "data"))
    script = (
        "import hashlib, json, sys, webdataset\n"
        "samples = webdataset.WebDataset(sys.argv[1:], shardshuffle=False, empty_check=False)\n"
        "print(json.dumps({s['__key__']: [hashlib.sha256(s['png']).hexdigest(), json.loads(s['json'])['labels']] "
        "for s in samples}))"
    )
    tars = [str(tmp_path / "data" / "shards" / shard.tar) for shard in manifest.shards]
    found = subprocess.run([sys.executable, "-c", script, *tars], capture_output=True, check=True, timeout=60)
    ours = {s.key: [hashlib.sha256(s.body).hexdigest(), list(s.labels)] for b in once(manifest, 16) for s in b}
    assert json.loads(found.stdout) == ours
    assert len(ours) == PICTURES


@pytest.mark.slow
def test_a_study_over_two_workers_balances(tmp_path, ray_cluster):
    """Samples seen are what the cursor says, on Ray Train workers too; a second study finds nothing left to do."""
    labelled = labelled_folder(tmp_path / "labelled")
    data = str(tmp_path / "data")
    folders.run(folders.Config(str(labelled), data))
    probing = probe.Config("", train=data, eval=data, lrs=(1e-2,), epochs=1, views=1, batch=30, heads=("linear",))
    settings = scale.Config(data, str(tmp_path / "study"), ("demo32",), samples=(64, 90), probe=probing, pixels=False)
    first = scale.run(settings, workers=2)
    assert (first.trained, first.probed) == (2, 3)
    for samples in (64, 90):
        run = f"{settings.out}/demo32-{samples:09d}-s0"
        commit = store.read_json(store.join(checkpoint.latest(run), "COMMIT.json"))
        folder = f"{commit['attempt']:06d}"
        state = store.read_json(store.join(checkpoint.latest(run), folder, "state.json"))
        assert state["cursor"]["samples_seen"] == samples
        assert store.read_json(store.join(run, "run.json"))["world"] == 2
    again = scale.run(settings, workers=Workers(1, 2))
    assert (again.trained, again.probed) == (0, 0)
