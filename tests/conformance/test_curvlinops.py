"""Agreement with curvlinops, where it is right: batches of one size, losses that average data.

It is not a dependency of the tests: install ``curvlinops-for-pytorch`` to run these.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import curvops
from tests import cases

curvlinops = pytest.importorskip(
    "curvlinops", reason="curvlinops-for-pytorch (extra `bench`) is not installed"
)

# The peer trips over deprecations in torch, which are not ours to fix.
pytestmark = pytest.mark.filterwarnings("ignore")


def _problem(loss_name: str, reduction: str) -> tuple[Any, ...]:
    with cases.seeded(0):
        model = cases.mlp(3, 4, 3).double()
    # the peer evaluates the module where it stands: put it where the case is
    model.load_state_dict(cases.perturbed(model))
    loss, y = {
        "ce": (nn.CrossEntropyLoss, cases.randint(3, 8, seed=2)),
        "mse": (nn.MSELoss, cases.randn(8, 3, seed=2)),
        "bce": (nn.BCEWithLogitsLoss, cases.randint(2, 8, 3, seed=2).double()),
    }[loss_name]
    data = cases.cut(cases.randn(8, 3, seed=1), y, (4, 4))
    return model, loss(reduction=reduction), list(model.parameters()), data


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
@pytest.mark.parametrize("name", ["HessianLinearOperator", "GGNLinearOperator", "EFLinearOperator"])
def test_curvatures(name: str, loss: str, reduction: str) -> None:
    problem = _problem(loss, reduction)
    theirs = getattr(curvlinops, name)(*problem)
    ours = getattr(curvops, name)(*problem, **cases.UNMERGED)
    assert tuple(ours.shape) == tuple(theirs.shape)
    eye = torch.eye(ours.shape[1], dtype=torch.float64)
    expected = theirs @ eye
    assert expected.abs().max() > 1e-3
    cases.assert_matches(ours @ eye, expected.detach())

    blocks = [cases.randn(*p.shape, 2, seed=i) for i, p in enumerate(problem[2])]
    for mine, other in zip(ours @ blocks, theirs @ blocks, strict=True):
        cases.assert_matches(mine, other.detach())


@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
@pytest.mark.parametrize("loss", ["ce", "mse", "bce"])
def test_monte_carlo_fishers_have_the_same_mean(loss: str, reduction: str) -> None:
    """Other random numbers, so only their means can agree: within four standard errors."""
    problem = _problem(loss, reduction)
    seeds, options = 60, {"mc_samples": 8, "check_deterministic": False}
    dim = sum(p.numel() for p in problem[2])
    u = torch.linspace(-1, 1, dim, dtype=torch.float64)

    def forms(library: Any) -> torch.Tensor:
        kind = library.FisherMCLinearOperator
        return torch.stack([u @ (kind(*problem, seed=s, **options) @ u) for s in range(seeds)])

    ours, theirs = forms(curvops), forms(curvlinops)
    stderr = ((ours.var() + theirs.var()) / seeds).sqrt()
    assert (ours.mean() - theirs.mean()).abs() < 4 * stderr
    assert stderr < 0.05 * theirs.mean()


def test_jacobians() -> None:
    model, _, params, data = _problem("ce", "mean")
    theirs = curvlinops.JacobianLinearOperator(model, params, data)
    ours = curvops.JacobianLinearOperator(model, params, data)
    assert tuple(ours.shape) == tuple(theirs.shape)
    eye = torch.eye(ours.shape[1], dtype=torch.float64)
    cases.assert_matches(ours @ eye, (theirs @ eye).detach())
    transposed = curvlinops.TransposedJacobianLinearOperator(model, params, data)
    eye = torch.eye(transposed.shape[1], dtype=torch.float64)
    mine = curvops.TransposedJacobianLinearOperator(model, params, data)
    cases.assert_matches(mine @ eye, (transposed @ eye).detach())


def test_scipy_exports() -> None:
    problem = _problem("ce", "mean")
    x = cases.randn(31, seed=3).numpy()
    ours = curvops.GGNLinearOperator(*problem).to_scipy()
    theirs = curvlinops.GGNLinearOperator(*problem).to_scipy()
    assert ours.shape == theirs.shape == (31, 31)
    assert ours.dtype == theirs.dtype
    cases.assert_matches(torch.from_numpy(ours @ x), torch.from_numpy(theirs @ x))
