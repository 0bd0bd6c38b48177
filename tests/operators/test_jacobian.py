"""The Jacobian of the stacked predictions and its transpose against explicit Jacobians."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvops import EmpiricalRisk, JacobianLinearOperator, TransposedJacobianLinearOperator
from curvops.errors import ShapeError
from tests import cases, truth

NAMES = ["ce", "ce-conv", "ce-sequence", "mse-sequence"]


def _blocks(x: Tensor, case: cases.Case) -> dict[str, Tensor]:
    pieces = x.split([p.numel() for p in case.params.values()])
    return {
        name: piece.reshape(*p.shape, *x.shape[1:])
        for piece, (name, p) in zip(pieces, case.params.items(), strict=True)
    }


@pytest.mark.parametrize("name", NAMES)
def test_against_dense(name: str, dtype: torch.dtype) -> None:
    case = cases.make(name, "mean", dtype)
    jacobian = case.truth.jacobian()
    operator = JacobianLinearOperator(case.model, case.params, case.batches, **cases.UNMERGED)
    assert tuple(operator.shape) == tuple(jacobian.shape)
    assert operator.dtype == dtype
    assert operator.SELF_ADJOINT is False
    cases.assert_matches(operator.to_dense(), jacobian, dtype)
    for columns in (0, 1, 3):
        x = case.vectors(columns)
        cases.assert_matches(operator @ x, jacobian @ x.double(), dtype)
    x = case.vectors(1)[:, 0]
    cases.assert_matches(operator @ x, jacobian @ x.double(), dtype)


@pytest.mark.parametrize("name", NAMES)
def test_transposed_against_dense(name: str, dtype: torch.dtype) -> None:
    case = cases.make(name, "mean", dtype)
    expected = case.truth.jacobian().T
    operator = TransposedJacobianLinearOperator(
        case.model, case.params, case.batches, **cases.UNMERGED
    )
    assert tuple(operator.shape) == tuple(expected.shape)
    assert operator.dtype == dtype
    cases.assert_matches(operator.to_dense(), expected, dtype)
    for columns in (0, 1, 3):
        x = cases.randn(expected.shape[1], columns, seed=6).to(dtype)
        cases.assert_matches(operator @ x, expected @ x.double(), dtype)


@pytest.mark.parametrize("name", ["ce", "ce-sequence"])
def test_transposes_of_each_other(name: str) -> None:
    case = cases.make(name)
    jacobian = case.truth.jacobian()
    J = JacobianLinearOperator(case.model, case.params, case.batches)
    cases.assert_matches(J.T.to_dense(), jacobian.T)
    cases.assert_matches(J.T.T.to_dense(), jacobian)
    JT = TransposedJacobianLinearOperator(case.model, case.params, case.batches)
    cases.assert_matches(JT.T.to_dense(), jacobian)
    gram = (JT @ J).to_dense()
    cases.assert_matches(gram, jacobian.T @ jacobian)


def test_list_and_dict_input() -> None:
    case = cases.make("ce-sequence")
    jacobian, x = case.truth.jacobian(), case.vectors(2)
    J = JacobianLinearOperator(case.model, case.params, case.batches)
    for vector in (_blocks(x, case), list(_blocks(x, case).values())):
        answer = J @ vector
        assert type(answer) is type(vector)
        blocks = list(answer.values()) if isinstance(answer, dict) else answer
        cases.assert_matches(torch.cat([b.reshape(-1, 2) for b in blocks]), jacobian @ x)


def test_from_risk() -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(*case.args)
    cases.assert_matches(JacobianLinearOperator.from_risk(risk).to_dense(), case.truth.jacobian())
    cases.assert_matches(
        TransposedJacobianLinearOperator.from_risk(risk).to_dense(), case.truth.jacobian().T
    )


def test_follows_parameters_updated_in_place() -> None:
    case = cases.make("ce")
    J = JacobianLinearOperator(case.model, case.params, case.batches)
    before = J.to_dense()
    for p in case.params.values():
        p.mul_(0.5)
    moved = truth.Dense(truth.module_predict(case.model), case.loss, case.params, case.batches)
    assert (moved.jacobian() - before).abs().max() > 1e-2
    cases.assert_matches(J.to_dense(), moved.jacobian())


def test_wrong_shapes_are_refused() -> None:
    case = cases.make("ce")
    J = JacobianLinearOperator(case.model, case.params, case.batches)
    with pytest.raises(ShapeError, match=str(case.dim)):
        J @ torch.zeros(case.dim + 1, dtype=torch.float64)
    with pytest.raises(ShapeError, match="24"):
        J.T @ torch.zeros(23, dtype=torch.float64)
