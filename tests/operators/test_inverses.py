"""Inverses: dense truth, algebra, SciPy, tags, honesty about convergence, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from curvops.errors import IndefiniteError, InputError, ShapeError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.operators.cg_inverse import CGInverseLinearOperator
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.operators.neumann import NeumannInverseLinearOperator
from curvops.tensors import Space
from tests import cases
from tests.operators.dense import NAMED, MatrixOperator, general, positive, random, rectangular


def well_conditioned(dtype: torch.dtype = torch.float64) -> MatrixOperator:
    """Eigenvalues from 0.5 to 1.5 on the named space."""
    Q = torch.linalg.qr(random(NAMED.dim, NAMED.dim)).Q
    A = (Q * torch.linspace(0.5, 1.5, NAMED.dim, dtype=torch.float64)) @ Q.T
    A = ((A + A.T) / 2).to(dtype)
    return MatrixOperator(A, NAMED, self_adjoint=True, positive=True)


def inverses(A: Any) -> list[LinearOperator]:
    return [CGInverseLinearOperator(A, rtol=1e-12), NeumannInverseLinearOperator(A)]


@pytest.mark.parametrize("width", [None, 0, 1, 3])
@pytest.mark.parametrize("kind", [0, 1])
def test_products_are_those_of_the_dense_inverse(kind: int, width: int | None) -> None:
    A = well_conditioned()
    op = inverses(A)[kind]
    x = random(NAMED.dim, 3)[:, 0] if width is None else random(NAMED.dim, width)
    truth = torch.linalg.inv(A.matrix) @ x
    torch.testing.assert_close(op @ x, truth, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(op.T @ x, truth, rtol=1e-10, atol=1e-10)
    trailing = () if width is None else (width,)
    blocks = dict(zip(NAMED.names, NAMED.unflatten(x), strict=True))
    answer = op @ blocks
    assert list(answer) == list(NAMED.names)
    assert [b.shape for b in answer.values()] == [(*s, *trailing) for s in NAMED.shapes]
    torch.testing.assert_close(NAMED.flatten(list(answer.values())), truth)


@pytest.mark.parametrize("kind", [0, 1])
def test_it_composes_and_exports(kind: int) -> None:
    A = well_conditioned()
    op = inverses(A)[kind]
    dense = torch.linalg.inv(A.matrix)
    eye = torch.eye(NAMED.dim, dtype=torch.float64)
    torch.testing.assert_close((op @ A).to_dense(), eye, rtol=0, atol=1e-10)
    torch.testing.assert_close((2 * op).shift(1.0).to_dense(), 2 * dense + eye)
    x = random(NAMED.dim)
    np.testing.assert_allclose(op.to_scipy() @ x.numpy(), (dense @ x).numpy(), rtol=1e-9)
    assert op.shape == (NAMED.dim, NAMED.dim)
    assert op.in_space == NAMED


@pytest.mark.parametrize("kind", [0, 1])
def test_tags(kind: int) -> None:
    known = inverses(well_conditioned())[kind]
    assert known.SELF_ADJOINT
    assert known.POSITIVE_SEMIDEFINITE
    unknown = inverses(MatrixOperator(well_conditioned().matrix, self_adjoint=True))[kind]
    assert not unknown.POSITIVE_SEMIDEFINITE
    assert not CGInverseLinearOperator(well_conditioned(), shift=-0.1).POSITIVE_SEMIDEFINITE


def test_damping_and_a_preconditioner() -> None:
    d = torch.logspace(0, 4, NAMED.dim, dtype=torch.float64)
    A = DiagonalLinearOperator(d, space=NAMED)
    M = A.shift(0.5).inverse()
    op = CGInverseLinearOperator(A, shift=0.5, preconditioner=M, rtol=1e-12, max_iter=2)
    torch.testing.assert_close(op.to_dense(), torch.diag(1 / (d + 0.5)), rtol=1e-10, atol=1e-14)
    assert op.damping == 0.5


def test_float32_in_and_out() -> None:
    A = well_conditioned(torch.float32)
    x = random(NAMED.dim).float()
    truth = torch.linalg.inv(A.matrix.double()) @ x.double()
    for op in (CGInverseLinearOperator(A, rtol=1e-5), NeumannInverseLinearOperator(A)):
        answer = op @ x
        assert answer.dtype == torch.float32
        torch.testing.assert_close(answer.double(), truth, rtol=1e-4, atol=1e-5)


def test_a_curvature_matrix() -> None:
    case = cases.make(cases.NAMES[0], "mean")
    ggn = GGNLinearOperator(*case.args)
    op = CGInverseLinearOperator(ggn, shift=0.1, rtol=1e-11)
    dense = torch.linalg.inv(ggn.to_dense() + 0.1 * torch.eye(case.dim, dtype=torch.float64))
    x = random(case.dim, 2)
    torch.testing.assert_close(op @ x, dense @ x, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", [0, 1])
def test_tensors_and_other_libraries_operators(kind: int) -> None:
    matrix = well_conditioned().matrix
    x = random(NAMED.dim)
    truth = torch.linalg.solve(matrix, x)
    torch.testing.assert_close(inverses(matrix)[kind] @ x, truth)
    library = pytest.importorskip("linear_operator")
    torch.testing.assert_close(inverses(library.to_linear_operator(matrix))[kind] @ x, truth)


def test_products_are_passed_on_when_announced() -> None:
    class Announced(MatrixOperator):
        count = 0

        def prepare(self, num_products: int) -> None:
            self.count += num_products

    A = Announced(well_conditioned().matrix, self_adjoint=True)
    assert CGInverseLinearOperator(A).prepare(3).SELF_ADJOINT
    assert A.count == 30
    NeumannInverseLinearOperator(A, num_terms=7).prepare(3)
    assert A.count == 30 + 21


# --------------------------------------------------------------------- conjugate gradients


def test_the_error_of_products_is_stated() -> None:
    A = well_conditioned()
    op = CGInverseLinearOperator(A, rtol=1e-3)
    error = op.to_dense() - torch.linalg.inv(A.matrix)
    assert float(torch.linalg.matrix_norm(error, 2)) < 3 * 1e-3 * 2  # of a norm of 2
    assert op.product_error == 1e-3
    assert CGInverseLinearOperator(A).product_error == pytest.approx(1.49e-8, rel=1e-2)


def test_cg_says_that_it_has_not_converged() -> None:
    op = CGInverseLinearOperator(positive(), max_iter=2)
    with pytest.warns(UnconvergedWarning, match="CGInverseLinearOperator: 1 of 1 columns"):
        op @ random(NAMED.dim)


def test_cg_says_that_the_matrix_is_indefinite() -> None:
    A = MatrixOperator(-well_conditioned().matrix, self_adjoint=True)
    op = CGInverseLinearOperator(A)
    with pytest.raises(IndefiniteError, match=r"Ritz value of -1\.5"):
        op @ random(NAMED.dim)


@pytest.mark.parametrize(
    ("A", "options", "error", "message"),
    [
        (rectangular(), {}, ShapeError, "square"),
        (general(), {}, InputError, "not symmetric"),
        (positive(), {"shift": math.inf}, InputError, "shift must be"),
        (positive(), {"max_iter": 1.5}, InputError, "max_iter"),
        (positive(), {"rtol": -1}, InputError, "rtol"),
        (positive(), {"preconditioner": torch.eye(2).double()}, InputError, "preconditioner"),
    ],
)
def test_cg_checks_its_arguments_when_it_is_built(
    A: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        CGInverseLinearOperator(A, **options)


# --------------------------------------------------------------------- Neumann


@pytest.mark.parametrize("num_terms", [1, 2, 5])
def test_neumann_is_its_definition(num_terms: int) -> None:
    A, s = well_conditioned(), 0.7
    op = NeumannInverseLinearOperator(A, num_terms=num_terms, scale=s, rtol=math.inf)
    step = torch.eye(NAMED.dim, dtype=torch.float64) - s * A.matrix
    series = s * sum(torch.linalg.matrix_power(step, k) for k in range(num_terms + 1))
    torch.testing.assert_close(op.to_dense(), series)
    assert sum(A.columns) == num_terms * NAMED.dim


def test_neumann_agrees_with_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model = torch.nn.Linear(4, 3).double()
    data = [(random(10, 4), torch.arange(10) % 3)]
    params, loss = list(model.parameters()), torch.nn.CrossEntropyLoss()
    theirs = curvlinops.NeumannInverseLinearOperator(
        curvlinops.GGNLinearOperator(model, loss, params, data), num_terms=20, scale=0.5
    )
    ours = NeumannInverseLinearOperator(
        GGNLinearOperator(model, loss, params, data), num_terms=20, scale=0.5, rtol=math.inf
    )
    x = random(15)
    torch.testing.assert_close(ours @ x, (theirs @ x).detach())


def test_neumann_says_what_is_left() -> None:
    op = NeumannInverseLinearOperator(well_conditioned(), num_terms=3)
    with pytest.warns(UnconvergedWarning, match="is left after 3 terms. Raise num_terms"):
        op @ random(NAMED.dim)
    NeumannInverseLinearOperator(well_conditioned(), num_terms=3, rtol=1.0) @ random(NAMED.dim)


def test_a_diverging_series_is_an_error_with_a_scale_that_works() -> None:
    A = MatrixOperator(4 * well_conditioned().matrix, self_adjoint=True, positive=True)
    op = NeumannInverseLinearOperator(A)
    with pytest.raises(InputError, match=r"diverges: scale=1, .* Ritz value of A is 6") as caught:
        op @ random(NAMED.dim)
    assert "below 0.333, best about 0.167" in str(caught.value)
    x = random(NAMED.dim)
    good = NeumannInverseLinearOperator(A, scale=0.167)
    torch.testing.assert_close(good @ x, torch.linalg.solve(A.matrix, x), rtol=1e-6, atol=1e-7)


def test_no_scale_helps_an_indefinite_matrix() -> None:
    matrix = well_conditioned().matrix - torch.eye(NAMED.dim, dtype=torch.float64)
    op = NeumannInverseLinearOperator(MatrixOperator(matrix, self_adjoint=True))
    with pytest.raises(IndefiniteError, match=r"Ritz value of -0\.5.*A shift of 0\.5"):
        op @ random(NAMED.dim)


def test_what_is_zero_stays_zero() -> None:
    zero = torch.zeros(NAMED.dim, 2, dtype=torch.float64)
    for op in inverses(well_conditioned()):
        assert torch.equal(op @ zero, zero)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_terms": 0}, "num_terms"),
        ({"num_terms": 2.0}, "num_terms"),
        ({"scale": 0.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"scale": torch.ones(2)}, "scale"),
        ({"rtol": -0.1}, "rtol"),
    ],
)
def test_neumann_checks_its_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NeumannInverseLinearOperator(positive(), **options)


def test_neumann_needs_a_symmetric_matrix() -> None:
    with pytest.raises(InputError, match="not symmetric, which the Neumann series"):
        NeumannInverseLinearOperator(general())
    with pytest.raises(ShapeError, match="square"):
        NeumannInverseLinearOperator(rectangular())


def test_spaces_must_agree() -> None:
    op = MatrixOperator(random(NAMED.dim, NAMED.dim), NAMED, Space.flat(NAMED.dim))
    for make in (CGInverseLinearOperator, NeumannInverseLinearOperator):
        with pytest.raises(ShapeError, match="maps one space to another"):
            make(op)
