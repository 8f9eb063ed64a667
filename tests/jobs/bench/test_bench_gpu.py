"""`make bench-gpu` without a GPU: its smallest form, the floor, and what becomes of variants that fail."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from jobs.bench.gpu import bench as gpu, checks, floor as gpu_floor, step, variants
from jobs.bench.gpu.floor import B16, DENSE, H14, REACHED, Variant, floor
from jobs.bench.gpu.table import check_lines, ratios
from xtra.flops import flops_per_image
from xtra.model import SIZES
from xtra.run.meter import shape_of

SMALL = gpu.Config(
    sizes=("tiny32",), images=2, arm_seconds=0.01, check_steps=2, pictures=16, device="cpu", compile=False, threads=1
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models of this size gain nothing from more, and lose much where others use the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    for k in range(4):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{k}.jpg")
    config = replace(
        SMALL, out=str(folder / "gpu.json"), data=str(folder), seconds=280, only=("checks", "train", "data")
    )
    return gpu.run(config), json.loads((folder / "gpu.json").read_text())


@pytest.mark.slow
def test_the_smallest_form_measures_every_section_and_writes_it(found):
    result, written = found
    assert [row["name"] for row in written["rows"]] == [row["name"] for row in result["rows"]]
    rows = {section: [r for r in result["rows"] if r["section"] == section] for section in ("checks", "train", "data")}
    assert all(row["ok"] for row in rows["checks"] if row["check"] == "attention")
    assert [row for row in rows["checks"] if "low logits" in row["name"]]
    assert {row["check"] for row in rows["checks"]} == {"attention", "fp32, another seed", "bf16, decoder fp32", "bf16"}
    train = {row["name"]: row for row in rows["train"]}
    assert not [row for row in rows["train"] if "failed" in row or "left_out" in row]
    wanted = {"best known", "attention quarters", "4 images", "dropped branches skipped", "all blocks computed"}
    wanted |= {f"official shape, {precision} decoder" for precision in ("fp32", "TF32", "bf16")}
    assert wanted <= train.keys()
    best = train["best known"]
    assert best["step_ms"] >= 0.5 * sum(best["parts_ms"].values())
    assert best["floor_ms"] > 0
    assert best["kernels"] == {"encoder": "flash", "decoder": "flash"}
    assert "cudnn" in best
    assert best["mfu_paper"] is None  # nobody states a CPU's peak
    assert train["4 images"]["images"] == 4
    assert ratios(result["rows"])["tiny32_vs_official_fp32"] > 0
    assert result["ratios"] == {}  # times of a CPU are no result
    (whole,) = [row for row in rows["data"] if row["name"].startswith("end to end")]
    assert whole["images_per_s"] > 0
    assert 0 <= whole["wait_share"] <= 1


@pytest.mark.slow
def test_the_table_has_a_line_for_every_arm(found):
    lines = gpu.tables(found[0]["rows"], {"tiny32_vs_official_fp32": 2.5})
    for name in ("best known", "official shape, TF32 decoder", "optimiser not fused", "decode on the CPU, crops"):
        assert [line for line in lines if line.startswith(name)], name


def test_an_arm_that_fails_is_a_line_and_the_rest_goes_on(monkeypatch, capsys):
    honest = step.measure

    def measure(variant, *rest):
        if variant.shape == "official":
            raise RuntimeError("no kernel\nis here")
        return honest(variant, *rest)

    monkeypatch.setattr(step, "measure", measure)
    monkeypatch.setattr(variants, "groups", lambda *how: [[{"name": "optimiser not fused", "fused": False}]])
    result = gpu.run(replace(SMALL, only=("train",), seconds=60))
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["official shape, fp32 decoder"]["failed"] == "RuntimeError: no kernel is here"
    assert rows["official shape, fp32 decoder"]["size"] == "tiny32"
    assert "step_ms" in rows["optimiser not fused"]
    assert "official shape, fp32 decoder: RuntimeError: no kernel is here" in capsys.readouterr().out


def test_what_has_no_time_left_is_named():
    result = gpu.run(replace(SMALL, only=("train",), seconds=1))
    assert {row.get("left_out") for row in result["rows"] if row["section"] == "train"} == {"no time"}


def test_memory_that_does_not_suffice_halves_the_images(monkeypatch):
    honest, said = step.measure, []

    def measure(variant, *rest):
        if variant.images > 2:
            raise torch.OutOfMemoryError("too much")
        return honest(variant, *rest)

    monkeypatch.setattr(step, "measure", measure)
    cpu = torch.device("cpu")
    model = step.empty_model(SIZES["tiny32"], cpu)
    timing = step.fitting(Variant("eight", images=8, compile="none"), model, cpu, 0.01, said.append)
    assert timing.variant.images == 2
    assert said == [f"  eight: {n} images do not fit in memory, trying {n // 2}" for n in (8, 4)]


def test_an_arm_that_takes_too_long_is_stopped_even_where_a_library_goes_on(monkeypatch):
    monkeypatch.setattr(step, "AGAIN", 0.1)

    def swallows_one() -> None:
        with contextlib.suppress(Exception):
            time.sleep(60)
        time.sleep(60)

    with pytest.raises(TimeoutError, match="more than 0 s"), step.at_most(0.0):
        swallows_one()


def test_a_check_that_breaks_off_does_not_hold(monkeypatch):
    def runs(*how):
        yield checks.row("bf16", "x", 0.0, 1.0)
        raise TimeoutError("took more than 90 s")

    monkeypatch.setattr(checks, "precision_runs", runs)
    monkeypatch.setattr(checks, "implementations", lambda *how: None)
    lines = check_lines(gpu.run(replace(SMALL, only=("checks",), seconds=60))["rows"])
    assert lines[0] == "checks: 1 of 2 hold"
    assert lines[-1] == "  bf16 against fp32: TimeoutError: took more than 90 s"


def test_arms_come_in_the_order_of_what_decides():
    names = [change["name"] for group in variants.groups(64, torch.device("cuda"), compiled=True) for change in group]
    order = ["attention dense-cudnn", "attention flex64", "dropped branches skipped", "128 images", "fp32 decoder"]
    assert sorted(order, key=names.index) == order
    assert names[-1] == order[-1]


def test_interrupted_it_shows_and_writes_what_was_measured(monkeypatch, tmp_path, capsys):
    def sections(bench):
        bench.add("train", {"name": "best known", "size": "tiny32", "failed": "as it may"})
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "_sections", sections)
    assert gpu.main(["--out", str(tmp_path / "gpu.json"), "--commit", "abc", "--no-watched"]) == 130
    assert "as it may" in capsys.readouterr().out
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["commit"] == "abc"
    assert len(written["rows"]) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on importing its compiler
def test_torch_is_set_back_after_an_arm():
    cpu, model = torch.device("cpu"), step.empty_model(SIZES["tiny32"], torch.device("cpu"))
    with step.set_as(Variant("x", decoder="tf32", attention="quarters"), model, cpu):
        assert torch.get_float32_matmul_precision() == "high"
        assert model.decoder.attention == "quarters"
        assert model.encoder.blocks[0]._compiled_call_impl is not None
    assert torch.get_float32_matmul_precision() == "highest"
    assert model.encoder.blocks[0]._compiled_call_impl is None


def test_the_floor_is_of_the_models_that_it_names_and_falls_with_every_saving():
    assert shape_of(SIZES["b16"]) == B16
    assert shape_of(SIZES["h14"]) == H14
    seconds = {
        variant.name: sum(floor(B16, variant, REACHED, ends, 0.2).values())
        for variant, ends in gpu_floor.planned_variants(64)
    }
    best = seconds.pop("best known")
    for cheaper in ("dropped branches skipped", "skipped, tiled attention", "tiled attention"):
        assert seconds.pop(cheaper) <= best
    assert min(seconds.values()) > best
    # Where nothing but products takes time, it is the official code's FLOPs over the peak.
    ideal = replace(REACHED, bf16=1e12, bandwidth=1e30, host=1e30)
    official = Variant("official", "official", images=3)
    assert sum(floor(H14, official, ideal, DENSE, 0.2).values()) == pytest.approx(3 * flops_per_image(H14) / 1e12)


def test_bad_settings_are_one_line(capsys, tmp_path):
    assert gpu.main(["--out", str(tmp_path / "none" / "gpu.json")]) == 2
    assert capsys.readouterr().err.endswith("gpu.json', which cannot be written: No such file or directory\n")
    assert gpu.main(["--sizes", "b15"]) == 2
    assert "sizes has 'b15'; each must be one of tiny32" in capsys.readouterr().err
    assert gpu.main(["--stage", "4"]) == 2
    assert "stage is 4; it must be 1, 2 or 3" in capsys.readouterr().err
    assert gpu.parse(["--only", "train", "--no-compile", "--seconds", "9"]) == gpu.Config(
        only=("train",), compile=False, seconds=9.0
    )


def test_it_asks_for_no_library_beyond_torch_pillow_numpy_and_pyarrow():
    """On machines where nothing can be installed."""
    with mock.patch.dict(sys.modules):
        for name in [name for name in sys.modules if name.split(".")[0] in ("jobs", "xtra", "shards", "ingest")]:
            del sys.modules[name]
        for name in (
            "ray",
            "tyro",
            "safetensors",
            "s3fs",
            "pycurl",
            "webdataset",
            "tqdm",
            "matplotlib",
            "rich",
        ):
            sys.modules[name] = None  # pyrefly: ignore
        parts = (
            "variants",
            "record",
            "bench",
            "bundle",
            "checks",
            "data",
            "floor",
            "kernels",
            "loop",
            "profiled",
            "step",
            "table",
        )
        for part in (*parts, "watch"):
            importlib.import_module(f"jobs.bench.gpu.{part}")
        importlib.import_module("jobs.bench.gpu_table")
        assert importlib.import_module("jobs.bench.gpu").run is not gpu.run
