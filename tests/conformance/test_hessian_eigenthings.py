"""Agreement with hessian-eigenthings, where it is right: means over batches of one size.

It is not a dependency of the tests: install ``hessian-eigenthings`` to run these.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvops
from tests import cases

peer = pytest.importorskip(
    "hessian_eigenthings", reason="hessian-eigenthings (extra `bench`) is not installed"
)

pytestmark = pytest.mark.filterwarnings("ignore")


def _problem(loss_name: str) -> tuple[nn.Module, nn.Module, list[Any]]:
    with cases.seeded(0):
        model = cases.mlp(3, 4, 3).double()
    model.load_state_dict(cases.perturbed(model))
    loss, y = {
        "ce": (nn.CrossEntropyLoss(), cases.randint(3, 8, seed=2)),
        "mse": (nn.MSELoss(), cases.randn(8, 3, seed=2)),
    }[loss_name]
    return model, loss, cases.cut(cases.randn(8, 3, seed=1), y, (4, 4))


def _check(ours: Any, theirs: Any) -> None:
    x = cases.randn(ours.shape[1], 3, seed=3)
    expected = torch.stack([theirs @ column for column in x.T], dim=1).detach()
    assert expected.abs().max() > 1e-3
    cases.assert_matches(ours @ x, expected)


@pytest.mark.parametrize("loss_name", ["ce", "mse"])
def test_hessian(loss_name: str) -> None:
    model, loss, data = _problem(loss_name)
    ours = curvops.HessianLinearOperator(model, loss, model, data, **cases.UNMERGED)
    _check(ours, peer.HessianOperator(model, data, peer.supervised_loss(loss)))


@pytest.mark.parametrize("loss_name", ["ce", "mse"])
def test_ggn(loss_name: str) -> None:
    model, loss, data = _problem(loss_name)
    ours = curvops.GGNLinearOperator(model, loss, model, data, **cases.UNMERGED)
    theirs = peer.GGNOperator(
        model, data, peer.supervised_forward, peer.supervised_loss_of_output(loss)
    )
    _check(ours, theirs)


def test_empirical_fisher() -> None:
    model, loss, data = _problem("ce")
    ours = curvops.EFLinearOperator(model, loss, model, data, **cases.UNMERGED)

    def per_sample(prediction: Tensor, y: Tensor) -> Tensor:
        return loss(prediction, y)

    theirs = peer.EmpiricalFisherOperator(model, data, peer.supervised_per_sample_loss(per_sample))
    _check(ours, theirs)
