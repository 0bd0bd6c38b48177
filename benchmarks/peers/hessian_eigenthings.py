"""hessian-eigenthings: exact double backward, jvp and vjp for the GGN, its own Lanczos."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from benchmarks.peers.base import Budget, Eigenpairs, NotOfferedError, Peer, Product
from benchmarks.problems import Problem


class HessianEigenthings(Peer):
    """The operators of ``hessian_eigenthings`` 1.0 with their defaults."""

    name = "hessian-eigenthings"
    distribution = "hessian-eigenthings"

    def __init__(self) -> None:
        self._length: dict[str, int] = {}  # of the Lanczos run that sufficed, by problem

    def product(self, problem: Problem, quantity: str) -> Product:
        """Return ``op.matvec``."""
        operator = self._operator(problem, quantity)

        def multiply(v: Tensor) -> Tensor:
            with problem.twice_differentiable():
                return operator.matvec(v).detach()

        return multiply

    def eigenpairs(self, problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
        """Run its Lanczos from nothing, half as long again each time, until all pairs converged.

        It cannot be continued, and must be told its length before. Only the last run is
        charged, as if the right length had been known.
        """
        import hessian_eigenthings as peer

        multiply = self.product(problem, "Hessian")

        def counted(v: Tensor) -> Tensor:
            budget.spend()
            return multiply(v)

        first = problem.params[0]
        operator = peer.LambdaOperator(counted, problem.dim, first.device, first.dtype)
        known = self._length.get(problem.name, 2 * k)
        while True:
            budget.restart()
            length = min(known, budget.products, problem.dim)
            start = time.perf_counter()
            found = peer.lanczos(
                operator, k=k, max_iter=length, tol=tol, reorthogonalize=True, which="LA", seed=0
            )
            seconds = time.perf_counter() - start
            if bool(found.converged.all()) or length < known:
                break
            known = known * 3 // 2
        self._length[problem.name] = known
        settings = f"lanczos(max_iter={length}, reorthogonalize=True)"
        return Eigenpairs(found.eigenvalues, found.eigenvectors.T, settings, seconds)

    def _operator(self, problem: Problem, quantity: str) -> Any:
        import hessian_eigenthings as peer

        model, data, loss = problem.model, problem.data, problem.loss
        if quantity == "Hessian":
            return peer.HessianOperator(model, data, peer.supervised_loss(loss))
        if quantity == "GGN":
            outer = peer.supervised_loss_of_output(loss)
            return peer.GGNOperator(model, data, peer.supervised_forward, outer)
        if quantity == "EF":
            return peer.EmpiricalFisherOperator(model, data, peer.supervised_per_sample_loss(loss))
        raise NotOfferedError(f"no {quantity}")
