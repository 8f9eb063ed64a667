"""xtra bench gpu-decode: one line where there is no GPU; every variant where there is a decoder."""

import pytest
import torch
from made_datasets import make_dataset

from jobs import cli
from jobs.bench import gpu_decode


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(capsys):
    assert cli.main(["bench", "gpu-decode", "--data", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no GPU to measure" in line


def test_every_arm_is_measured(tmp_path):
    """On nvImageCodec's own CPU decoder."""
    pytest.importorskip("nvidia.nvimgcodec", reason="the extra gpu is not installed")
    data = make_dataset(tmp_path, [12]).dataset
    config = gpu_decode.Config(
        data, images=12, size=16, batches=(4,), libraries=("nvimgcodec",), seconds=0.1, device="cpu"
    )
    found = gpu_decode.run(config)
    assert [(row["shown"], row["callers"]) for row in found["rows"]] == [
        ("crop", 1),
        ("crop", 2),
        ("whole", 1),
        ("whole", 2),
    ]
    assert all(row["refused"] == 0 and row["images_per_s"] > 0 for row in found["rows"])
    assert found["ratios"]["nvimgcodec_psnr_db"] > 50
