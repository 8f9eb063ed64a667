"""The papers' numbers stand as they were printed."""

import pytest

from ingest.sets.benchmarks import BENCHMARKS
from jobs.report import published


@pytest.mark.parametrize("row", published.ATTENTIVE, ids=lambda row: f"{row.method} {row.arch}")
def test_the_mean_of_a_row_is_its_printed_average(row):
    if row.accuracy:
        assert list(row.accuracy) == list(BENCHMARKS)
        assert sum(row.accuracy.values()) / 15 == pytest.approx(row.average, abs=0.00051)
    else:
        assert row.average == 0.745, "AIM-0.6B on DFN-2B: its table gives the average alone"


def test_xtras_own_rows():
    (huge,) = [row for row in published.ATTENTIVE if row.method == "XTRA"]
    assert (huge.accuracy["imagenet1k"], huge.accuracy["rxrx1"], huge.average) == (0.809, 0.057, 0.762)
    base = {row.epochs: (row.linear, row.attentive) for row in published.IMAGENET if row.method == "XTRA"}
    assert base == {300: (0.661, 0.743), 800: (0.702, 0.768)}


def test_figure_1_by_unique_images_and_by_samples_seen():
    """152 times fewer unique images are 1.5 times fewer samples seen: XTRA saw each image 100 times."""
    xtra, aim = published.FIGURE_1
    found = published.efficiency(xtra, aim)
    assert round(found.unique_images) == 152
    assert round(found.samples_seen, 1) == 1.5
    assert xtra.epochs == pytest.approx(100, abs=0.1)
    assert aim.epochs == 1
    assert xtra.average == next(row.average for row in published.ATTENTIVE if row.method == "XTRA")
    assert aim.average == next(row.average for row in published.ATTENTIVE if row.data == "DFN-2B")
    assert published.efficiency(aim, xtra).unique_images == pytest.approx(1 / found.unique_images)
