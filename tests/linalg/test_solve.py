"""Linear systems: dense truth, true residuals, noise floors, negative curvature, bad input."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from curvops.errors import DTypeError, IndefiniteError, InputError, NonFiniteError, ShapeError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.matrix import Products
from curvops.linalg.solve import solve
from curvops.operators.diagonal import DiagonalLinearOperator
from tests.linalg.test_trace import geometric, spectral
from tests.operators.dense import NAMED, MatrixOperator, positive, random

SPD = spectral(torch.linspace(0.1, 3, 40, dtype=torch.float64))


@pytest.mark.parametrize("width", [None, 0, 1, 3])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_it_is_the_dense_solution(shift: float, width: int | None) -> None:
    B = random(40, 3)[:, 0] if width is None else random(40, width)
    result = solve(SPD, B, shift=shift, rtol=1e-12)
    truth = torch.linalg.solve(SPD + shift * torch.eye(40).double(), B)
    torch.testing.assert_close(result.solution, truth, rtol=1e-9, atol=1e-10)
    assert result.all_converged
    assert result.converged.shape == (1 if width is None else width,)
    assert bool((result.relative_residuals <= 1e-12).all())
    assert result.shift == shift


def test_residuals_are_those_of_the_solution() -> None:
    B = random(40, 3) * torch.tensor([1.0, 1e6, 1e-6])
    result = solve(SPD, B, rtol=1e-3)
    true = (B - SPD @ result.solution).norm(dim=0)
    torch.testing.assert_close(result.residual_norms, true, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.relative_residuals, true / B.norm(dim=0))
    assert bool((true > 1e-9 * B.norm(dim=0)).all())  # it stopped where it was told to


def test_columns_do_not_know_each_other() -> None:
    B = random(40, 4)
    B[:, 1] = B[:, 0]
    B[:, 2] = 0.0
    together = solve(SPD, B, rtol=1e-10)
    for k in range(4):
        alone = solve(SPD, B[:, k], rtol=1e-10)
        torch.testing.assert_close(together.solution[:, k], alone.solution)
        assert together.iterations[k] == alone.iterations[0]
    assert together.iterations[2] == 0
    assert not together.solution[:, 2].any()


def test_as_many_steps_as_distinct_eigenvalues() -> None:
    """The defining property of conjugate gradients, and that finished columns cost nothing."""
    values = torch.tensor([1.0, 2.0, 5.0, 9.0]).double().repeat_interleave(10)
    op = MatrixOperator(spectral(values), self_adjoint=True, positive=True)
    B = random(40, 2)
    Q = torch.linalg.eigh(op.matrix).eigenvectors
    B[:, 1] = Q[:, 0]
    result = solve(op, B, rtol=1e-10)
    assert result.iterations.tolist() == [4, 1]
    assert sum(op.columns) == result.num_matvecs == 4 + 1 + 2  # and both true residuals
    assert sorted(op.columns) == [1, 1, 1, 2, 2]


def test_it_takes_the_steps_of_scipy() -> None:
    A, b = spectral(torch.linspace(0.5, 9, 60, dtype=torch.float64)), random(60)
    steps = 0

    def count(_: Any) -> None:
        nonlocal steps
        steps += 1

    x, info = scipy.sparse.linalg.cg(A.numpy(), b.numpy(), rtol=1e-6, callback=count)
    result = solve(A, b, rtol=1e-6)
    assert info == 0
    assert abs(int(result.iterations[0]) - steps) <= 1
    np.testing.assert_allclose(result.solution.numpy(), x, rtol=1e-4, atol=1e-4)


def test_a_preconditioner_saves_steps() -> None:
    d = torch.logspace(0, 5, 100, dtype=torch.float64)
    A = torch.diag(d) + 0.1 * spectral(geometric(100))
    b = random(100)
    plain = solve(A, b, rtol=1e-8)
    helped = solve(A, b, rtol=1e-8, preconditioner=DiagonalLinearOperator(1 / d))
    assert helped.iterations[0] < plain.iterations[0] / 10
    torch.testing.assert_close(helped.solution, torch.linalg.solve(A, b), rtol=1e-5, atol=1e-9)
    exact = solve(A, b, shift=2.0, preconditioner=torch.linalg.inv(A + 2 * torch.eye(100)))
    assert exact.iterations[0] == 1


def test_a_start_near_the_solution_saves_steps() -> None:
    B = random(40, 2)
    truth = torch.linalg.solve(SPD, B)
    near = solve(SPD, B, x0=truth + 1e-6 * random(40, 2, seed=1), rtol=1e-8)
    assert near.iterations.max() < solve(SPD, B, rtol=1e-8).iterations.max()
    there = solve(SPD, B, x0=truth, rtol=1e-8)
    assert there.iterations.tolist() == [0, 0]
    torch.testing.assert_close(there.solution, truth)


def test_formats_go_in_and_come_out() -> None:
    op = positive()
    flat = random(NAMED.dim, 2)
    truth = torch.linalg.solve(op.matrix + torch.eye(NAMED.dim), flat)
    blocks = NAMED.unflatten(flat)
    by_name = dict(zip(NAMED.names, blocks, strict=True))
    as_list = solve(op, blocks, shift=1.0, rtol=1e-11)
    assert [b.shape for b in as_list.solution] == [b.shape for b in blocks]
    torch.testing.assert_close(NAMED.flatten(as_list.solution), truth)
    as_dict = solve(op, by_name, shift=1.0, rtol=1e-11, x0=by_name)
    assert list(as_dict.solution) == list(NAMED.names)
    torch.testing.assert_close(NAMED.flatten(list(as_dict.solution.values())), truth)
    for result in (as_list, as_dict):
        plain = result.to_dict()
        assert json.loads(json.dumps(plain)) == plain


# --------------------------------------------------------------------- when it does not converge


def test_too_few_steps_warn_with_the_remedy() -> None:
    with pytest.warns(UnconvergedWarning, match="1 of 2 columns .* after 3 steps. Raise max_iter"):
        result = solve(SPD, torch.stack([random(40), torch.zeros(40)], 1), max_iter=3)
    assert result.converged.tolist() == [False, True]
    assert not result.all_converged
    assert str(result).startswith("1 of 2 columns solved, relative residual at most 0.")


def test_float32_rounding_is_named_not_looped_over() -> None:
    A = spectral(torch.logspace(-3, 0, 60, dtype=torch.float64)).float()
    b = random(60)
    with pytest.warns(UnconvergedWarning, match="Rounding of the products in torch.float32"):
        result = solve(A, b, rtol=1e-12)
    assert not result.all_converged
    assert result.iterations[0] < 600
    true = (b - A.double() @ result.solution.double()).norm() / b.norm()
    assert 1e-7 < float(true) < 1e-3
    # it is measured with the products that there are, so to their rounding
    assert float(true) / 3 < float(result.relative_residuals[0]) < 3 * float(true)
    fine = solve(A, b)
    assert fine.all_converged
    assert fine.solution.dtype == torch.float32


def test_the_recurrence_is_not_believed() -> None:
    """In float64 at 1e-14 the recurrence converges long before the true residual does."""
    A = spectral(torch.logspace(-8, 0, 60, dtype=torch.float64))
    b = random(60)
    with pytest.warns(UnconvergedWarning, match="Rounding"):
        result = solve(A, b, rtol=1e-14, max_iter=5000)
    true = (b - A @ result.solution).norm() / b.norm()
    assert float(true) > 1e-14
    assert float(result.relative_residuals[0]) == pytest.approx(float(true), rel=0.5)


# --------------------------------------------------------------------- indefinite, singular


def test_negative_curvature_names_the_ritz_value_and_a_shift() -> None:
    A = spectral(torch.cat([torch.tensor([-0.5, -0.1]), torch.linspace(0.1, 3, 38)]).double())
    b = random(40)
    with pytest.raises(IndefiniteError, match=r"Ritz value of -0\.5.*A shift of 0\.5") as caught:
        solve(A, b)
    error = caught.value
    assert error.smallest == pytest.approx(-0.5, rel=1e-4)
    assert 0.5 < error.sufficient_shift < 0.51
    assert error.shift == 0.0
    with pytest.raises(IndefiniteError, match=r"the shift is only 0\.3"):
        solve(A, b, shift=0.3)
    with pytest.raises(IndefiniteError):
        solve(A, b, preconditioner=torch.eye(40, dtype=torch.float64))
    result = solve(A, b, shift=error.sufficient_shift + 0.1)
    assert result.all_converged
    with pytest.raises(IndefiniteError):
        solve(-torch.eye(3), torch.ones(3))


def test_singular_systems() -> None:
    values = torch.cat([torch.zeros(5), torch.linspace(1, 2, 35)]).double()
    A = spectral(values)
    x = random(40)
    consistent = solve(A, A @ x, rtol=1e-10)
    torch.testing.assert_close(A @ consistent.solution, A @ x)
    with pytest.warns(UnconvergedWarning):
        inconsistent = solve(A, x)
    assert not inconsistent.all_converged
    null = torch.linalg.eigh(A).eigenvectors[:, :5]
    least = float((null.T @ x).norm())  # nothing can be done about this part of x
    # Conjugate gradients do not minimise the residual, but the best that they saw is returned.
    assert least <= float(inconsistent.residual_norms) < 0.8 * float(x.norm())
    with pytest.warns(UnconvergedWarning):
        solve(0 * A, x)


# --------------------------------------------------------------------- operators, bad input


def test_products_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[int] = []
    monkeypatch.setattr(Products, "prepare", lambda self, count: announced.append(count))
    solve(SPD, random(40, 3))
    assert announced == [3 * 20]


@pytest.mark.usefixtures("global_rng_untouched")
def test_other_libraries_operators() -> None:
    library = pytest.importorskip("linear_operator")
    b = random(40)
    result = solve(library.to_linear_operator(SPD), b, rtol=1e-10)
    torch.testing.assert_close(result.solution, torch.linalg.solve(SPD, b), rtol=1e-7, atol=1e-8)


def test_progress_shows_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    solve(SPD, random(40), progress=True)
    assert "solve" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": float("nan")}, "shift must be"),
        ({"shift": "1"}, "shift must be"),
        ({"rtol": -1e-3}, "rtol must be"),
        ({"atol": float("nan")}, "atol must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"preconditioner": torch.eye(3).double()}, r"preconditioner has shape \[3, 3\]"),
        ({"preconditioner": -torch.eye(40).double()}, "not positive definite"),
        ({"preconditioner": lambda x: x}, "preconditioner is function"),
        ({"x0": torch.zeros(40, 2)}, "x0 has shape"),
    ],
)
def test_impossible_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        solve(SPD, random(40), **options)


@pytest.mark.parametrize(
    ("A", "B", "error"),
    [
        (torch.ones(3, 4), torch.ones(4), ShapeError),
        (torch.eye(3), torch.ones(4), ShapeError),
        (torch.eye(3), torch.ones(3, dtype=torch.int64), DTypeError),
        (torch.eye(3), torch.full((3,), float("nan")), NonFiniteError),
        (torch.full((3, 3), float("nan")), torch.ones(3), NonFiniteError),
    ],
)
def test_matrices_that_will_not_do(A: Tensor, B: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error):
        solve(A, B)


def test_a_matrix_must_be_symmetric() -> None:
    with pytest.raises(InputError, match="not symmetric"):
        solve(random(40, 40), random(40))
    nearly = SPD + 1e-12 * random(40, 40)
    assert solve(nearly, random(40), rtol=1e-6).all_converged


def test_nothing_to_solve() -> None:
    assert solve(torch.zeros(0, 0), torch.zeros(0)).all_converged
    assert str(solve(SPD, torch.zeros(40, 0).double())).startswith("0 of 0 columns")
