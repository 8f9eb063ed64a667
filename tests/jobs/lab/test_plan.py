"""`xtra plan`: arithmetic that can be checked by hand, and docs/costs.md."""

from __future__ import annotations

import json
import math
import re

import made_ledgers
import pytest
from places import ROOT

from jobs import cli
from jobs.lab import plan


def test_the_papers_h14_run() -> None:
    """629,900 steps of 2,088 images: 1,442 EFLOP, 405 H100-hours at the stated peak."""
    found = plan.run(plan.Config("h14_in21k_as_run", price=2.0, gpus=8, mfu=1.0))
    assert (found.training.samples, found.training.steps) == (629_900 * 2_088, 629_900)
    assert found.training.flops == pytest.approx(1442e18, rel=1e-3)
    assert found.training.gpu_hours == pytest.approx(405, rel=1e-3)
    assert found.training.hours == pytest.approx(405 / 8, rel=1e-3)
    assert found.training.money == pytest.approx(2 * found.training.gpu_hours)
    assert found.training.images_a_second == pytest.approx(8 * 902, rel=1e-3)
    half = plan.run(plan.Config("h14_in21k_as_run", price=2.0, gpus=16, mfu=0.5))
    assert half.training.money == pytest.approx(2 * found.training.money)
    assert half.training.hours == pytest.approx(found.training.hours)


def test_the_buckets_part() -> None:
    found = plan.run(plan.Config("b16_in1k", price=2.0, images=1_000_000, image_bytes=100_000, months=2.0))
    store = found.store
    assert store is not None
    assert store.dataset_gb == pytest.approx(100)
    assert store.checkpoints_gb == pytest.approx(2 * 300_053_248 * 12 / 1e9)
    assert store.months == pytest.approx(2 + found.training.hours / 730)
    assert store.storage == pytest.approx((100 + store.checkpoints_gb) * store.months * 0.023)
    assert store.read_gb == pytest.approx(found.training.samples * 1e5 / 1e9)
    assert store.egress == pytest.approx(store.read_gb * 0.09)
    assert store.egress_once == pytest.approx(100 * 0.09)
    assert store.gets == math.ceil(found.training.samples / 16 * 2.1)
    assert found.total == pytest.approx(found.training.money + store.storage + store.requests)
    assert plan.run(plan.Config("demo32", price=1.0)).store is None


def test_an_ingest_of_links() -> None:
    found = plan.run(plan.Config("h14_in21k", price=0.0, links=14_200_000, kept=0.5, image_bytes=100_000))
    ingest = found.ingest
    assert ingest is not None
    assert ingest.kept == 7_100_000
    assert ingest.fetched_gb == pytest.approx(710)
    assert ingest.core_hours == pytest.approx(14_200 / 3600)
    units = -(-14_200_000 // 10_240)
    assert ingest.puts == units * (3 + 31), "a tar of 512 MB goes up in parts of 16 MiB"
    assert ingest.month == pytest.approx(710 * 0.023)


def test_what_the_next_doubling_buys(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = made_ledgers.rows("x", noise=0.001)
    ledger = made_ledgers.write(tmp_path / "ledger.csv", rows)
    assert cli.main(["plan", "demo32", "--price", "1", "--ledger", ledger, "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert max(map(len, text)) <= 80
    (doubling,) = json.loads(last)["doublings"]
    truth = 6.0 * (64_000**-0.35 - 128_000**-0.35)
    assert doubling["samples"] == 64_000
    assert doubling["low"] < truth < doubling["high"]
    assert doubling["points"] == pytest.approx(truth, abs=0.003)
    assert any("64,000 more samples" in line for line in text)


MISTAKES = [
    (["b16_in1"], "recipe 'b16_in1' is unknown; did you mean b16_in1k?"),
    (["b16_in1k", "--gpu", "abacus"], "--gpu abacus: its peak is unknown"),
    (["b16_in1k", "--mfu", "40"], "mfu is 40; it must be above 0 and at most 1"),
    (["b16_in1k", "--gpus", "0"], "gpus is 0; it must be above 0"),
    (["b16_in1k", "--storage-price", "-1"], "storage_price is -1; it must be 0 or more"),
    (["b16_in1k", "--ledger", "nowhere.csv"], "nowhere.csv: cannot be read"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_a_mistake_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *words, "--price", "1"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert message in said.err


def test_a_price_must_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "b16_in1k"]) == 2
    assert "--price must be given" in capsys.readouterr().err


def test_the_page_of_costs_is_what_the_commands_print() -> None:
    page = (ROOT / "docs" / "costs.md").read_text()
    blocks = re.findall(r"```\n(\$ xtra plan .*?)```", page, re.S)
    assert len(blocks) == 3
    assert all(block.count("\n") > 10 for block in blocks)
    assert plan.rewritten(page) == page
