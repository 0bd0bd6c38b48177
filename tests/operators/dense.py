"""Operators backed by a dense matrix, so that every answer is known."""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.operators.linear import LinearOperator
from curvops.tensors import Space

NAMED = Space(
    ("net.0.weight", "net.0.bias", "net.1.weight", "scale"),
    (torch.Size([2, 3]), torch.Size([2]), torch.Size([1, 2]), torch.Size([])),
)
"""A space of dimension 11 with a matrix, vectors and a scalar."""

OUTPUT = Space(("left", "right"), (torch.Size([2, 2]), torch.Size([3])))
"""A space of dimension 7."""


class MatrixOperator(LinearOperator):
    """``A @ x`` by a dense matrix; records how many columns each product had."""

    def __init__(
        self,
        matrix: Tensor,
        in_space: Space | None = None,
        out_space: Space | None = None,
        *,
        self_adjoint: bool = False,
        positive: bool = False,
    ) -> None:
        rows, cols = matrix.shape
        in_space = in_space or Space.flat(cols)
        if out_space is None:
            out_space = in_space if rows == cols else Space.flat(rows)
        super().__init__(in_space, out_space, matrix.dtype, matrix.device)
        self.matrix = matrix
        self.columns: list[int] = []
        self.SELF_ADJOINT = self_adjoint
        self.POSITIVE_SEMIDEFINITE = positive

    def _matmat(self, X: Tensor) -> Tensor:
        self.columns.append(X.shape[1])
        return self.matrix @ X

    def _rmatmat(self, X: Tensor) -> Tensor:
        return self.matrix.T @ X


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def general(space: Space = NAMED, seed: int = 0) -> MatrixOperator:
    """A square operator without symmetry."""
    return MatrixOperator(random(space.dim, space.dim, seed=seed), space)


def symmetric(space: Space = NAMED, seed: int = 0) -> MatrixOperator:
    A = random(space.dim, space.dim, seed=seed)
    return MatrixOperator(A + A.T, space, self_adjoint=True)


def positive(space: Space = NAMED, seed: int = 0) -> MatrixOperator:
    A = random(space.dim, space.dim, seed=seed)
    return MatrixOperator(A @ A.T, space, self_adjoint=True, positive=True)


def rectangular(seed: int = 0) -> MatrixOperator:
    """An operator of shape ``[7, 11]``."""
    return MatrixOperator(random(OUTPUT.dim, NAMED.dim, seed=seed), NAMED, OUTPUT)
