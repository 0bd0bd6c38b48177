"""The GGN product against BackPACK's, an independent implementation."""

from __future__ import annotations

import copy

import pytest
import torch
from backpack.hessianfree.ggnvp import ggn_vector_product
from backpack.hessianfree.hvp import hessian_vector_product
from torch import Tensor, nn

from curvops import GGNLinearOperator, HessianLinearOperator
from tests import cases

MODELS = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 3)), cases.randn(8, 4, seed=1)),
    "mlp": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 3)
        ),
        cases.randn(8, 4, seed=1),
    ),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 2), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
        ),
        cases.randn(8, 1, 5, 5, seed=1),
    ),
}
LOSSES = {
    "ce": (nn.CrossEntropyLoss, cases.randint(3, 8, seed=2)),
    "mse": (nn.MSELoss, cases.randn(8, 3, seed=2)),
    "bce": (nn.BCEWithLogitsLoss, cases.randint(2, 8, 3, seed=2).double()),
}


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("loss_name", LOSSES)
@pytest.mark.parametrize("model_name", MODELS)
def test_products(model_name: str, loss_name: str, reduction: str) -> None:
    make, X = MODELS[model_name]
    make_loss, y = LOSSES[loss_name]
    with cases.seeded(0):
        model = make().double()
    params, loss = cases.perturbed(model), make_loss(reduction=reduction)
    # BackPACK evaluates a module where it stands: on a copy, moved to the perturbed values
    moved = copy.deepcopy(model)
    moved.load_state_dict(params)
    v = [cases.randn(*p.shape, seed=i) for i, p in enumerate(params.values())]

    problem = (model, loss, params, cases.cut(X, y))
    ours = GGNLinearOperator(*problem, **cases.UNMERGED) @ v
    output = moved(X)
    theirs = ggn_vector_product(loss(output, y), output, moved, v)
    _assert_same(ours, theirs)

    ours = HessianLinearOperator(*problem, **cases.UNMERGED) @ v
    theirs = hessian_vector_product(loss(moved(X), y), list(moved.parameters()), v)
    _assert_same(ours, theirs)


def _assert_same(ours: list[Tensor], theirs: tuple[Tensor, ...]) -> None:
    assert len(ours) == len(theirs)
    assert max(t.abs().max() for t in theirs) > 1e-3
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-10, atol=1e-12)
