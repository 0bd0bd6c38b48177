"""curvops' own eigensolver over its own Hessian."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from benchmarks import ours
from benchmarks.peers.base import Budget, Eigenpairs
from benchmarks.problems import Problem
from curvops.linalg.eigsh import eigsh


def solve(problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
    """Return the k algebraically largest eigenpairs.

    Args:
        problem: Model, loss and data.
        k: How many.
        tol: Residual relative to the eigenvalue.
        budget: Charged with every product.
    """
    operator = ours.operator(problem, "Hessian")
    try:
        found = eigsh(_Counted(operator, budget), k, "LA", tol=tol)
    finally:
        ours.release(operator)
    assert found.eigenvectors is not None
    return Eigenpairs(found.eigenvalues, found.eigenvectors, f'eigsh("LA", tol={tol:g})')


class _Counted:
    """An operator that charges a budget for every column."""

    def __init__(self, operator: Any, budget: Budget) -> None:
        self._operator, self._budget = operator, budget
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device

    def prepare(self, num_products: int) -> None:
        self._operator.prepare(num_products)

    def __matmul__(self, x: Tensor) -> Tensor:
        for _ in range(1 if x.ndim == 1 else x.shape[1]):
            self._budget.spend()
        return self._operator @ x
