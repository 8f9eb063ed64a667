"""Quick probes against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from xtra.probe import knn_logreg


def blobs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three overlapping clouds of different scales."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (count,), generator=draw)
    centres = torch.tensor([[3.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 1.0], [-2.0, -2.0, 1.0, 1.0]], dtype=torch.float64)
    noise = torch.randn(count, 4, generator=draw, dtype=torch.float64)
    return (centres[label] + 1.5 * noise) * torch.tensor([1.0, 1.0, 50.0, 0.01]).double() + 0.1, label


def test_neighbours_vote_by_similarity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn_logreg, "_AT_ONCE", 7)  # many pieces of the training set
    (train, label), (x, _) = blobs(50, 0), blobs(20, 1)
    votes = knn_logreg.Neighbours(train, label, 3, (1, 5, 20, 51))(x)
    assert votes.shape == (3, 20, 3), "more neighbours than images is no point of the grid"
    for b in range(20):
        similar = F.cosine_similarity(x[b : b + 1], train)
        order = similar.argsort(descending=True)
        for g, k in enumerate((1, 5, 20)):
            expected = torch.zeros(3, dtype=torch.float64)
            for n in order[:k]:
                expected[label[n]] += ((similar[n] - similar[order[0]]) / knn_logreg.TEMPERATURE).exp()
            assert torch.allclose(votes[g, b], expected), (b, k)
    with pytest.raises(ValueError, match="knn is 60 70, but only 50 images train"):
        knn_logreg.Neighbours(train, label, 3, (60, 70))


def test_logistic_regression_is_the_minimum_for_each_strength() -> None:
    train, label = blobs(200, 0)
    strengths = (1.0, 1e-3, 1e-1)  # in any order
    found = knn_logreg.Logistic(train, label, 3, strengths)
    standard = (train - train.mean(0)) / train.std(0, correction=0)
    for strength, weight, bias in zip(strengths, found.weight_GCD, found.bias_GC):
        weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        loss = (
            strength * F.cross_entropy(standard @ weight.T + bias, label, reduction="sum") + weight.square().sum() / 2
        )
        (slope_weight, slope_bias) = torch.autograd.grad(loss, (weight, bias))
        assert max(slope_weight.abs().max(), slope_bias.abs().max()) < 1e-3 * strength * 200
    norms = found.weight_GCD.flatten(1).norm(dim=1)
    assert norms[1] < norms[2] < norms[0], "stronger regularisation, smaller weights"
    x, wanted = blobs(500, 1)
    assert (found(x).argmax(-1) == wanted).double().mean(1)[0] > 0.75
