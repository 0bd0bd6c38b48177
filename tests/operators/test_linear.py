"""The base class: formats in and out, input at the door, dense and transposed."""

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
    DeviceError,
    DTypeError,
    InputError,
    NonFiniteError,
    ShapeError,
)
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space
from tests.operators.dense import NAMED, OUTPUT, MatrixOperator, general, random, rectangular

seeds = st.integers(0, 2**32 - 1)
widths = st.sampled_from([None, 0, 1, 3])
layouts = st.sampled_from(["flat", "list", "dict"])


def written(space: Space, flat: Tensor, layout: str) -> Any:
    """Write a vector or matrix in a layout, by hand."""
    if layout == "flat":
        return flat
    pieces = {
        name: flat[where].reshape((*shape, *flat.shape[1:]))
        for (name, where), shape in zip(space.slices(), space.shapes, strict=True)
    }
    return pieces if layout == "dict" else list(pieces.values())


@given(seed=seeds, width=widths, layout=layouts)
def test_the_product_is_the_matrix_product_in_the_format_of_the_input(
    seed: int, width: int | None, layout: str
) -> None:
    op = rectangular(seed)
    x = random(NAMED.dim, *([] if width is None else [width]), seed=seed + 1)
    answer = op @ written(NAMED, x, layout)
    expected = written(OUTPUT, op.matrix @ x, layout)
    assert type(answer) is type(expected)
    assert_close(answer, expected, rtol=1e-13, atol=1e-13)


@given(seed=seeds, a=st.floats(-10, 10), b=st.floats(-10, 10))
def test_the_product_is_linear(seed: int, a: float, b: float) -> None:
    op = rectangular(seed)
    x, y = random(2, NAMED.dim, seed=seed + 1)
    assert_close(op @ (a * x + b * y), a * (op @ x) + b * (op @ y), rtol=1e-11, atol=1e-11)


@given(seed=seeds)
def test_the_transpose_is_the_adjoint(seed: int) -> None:
    op = rectangular(seed)
    x, y = random(NAMED.dim, seed=seed + 1), random(OUTPUT.dim, seed=seed + 2)
    assert_close(y @ (op @ x), (op.T @ y) @ x, rtol=1e-12, atol=1e-12)


def test_no_columns_cost_no_product() -> None:
    op = rectangular()
    answer = op @ {name: torch.zeros(*s, 0) for name, s in zip(NAMED.names, NAMED.shapes)}
    assert {name: tuple(block.shape) for name, block in answer.items()} == {
        "left": (2, 2, 0),
        "right": (3, 0),
    }
    assert op.columns == []


def test_columns_are_multiplied_in_one_product() -> None:
    op = rectangular()
    op @ torch.zeros(11, 5)
    assert op.columns == [5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_other_real_dtypes_are_cast_to_the_operators(dtype: torch.dtype) -> None:
    op = general()
    x = random(11).to(dtype)
    answer = op @ x
    assert answer.dtype == torch.float64
    assert_close(answer, op.matrix @ x.double())


def test_the_input_is_not_changed_and_its_graph_is_not_followed() -> None:
    x = random(11).requires_grad_()
    before = x.detach().clone()
    answer = general() @ x
    answer += 1
    assert torch.equal(x, before)
    assert not answer.requires_grad


def replaced(value: float) -> Tensor:
    x = torch.ones(11, dtype=torch.float64)
    x[3] = value
    return x


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (replaced(float("nan")), NonFiniteError, "1 non-finite"),
        (replaced(float("inf")), NonFiniteError, "1 non-finite"),
        (torch.ones(11, dtype=torch.int64), DTypeError, "int64"),
        (torch.ones(11, dtype=torch.bool), DTypeError, "bool"),
        (torch.ones(11, dtype=torch.complex128), DTypeError, "complex128"),
        (torch.ones(10), ShapeError, r"\[10\].*\[11\]"),
        (torch.ones(1, 11), ShapeError, r"\[1, 11\]"),
        (torch.ones(11, 1, 1), ShapeError, r"\[11, 1, 1\]"),
        (torch.ones(()), ShapeError, r"\[\]"),
        (torch.ones(11, device="meta"), DeviceError, "meta.*cpu"),
        ([torch.ones(2, 3)], ShapeError, "1 tensors; expected 4"),
        ({"scale": torch.ones(())}, InputError, "missing.*net.0.weight"),
        ([1.0] * 11, InputError, "float"),
        (3.0, InputError, "float"),
        (None, InputError, "NoneType"),
        ("scale", InputError, "str"),
    ],
)
def test_bad_vectors_are_refused_before_any_work(
    x: Any, error: type[CurvopsError], message: str
) -> None:
    op = general()
    with pytest.raises(error, match=message):
        op @ x
    assert op.columns == []


@pytest.mark.parametrize("x", [np.ones(11), np.ones((11, 2)), np.float64(1.0) * np.ones(11)])
def test_numpy_arrays_are_pointed_to_the_export(x: np.ndarray) -> None:
    with pytest.raises(InputError, match="to_scipy"):
        general() @ x


@pytest.mark.parametrize(
    "x", [torch.ones(11), torch.nn.Parameter(torch.ones(2, 11)), np.ones(11), [torch.ones(11)]]
)
def test_multiplying_from_the_right_is_refused_with_the_remedy(x: Any) -> None:
    with pytest.raises(TypeError, match=r"op\.T @ x"):
        x @ general()


@pytest.mark.parametrize("chunk_size", [1, 3, 11, 64])
def test_dense_is_the_matrix_whatever_the_chunk(chunk_size: int) -> None:
    op = rectangular()
    assert_close(op.to_dense(chunk_size=chunk_size), op.matrix)
    assert op.columns == {1: [1] * 11, 3: [3, 3, 3, 2], 11: [11], 64: [11]}[chunk_size]


@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True, None])
def test_dense_refuses_impossible_chunks(chunk_size: Any) -> None:
    with pytest.raises(InputError, match="chunk_size"):
        general().to_dense(chunk_size=chunk_size)


def test_an_empty_space_has_an_empty_matrix() -> None:
    op = MatrixOperator(torch.zeros(3, 0), Space.flat(0), Space.flat(3))
    assert op.shape == (3, 0)
    assert op.to_dense().shape == (3, 0)
    assert torch.equal(op @ torch.zeros(0), torch.zeros(3))


def test_a_self_adjoint_operator_is_its_own_transpose() -> None:
    op = MatrixOperator(torch.eye(3), self_adjoint=True)
    assert op.T is op


def test_transposing_twice_returns_the_operator() -> None:
    op = rectangular()
    assert op.T is not op
    assert op.T.T is op
    assert op.T.shape == (11, 7)
    assert (op.T.in_space, op.T.out_space) == (OUTPUT, NAMED)
    assert_close(op.T.to_dense(), op.matrix.T)


def test_an_operator_without_a_transpose_says_so_when_asked() -> None:
    class Forward(LinearOperator):
        def _matmat(self, X: Tensor) -> Tensor:
            return 2 * X

    op = Forward(NAMED, NAMED, torch.float32, "cpu")
    assert torch.equal(op @ torch.ones(11), 2 * torch.ones(11))
    with pytest.raises(NotImplementedError, match="Forward does not implement its adjoint"):
        op.T


def test_an_operator_may_return_its_transpose_as_an_operator() -> None:
    class Forward(MatrixOperator):
        _rmatmat = LinearOperator._rmatmat

        def _adjoint(self) -> LinearOperator:
            return MatrixOperator(self.matrix.T)

    A = random(3, 2)
    assert_close(Forward(A).T.to_dense(), A.T)


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_the_dtype_must_be_real_floating(dtype: torch.dtype) -> None:
    with pytest.raises(DTypeError, match="real floating"):
        LinearOperator(NAMED, NAMED, dtype, "cpu")


def test_the_device_is_a_tensors_device() -> None:
    op = LinearOperator(NAMED, NAMED, torch.float32, "meta")
    assert op.device == torch.ones(1, device="meta").device


def test_it_prints_what_it_is() -> None:
    assert repr(rectangular()) == "<7x11 MatrixOperator: torch.float64 on cpu>"
    op = MatrixOperator(torch.eye(2), self_adjoint=True, positive=True)
    assert repr(op).endswith("cpu, self-adjoint, positive semidefinite>")
