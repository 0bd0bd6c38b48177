"""The empirical Fisher against explicit sums of outer products of gradients.

In every test the terms are written out by hand: ``terms(prediction)[t]`` is the *unweighted*
loss of term ``t`` times the square root of its weight, and the matrix is
``(1/Z) sum_t g_t g_t^T`` with ``g_t`` the gradient of that (Z = 1 for sums).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops import EFLinearOperator, EmpiricalRisk
from tests import cases, truth
from tests.operators.properties import check_formats, check_matrix, recut

WEIGHT = torch.tensor([0.5, 2.0, 1.5], dtype=torch.float64)
POS_WEIGHT = torch.tensor([2.0, 0.5], dtype=torch.float64)
Terms = Callable[[Tensor], Tensor]


def _log_softmax(f: Tensor, dim: int = 1) -> Tensor:
    return f - torch.logsumexp(f, dim=dim, keepdim=True)


def _terms(case: cases.Case) -> tuple[Terms, float]:
    """Terms (weights under a root) and the normaliser of a case under "mean"."""
    y = case.truth.y

    def ce(f: Tensor) -> Tensor:
        return -_log_softmax(f)[torch.arange(8), y]

    def ce_weighted(f: Tensor) -> Tensor:
        valid = torch.nonzero(y != -100).squeeze(1)
        target = y[valid]
        return WEIGHT[target].sqrt() * -_log_softmax(f[valid])[torch.arange(len(valid)), target]

    def ce_smooth_positions(f: Tensor) -> Tensor:  # smoothing 0.1, class 1 ignored
        smooth = 0.9 * F.one_hot(y, 3).double() + 0.1 / 3
        unweighted = -(smooth * _log_softmax(f).transpose(1, 2)).sum(-1)
        return (WEIGHT[y].sqrt() * unweighted)[y != 1]

    def mse(f: Tensor) -> Tensor:
        return (f - y).pow(2).sum(-1).reshape(-1)

    def huber(f: Tensor) -> Tensor:
        r = (f - y).abs()
        return torch.where(r < 0.7, 0.5 * r**2, 0.7 * (r - 0.35)).sum(-1)

    def bce(f: Tensor) -> Tensor:
        p = torch.sigmoid(f)
        unweighted = -(y * p.log() + (1 - y) * (1 - p).log())
        coefficient = POS_WEIGHT * y + 1 - y
        return (coefficient.sqrt() * unweighted).sum(1)

    match case.name:
        case "ce" | "ce-conv":
            return ce, 8
        case "ce-weight-mask":
            return ce_weighted, WEIGHT[y[y != -100]].sum().item()
        case "ce-sequence":
            return ce_smooth_positions, WEIGHT[y[y != 1]].sum().item()
        case "mse" | "mse-sequence":
            return mse, float(y.numel())
        case "huber":
            return huber, float(y.numel())
        case "bce-pos-weight":
            return bce, float(y.numel())
    raise AssertionError(case.name)


def _dense(case: cases.Case) -> Tensor:
    terms, normalizer = _terms(case)
    return case.truth.ef(terms, normalizer if case.reduction == "mean" else 1.0)


@pytest.mark.parametrize("name", cases.NAMES)
def test_against_dense(name: str, reduction: str, dtype: torch.dtype) -> None:
    case = cases.make(name, reduction, dtype)
    operator = EFLinearOperator(*case.args, **cases.UNMERGED)
    assert operator.POSITIVE_SEMIDEFINITE is True
    check_matrix(operator, _dense(case), case)


@pytest.mark.parametrize("name", ["ce-weight-mask", "mse-sequence"])
def test_formats_and_columns(name: str, reduction: str, dtype: torch.dtype) -> None:
    case = cases.make(name, reduction, dtype)
    check_formats(EFLinearOperator(*case.args, **cases.UNMERGED), _dense(case), case)


@pytest.mark.parametrize("name", ["ce-weight-mask", "bce-pos-weight"])
def test_from_risk_and_merged(name: str, reduction: str) -> None:
    case = cases.make(name, reduction)
    risk = EmpiricalRisk(*case.args, merge_batches="auto")
    operator = EFLinearOperator.from_risk(risk)
    assert operator.risk is risk
    check_matrix(operator, _dense(case), case)


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (5, 3)])
def test_the_cut_and_the_order_do_not_matter(sizes: tuple[int, ...], reduction: str) -> None:
    case = cases.make("ce-weight-mask", reduction)
    data = recut(case, sizes, torch.randperm(8, generator=cases.rng(3)))
    operator = EFLinearOperator(case.model, case.loss, case.params, data, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), _dense(case))


def test_weight_decay_adds_its_identity() -> None:
    case = cases.make("ce")
    operator = EFLinearOperator(*case.args, weight_decay=0.3)
    eye = torch.eye(case.dim, dtype=torch.float64)
    cases.assert_matches(operator.to_dense(), _dense(case) + 0.3 * eye)


def _sequence_problem(reduction: str, **keywords: Any) -> tuple[Any, ...]:
    with cases.seeded(0):
        model = cases.PerPosition(3, 3, 3, channels_last=False).double()
    y = cases.randint(3, 8, 4, seed=2)
    y[0, 1:], y[4], y[6, 0] = -100, -100, -100
    batches = cases.cut(cases.randn(8, 4, 3, seed=1), y)
    loss = nn.CrossEntropyLoss(reduction=reduction, **keywords)
    return model, loss, cases.perturbed(model), batches


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("per", ["position", "datum"])
def test_sequences_of_class_indices(per: str, weighted: bool, reduction: str) -> None:
    """Every position is a term, or a whole sequence is: masked positions count nothing."""
    problem = _sequence_problem(reduction, weight=WEIGHT if weighted else None)
    model, loss, params, batches = problem
    dense = truth.Dense(truth.module_predict(model), loss, params, batches)
    weight = WEIGHT if weighted else torch.ones(3, dtype=torch.float64)

    def terms(f: Tensor) -> Tensor:
        log_p, rows = _log_softmax(f), []
        for n in range(8):
            row = [
                weight[k].sqrt() * -log_p[n, k, t]
                for t, k in enumerate(dense.y[n].tolist())
                if k != -100
            ]
            rows += row if per == "position" else ([sum(row)] if row else [])
        return torch.stack(rows)

    normalizer = weight[dense.y[dense.y != -100]].sum().item() if reduction == "mean" else 1.0
    operator = EFLinearOperator(*problem, per=per, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), dense.ef(terms, normalizer))


def test_positions_are_the_default() -> None:
    problem = _sequence_problem("mean")
    default = EFLinearOperator(*problem).to_dense()
    position = EFLinearOperator(*problem, per="position").to_dense()
    datum = EFLinearOperator(*problem, per="datum").to_dense()
    assert torch.equal(default, position)
    assert (datum - position).abs().max() > 1e-3


def test_squared_error_of_sequences_by_datum(reduction: str) -> None:
    case = cases.make("mse-sequence", reduction)
    operator = EFLinearOperator(*case.args, per="datum", **cases.UNMERGED)
    expected = case.truth.ef(
        lambda f: (f - case.truth.y).pow(2).sum((1, 2)),
        float(case.truth.y.numel()) if reduction == "mean" else 1.0,
    )
    cases.assert_matches(operator.to_dense(), expected)


def test_bad_per_is_refused() -> None:
    case = cases.make("ce")
    with pytest.raises(ValueError, match="token"):
        EFLinearOperator(*case.args, per="token")


def test_label_smoothing_without_weights(reduction: str) -> None:
    case = cases.make("ce", reduction)
    loss = nn.CrossEntropyLoss(label_smoothing=0.3, reduction=reduction)
    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, case.batches)
    smooth = 0.7 * F.one_hot(dense.y, 3).double() + 0.1

    def terms(f: Tensor) -> Tensor:
        return -(smooth * _log_softmax(f)).sum(1)

    operator = EFLinearOperator(case.model, loss, case.params, case.batches, **cases.UNMERGED)
    expected = dense.ef(terms, 8.0 if reduction == "mean" else 1.0)
    cases.assert_matches(operator.to_dense(), expected)


def test_class_probabilities(reduction: str) -> None:
    case = cases.make("ce", reduction)
    probabilities = cases.randn(8, 3, seed=2).softmax(1)
    batches = cases.cut(cases.randn(8, 3, seed=1), probabilities)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, batches)

    def terms(f: Tensor) -> Tensor:
        return -(probabilities * _log_softmax(f)).sum(1)

    operator = EFLinearOperator(case.model, loss, case.params, batches, **cases.UNMERGED)
    expected = dense.ef(terms, 8.0 if reduction == "mean" else 1.0)
    cases.assert_matches(operator.to_dense(), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_bce_element_weights(soft: bool, reduction: str) -> None:
    """``weight`` and ``pos_weight`` multiply elements: c = (pos_weight y + 1 - y) weight."""
    case = cases.make("bce-pos-weight", reduction)
    y = cases.rand(8, 2, seed=2) if soft else case.truth.y
    batches = cases.cut(case.truth.X, y)
    weight = torch.tensor([3.0, 0.7], dtype=torch.float64)
    loss = nn.BCEWithLogitsLoss(weight=weight, pos_weight=POS_WEIGHT, reduction=reduction)
    dense = truth.Dense(truth.module_predict(case.model), loss, case.params, batches)

    def terms(f: Tensor) -> Tensor:
        p = torch.sigmoid(f)
        unweighted = -(y * p.log() + (1 - y) * (1 - p).log())
        coefficient = (POS_WEIGHT * y + 1 - y) * weight
        return (coefficient.sqrt() * unweighted).sum(1)

    operator = EFLinearOperator(case.model, loss, case.params, batches, **cases.UNMERGED)
    expected = dense.ef(terms, 16.0 if reduction == "mean" else 1.0)
    cases.assert_matches(operator.to_dense(), expected)


def test_weighted_negative_log_likelihood(reduction: str) -> None:
    case = cases.make("ce-weight-mask", reduction)
    model = nn.Sequential(*case.model, nn.LogSoftmax(1))
    loss = nn.NLLLoss(weight=WEIGHT, reduction=reduction)
    operator = EFLinearOperator(model, loss, case.params, case.batches, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), _dense(case))


def test_predictions_without_output_axis(reduction: str) -> None:
    """``[N]`` predictions: every datum is a term, its one output is the prediction itself."""

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
    operator = EFLinearOperator(model, loss, params, batches, **cases.UNMERGED)
    expected = dense.ef(lambda f: (f - dense.y).pow(2), 8.0 if reduction == "mean" else 1.0)
    cases.assert_matches(operator.to_dense(), expected)


def test_a_separable_callable(reduction: str) -> None:
    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        each = (prediction - y).pow(4).sum(1)
        return each.mean() if reduction == "mean" else each.sum()

    case = cases.make("mse", reduction)
    dense = case.truth
    operator = EFLinearOperator(
        case.model, loss, case.params, case.batches, reduction=reduction, **cases.UNMERGED
    )
    expected = dense.ef(lambda f: (f - dense.y).pow(4).sum(1), 8.0 if reduction == "mean" else 1.0)
    cases.assert_matches(operator.to_dense(), expected)


def test_a_loss_that_couples_the_data_has_no_individual_gradients() -> None:
    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (prediction - y).mean().pow(2)

    case = cases.make("mse")
    with pytest.raises(ValueError, match=r"(?i)separable|one term per datum"):
        EFLinearOperator(
            case.model, loss, case.params, case.batches, reduction="mean"
        ) @ case.vectors(1)
