"""The truth is true: dense derivatives against finite differences and each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import cases, truth


def _central_differences(fn, theta: Tensor, step: float = 1e-5) -> Tensor:
    columns = []
    for i in range(len(theta)):
        e = step * truth.one_hot(i, len(theta))
        columns.append((fn(theta + e) - fn(theta - e)) / (2 * step))
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("name", cases.NAMES)
def test_derivatives_against_finite_differences(name: str) -> None:
    dense = cases.make(name, "mean").truth
    gradient = _central_differences(dense.loss_at, dense.theta)
    torch.testing.assert_close(dense.gradient(), gradient, rtol=1e-6, atol=1e-8)
    gradient_at = torch.func.grad(dense.loss_at)
    hessian = _central_differences(gradient_at, dense.theta)
    torch.testing.assert_close(dense.hessian(), hessian, rtol=1e-5, atol=1e-7)
    jacobian = _central_differences(
        lambda theta: dense.prediction_at(theta).reshape(-1), dense.theta
    )
    torch.testing.assert_close(dense.jacobian(), jacobian, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", cases.NAMES)
def test_two_ways_to_the_hessian(name: str) -> None:
    dense = cases.make(name, "sum").truth
    torch.testing.assert_close(
        dense.hessian(), dense.hessian_by_double_backward(), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("name", ["mse", "mse-sequence"])
def test_hessian_is_ggn_plus_residual_curvature(name: str) -> None:
    # d^2 L = J^T (d^2 l) J + sum_i (dl/df_i) d^2 f_i
    dense = cases.make(name, "mean").truth
    prediction = dense.prediction().requires_grad_()
    (slope,) = torch.autograd.grad(dense.loss_of(prediction), prediction)
    residual = torch.func.hessian(lambda theta: (dense.prediction_at(theta) * slope).sum())(
        dense.theta
    )
    torch.testing.assert_close(dense.hessian(), dense.ggn() + residual, rtol=1e-10, atol=1e-12)


def test_sum_is_normalizer_times_mean() -> None:
    # 8 data, 2 outputs: the normaliser of MSE is 16
    mean, total = cases.make("mse", "mean").truth, cases.make("mse", "sum").truth
    torch.testing.assert_close(total.hessian(), 16 * mean.hessian())
    # weights of the unmasked targets of the weighted, masked classification
    case = cases.make("ce-weight-mask", "mean")
    y = torch.cat([y for _, y in case.batches])
    normalizer = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)[y[y >= 0]].sum()
    total = cases.make("ce-weight-mask", "sum").truth
    torch.testing.assert_close(total.hessian(), normalizer * case.truth.hessian())


def test_cases_are_perturbed_ragged_and_masked() -> None:
    for name in cases.NAMES:
        case = cases.make(name)
        own = dict(case.model.named_parameters())
        assert list(own) == list(case.params)
        assert all((own[n] - p).abs().max() > 0.01 for n, p in case.params.items())
        assert [len(y) for _, y in case.batches] == list(cases.SIZES)
        assert case.dim < 60
    for name in ("ce-weight-mask", "ce-sequence"):
        case = cases.make(name)
        _, y = case.batches[1]
        assert (y == case.loss.ignore_index).all()
