"""SciPy's ``eigsh`` over any product of flat tensors: the same iteration for every library."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.base import Budget, Eigenpairs, Product
from benchmarks.problems import Problem


def eigsh(product: Product, problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
    """Return the k algebraically largest eigenpairs, by ARPACK in float32.

    Args:
        product: Multiplies a flat vector ``[P]``.
        problem: For dimension, dtype and device.
        k: How many.
        tol: ARPACK's tolerance: ‖Hv − λv‖ ≤ tol·|λ|.
        budget: Charged with every product.
    """
    from scipy.sparse import linalg

    device = problem.params[0].device

    def multiply(x: np.ndarray) -> np.ndarray:
        budget.spend()
        v = torch.from_numpy(np.array(x, dtype=np.float32).reshape(-1)).to(device)
        return product(v).cpu().numpy()

    shape = (problem.dim, problem.dim)
    operator = linalg.LinearOperator(shape, matvec=multiply, dtype=np.dtype(np.float32))
    start = np.random.default_rng(0).standard_normal(problem.dim).astype(np.float32)
    values, vectors = linalg.eigsh(operator, k=k, which="LA", tol=tol, v0=start)
    return Eigenpairs(_tensor(values, device), _tensor(vectors, device), f"eigsh(tol={tol:g})")


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
