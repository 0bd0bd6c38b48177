"""Rows and columns by slice, index, mask and name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from curvops.errors import CurvopsError, DTypeError, InputError, ShapeError
from curvops.operators.submatrix import SubmatrixLinearOperator
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

indices = st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True)


@given(rows=indices, cols=indices, seed=st.integers(0, 1000), width=st.sampled_from([0, 1, 3]))
def test_it_is_the_submatrix_in_the_order_given(
    rows: list[int], cols: list[int], seed: int, width: int
) -> None:
    op = rectangular(seed)
    sub = SubmatrixLinearOperator(op, rows, cols)
    dense = op.matrix[rows][:, cols]
    assert sub.shape == dense.shape
    X = random(len(cols), width, seed=seed + 1)
    Y = random(len(rows), width, seed=seed + 2)
    assert_close(sub @ X, dense @ X, rtol=1e-12, atol=1e-12)
    assert_close(sub.T @ Y, dense.T @ Y, rtol=1e-12, atol=1e-12)
    assert_close(sub.to_dense(), dense)


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (slice(None), list(range(11))),
        (slice(2, 5), [2, 3, 4]),
        (slice(None, None, -3), [10, 7, 4, 1]),
        (slice(-2, 100), [9, 10]),
        (range(1, 4), [1, 2, 3]),
        ([5, 0], [5, 0]),
        ((5, 0), [5, 0]),
        ([-1, 0], [10, 0]),
        (torch.tensor([5, 0]), [5, 0]),
        (torch.tensor([5, 0], dtype=torch.uint8), [5, 0]),
        (np.array([5, 0]), [5, 0]),
        ([np.int64(5), np.int64(0)], [5, 0]),
        (torch.arange(11) > 8, [9, 10]),
        ([False] * 9 + [True] * 2, [9, 10]),
        (np.arange(11) == 4, [4]),
        ("net.0.bias", [6, 7]),
        ("scale", [10]),
        ("net.0.*", list(range(8))),
        ("*.weight", [0, 1, 2, 3, 4, 5, 8, 9]),
        (["net.0.bias"], [6, 7]),
        (["scale", "net.1.*"], [8, 9, 10]),
        (["net.0.*", "*.bias"], list(range(8))),
        ("*", list(range(11))),
    ],
    ids=str,
)
def test_every_way_to_choose(choice: Any, expected: list[int]) -> None:
    op = general()
    assert_close(SubmatrixLinearOperator(op, choice, choice).to_dense(), submatrix(op, expected))
    assert_close(SubmatrixLinearOperator(op, choice, slice(None)).to_dense(), op.matrix[expected])
    assert_close(
        SubmatrixLinearOperator(op, slice(None), choice).to_dense(), op.matrix[:, expected]
    )


def submatrix(op: MatrixOperator, index: list[int]) -> torch.Tensor:
    return op.matrix[index][:, index]


def test_names_keep_their_blocks_and_indices_do_not() -> None:
    sub = SubmatrixLinearOperator(rectangular(), "left", ["scale", "net.0.weight"])
    assert sub.out_space == Space(("left",), (torch.Size([2, 2]),))
    assert sub.in_space.names == ("net.0.weight", "scale")
    answer = sub @ {"scale": torch.ones(3), "net.0.weight": torch.ones(2, 3, 3)}
    assert answer["left"].shape == (2, 2, 3)
    expected = rectangular().matrix[:4][:, [0, 1, 2, 3, 4, 5, 10]].sum(1)
    assert_close(answer["left"][..., 1].reshape(4), expected)
    assert SubmatrixLinearOperator(rectangular(), [0, 1], slice(3)).in_space == Space.flat(3)


def test_an_exact_name_wins_over_its_reading_as_a_glob() -> None:
    space = Space(("w[0]", "w0"), (torch.Size([1]), torch.Size([2])))
    op = general(space)
    assert SubmatrixLinearOperator(op, "w[0]", "w[0]").in_space.names == ("w[0]",)
    assert SubmatrixLinearOperator(op, "w[01]", "w[01]").in_space.names == ("w0",)


@pytest.mark.parametrize("choice", [[0, 3, 5], "net.0.*", slice(4)])
def test_principal_submatrices_inherit_the_tags(choice: Any) -> None:
    assert SubmatrixLinearOperator(symmetric(), choice, choice).SELF_ADJOINT
    assert not SubmatrixLinearOperator(symmetric(), choice, choice).POSITIVE_SEMIDEFINITE
    assert SubmatrixLinearOperator(positive(), choice, choice).POSITIVE_SEMIDEFINITE
    assert not SubmatrixLinearOperator(general(), choice, choice).SELF_ADJOINT


@pytest.mark.parametrize(
    ("rows", "cols"),
    [([0, 3], [3, 0]), ([0, 3], [0, 4]), ("net.0.*", slice(8)), ([0], [0, 1])],
)
def test_other_submatrices_claim_nothing(rows: Any, cols: Any) -> None:
    sub = SubmatrixLinearOperator(positive(), rows, cols)
    assert not sub.SELF_ADJOINT
    assert not sub.POSITIVE_SEMIDEFINITE
    assert_close(sub.T.to_dense(), sub.to_dense().T)
    assert (sub.T.in_space, sub.T.out_space) == (sub.out_space, sub.in_space)


@pytest.mark.parametrize(
    ("choice", "error", "message"),
    [
        ([0, 11], InputError, "rows holds the index 11, out of range for 11"),
        ([-12], InputError, "index -12, out of range"),
        ([2**70], InputError, "rows"),
        ([1, 3, 1], InputError, "index 1 more than once"),
        ([0, -11], InputError, "index 0 more than once"),
        ([0.0, 1.0], DTypeError, "float32"),
        (torch.tensor([1j]), DTypeError, "complex64"),
        (torch.tensor([[0, 1]]), ShapeError, r"\[1, 2\]"),
        (torch.tensor(3), ShapeError, r"\[\]"),
        (torch.ones(10, dtype=torch.bool), ShapeError, r"mask of 10 entries; expected \[11\]"),
        ([True, False], ShapeError, "mask of 2"),
        (torch.zeros(11, dtype=torch.bool), InputError, "rows selects nothing"),
        ([], InputError, "rows selects nothing"),
        (slice(3, 3), InputError, "rows selects nothing"),
        (slice("a", "b"), InputError, "impossible slice"),
        (slice(None, None, 0), InputError, "impossible slice"),
        (3, InputError, "got 3"),
        (None, InputError, "got None"),
        ({"scale"}, InputError, "got {'scale'}"),
        ([None], InputError, "cannot be read"),
        ("no.such", InputError, "'no.such' matches none of 'net.0.weight'"),
        (["scale", "x*"], InputError, r"'x\*' matches none"),
        (["scale", 3], InputError, "mixes names with 3"),
        ("", InputError, "'' matches none"),
    ],
)
def test_bad_choices_are_refused(choice: Any, error: type[CurvopsError], message: str) -> None:
    with pytest.raises(error, match=message):
        SubmatrixLinearOperator(general(), choice, slice(None))


def test_errors_say_which_side() -> None:
    with pytest.raises(InputError, match="cols holds the index 11"):
        SubmatrixLinearOperator(rectangular(), [0], [11])
    with pytest.raises(InputError, match="rows holds the index 7"):
        SubmatrixLinearOperator(rectangular(), [7], [7])


def test_a_submatrix_of_a_submatrix() -> None:
    op = general()
    outer = SubmatrixLinearOperator(op, "net.0.*", "*.weight")
    inner = SubmatrixLinearOperator(outer, "net.0.bias", [7, 0])
    assert_close(inner.to_dense(), op.matrix[[6, 7]][:, [9, 0]])


def test_a_product_costs_one_product() -> None:
    op = general()
    SubmatrixLinearOperator(op, [0], [1, 2]) @ torch.ones(2, 4)
    assert op.columns == [4]


def test_the_dimensions_of_named_blocks_are_those_of_the_spaces() -> None:
    sub = SubmatrixLinearOperator(rectangular(), "right", "net.?.weight")
    assert sub.shape == (3, 8)
    assert OUTPUT.dim == 7
    assert NAMED.dim == 11
