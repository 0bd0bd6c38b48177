"""The block-diagonal part: values, groupings, chunks, tags, bad groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from curvops.errors import InputError, ShapeError
from curvops.operators import block_diagonal
from curvops.operators.block_diagonal import BlockDiagonalLinearOperator
from curvops.tensors import Space
from tests.operators.dense import (
    NAMED,
    MatrixOperator,
    general,
    positive,
    random,
    rectangular,
    symmetric,
)

LAYERS = [list(range(8)), [8, 9], [10]]


def masked(matrix: Tensor, groups: list[list[int]]) -> Tensor:
    """The block-diagonal part, entry by entry."""
    owner = {i: g for g, group in enumerate(groups) for i in group}
    return torch.tensor(
        [[float(a) if owner[i] == owner[j] else 0.0 for j, a in enumerate(row)]
         for i, row in enumerate(matrix)],
        dtype=matrix.dtype,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "names", "indices"),
    [
        (
            "layer",
            (("net.0.weight", "net.0.bias"), ("net.1.weight",), ("scale",)),
            LAYERS,
        ),
        (
            "parameter",
            (("net.0.weight",), ("net.0.bias",), ("net.1.weight",), ("scale",)),
            [list(range(6)), [6, 7], [8, 9], [10]],
        ),
        (
            [["*.weight"], ["scale", "net.0.bias"]],
            (("net.0.weight", "net.1.weight"), ("net.0.bias", "scale")),
            [[0, 1, 2, 3, 4, 5, 8, 9], [6, 7, 10]],
        ),
        (["*"], (NAMED.names,), [list(range(11))]),
        (
            ("scale", ("net.*",)),
            (("scale",), ("net.0.weight", "net.0.bias", "net.1.weight")),
            [[10], list(range(10))],
        ),
    ],
    ids=["layer", "parameter", "lists", "one", "globs"],
)
def test_it_is_the_block_diagonal_part(groups: Any, names: Any, indices: Any) -> None:
    op = general()
    blocks = BlockDiagonalLinearOperator(op, groups)
    assert blocks.groups == names
    assert_close(blocks.to_dense(), masked(op.matrix, indices))
    assert_close(blocks.T.to_dense(), masked(op.matrix.T, indices))
    for block, index in zip(blocks.blocks, indices, strict=True):
        assert_close(block.to_dense(), op.matrix[index][:, index])


def test_layers_are_the_default() -> None:
    assert BlockDiagonalLinearOperator(general()).groups == (
        ("net.0.weight", "net.0.bias"),
        ("net.1.weight",),
        ("scale",),
    )


@given(
    seed=st.integers(0, 1000),
    width=st.sampled_from([0, 1, 2, 5]),
    max_columns=st.sampled_from([1, 2, 3, 4, 7, 100, None]),
)
def test_the_product_does_not_depend_on_the_chunk(
    seed: int, width: int, max_columns: int | None
) -> None:
    op = general(seed=seed)
    blocks = BlockDiagonalLinearOperator(op, max_columns=max_columns)
    X = random(11, width, seed=seed + 1)
    before = X.clone()
    assert_close(blocks @ X, masked(op.matrix, LAYERS) @ X, rtol=1e-12, atol=1e-12)
    assert torch.equal(X, before)
    assert sum(op.columns) == 3 * width
    assert all(c <= (max_columns or 64) for c in op.columns)


def test_groups_share_one_product() -> None:
    op = general()
    BlockDiagonalLinearOperator(op) @ torch.ones(11, 2)
    assert op.columns == [6]
    op.columns.clear()
    BlockDiagonalLinearOperator(op, max_columns=4) @ torch.ones(11, 2)
    assert op.columns == [4, 2]


def test_memory_is_bounded_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert BlockDiagonalLinearOperator(general()).max_columns == 64
    monkeypatch.setattr(block_diagonal, "_MOST_BYTES", 11 * 8 * 5)
    assert BlockDiagonalLinearOperator(general()).max_columns == 5
    monkeypatch.setattr(block_diagonal, "_MOST_BYTES", 1)
    assert BlockDiagonalLinearOperator(general()).max_columns == 1


def test_the_tags_are_inherited() -> None:
    assert BlockDiagonalLinearOperator(positive()).POSITIVE_SEMIDEFINITE
    assert BlockDiagonalLinearOperator(positive()).SELF_ADJOINT
    assert BlockDiagonalLinearOperator(symmetric()).SELF_ADJOINT
    assert not BlockDiagonalLinearOperator(symmetric()).POSITIVE_SEMIDEFINITE
    assert not BlockDiagonalLinearOperator(general()).SELF_ADJOINT
    blocks = BlockDiagonalLinearOperator(positive()).blocks
    assert all(block.POSITIVE_SEMIDEFINITE for block in blocks)


def test_formats_pass_through() -> None:
    op = general()
    x = dict(zip(NAMED.names, NAMED.unflatten(random(11)), strict=True))
    answer = BlockDiagonalLinearOperator(op) @ x
    assert {n: tuple(t.shape) for n, t in answer.items()} == {
        n: tuple(s) for n, s in zip(NAMED.names, NAMED.shapes, strict=True)
    }
    assert_close(NAMED.flatten(list(answer.values())), masked(op.matrix, LAYERS) @ random(11))


def test_scattered_layers_are_gathered() -> None:
    space = Space(("a.w", "b.w", "a.b"), (torch.Size([2]), torch.Size([1]), torch.Size([1])))
    op = general(space)
    blocks = BlockDiagonalLinearOperator(op)
    assert blocks.groups == (("a.w", "a.b"), ("b.w",))
    assert_close(blocks.to_dense(), masked(op.matrix, [[0, 1, 3], [2]]))


def test_parameters_of_the_root_module_are_one_layer() -> None:
    space = Space(("weight", "bias"), (torch.Size([2]), torch.Size([1])))
    assert BlockDiagonalLinearOperator(general(space)).groups == (("weight", "bias"),)


def test_unnamed_parameters_have_no_layers() -> None:
    op = general(Space(("0", "1"), (torch.Size([2]), torch.Size([1]))))
    with pytest.raises(InputError, match="without names"):
        BlockDiagonalLinearOperator(op)
    assert BlockDiagonalLinearOperator(op, "parameter").groups == (("0",), ("1",))
    assert BlockDiagonalLinearOperator(general(Space.flat(3))).groups == (("0",),)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [["net.*"], ["*.weight", "scale"]],
            r"'net.0.weight' is in groups\[0\] and in groups\[1\]",
        ),
        ([["net.*"]], r"No group holds the parameters \['scale'\]"),
        ([], "No group holds"),
        ([["*"], []], r"groups\[1\] is empty"),
        ([["*"], ["no.such"]], r"groups\[1\]: 'no.such' matches none"),
        ([["*"], [3]], r"groups\[1\] mixes names with 3"),
        ([["*"], 3], r"groups\[1\] must be"),
        ("layers", "not 'layers'"),
        (None, "not None"),
        ({"a": ["*"]}, "not {'a'"),
    ],
)
def test_bad_groups_are_refused(groups: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockDiagonalLinearOperator(general(), groups)


def test_only_an_operator_on_one_space_has_blocks() -> None:
    with pytest.raises(ShapeError, match="one space"):
        BlockDiagonalLinearOperator(rectangular())
    with pytest.raises(ShapeError, match="one space"):
        BlockDiagonalLinearOperator(MatrixOperator(torch.eye(11), NAMED, Space.flat(11)))


@pytest.mark.parametrize("max_columns", [0, -1, 1.5, True])
def test_impossible_chunks_are_refused(max_columns: Any) -> None:
    with pytest.raises(InputError, match="max_columns"):
        BlockDiagonalLinearOperator(general(), max_columns=max_columns)
