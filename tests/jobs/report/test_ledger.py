import csv
import dataclasses
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import run_folders
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jobs.report.comparable import settings_digest
from jobs.report.ledger import Ledger, read_runs
from jobs.report.ledger_file import write_ledger
from xtra.flops import Shape, flops_done, flops_per_image, parameters, peak_flops
from xtra.model import SIZES, ModelConfig, Xtra, build
from xtra.train import Config

B16 = Shape(256, 16, 4, 768, 12, bridge=4096, dec_width=768, dec_depth=8, head=6144)
H14 = Shape(224, 14, 4, 1280, 32, bridge=5120, dec_width=640, dec_depth=8, head=9408)
AIM = Shape(256, 16, 1, 768, 12, bridge=4096, dec_width=384, dec_depth=8, head=6144)


def test_flops_and_parameters_are_those_of_the_official_modules():
    assert flops_per_image(B16) == 254_275_485_696
    assert flops_per_image(H14) == 1_096_620_048_384
    assert parameters(B16) == 299_827_200 + 226_048
    assert parameters(H14) == 864_390_144 + 628_096
    assert parameters(AIM) == 111_945_472
    assert (B16.size, H14.size, B16.variant, AIM.variant) == ("B/16", "H/14", "xtra", "aim")


def test_parameters_are_those_of_the_model_itself():
    for name in ("tiny64", "b16_aim"):
        config = replace(SIZES[name], predict=2, mlp_ratio=3.0)
        with torch.device("meta"):
            model = Xtra(config)
        assert parameters(shape_of(config)) == sum(p.numel() for p in model.parameters()), name


def test_flops_are_those_that_torch_counts_for_a_model_of_ours():
    config = SIZES["tiny32"]
    model = build(config)
    # the counter knows the plain attention kernels only
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (prediction,) = model(torch.zeros(1, 3, 32, 32), last_block=True)
        prediction.sum().backward()
    assert flops_per_image(shape_of(config)) == counter.get_total_flops()


@pytest.mark.parametrize("change", [{}, {"predict": 3}, {"dec_width": 32}], ids=str)
def test_flops_done_are_those_that_torch_counts_in_training(change):
    config = replace(SIZES["tiny64"], **change)  # 240 tokens: attention in two halves
    model = build(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        torch.stack([prediction.sum() for prediction in model(torch.zeros(1, 3, 64, 64))]).sum().backward()
    assert flops_done(shape_of(config), ((128, 240), (128, 240))) == counter.get_total_flops()


def test_flops_done_are_the_facts_for_the_papers_models():
    assert flops_done(B16) == pytest.approx(237.68e9, rel=1e-4)
    assert flops_done(H14) == pytest.approx(1025.96e9, rel=1e-4)


@pytest.mark.parametrize(
    ("gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-32GB", 125e12),
    ],
)
def test_the_peak_of_a_gpu_is_found_by_its_name(gpu, peak):
    assert peak_flops(gpu) == peak


def shape_of(config: ModelConfig) -> Shape:
    return Shape(**{f.name: getattr(config, f.name) for f in fields(Shape)})


def test_one_row_for_each_probe_and_one_for_a_run_without(tmp_path: Path):
    probed = run_folders.write_run(tmp_path / "a", samples=12800, unique=6400)
    run_folders.write_probe(probed, 0.2, head="linear")
    run_folders.write_probe(probed, 0.25, head="attentive")
    run_folders.write_probe(probed, 0.1, head="linear", encoder="random")
    run_folders.write_run(tmp_path / "b", block=1)

    ledger = read_runs(str(tmp_path))

    assert ledger.problems == ()
    assert {(r.name, r.head, r.encoder) for r in ledger.rows} == {
        ("a", "linear", "trained"),
        ("a", "attentive", "trained"),
        ("a", "linear", "random"),
        ("b", "", ""),
    }
    row = next(r for r in ledger.rows if (r.head, r.encoder) == ("linear", "trained"))
    assert (row.samples_seen, row.unique_images, row.epochs) == (12800, 6400, 2.0)
    assert row.flops == 12800 * flops_per_image(ledger.runs[0].shape)
    assert (row.accuracy, row.total, row.classes) == (0.2, 5000, 200)
    assert (row.low, row.high) == pytest.approx(run_folders.wilson(1000, 5000))
    last_tenth = [run_folders.metric(s)["loss"] for s in range(11520 + 128, 12800 + 1, 128)]
    assert (row.seconds, row.samples_per_s) == (50.0, 256.0)
    assert row.loss == pytest.approx(sum(last_tenth) / len(last_tenth), rel=1e-12)
    assert (row.arm, row.trunk, row.trained, row.selected) == ("tiny", "", 12800, 6400)
    assert (row.variant, row.recipe, row.seed, row.world, row.size) == ("xtra", "tiny", 0, 1, "192x4/8")
    unprobed = next(r for r in ledger.rows if r.name == "b")
    assert (unprobed.variant, unprobed.accuracy, unprobed.samples_seen) == ("aim", None, 12800)


def test_a_baseline_encoder_has_seen_nothing(tmp_path: Path):
    run = run_folders.write_run(tmp_path / "a")
    run_folders.write_probe(run, 0.1, encoder="random")
    (row,) = read_runs(str(run)).rows
    assert (row.samples_seen, row.flops, row.epochs, row.seconds, row.loss) == (0, 0, 0.0, None, None)


def test_a_probe_of_an_early_checkpoint_costs_what_had_been_seen_then(tmp_path: Path):
    run = run_folders.write_run(tmp_path / "a", samples=12800)
    run_folders.write_probe(run, 0.15, samples_seen=6400)
    (row,) = read_runs(str(run)).rows
    last_tenth = [run_folders.metric(s)["loss"] for s in range(5760 + 128, 6400 + 1, 128)]
    assert (row.samples_seen, row.seconds) == (6400, 25.0)
    assert row.loss == pytest.approx(sum(last_tenth) / len(last_tenth), rel=1e-12)


def test_a_newer_attempt_replaces_what_an_older_one_logged_after_its_start(tmp_path: Path):
    run = run_folders.write_run(tmp_path / "a", samples=1280)
    # begun at the checkpoint of 512 with batches of 256: the older rows at 640, and all later ones, did not count
    resumed = [run_folders.metric(s, began_at=512, loss=9.0) for s in range(768, 1025, 256)]
    run_folders.write_metrics(run, 2, 0, resumed)
    ledger = read_runs(str(run))
    (found,) = ledger.runs
    assert [m.samples_seen for m in found.metrics] == [128, 256, 384, 512, 768, 1024]
    assert [m.attempt for m in found.metrics] == [1] * 4 + [2] * 2
    assert [m.loss for m in found.metrics[4:]] == [9.0] * 2
    assert (ledger.rows[0].seconds, ledger.rows[0].samples_per_s) == (1024 / 256, 256.0)


def test_another_manifest_than_that_of_the_run_is_refused_naming_both(tmp_path: Path):
    run_folders.write_run(tmp_path / "good")
    run = run_folders.write_run(tmp_path / "a")
    ours = json.loads((run / "run.json").read_text())["manifest"]
    run_folders.write_commit(run, 25600, "f" * 64)
    found = read_runs(str(tmp_path))
    assert [r.name for r in found.runs] == ["good"]
    (message,) = found.problems
    assert {ours, "f" * 64} <= {word.strip(":,") for word in message.split(" ")}
    assert "\n" not in message


def test_what_cannot_be_read_is_named_and_the_rest_is_kept(tmp_path: Path):
    good = run_folders.write_run(tmp_path / "good")
    run_folders.write_probe(good, 0.2)
    torn = run_folders.write_probe(good, 0.3, head="attentive")
    torn.write_text(torn.read_text()[:40])
    bad_field = run_folders.write_probe(good, 0.3, set_name="other", low="high")
    log = run_folders.write_metrics(good, 1, 2, [run_folders.metric(12928)])
    log.write_text(log.read_text() + '{"samples_seen": 13')
    half = run_folders.write_run(tmp_path / "half")
    (half / "run.json").unlink()
    alien = run_folders.write_run(tmp_path / "alien", sizes={"width": "wide"})  # type: ignore[dict-item]
    (tmp_path / "notes.txt").write_text("not a run")

    ledger = read_runs(str(tmp_path))

    assert [r.name for r in ledger.rows] == ["good"]
    named = [str(torn), str(bad_field), f"{log} line 2", str(half / "run.json"), str(alien / "config.json")]
    assert len(ledger.problems) == len(named)
    for name in named:
        assert sum(name in p for p in ledger.problems) == 1, name
    assert not any("\n" in p for p in ledger.problems)


def test_a_checkpoint_without_commit_never_happened(tmp_path: Path):
    run = run_folders.write_run(tmp_path / "a", samples=1280)
    (run / "checkpoints/000000002560/000001").mkdir(parents=True)
    (found,) = read_runs(str(run)).runs
    assert (list(found.checkpoints), found.samples_seen) == ([1280], 1280)


def test_a_folder_without_runs_says_what_to_give(tmp_path: Path):
    with pytest.raises(ValueError, match=r"contains no run.*--out"):
        read_runs(str(tmp_path))


def test_the_ledger_reads_back_from_parquet_and_csv(tmp_path: Path):
    run_folders.write_study(tmp_path)
    ledger = read_runs(str(tmp_path))
    parquet, text = write_ledger(str(tmp_path), ledger.rows)

    rows = pq.read_table(parquet).to_pylist()
    assert len(rows) == len(ledger.rows) == 2 * 20 + 3
    assert [r["accuracy"] for r in rows] == [r.accuracy for r in ledger.rows]
    with open(text) as file:
        cells = list(csv.DictReader(file))
    assert [c["manifest"] for c in cells] == [r.manifest for r in ledger.rows]
    assert {c["loss"] for c, r in zip(cells, ledger.rows) if r.loss is None} == {""}
    assert math.isclose(float(cells[0]["accuracy"]), ledger.rows[0].accuracy or 0.0)
    assert read_runs(str(tmp_path)) == ledger, "the written ledger does not count as a run"


def test_settings_are_equal_where_only_variant_seed_samples_and_machine_differ(tmp_path: Path):
    run_folders.write_run(tmp_path / "a", 6400, seed=0)
    run_folders.write_run(tmp_path / "b", 12800, seed=1, block=1)
    run_folders.write_run(tmp_path / "c", 6400, sizes={"head": 512})
    a, b, c = read_runs(str(tmp_path)).rows
    assert a.settings == b.settings != c.settings


def test_a_field_that_an_older_config_lacks_counts_as_its_default():
    model = dataclasses.asdict(SIZES["tiny32"])
    new = dataclasses.asdict(Config(SIZES["tiny32"], samples=1, batch=8))
    old = {"model": {name: model[name] for name in run_folders.TINY}, "batch": 8, "optim": {"lr": new["optim"]["lr"]}}
    assert settings_digest(old) == settings_digest(new) == settings_digest(new | {"attention": "sdpa"})
    assert settings_digest(old) != settings_digest(new | {"tf32": True})
    kept, dropped = new | {"decoder_fp32": True}, new | {"decoder_fp32": False}
    assert settings_digest(kept | {"precision": "fp32"}) == settings_digest(dropped | {"precision": "fp32"})
    assert settings_digest(kept | {"precision": "bf16"}) != settings_digest(dropped | {"precision": "bf16"})
    assert settings_digest(old) != settings_digest(old | {"augment": {"flip": 0.0}})


def test_an_empty_ledger_keeps_its_columns(tmp_path: Path):
    parquet, _ = write_ledger(str(tmp_path), Ledger().rows)
    assert pq.read_table(parquet).column_names[:2] == ["run", "name"]
