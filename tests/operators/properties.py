"""What every curvature operator must do, whatever its matrix: formats, columns, cuts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests import truth
from tests.cases import Case, assert_matches


def check_matrix(operator: Any, expected: Tensor, case: Case) -> None:
    """The operator is the dense symmetric matrix ``expected``, in the dtype of the case."""
    assert tuple(operator.shape) == (case.dim, case.dim)
    assert operator.dtype == case.dtype
    assert operator.device == torch.device("cpu")
    assert operator.SELF_ADJOINT is True
    assert_matches(operator.to_dense(), expected, case.dtype)
    x = case.vectors(3)
    assert_matches(operator @ x, expected @ x.double(), case.dtype)
    assert_matches(operator.T @ x, expected @ x.double(), case.dtype)


def check_formats(operator: Any, expected: Tensor, case: Case) -> None:
    """Flat, list and dict input; a vector, and K = 0, 1, 3 columns; what goes in comes out."""
    for columns in (None, 0, 1, 3):
        x = case.vectors(3)[:, 0] if columns is None else case.vectors(columns)
        y = expected @ x.double()
        assert_matches(operator @ x, y, case.dtype)

        trailing = () if columns is None else (columns,)
        blocks = {
            name: piece.reshape(*p.shape, *trailing)
            for piece, (name, p) in zip(
                x.split([p.numel() for p in case.params.values()]),
                case.params.items(),
                strict=True,
            )
        }
        as_list = operator @ list(blocks.values())
        assert isinstance(as_list, list)
        as_dict = operator @ blocks
        assert isinstance(as_dict, dict)
        assert list(as_dict) == list(case.params)
        for answer in (as_list, list(as_dict.values())):
            assert [b.shape for b in answer] == [b.shape for b in blocks.values()]
            flat = torch.cat([b.reshape(p.numel(), *trailing) for b, p in _zip(answer, case)])
            assert_matches(flat, y, case.dtype)


def _zip(blocks: list[Tensor], case: Case) -> Any:
    return zip(blocks, case.params.values(), strict=True)


def recut(case: Case, sizes: tuple[int, ...], order: Tensor | None = None) -> list[Any]:
    """The data of a case in another cut, and in another order."""
    from tests.cases import cut

    X = truth.concatenate([X for X, _ in case.batches])
    y = truth.concatenate([y for _, y in case.batches])
    if order is not None:
        X, y = X[order], y[order]
    return cut(X, y, sizes)
