r"""Curvatures as V Vᵀ: one column of V a term of the loss, of few where the data are few."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from curvops.autodiff import Linearization
from curvops.errors import InputError
from curvops.operators.linear import LinearOperator
from curvops.risk import EmpiricalRisk
from curvops.tensors import BlockSum, Space

Roots = Callable[[Tensor, Any], Iterable[tuple[Tensor, Tensor | None]]]
"""``(prediction, y)`` to columns s of the prediction's shape, and their signs ``[N]``."""


class FactorLinearOperator(LinearOperator):
    r"""V ``[P, r]`` with :math:`V V^T = \frac1Z \sum_n \sum_k J_n^T s_{nk} s_{nk}^T J_n`.

    Columns are ordered by batch, then by k, then by datum.

    Args:
        risk: The risk whose data are summed over.
        roots: The vectors s of a batch.

    Raises:
        InputError: If a root has a negative sign, so that there is no such V, or the loss is not
            a sum of one term per datum.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from curvops.operators import GGNLinearOperator
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2, 1))]
        >>> V, constant = GGNLinearOperator(model, nn.MSELoss(), model, data).gram_factor()
        >>> (V @ V.T).to_dense().round()
        tensor([[10., 14.],
                [14., 20.]])
    """

    def __init__(self, risk: EmpiricalRisk, roots: Roots) -> None:
        risk.require_separable()
        self.risk, self._roots = risk, roots
        self._scale = 1.0 / math.sqrt(risk.normalizer)
        rank = 0
        for prediction, y in risk.predictions():
            for root, signs in roots(prediction, y):
                if signs is not None and bool((signs < 0).any()):
                    raise InputError(
                        f"{risk.loss_func.name} has negative curvature in its prediction here, so "
                        "that its Gauss-Newton matrix is not of the form V Vᵀ. Use "
                        'method="krylov" or "dense".'
                    )
                rank += root.shape[0]
        super().__init__(Space.flat(rank, "column"), risk.space, risk.dtype, risk.device)

    def column_blocks(self) -> Iterator[Tensor]:
        """Yield the columns in order ``[P, c]``: individual gradients, a root of a batch each."""
        pull_back = self.risk.pullbacks(lambda f, y: (root for root, _ in self._roots(f, y)))
        for block in pull_back:
            yield self._scale * block.T

    def _matmat(self, X: Tensor) -> Tensor:
        columns = X.T.contiguous()
        total = BlockSum(self.out_space, X.new_empty(X.shape[1], self.shape[0]))

        def visit(lin: Linearization, roots: list[Tensor], start: int) -> None:
            size = len(lin.prediction)
            for k, x in enumerate(columns):
                u = torch.zeros_like(lin.prediction)
                for i, root in enumerate(roots):
                    rows = x[start + i * size : start + (i + 1) * size]
                    u = u + root * _broadcast(rows, root)
                total.add(k, 1, lin.vjp(u))

        self._visit(visit)
        return self._scale * total.value.T.contiguous()

    def _rmatmat(self, X: Tensor) -> Tensor:
        product = X.new_empty(self.shape[1], X.shape[1])

        def visit(lin: Linearization, roots: list[Tensor], start: int) -> None:
            size = len(lin.prediction)
            for k in range(X.shape[1]):
                tangent = lin.jvp(self.risk.blocks(X[:, k]))
                for i, root in enumerate(roots):
                    inner = (root * tangent).reshape(size, -1).sum(1)
                    product[start + i * size : start + (i + 1) * size, k] = inner

        self._visit(visit)
        return self._scale * product

    def _visit(self, visit: Callable[[Linearization, list[Tensor], int], None]) -> None:
        """Call with every batch, its roots and the index of its first column."""
        start = 0

        def with_roots(lin: Linearization) -> None:
            nonlocal start
            roots = [root for root, _ in self._roots(lin.prediction.detach(), lin.batch.y)]
            visit(lin, roots, start)
            start += sum(root.shape[0] for root in roots)

        self.risk.for_each(with_roots)


def _broadcast(rows: Tensor, like: Tensor) -> Tensor:
    return rows.reshape(-1, *[1] * (like.ndim - 1)).to(like.dtype)
