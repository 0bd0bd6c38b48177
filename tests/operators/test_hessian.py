"""The Hessian against dense ``torch.func.hessian`` and closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk, HessianLinearOperator
from tests import cases, truth
from tests.operators.properties import check_formats, check_matrix, recut


def test_against_dense(case: cases.Case) -> None:
    operator = HessianLinearOperator(*case.args, **cases.UNMERGED)
    check_matrix(operator, case.truth.hessian(), case)


@pytest.mark.parametrize("name", ["ce-sequence", "mse"])
def test_formats_and_columns(name: str, reduction: str, dtype: torch.dtype) -> None:
    case = cases.make(name, reduction, dtype)
    operator = HessianLinearOperator(*case.args, **cases.UNMERGED)
    check_formats(operator, case.truth.hessian(), case)


def test_from_risk_is_the_same_operator(case64: cases.Case) -> None:
    risk = EmpiricalRisk(*case64.args)
    operator = HessianLinearOperator.from_risk(risk)
    assert operator.risk is risk
    check_matrix(operator, case64.truth.hessian(), case64)


@pytest.mark.parametrize("sizes", [(8,), (1,) * 8, (5, 3), (2, 6)])
def test_the_cut_and_the_order_do_not_matter(sizes: tuple[int, ...], reduction: str) -> None:
    case = cases.make("ce-weight-mask", reduction)
    order = torch.randperm(8, generator=cases.rng(3))
    data = recut(case, sizes, order)
    operator = HessianLinearOperator(case.model, case.loss, case.params, data, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), case.truth.hessian())


def test_weight_decay_adds_its_identity(reduction: str) -> None:
    case = cases.make("ce", reduction)
    operator = HessianLinearOperator(*case.args, weight_decay=0.3)
    eye = torch.eye(case.dim, dtype=torch.float64)
    cases.assert_matches(operator.to_dense(), case.truth.hessian() + 0.3 * eye)


def test_follows_parameters_updated_in_place() -> None:
    case = cases.make("ce")
    operator = HessianLinearOperator(*case.args)
    before = operator.to_dense()
    cases.assert_matches(before, case.truth.hessian())
    for p in case.params.values():
        p.mul_(0.5)
    moved = truth.Dense(
        truth.module_predict(case.model), case.loss, case.params, case.batches
    ).hessian()
    assert (moved - before).abs().max() > 1e-3
    cases.assert_matches(operator.to_dense(), moved)


def test_follows_the_modules_own_parameters() -> None:
    case = cases.make("mse")
    operator = HessianLinearOperator(case.model, case.loss, case.model, case.batches)
    with torch.no_grad():
        for own, p in zip(case.model.parameters(), case.params.values(), strict=True):
            own.copy_(p)
    cases.assert_matches(operator.to_dense(), case.truth.hessian())


def test_scalar_parameters_and_more_columns_than_parameters() -> None:
    """A 0-dim parameter is a block of shape ``[]``, or ``[K]`` with columns."""

    def model(params: dict[str, torch.Tensor], X: torch.Tensor) -> torch.Tensor:
        return torch.tanh(params["scale"] * X @ params["w"])

    params = {
        "scale": torch.tensor(0.7, dtype=torch.float64),
        "w": cases.randn(3, 2, seed=3),
    }
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randn(8, 2, seed=2))
    dense = truth.Dense(model, nn.MSELoss(), params, batches).hessian()
    operator = HessianLinearOperator(model, nn.MSELoss(), params, batches, **cases.UNMERGED)
    cases.assert_matches(operator.to_dense(), dense)
    x = cases.randn(7, 12, seed=4)
    cases.assert_matches(operator @ x, dense @ x)
    answer = operator @ {"scale": x[0], "w": x[1:].reshape(3, 2, 12)}
    assert answer["scale"].shape == (12,)
    cases.assert_matches(answer["scale"], dense[0] @ x)
    cases.assert_matches(answer["w"].reshape(6, 12), dense[1:] @ x)
    scale, w = operator @ [x[0, 0], x[1:, 0].reshape(3, 2)]
    assert scale.shape == ()
    cases.assert_matches(scale, dense[0] @ x[:, 0])
    cases.assert_matches(w.reshape(6), dense[1:] @ x[:, 0])


def test_parameters_and_data_in_any_memory_layout() -> None:
    case = cases.make("ce-conv")
    params = {n: _strided(p) for n, p in case.params.items()}
    assert not all(p.is_contiguous() for p in params.values())
    batches = [(X.to(memory_format=torch.channels_last), y) for X, y in case.batches]
    operator = HessianLinearOperator(case.model, case.loss, params, batches)
    cases.assert_matches(operator.to_dense(), case.truth.hessian())
    x = case.vectors(6)[:, ::2]
    cases.assert_matches(operator @ x, case.truth.hessian() @ x)
    blocks = [_strided(p.double()) for p in case.params.values()]
    flat = torch.cat([b.reshape(-1) for b in blocks])
    answer = torch.cat([b.reshape(-1) for b in operator @ blocks])
    cases.assert_matches(answer, case.truth.hessian() @ flat)


def _strided(p: torch.Tensor) -> torch.Tensor:
    """The same values, every other element of a larger tensor, axes stored in reverse."""
    wide = torch.zeros(*p.T.shape, 2, dtype=p.dtype) if p.ndim == 2 else None
    if wide is None:
        wide = torch.zeros(*p.shape, 2, dtype=p.dtype)
        wide[..., 0] = p
        return wide[..., 0]
    wide[..., 0] = p.T
    return wide[..., 0].T


# Known answers -----------------------------------------------------------------------------


def _linear_data(n: int = 9, d: int = 4) -> torch.Tensor:
    return cases.randn(n, d, seed=1)


def test_softmax_regression_at_zero() -> None:
    """Eigenvalues of X^T X / (n C), each C - 1 times, and d zeros."""
    n, d, classes = 9, 4, 3
    X, y = _linear_data(n, d), cases.randint(classes, n, seed=2)
    model = nn.Linear(d, classes, bias=False).double()
    params = {"weight": torch.zeros(classes, d, dtype=torch.float64)}
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), params, cases.cut(X, y, (4, 2, 3)), **cases.UNMERGED
    )
    inner = torch.linalg.eigvalsh(X.T @ X / (n * classes))
    expected = torch.cat([torch.zeros(d, dtype=torch.float64), inner.repeat_interleave(2)])
    eigenvalues = torch.linalg.eigvalsh(operator.to_dense())
    torch.testing.assert_close(eigenvalues, expected, rtol=1e-10, atol=1e-13)


def test_linear_regression() -> None:
    """H = 2/(N C) I_C kron X^T X in the order of ``weight``."""
    n, d, outputs = 9, 4, 2
    X, y = _linear_data(n, d), cases.randn(n, outputs, seed=2)
    model = nn.Linear(d, outputs, bias=False).double()
    operator = HessianLinearOperator(
        model, nn.MSELoss(), cases.perturbed(model), cases.cut(X, y, (4, 2, 3)), **cases.UNMERGED
    )
    expected = 2 / (n * outputs) * torch.kron(torch.eye(outputs, dtype=X.dtype), X.T @ X)
    cases.assert_matches(operator.to_dense(), expected)


def test_logistic_regression() -> None:
    """H = X^T D X / N with D = diag(p (1 - p))."""
    X, y = _linear_data(), cases.randint(2, 9, seed=2).double().unsqueeze(1)
    model = nn.Linear(4, 1, bias=False).double()
    params = cases.perturbed(model)
    operator = HessianLinearOperator(
        model, nn.BCEWithLogitsLoss(), params, cases.cut(X, y, (4, 2, 3)), **cases.UNMERGED
    )
    p = 1 / (1 + torch.exp(-X @ params["weight"][0]))
    expected = X.T @ torch.diag(p * (1 - p)) @ X / 9
    cases.assert_matches(operator.to_dense(), expected)


def test_softmax_regression() -> None:
    """H = (1/N) sum_n (diag p - p p^T) kron x x^T."""
    X, y = _linear_data(), cases.randint(3, 9, seed=2)
    model = nn.Linear(4, 3, bias=False).double()
    params = cases.perturbed(model)
    operator = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), params, cases.cut(X, y, (4, 2, 3)), **cases.UNMERGED
    )
    expected = torch.zeros(12, 12, dtype=torch.float64)
    for x in X:
        logits = params["weight"] @ x
        p = logits.exp() / logits.exp().sum()
        expected += torch.kron(torch.diag(p) - torch.outer(p, p), torch.outer(x, x)) / 9
    cases.assert_matches(operator.to_dense(), expected)


def test_quadratic_in_two_variables() -> None:
    """L = (a b - y)^2 at a = 2, b = 3, y = 1: H = [[18, 22], [22, 8]], worked out by hand."""

    def model(params: dict[str, torch.Tensor], X: torch.Tensor) -> torch.Tensor:
        return params["a"] * params["b"] * X

    params = {
        "a": torch.tensor([2.0], dtype=torch.float64),
        "b": torch.tensor([3.0], dtype=torch.float64),
    }
    one = torch.ones(1, 1, dtype=torch.float64)
    operator = HessianLinearOperator(model, nn.MSELoss(), params, [(one, one)])
    expected = torch.tensor([[18.0, 22.0], [22.0, 8.0]], dtype=torch.float64)
    cases.assert_matches(operator.to_dense(), expected)
