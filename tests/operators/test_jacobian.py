"""The Jacobian of the stacked predictions and its transpose against explicit Jacobians."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, JacobianLinearOperator, TransposedJacobianLinearOperator
from curvops.errors import DifferentiationError, InputError, ShapeError
from tests import cases, truth
from tests.autodiff import problems

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


# What products share ------------------------------------------------------------------------

BOTH = [JacobianLinearOperator, TransposedJacobianLinearOperator]
FORMS = ["nothing", "graph", "residuals"]


def _expected(case: cases.Case, kind: Any) -> Tensor:
    jacobian = case.truth.jacobian()
    return jacobian if kind is JacobianLinearOperator else jacobian.T


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("merge", [False, "auto"])
def test_every_form_against_dense(name: str, kind: Any, form: str, merge: Any) -> None:
    case = cases.make(name)
    expected = _expected(case, kind)
    x = cases.randn(expected.shape[1], 7, seed=6)
    for columns in ("loop", "vmap", 3):
        operator = kind(
            case.model,
            case.params,
            case.batches,
            keep=form,
            columns=columns,
            merge_batches=merge,
        )
        for _ in range(3):  # a block is traced at its second time
            cases.assert_matches(operator @ x, expected @ x)
        cases.assert_matches(operator @ x[:, 0], expected @ x[:, 0])
        assert operator.kept == form
        assert (operator.kept_bytes > 0) == (form != "nothing")


@pytest.mark.parametrize("name", ["cnn", "tied-embedding", "branches", "transformer", "lstm"])
@pytest.mark.parametrize("kind", BOTH)
def test_the_same_numbers_of_every_model(name: str, kind: Any) -> None:
    problem = problems.PROBLEMS[name]()
    risk = problem.risk()
    streamed = problems.built(kind, risk, keep="nothing", columns="loop")
    x = problems.vectors(streamed, 5)
    expected = streamed @ x
    for form in ("graph", "residuals"):
        operator = problems.built(kind, risk, keep=form)
        for columns in ("loop", "vmap"):
            with problems.column_width(operator, columns):
                problems.assert_same(operator @ x, expected, f"{form} {columns}")
        assert operator.kept == form


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", [1, 2_000, 20_000, 10**9])
def test_within_any_budget(kind: Any, form: str, budget: int) -> None:
    """Batches are cut, some are kept and some are not, and rows stay in their places."""
    case = cases.make("ce-sequence")
    expected = _expected(case, kind)
    operator = kind(case.model, case.params, case.batches, keep=form, memory_budget=budget)
    x = cases.randn(expected.shape[1], 9, seed=6)
    for _ in range(2):
        cases.assert_matches(operator @ x, expected @ x)
    assert operator.kept_bytes <= budget


def test_columns_go_in_groups_where_their_products_are_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    X = cases.randn(1000, 1, seed=1)
    J = JacobianLinearOperator(model, model, [(X, None)], memory_budget="200kB")
    widths: list[int] = []
    run = J._keeper.run

    def counted(*args: Any) -> None:
        widths.append(len(args[5]))
        run(*args)

    monkeypatch.setattr(J._keeper, "run", counted)
    v = cases.randn(1, 8, seed=2)
    cases.assert_matches(J @ v, X @ v)
    assert len(widths) > 1  # 8 kB a column, where the vectors have 8 B
    assert sum(widths) == 8


@pytest.mark.parametrize("kind", BOTH)
def test_keeping_starts_at_the_second_product_or_when_told(kind: Any) -> None:
    case = cases.make("ce")
    operator = kind(case.model, case.params, case.batches)
    x = cases.randn(operator.shape[1], seed=6)
    operator @ x
    assert operator.kept == "nothing"
    operator @ x
    assert operator.kept == "graph"
    operator.release()
    assert operator.kept_bytes == 0
    told = kind(case.model, case.params, case.batches).prepare(num_products=5)
    told @ x
    assert told.kept == "graph"


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_kept_follows_the_parameters(kind: Any, form: str) -> None:
    case = cases.make("ce")
    operator = kind(case.model, case.params, case.batches, keep=form)
    before = operator.to_dense()
    for p in case.params.values():
        p.mul_(0.5)
    moved = truth.Dense(truth.module_predict(case.model), case.loss, case.params, case.batches)
    expected = moved.jacobian() if kind is JacobianLinearOperator else moved.jacobian().T
    assert (expected - before).abs().max() > 1e-2
    cases.assert_matches(operator.to_dense(), expected)


def test_the_transpose_is_one_operator_that_keeps_as_well() -> None:
    case = cases.make("ce")
    J = JacobianLinearOperator(case.model, case.params, case.batches, keep="residuals")
    assert J.T is J.T
    assert J.T.T is J
    u = cases.randn(J.shape[0], seed=6)
    J.T @ u
    assert J.T.kept == "residuals"
    assert J.kept == "nothing"


def test_what_is_wrong_is_refused_by_name() -> None:
    case = cases.make("ce")
    with pytest.raises(InputError, match="keep must be"):
        JacobianLinearOperator(case.model, case.params, case.batches, keep="everything")
    J = JacobianLinearOperator(case.model, case.params, case.batches, keep="layers")
    with pytest.raises(DifferentiationError, match="Fisher"):
        J @ cases.randn(case.dim, seed=1)
