"""Sums, multiples, products, transposes: values against dense algebra, tags, mismatches."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from curvops.errors import DeviceError, DTypeError, InputError, NonFiniteError, ShapeError
from curvops.operators.algebra import (
    ProductLinearOperator,
    ScaledLinearOperator,
    SumLinearOperator,
)
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.identity import IdentityLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space
from tests.operators.dense import (
    NAMED,
    OUTPUT,
    MatrixOperator,
    general,
    positive,
    random,
    rectangular,
    symmetric,
)

scalars = st.floats(-8, 8).filter(lambda c: c == 0 or abs(c) > 1e-3)


def leaves() -> st.SearchStrategy[LinearOperator]:
    seeds = st.integers(0, 1000)
    return st.one_of(
        seeds.map(lambda s: general(seed=s)),
        seeds.map(lambda s: symmetric(seed=s)),
        seeds.map(lambda s: positive(seed=s)),
        seeds.map(lambda s: DiagonalLinearOperator(random(11, seed=s), space=NAMED)),
        st.just(IdentityLinearOperator(NAMED, torch.float64)),
    )


@dataclass
class Case:
    """An expression of operators beside the same expression of matrices.

    ``size`` bounds every intermediate entry, so that tolerances can be tight: cancellation may
    leave a result far smaller than its terms.
    """

    op: LinearOperator
    dense: Tensor
    size: float

    @property
    def tolerance(self) -> float:
        return 1e-13 * (1.0 + self.size)


EYE = torch.eye(11, dtype=torch.float64)


def grow(cases: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    two, numbered = (cases, cases), (cases, scalars)
    return st.one_of(
        st.builds(lambda a, b: Case(a.op + b.op, a.dense + b.dense, a.size + b.size), *two),
        st.builds(lambda a, b: Case(a.op - b.op, a.dense - b.dense, a.size + b.size), *two),
        st.builds(lambda a, b: Case(a.op @ b.op, a.dense @ b.dense, a.size * b.size), *two),
        st.builds(lambda a, c: Case(c * a.op, c * a.dense, (1 + abs(c)) * a.size), *numbered),
        st.builds(lambda a, c: Case(a.op.shift(c), a.dense + c * EYE, a.size + abs(c)), *numbered),
        st.builds(lambda a: Case(-a.op, -a.dense, a.size), cases),
        st.builds(lambda a: Case(a.op.T, a.dense.T, a.size), cases),
    )


def leaf(op: LinearOperator) -> Case:
    dense = op.to_dense()
    return Case(op, dense, 1.0 + float(dense.abs().sum()))


expressions = st.recursive(leaves().map(leaf), grow, max_leaves=6)


@settings(max_examples=100)
@given(case=expressions, seed=st.integers(0, 1000))
def test_any_expression_is_its_dense_counterpart(case: Case, seed: int) -> None:
    assert_close(case.op.to_dense(), case.dense, rtol=0, atol=case.tolerance)
    x = random(11, 2, seed=seed)
    before = x.clone()
    assert_close(case.op @ x, case.dense @ x, rtol=0, atol=50 * case.tolerance)
    assert torch.equal(x, before)


@settings(max_examples=100)
@given(case=expressions)
def test_the_tags_of_any_expression_are_true(case: Case) -> None:
    if case.op.SELF_ADJOINT:
        assert_close(case.dense, case.dense.T, rtol=0, atol=case.tolerance)
    if case.op.POSITIVE_SEMIDEFINITE:
        assert case.op.SELF_ADJOINT
        assert float(torch.linalg.eigvalsh(case.dense).min()) >= -10 * case.tolerance


@settings(max_examples=100)
@given(case=expressions, seed=st.integers(0, 1000))
def test_any_expression_has_the_adjoint_it_claims(case: Case, seed: int) -> None:
    x, y = random(2, 11, seed=seed)
    left, right = (case.op.T @ y) @ x, y @ (case.op @ x)
    assert_close(left, right, rtol=0, atol=500 * case.tolerance)


def test_a_sum_is_semidefinite_only_if_both_are() -> None:
    assert (positive() + positive(seed=1)).POSITIVE_SEMIDEFINITE
    assert (positive() + positive(seed=1)).SELF_ADJOINT
    assert not (positive() + symmetric()).POSITIVE_SEMIDEFINITE
    assert (positive() + symmetric()).SELF_ADJOINT
    assert not (positive() + general()).SELF_ADJOINT
    assert not (positive() - positive(seed=1)).POSITIVE_SEMIDEFINITE
    assert (positive() - positive(seed=1)).SELF_ADJOINT


@pytest.mark.parametrize(("factor", "expected"), [(2.0, True), (0.0, True), (-1.0, False)])
def test_only_nonnegative_multiples_stay_semidefinite(factor: float, expected: bool) -> None:
    assert (factor * positive()).POSITIVE_SEMIDEFINITE is expected
    assert (factor * positive()).SELF_ADJOINT
    assert not (factor * symmetric()).POSITIVE_SEMIDEFINITE
    assert not (factor * general()).SELF_ADJOINT


@pytest.mark.parametrize(("delta", "expected"), [(0.5, True), (0.0, True), (-0.5, False)])
def test_only_nonnegative_shifts_stay_semidefinite(delta: float, expected: bool) -> None:
    assert positive().shift(delta).POSITIVE_SEMIDEFINITE is expected
    assert positive().shift(delta).SELF_ADJOINT
    assert not symmetric().shift(delta).POSITIVE_SEMIDEFINITE
    assert not general().shift(delta).SELF_ADJOINT


def test_shifts_add_up_to_one_diagonal() -> None:
    op = positive().shift(-1.0).shift(1.5)
    assert isinstance(op, SumLinearOperator)
    assert len(op.terms) == 2
    assert op.POSITIVE_SEMIDEFINITE
    assert_close(op.to_dense(), positive().matrix + 0.5 * torch.eye(11, dtype=torch.float64))


def test_a_shift_by_nothing_is_the_operator() -> None:
    op = general()
    assert op.shift(0.0) is op


def test_products_claim_nothing() -> None:
    product = positive() @ positive(seed=1)
    assert not product.SELF_ADJOINT
    assert not product.POSITIVE_SEMIDEFINITE


def test_a_transpose_keeps_no_tag_that_the_operator_lacks() -> None:
    assert not general().T.SELF_ADJOINT
    assert (2.0 * symmetric()).T.SELF_ADJOINT
    assert (positive() + positive(seed=1)).T.POSITIVE_SEMIDEFINITE


def test_rectangular_operators_chain_and_add() -> None:
    J, K = rectangular(), rectangular(seed=1)
    assert (J.T @ K).shape == (11, 11)
    assert_close((J.T @ K).to_dense(), J.matrix.T @ K.matrix)
    assert_close((J @ K.T).to_dense(), J.matrix @ K.matrix.T)
    assert_close((J - K).T.to_dense(), (J.matrix - K.matrix).T)
    assert_close((3 * J).T.to_dense(), 3 * J.matrix.T)
    assert_close((J @ general() @ K.T).T.to_dense(), K.matrix @ general().matrix.T @ J.matrix.T)
    H = symmetric(OUTPUT)
    ggn = J.T @ H @ J
    answer = ggn @ dict(zip(NAMED.names, NAMED.unflatten(torch.ones(11)), strict=True))
    assert list(answer) == list(NAMED.names)


def test_long_sums_and_products_are_flat() -> None:
    total = sum([general(seed=s) for s in range(1500)])
    assert isinstance(total, SumLinearOperator)
    assert len(total.terms) == 1500
    product: LinearOperator = MatrixOperator(torch.eye(2))
    for _ in range(1500):
        product = product @ MatrixOperator(torch.eye(2))
    assert isinstance(product, ProductLinearOperator)
    assert torch.equal(product @ torch.ones(2), torch.ones(2))


def test_multiples_merge_unless_that_would_overflow() -> None:
    op = MatrixOperator(torch.ones(1, 1))
    assert isinstance(2 * (3 * op), ScaledLinearOperator)
    assert (2 * (3 * op)).factor == 6.0
    assert -1 * (-op) is op
    tiny = MatrixOperator(torch.full((1, 1), 1e-30))
    big = 1e30 * (1e30 * tiny)
    assert_close(big @ torch.ones(1), torch.tensor([1e30]), rtol=1e-5, atol=0.0)
    assert_close(1e-30 * big @ torch.ones(1), torch.tensor([1.0]), rtol=1e-5, atol=0.0)
    huge = MatrixOperator(torch.full((1, 1), 1e35))
    small = 1e-25 * (1e-25 * huge)
    assert_close(small @ torch.ones(1), torch.tensor([1e-15]), rtol=1e-5, atol=0.0)
    assert (0 * (2 * huge)).factor == 0.0
    assert (2 * (0 * huge)).op is huge


@pytest.mark.parametrize(
    "two",
    [
        2,
        2.0,
        Fraction(2),
        np.float64(2),
        np.float32(2),
        np.int8(2),
        np.array(2.0),
        torch.tensor(2.0),
        torch.tensor(2),
        torch.tensor(2.0, requires_grad=True),
        torch.nn.Parameter(torch.tensor(2.0)),
    ],
    ids=lambda two: f"{type(two).__name__}",
)
def test_numbers_of_every_kind_multiply_from_both_sides(two: Any) -> None:
    op = general()
    for result in (two * op, op * two):
        assert isinstance(result, LinearOperator)
        assert_close(result.to_dense(), 2 * op.matrix)
    assert_close((op / two).to_dense(), op.matrix / 2)
    assert_close(op.shift(two).to_dense(), op.matrix + 2 * torch.eye(11, dtype=torch.float64))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "bad", [NAN, INF, -INF, 10**400, torch.tensor(NAN), np.float32(INF), np.array(NAN)]
)
def test_numbers_must_be_finite(bad: Any) -> None:
    op = general()
    for combine in (op.__mul__, op.__rmul__, op.__truediv__, op.shift):
        with pytest.raises(NonFiniteError, match="not finite"):
            combine(bad)


def test_numbers_must_be_finite_in_the_operators_dtype() -> None:
    with pytest.raises(NonFiniteError, match="float32"):
        1e39 * MatrixOperator(torch.eye(2))
    with pytest.raises(NonFiniteError, match="float16"):
        MatrixOperator(torch.eye(2).half()).shift(1e5)
    with pytest.raises(NonFiniteError, match="float32"):
        MatrixOperator(torch.eye(2)) / 1e-40


@pytest.mark.parametrize("bad", [1j, 2 + 0j, np.complex64(2), torch.tensor(2 + 0j)])
def test_numbers_must_be_real(bad: Any) -> None:
    op = general()
    for combine in (op.__mul__, op.__rmul__, op.__truediv__, op.shift):
        with pytest.raises(DTypeError, match="complex"):
            combine(bad)


def test_numpys_functions_do_not_loop_over_operators() -> None:
    with pytest.raises(TypeError, match="ufunc"):
        np.multiply(np.ones(2), general())


@pytest.mark.parametrize("bad", [torch.ones(11), np.ones(1), "2", None, [2.0], general()])
def test_only_numbers_multiply(bad: Any) -> None:
    op = general()
    with pytest.raises(TypeError, match="@"):
        op * bad
    with pytest.raises(TypeError, match="@"):
        bad * op


def test_division_by_zero_is_an_error() -> None:
    with pytest.raises(InputError, match="by zero"):
        general() / 0


@pytest.mark.parametrize("bad", [1.0, torch.ones(11, 11), torch.tensor(1.0), np.eye(11), "x"])
def test_only_operators_are_added(bad: Any) -> None:
    op = general()
    for combine in (
        lambda: op + bad,
        lambda: bad + op,
        lambda: op - bad,
        lambda: bad - op,
    ):
        with pytest.raises(TypeError, match="shift"):
            combine()


@pytest.mark.parametrize("sign", ["+", "-", "@"])
def test_dtypes_are_never_mixed_silently(sign: str) -> None:
    a, b = MatrixOperator(torch.eye(2)), MatrixOperator(torch.eye(2).double())
    with pytest.raises(DTypeError, match=r"float32.*float64"):
        combined(a, b, sign)
    with pytest.raises(DTypeError, match=r"float64.*float32"):
        combined(b, IdentityLinearOperator(2, torch.float32), sign)


@pytest.mark.parametrize("sign", ["+", "-", "@"])
def test_devices_are_never_mixed(sign: str) -> None:
    a, b = MatrixOperator(torch.eye(2)), MatrixOperator(torch.eye(2, device="meta"))
    with pytest.raises(DeviceError, match=r"cpu.*meta"):
        combined(a, b, sign)


def combined(a: LinearOperator, b: LinearOperator, sign: str) -> LinearOperator:
    return {"+": lambda: a + b, "-": lambda: a - b, "@": lambda: a @ b}[sign]()


def test_mismatched_spaces_are_named() -> None:
    other = Space(("weight", "bias"), (torch.Size([5, 2]), torch.Size([1])))
    with pytest.raises(ShapeError, match=r"net\.0\.weight.*weight\[5, 2\]"):
        general() + general(other)
    with pytest.raises(ShapeError, match=r"net\.0\.weight.*weight\[5, 2\]"):
        general() @ general(other)
    with pytest.raises(ShapeError, match=r"R\^11.*R\^7"):
        rectangular() @ rectangular()
    with pytest.raises(ShapeError, match=r"7x11.*11x7"):
        rectangular() + rectangular().T
    with pytest.raises(ShapeError, match=r"11x11.*2x2"):
        general() + MatrixOperator(torch.eye(2).double())


def test_only_an_operator_on_one_space_can_be_shifted() -> None:
    with pytest.raises(ShapeError, match="itself"):
        rectangular().shift(1.0)
    # The dimensions agree, the spaces do not.
    with pytest.raises(ShapeError, match="itself"):
        MatrixOperator(torch.eye(11), NAMED, Space.flat(11)).shift(1.0)


def test_a_flat_operator_fits_a_named_space() -> None:
    H = symmetric()
    for total in (symmetric(Space.flat(11), seed=1) + H, H + symmetric(Space.flat(11), seed=1)):
        assert total.in_space == NAMED
        assert total.out_space == NAMED
        assert total.SELF_ADJOINT
        assert_close(total.to_dense(), H.matrix + symmetric(seed=1).matrix)


def test_numbered_blocks_fit_a_named_space_of_the_same_shapes_only() -> None:
    numbered = Space(("0", "1", "2", "3"), NAMED.shapes)
    assert (symmetric(numbered) + symmetric()).in_space == NAMED
    assert (symmetric(numbered) @ symmetric()).in_space == NAMED
    swapped = Space(("0", "1", "2", "3"), tuple(reversed(NAMED.shapes)))
    with pytest.raises(ShapeError, match="different spaces"):
        symmetric(swapped) + symmetric()


def test_transposes_of_composites_need_the_transposes_of_their_parts() -> None:
    class Forward(LinearOperator):
        def _matmat(self, X: Tensor) -> Tensor:
            return 2 * X

    forward = Forward(NAMED, NAMED, torch.float64, "cpu")
    for composite in (forward + general(), general() @ forward, 2 * forward):
        assert (composite @ random(11)).shape == (11,)
        with pytest.raises(NotImplementedError, match="Forward"):
            composite.T
