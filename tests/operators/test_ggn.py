"""The generalised Gauss-Newton matrix against ``J^T (d^2 l) J`` and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, GGNLinearOperator, HessianLinearOperator
from tests import cases, truth
from tests.operators.properties import check_formats, check_matrix, recut


def test_against_dense(case: cases.Case) -> None:
    operator = GGNLinearOperator(*case.args, **cases.UNMERGED)
    check_matrix(operator, case.truth.ggn(), case)


@pytest.mark.parametrize("name", ["ce-sequence", "mse"])
def test_formats_and_columns(name: str, reduction: str, dtype: torch.dtype) -> None:
    case = cases.make(name, reduction, dtype)
    operator = GGNLinearOperator(*case.args, **cases.UNMERGED)
    check_formats(operator, case.truth.ggn(), case)


def test_from_risk_is_the_same_operator(case64: cases.Case) -> None:
    risk = EmpiricalRisk(*case64.args)
    operator = GGNLinearOperator.from_risk(risk)
    assert operator.risk is risk
    check_matrix(operator, case64.truth.ggn(), case64)


def test_tagged_positive_semidefinite_and_is(case64: cases.Case) -> None:
    operator = GGNLinearOperator(*case64.args)
    eigenvalues = torch.linalg.eigvalsh(operator.to_dense())
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
    if case64.name != "huber":
        assert operator.POSITIVE_SEMIDEFINITE is True


def test_a_nonconvex_loss_has_an_indefinite_ggn() -> None:
    """The GGN is defined for every loss; it is semi-definite only where the loss is convex."""

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return torch.cos(prediction - y).sum()

    case = cases.make("mse")
    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
    eigenvalues = torch.linalg.eigvalsh(dense.ggn())
    assert eigenvalues[0] < -0.1
    assert eigenvalues[-1] > 0.1
    operator = GGNLinearOperator(
        case.model, loss, case.params, case.batches, reduction="sum", **cases.UNMERGED
    )
    assert operator.POSITIVE_SEMIDEFINITE is False
    cases.assert_matches(operator.to_dense(), dense.ggn())


def test_a_loss_that_couples_the_outputs_of_a_datum(reduction: str) -> None:
    """No closed form, not separable over outputs: autograd has to find the output Hessian."""

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        each = ((prediction.pow(2).sum(1) + 1).sqrt() * y.sum(1)).exp()
        return each.mean() if reduction == "mean" else each.sum()

    case = cases.make("mse", reduction)
    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
    operator = GGNLinearOperator(
        case.model, loss, case.params, case.batches, reduction=reduction, **cases.UNMERGED
    )
    cases.assert_matches(operator.to_dense(), dense.ggn())


def test_a_loss_that_couples_the_data_of_a_batch() -> None:
    """A contrastive loss: every datum against every other, within the user's batches."""

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        similarity = prediction @ y.T
        return -similarity.log_softmax(1).diagonal().sum()

    case = cases.make("mse")
    expected = torch.zeros(case.dim, case.dim, dtype=torch.float64)
    hessian = torch.zeros_like(expected)
    for batch in case.batches:
        dense = truth.Dense(truth.module_predict(case.model), loss, case.params, [batch])
        expected += dense.ggn()
        hessian += dense.hessian()
    problem = (case.model, loss, case.params, case.batches)
    ggn = GGNLinearOperator(*problem, reduction="sum", merge_batches="auto")
    cases.assert_matches(ggn.to_dense(), expected)
    operator = HessianLinearOperator(*problem, reduction="sum", merge_batches="auto")
    cases.assert_matches(operator.to_dense(), hessian)


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (5, 3), (2, 6)])
def test_the_cut_and_the_order_do_not_matter(sizes: tuple[int, ...], reduction: str) -> None:
    case = cases.make("ce-weight-mask", reduction)
    order = torch.randperm(8, generator=cases.rng(3))
    data = recut(case, sizes, order)
    operator = GGNLinearOperator(case.model, case.loss, case.params, data, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), case.truth.ggn())


def test_weight_decay_adds_its_identity(reduction: str) -> None:
    case = cases.make("bce-pos-weight", reduction)
    operator = GGNLinearOperator(*case.args, weight_decay=0.3)
    eye = torch.eye(case.dim, dtype=torch.float64)
    cases.assert_matches(operator.to_dense(), case.truth.ggn() + 0.3 * eye)


def test_follows_parameters_updated_in_place() -> None:
    case = cases.make("ce")
    operator = GGNLinearOperator(*case.args)
    cases.assert_matches(operator.to_dense(), case.truth.ggn())
    for p in case.params.values():
        p.mul_(0.5)
    moved = truth.Dense(truth.module_predict(case.model), case.loss, case.params, case.batches)
    assert (moved.ggn() - case.truth.ggn()).abs().max() > 1e-3
    cases.assert_matches(operator.to_dense(), moved.ggn())


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=["ce", "mse"])
def test_equals_the_hessian_for_a_linear_model(loss: nn.Module) -> None:
    model = nn.Linear(4, 3).double()
    y = cases.randint(3, 8, seed=2)
    if isinstance(loss, nn.MSELoss):
        y = cases.randn(8, 3, seed=2)
    problem = (model, loss, cases.perturbed(model), cases.cut(cases.randn(8, 4, seed=1), y))
    ggn = GGNLinearOperator(*problem).to_dense()
    hessian = HessianLinearOperator(*problem).to_dense()
    cases.assert_matches(ggn, hessian)
    assert ggn.abs().max() > 0.01


def test_differs_from_the_hessian_for_a_nonlinear_model() -> None:
    case = cases.make("ce")
    ggn = GGNLinearOperator(*case.args).to_dense()
    hessian = HessianLinearOperator(*case.args).to_dense()
    assert (ggn - hessian).abs().max() > 1e-2 * ggn.abs().max()


def test_scalar_output_per_datum(reduction: str) -> None:
    """Predictions of shape ``[N]``."""

    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cases.mlp(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).squeeze(1)

    model = Scalar().double()
    params, loss = cases.perturbed(model), nn.MSELoss(reduction=reduction)
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randn(8, seed=2))
    dense = truth.Dense(truth.module_predict(model), loss, params, batches)
    operator = GGNLinearOperator(model, loss, params, batches, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), dense.ggn())


def test_output_of_any_shape(reduction: str) -> None:
    """Pixelwise classification ``[N, C, H, W]``."""
    with cases.seeded(0):
        model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Conv2d(2, 3, 1)).double()
    y = cases.randint(3, 8, 2, 2, seed=2)
    y[0, 0, 1], y[4] = -100, -100
    batches = cases.cut(cases.randn(8, 1, 3, 3, seed=1), y)
    params, loss = cases.perturbed(model), nn.CrossEntropyLoss(reduction=reduction)
    dense = truth.Dense(truth.module_predict(model), loss, params, batches)
    operator = GGNLinearOperator(model, loss, params, batches, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), dense.ggn())
