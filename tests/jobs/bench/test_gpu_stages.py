"""`make bench-gpu STAGE=1|2|3` at a tiny size: bare environment, limits from outside, its tables and its bundle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from places import ROOT

from jobs.bench import gpu_table
from jobs.bench.gpu import bundle, profiled, record, watch
from jobs.bench.gpu.floor import Variant

TINY = ["--device", "cpu", "--images", "2", "--arm-seconds", "0.01", "--check-steps", "2", "--pictures", "16"]
# What a process is given before anything else: no library but torch, Pillow, numpy and pyarrow, and what these need.
BARE = """
import sys
for name in ("ray", "tyro", "safetensors", "s3fs", "pycurl", "webdataset", "tqdm", "matplotlib", "rich", "torchvision",
             "boto3", "aiohttp", "timm", "nvidia"):
    sys.modules[name] = None
"""


def stage(number: int, out: Path, *words: str, before: str = "") -> dict:
    """Run a stage in a bare environment: the process that watches and those that it starts."""
    site = out.parent / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BARE + before)
    path = os.pathsep.join([str(site), str(ROOT)])
    command = [sys.executable, "-m", "jobs.bench.gpu", "--stage", str(number), "--out", str(out), *TINY, *words]
    environment = os.environ | {"PYTHONPATH": path}  # and another folder: a bundle of this tree has no part in it
    done = subprocess.run(command, cwd=out.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.timeout(1200)  # several processes, each of which imports torch
def test_every_stage_runs_in_a_bare_environment_and_its_tables_are_made(tmp_path):
    results = [stage(number, tmp_path / f"{number}.json", "--threads", "1", "--seconds", "250") for number in (1, 2, 3)]
    for number, found in enumerate(results, 1):
        assert {row["section"] for row in found["rows"]} == {"machine", *record.STAGES[number]}
        assert (tmp_path / f"{number}.json").stat().st_size < 1 << 20
        assert not (tmp_path / f"{number}.json.doing").exists()
        print(f"stage {number}: {found['seconds']} s, {(tmp_path / f'{number}.json').stat().st_size:,} bytes")
    failed = {(row["section"], row["name"]) for found in results for row in found["rows"] if "failed" in row}
    assert {section for section, _ in failed} <= {"kernels", "loop", "data"}
    assert {"2 x 2 x 48 x 8, cudnn", "2 x 2 x 48 x 8, efficient"} >= {n for s, n in failed if s == "kernels"}
    lost = [row["failed"] for row in results[2]["rows"] if row["section"] == "loop" and "failed" in row]
    assert all("safetensors" in why for why in lost)
    assert len(lost) == 9
    (dense, *_) = [row for row in results[1]["rows"] if row["section"] == "profile"]
    assert dense["launches"] > 100
    assert {"attention", "products", "elementwise"} <= dense["kinds_ms"].keys()
    page = tmp_path / "page.md"
    page.write_text(f"# Speed\n\n{gpu_table.BEGIN}\nobsolete\n{gpu_table.END}\n\nThe rest.\n")
    files = [str(tmp_path / f"{number}.json") for number in (1, 2, 3)]
    assert gpu_table.main([*files, "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("# Speed\n")
    assert text.endswith("\n\nThe rest.\n")
    assert "obsolete" not in text
    for part in ("Checks: ", "**tiny32: one training step**", "**Attention, forward and backward**", "wait share"):
        assert part in text
    assert [line for line in text.splitlines() if line.startswith("| attention dense-cudnn |") and "flash" in line]


@pytest.mark.slow
def test_what_no_signal_stops_is_ended_from_outside_and_the_rest_goes_on(tmp_path):
    """A row that hangs in C, with signals blocked; and one that ends its process."""
    before = """
import os, signal, time
def measure(shape, kernel, *rest):
    if kernel == "cudnn":
        os._exit(3)
    if kernel == "efficient":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
        time.sleep(600)
    return honest(shape, kernel, *rest)
if "--no-watched" in sys.orig_argv:
    from jobs.bench.gpu import kernels, record
    honest, kernels.measure, record.ARM, record.SHARE = kernels.measure, measure, 20.0, 0.0
elif "jobs.bench.gpu" in sys.orig_argv:
    from jobs.bench.gpu import watch
    watch.GRACE = 1.0
"""
    found = stage(1, tmp_path / "1.json", "--only", "kernels", "--seconds", "200", before=before)
    rows = {row["name"].split(", ", 1)[-1]: row for row in found["rows"]}
    assert rows["cudnn"]["failed"] == "its process ended with 3"
    assert rows["efficient"]["failed"].startswith("ended from outside after ")
    assert rows["math"]["ms"] > 0
    names = [row["name"] for row in found["rows"]]
    assert len(names) == len(set(names))


def test_a_row_that_is_to_be_alone_asks_for_a_process_of_its_own(tmp_path):
    config = record.settled(record.Config(out=str(tmp_path / "a.json"), device="cpu", watched=False, seconds=100))
    started = 0

    def process() -> record.Bench:
        nonlocal started
        started += 1
        one = record.Bench(config, record.torch.device("cpu"), rows=record.rows_of(config.out))
        for name in ("first", "alone", "last"):
            one.attempt("train", name, lambda: {"process": started}, alone=name == "alone")
        return one

    for _ in range(2):
        with pytest.raises(record.StartAgain):
            process()
    assert [row["process"] for row in process().rows] == [1, 2, 3]


def test_a_process_that_ends_at_once_is_not_started_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(watch.sys, "executable", "/bin/false")
    with pytest.raises(ValueError, match="ends before its first row"):
        watch.run(record.Config(out=str(tmp_path / "x.json"), device="cpu"), [])


def test_the_best_arm_is_found_in_rows_of_earlier_processes():
    from dataclasses import asdict

    from jobs.bench.gpu.variants import best_of

    def row(ms: float, **changes) -> dict:
        variant = Variant("x", **changes)
        return {
            "section": "train",
            "size": "b16",
            "name": "x",
            "arm": asdict(variant),
            "step_ms": ms,
            "images": variant.images,
        }

    rows = [row(10), row(9.95), row(8, dropped="subset"), row(7, decoder="tf32"), row(6, shape="official")]
    assert best_of(rows, "b16").image == 10 / 128
    faster = [*rows, row(9, attention="dense-cudnn"), {"section": "train", "size": "b16", "name": "y", "failed": "z"}]
    assert best_of(faster, "b16").variant.attention == "dense-cudnn"
    assert best_of(rows, "h14") is None


def test_the_bundle_has_what_must_travel_and_is_used_where_it_is(tmp_path, monkeypatch):
    wheels, vectors = tmp_path / "wheels", tmp_path / "vectors"
    wheels.mkdir()
    vectors.mkdir()
    (vectors / "case.json").write_text("{}")
    with zipfile.ZipFile(wheels / "found-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("found_in_the_bundle.py", "value = 7\n")
    (tmp_path / "photos.tar").write_bytes(b"tar")
    native = tmp_path / "native"
    native.mkdir()
    (native / "_crop-x.so").write_bytes(b"made")
    monkeypatch.setattr(bundle, "NATIVE", native)
    monkeypatch.setattr(bundle, "SITE", tmp_path / "site")
    folder = tmp_path / ".gpu"
    files = dict(bundle.make(folder, str(vectors), str(tmp_path / "photos.tar"), str(wheels)))
    assert files.keys() >= {"_crop-x.so", "commit", "vectors/case.json", "photos.tar", "found-1-py3-none-any.whl"}
    (native / "_crop-x.so").unlink()
    (folder / "commit").write_text("0123456789ab\n")
    added = bundle.environment(folder)
    assert added["XTRA_COMMIT"] == "0123456789ab"
    assert (native / "_crop-x.so").read_bytes() == b"made"
    assert added["LD_LIBRARY_PATH"].startswith(str(folder))
    say = [sys.executable, "-c", "import found_in_the_bundle as it; print(it.value)"]
    assert subprocess.run(say, env=os.environ | added, capture_output=True, text=True).stdout == "7\n"
    monkeypatch.setattr(bundle, "LIMIT", 3)
    with pytest.raises(ValueError, match=r"above 0 MiB; the largest: "):
        bundle.make(folder, str(vectors), "", str(wheels))
    with pytest.raises(ValueError, match="none does not exist"):
        bundle.make(folder, "none", "", str(wheels))
    assert bundle.environment(tmp_path / "nothing") == {}


def test_kernels_are_sorted_by_what_they_do():
    kinds = {
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64": "products",
        "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT": "products",
        "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16": "attention",
        "fmha_cutlassF_bf16_aligned_64x128_rf_sm80": "attention",
        "triton_tem_fused_flex_attention_backward_0": "attention",
        "triton_per_fused_add_native_layer_norm_3": "elementwise",
        "Memcpy HtoD (Pinned -> Device)": "copies",
        "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>": "optimiser",
    }
    assert {name: profiled.kind(name) for name in kinds} == kinds


def test_a_file_that_is_no_result_and_a_page_without_marks_are_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text("[]")
    assert gpu_table.main([str(tmp_path / "x.json")]) == 2
    assert "is not a result of make bench-gpu" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no lines <!-- measured: begin -->"):
        gpu_table.put([], page)


def test_the_page_has_the_predictions_that_the_measured_table_shows():
    text = (ROOT / "docs/perf.md").read_text()
    for name, numbers in gpu_table.PREDICTED.items():
        assert f"| {name} | {' | '.join(map(str, numbers))} |" in text, name
    assert text.index(gpu_table.BEGIN) < text.index(gpu_table.END)
