"""Rows and columns of an operator, chosen by index or by parameter name."""

from __future__ import annotations

from torch import Tensor

from curvops.operators.linear import LinearOperator
from curvops.operators.selection import Choice, Selection


class SubmatrixLinearOperator(LinearOperator):
    r"""The submatrix ``A[rows, cols]``.

    With ``R`` and ``C`` the rows of the identity that are chosen, it is ``R A Cᵀ``; a product
    costs one product with ``A``. It is self-adjoint (positive semidefinite) if ``A`` is and
    ``rows`` and ``cols`` are the same.

    Args:
        op: The operator ``A`` of shape ``[M, N]``.
        rows: Coordinates of ``op.out_space``: a slice; a list, tensor or array of distinct flat
            indices (negative ones count from the end); a boolean mask ``[M]``; or parameter
            names and globs such as ``"blocks.*.weight"``, as a string or a list.
        cols: The same for ``op.in_space``.

    The result acts on the named blocks when they were chosen by name (in the order of the space,
    whatever the order of the names), and on one flat block otherwise.

    Raises:
        InputError: If an index is out of range or appears twice, if a name or glob matches
            nothing, or if nothing is chosen.
        ShapeError: If indices are not one-dimensional, or a mask has the wrong length.
        DTypeError: If indices are neither integer nor boolean.

    Example:
        >>> import torch
        >>> from curvops.operators import DiagonalLinearOperator
        >>> D = DiagonalLinearOperator({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])})
        >>> SubmatrixLinearOperator(D, "b", [0, 2]).to_dense()
        tensor([[0., 3.]])
        >>> SubmatrixLinearOperator(D, "w", "w") @ {"w": torch.ones(2)}
        {'w': tensor([1., 2.])}
    """

    def __init__(
        self, op: LinearOperator, rows: Choice | Selection, cols: Choice | Selection
    ) -> None:
        if not isinstance(rows, Selection):
            rows = Selection.of(op.out_space, rows, "rows")
        if not isinstance(cols, Selection):
            cols = Selection.of(op.in_space, cols, "cols")
        super().__init__(cols.space, rows.space, op.dtype, op.device)
        self.op = op
        self.rows = rows
        self.cols = cols
        self._row_index = rows.index.to(self.device)
        self._col_index = cols.index.to(self.device)
        principal = rows.same_as(cols)
        self.SELF_ADJOINT = op.SELF_ADJOINT and principal
        self.POSITIVE_SEMIDEFINITE = op.POSITIVE_SEMIDEFINITE and principal

    def _matmat(self, X: Tensor) -> Tensor:
        padded = X.new_zeros(self.op.shape[1], X.shape[1])
        padded[self._col_index] = X
        return self.op._matmat(padded)[self._row_index]

    def _adjoint(self) -> LinearOperator:
        return SubmatrixLinearOperator(self.op.adjoint(), self.cols, self.rows)
