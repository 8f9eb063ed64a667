"""Encoders of every origin under one face."""

import pytest
import torch

from xtra.data import MEAN, STD
from xtra.encoders import of_xtra
from xtra.model import SIZES, build


def test_our_own_encoder_shows_its_streams():
    encoder = build(SIZES["tiny32"], seed=0).encoder
    frozen = of_xtra(encoder, "mine")
    assert (frozen.name, frozen.image, frozen.tokens, frozen.width, frozen.depth) == ("mine", 32, 64, 64, 2)
    assert (frozen.mean, frozen.std) == (MEAN, STD)
    images = torch.randn(2, 3, 32, 32)
    for ours, theirs in zip(frozen.to("cpu").layers(images, 2), encoder.layers(images, 2)):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match="layers is 3"):
        frozen.layers(images, 3)
