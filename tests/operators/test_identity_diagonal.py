"""Identities and diagonals: values, what stays diagonal, spaces, inverses, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from curvops.errors import (
    CurvopsError,
    DTypeError,
    InputError,
    NonFiniteError,
    ShapeError,
)
from curvops.operators.algebra import ProductLinearOperator, SumLinearOperator
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.identity import IdentityLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space
from tests.operators.dense import NAMED, MatrixOperator, general, positive, random, rectangular


def diagonal(seed: int = 0) -> DiagonalLinearOperator:
    return DiagonalLinearOperator(random(11, seed=seed), space=NAMED)


def identity() -> IdentityLinearOperator:
    return IdentityLinearOperator(NAMED, torch.float64)


@given(seed=st.integers(0, 1000), width=st.sampled_from([0, 1, 3]))
def test_a_diagonal_multiplies_elementwise(seed: int, width: int) -> None:
    x = random(11, width, seed=seed + 1)
    assert torch.equal(diagonal(seed) @ x, torch.diag(random(11, seed=seed)) @ x)


def test_the_identity_returns_a_copy() -> None:
    x = random(11)
    answer = identity() @ x
    assert torch.equal(answer, x)
    answer += 1
    assert torch.equal(x, random(11))


def test_the_three_formats_make_the_same_diagonal() -> None:
    d = random(11)
    blocks = NAMED.unflatten(d)
    by_name = dict(zip(NAMED.names, blocks, strict=True))
    for op in (DiagonalLinearOperator(f) for f in (d, blocks, by_name)):
        assert torch.equal(op.diagonal, d)
    assert DiagonalLinearOperator(d).in_space == Space.flat(11)
    assert DiagonalLinearOperator(blocks).in_space.shapes == NAMED.shapes
    assert DiagonalLinearOperator(by_name).in_space == NAMED
    assert DiagonalLinearOperator(d, space=NAMED).in_space == NAMED
    backwards = dict(reversed(by_name.items()))
    assert torch.equal(DiagonalLinearOperator(backwards, space=NAMED).diagonal, d)


def test_the_entries_are_a_copy() -> None:
    d = torch.ones(3)
    op = DiagonalLinearOperator(d)
    d[0] = -1.0
    assert torch.equal(op.diagonal, torch.ones(3))
    assert op.POSITIVE_SEMIDEFINITE


@pytest.mark.parametrize(("entries", "expected"), [([0.0, 1.0], True), ([-1e-30, 1.0], False)])
def test_a_diagonal_knows_whether_it_is_semidefinite(entries: list[float], expected: bool) -> None:
    op = DiagonalLinearOperator(torch.tensor(entries))
    assert op.SELF_ADJOINT
    assert op.POSITIVE_SEMIDEFINITE is expected
    assert (-1.0 * op).POSITIVE_SEMIDEFINITE is False
    assert op.T is op


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda D, E: D + D, lambda d: 2 * d),
        (lambda D, E: D + E, lambda d: d + 1),
        (lambda D, E: E + D, lambda d: d + 1),
        (lambda D, E: E - D, lambda d: 1 - d),
        (lambda D, E: E + E, lambda d: 2 + 0 * d),
        (lambda D, E: E - E, lambda d: 0 * d),
        (lambda D, E: 3 * E, lambda d: 3 + 0 * d),
        (lambda D, E: -E, lambda d: -1 + 0 * d),
        (lambda D, E: D / 2, lambda d: d / 2),
        (lambda D, E: D.shift(0.5), lambda d: d + 0.5),
        (lambda D, E: E.shift(0.5), lambda d: 1.5 + 0 * d),
        (lambda D, E: D @ D, lambda d: d * d),
        (lambda D, E: D @ (2 * E), lambda d: 2 * d),
        (lambda D, E: D @ E, lambda d: d),
        (lambda D, E: E @ D, lambda d: d),
        (lambda D, E: E @ E, lambda d: 1 + 0 * d),
        (lambda D, E: D.inverse(), lambda d: 1 / d),
        (lambda D, E: (4 * E).inverse(), lambda d: 0.25 + 0 * d),
        (lambda D, E: E.inverse(), lambda d: 1 + 0 * d),
        (lambda D, E: (2 * D - E.T).T @ D, lambda d: (2 * d - 1) * d),
    ],
)
def test_what_stays_diagonal(make: Any, expected: Any) -> None:
    op = make(diagonal(), identity())
    d = expected(random(11))
    assert isinstance(op, DiagonalLinearOperator)
    assert op.diagonal.shape == (11,)
    assert_close(op.diagonal, d, rtol=1e-15, atol=0.0)
    assert op.in_space == NAMED
    assert op.POSITIVE_SEMIDEFINITE is bool((d >= 0).all())
    assert_close(op.to_dense(), torch.diag(d), rtol=1e-15, atol=0.0)


def test_identities_do_not_grow_with_the_dimension() -> None:
    huge = IdentityLinearOperator(10**15)
    op = 2 * huge + huge.shift(3.0)
    assert op.shape == (10**15, 10**15)
    assert op.diagonal.untyped_storage().nbytes() <= 64


def test_the_identity_drops_out_of_products() -> None:
    J = rectangular()
    assert J @ identity() is J
    assert IdentityLinearOperator(7, torch.float64) @ J is J
    assert identity() @ general() != general()
    # A named identity still labels what a flat operator returns.
    flat = MatrixOperator(random(11, 11), Space.flat(11))
    labelled = identity() @ flat
    assert (labelled.in_space, labelled.out_space) == (Space.flat(11), NAMED)
    assert (flat @ identity()).in_space == NAMED


def test_a_diagonal_adds_to_and_multiplies_any_operator() -> None:
    A, d = general(), random(11)
    D = diagonal()
    assert isinstance(A + D, SumLinearOperator)
    assert isinstance(A @ D, ProductLinearOperator)
    assert_close((A + D).to_dense(), A.matrix + torch.diag(d))
    assert_close((D - A).to_dense(), torch.diag(d) - A.matrix)
    assert_close((A @ D).to_dense(), A.matrix * d)
    assert_close((D @ A).to_dense(), d[:, None] * A.matrix)


def test_a_flat_diagonal_takes_the_space_of_its_neighbour() -> None:
    flat = DiagonalLinearOperator(random(11).abs())
    results: list[LinearOperator] = [
        flat + positive(),
        flat @ positive(),
        positive() @ flat,
        flat + diagonal(),
        diagonal() @ flat,
    ]
    assert [(op.in_space, op.out_space) for op in results] == [(NAMED, NAMED)] * 5
    assert results[0].POSITIVE_SEMIDEFINITE


def test_diagonals_merge_within_a_sum() -> None:
    total = diagonal() + general() + diagonal(1) + identity()
    assert isinstance(total, SumLinearOperator)
    assert len(total.terms) == 2
    expected = general().matrix + torch.diag(random(11) + random(11, seed=1) + 1)
    assert_close(total.to_dense(), expected)


class Changing(DiagonalLinearOperator):
    """A diagonal whose entries change and cost something."""

    POSITIVE_SEMIDEFINITE = True

    def __init__(self, entries: Tensor) -> None:
        LinearOperator.__init__(self, NAMED, NAMED, entries.dtype, entries.device)
        self.now = entries
        self.reads = 0

    @property
    def _entries(self) -> Tensor:  # type: ignore[override]
        self.reads += 1
        return self.now


@pytest.mark.parametrize(
    ("make", "expected", "positive"),
    [
        (lambda D: 2 * D, lambda d: 2 * d, True),
        (lambda D: -D, lambda d: -d, False),
        (lambda D: D + D, lambda d: 2 * d, True),
        (lambda D: D + identity(), lambda d: d + 1, True),
        (lambda D: (D - identity()).shift(0.5), lambda d: d - 0.5, False),
        (lambda D: identity() + D, lambda d: d + 1, True),
        (lambda D: D @ D, lambda d: d * d, True),
        (lambda D: D @ identity(), lambda d: d, True),
        (lambda D: DiagonalLinearOperator(random(11)) @ D, lambda d: random(11) * d, False),
    ],
)
def test_what_is_built_from_a_changing_diagonal_follows_it(
    make: Any, expected: Any, positive: bool
) -> None:
    changing = Changing(random(11, seed=1).abs())
    op = make(changing)
    assert isinstance(op, DiagonalLinearOperator)
    assert changing.reads == 0, "building an expression must not compute the entries"
    assert op.POSITIVE_SEMIDEFINITE is positive
    assert (op.in_space, op.out_space) == (NAMED, NAMED)
    for seed in (1, 2):
        changing.now = random(11, seed=seed).abs()
        assert_close(op.diagonal, expected(changing.now), rtol=1e-15, atol=1e-15)
        assert_close(op @ random(11), expected(changing.now) * random(11), rtol=1e-15, atol=1e-15)


def test_the_inverse_of_a_changing_diagonal_follows_it() -> None:
    changing = Changing(torch.ones(11))
    inverse = changing.inverse()
    changing.now = torch.full((11,), 4.0)
    assert torch.equal(inverse.diagonal, torch.full((11,), 0.25))
    changing.now = torch.zeros(11)
    with pytest.raises(NonFiniteError, match="11 non-finite"):
        inverse @ torch.ones(11)


def test_a_singular_diagonal_has_no_inverse() -> None:
    with pytest.raises(InputError, match="1 of 2 diagonal entries are zero"):
        DiagonalLinearOperator(torch.tensor([0.0, 1.0])).inverse()
    with pytest.raises(InputError, match="3 of 3"):
        (0 * IdentityLinearOperator(3)).inverse()
    with pytest.raises(NonFiniteError, match="1 non-finite"):
        DiagonalLinearOperator(torch.tensor([1e-40, 1.0])).inverse()


def test_overflow_is_an_error_not_an_infinite_operator() -> None:
    big = DiagonalLinearOperator(torch.tensor([1e30, 1.0]))
    with pytest.raises(NonFiniteError, match="1 non-finite"):
        big @ big
    with pytest.raises(NonFiniteError, match="1 non-finite"):
        1e30 * big


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        (torch.tensor([float("nan")]), NonFiniteError, "1 non-finite"),
        (torch.tensor([1, 2]), DTypeError, "int64"),
        (torch.tensor([1j]), DTypeError, "complex"),
        (torch.ones(2, 2), ShapeError, r"\[P\], not \[2, 2\]"),
        (torch.ones(()), ShapeError, r"\[P\], not \[\]"),
        ([torch.ones(2), torch.ones(2).double()], DTypeError, "float32.*float64"),
        ([torch.ones(2), 1.0], InputError, "list"),
        ({"a": 1.0}, InputError, "dict"),
        ([], InputError, "at least one"),
        ({}, InputError, "at least one"),
        (np.ones(3), InputError, "ndarray"),
        ("diagonal", InputError, "str"),
        (1.0, InputError, "float"),
    ],
)
def test_bad_diagonals_are_refused(entries: Any, error: type[CurvopsError], message: str) -> None:
    with pytest.raises(error, match=message):
        DiagonalLinearOperator(entries)


def test_a_diagonal_must_fit_its_space() -> None:
    with pytest.raises(ShapeError, match=r"\[10\].*\[11\]"):
        DiagonalLinearOperator(torch.ones(10), space=NAMED)
    with pytest.raises(ShapeError, match="2 columns"):
        DiagonalLinearOperator(torch.ones(11, 2), space=NAMED)
    with pytest.raises(InputError, match="missing"):
        DiagonalLinearOperator({"scale": torch.ones(())}, space=NAMED)


@pytest.mark.parametrize("space", [-1, 2.0, True, "x", None])
def test_the_identity_needs_a_space(space: Any) -> None:
    with pytest.raises(InputError, match="space must be"):
        IdentityLinearOperator(space)


def test_the_identity_needs_a_real_dtype() -> None:
    with pytest.raises(DTypeError, match="int32"):
        IdentityLinearOperator(3, torch.int32)
    assert IdentityLinearOperator(3).dtype == torch.get_default_dtype()
    assert IdentityLinearOperator(3, torch.bfloat16).dtype == torch.bfloat16
