"""PyHessian: Hessian products by double backward, eigenpairs by power iteration."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Budget, CountedData, Eigenpairs, NotOfferedError, Peer, Product
from benchmarks.problems import Problem


class PyHessian(Peer):
    """``pyhessian.hessian`` over all batches."""

    name = "pyhessian"
    distribution = "pyhessian"

    def product(self, problem: Problem, quantity: str) -> Product:
        """Return its product over a data loader, between flat vectors."""
        if quantity != "Hessian":
            raise NotOfferedError(f"no {quantity}")
        hessian = self._hessian(problem, problem.data)
        sizes = [p.numel() for p in problem.params]

        def multiply(v: Tensor) -> Tensor:
            pairs = zip(v.split(sizes), problem.params)
            blocks = [block.view_as(p) for block, p in pairs]
            with problem.twice_differentiable(), _quiet():
                _, product = hessian.dataloader_hv_product(blocks)
            return torch.cat([block.detach().reshape(-1) for block in product])

        return multiply

    def eigenpairs(self, problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
        """Run its power iteration, one eigenvector after another.

        It stops on the relative change of the eigenvalue, not on a residual. An eigenvalue is
        as good as the square of its residual, so that is what is asked for, as far as float32
        can tell. It finds the largest in magnitude.
        """
        hessian = self._hessian(problem, CountedData(problem.data, budget))
        iterations = max(budget.products // k, 1)
        change = max(tol**2, 1e-7)
        with torch.random.fork_rng(devices=[]), problem.twice_differentiable(), _quiet():
            torch.manual_seed(0)
            values, vectors = hessian.eigenvalues(maxIter=iterations, tol=change, top_n=k)
        flat = [torch.cat([block.reshape(-1) for block in v]) for v in vectors]
        settings = f"eigenvalues(maxIter={iterations}, tol={change:g})"
        return Eigenpairs(torch.tensor(values), torch.stack(flat, dim=1), settings)

    @staticmethod
    def _hessian(problem: Problem, data: Any) -> Any:
        from pyhessian import hessian

        on_gpu = problem.params[0].is_cuda
        return hessian(problem.model, problem.loss, dataloader=data, cuda=on_gpu)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what torch says about ``backward(create_graph=True)`` at every product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
