"""curvlinops, eager as it comes, and with its batch product compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.base import Budget, Eigenpairs, NotOfferedError, Peer, Product
from benchmarks.problems import Problem
from benchmarks.scipy_eigs import eigsh

_CLASSES = {
    "Hessian": "HessianLinearOperator",
    "GGN": "GGNLinearOperator",
    "EF": "EFLinearOperator",
}


class Curvlinops(Peer):
    """curvlinops' operators with their defaults, but for the checks of determinism."""

    name = "curvlinops"
    distribution = "curvlinops-for-pytorch"
    blocks = True

    def product(self, problem: Problem, quantity: str) -> Product:
        """Return ``op @ v``."""
        operator = self._operator(problem, quantity)

        def multiply(v: Tensor) -> Tensor:
            with problem.twice_differentiable():
                return (operator @ v).detach()

        return multiply

    def eigenpairs(self, problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
        """Run SciPy's ``eigsh`` over the operator, which is what its documentation does."""
        return eigsh(self.product(problem, "Hessian"), problem, k, tol, budget)

    def _operator(self, problem: Problem, quantity: str) -> Any:
        import curvlinops

        if quantity not in _CLASSES:
            raise NotOfferedError(f"no {quantity}")
        kind = getattr(curvlinops, _CLASSES[quantity])
        return kind(
            problem.model,
            problem.loss,
            problem.params,
            problem.data,
            check_deterministic=False,
            num_data=problem.num_data,
        )


class CompiledCurvlinops(Curvlinops):
    """The same, with ``torch.compile`` around the product of one mini-batch.

    Where the compiler captures nothing (the Hessian: it breaks at the nested transforms and
    silently runs eagerly), the product is traced to tensor operations first and these are
    compiled, which is more than a user gets from the peer without writing code.
    """

    name = "curvlinops compiled"

    def eigenpairs(self, problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
        """Leave the solver to the eager one: the iteration is the same."""
        raise NotOfferedError("measured as curvlinops")

    def _operator(self, problem: Problem, quantity: str) -> Any:
        operator = super()._operator(problem, quantity)
        # The operator looks its batch product up under this name; the peer itself is not changed.
        operator.__dict__["_mp"] = _Compiled(operator._mp)
        return operator


class _Compiled:
    """Compiles a function at its first call; traces it first if the compiler cannot."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *args: Tensor) -> Any:
        key = tuple(arg.shape for arg in args)
        if key not in self._compiled:
            self._compiled[key] = self._compile(args)
        return self._compiled[key](*args)

    def _compile(self, args: tuple[Tensor, ...]) -> Callable[..., Any]:
        from torch._dynamo.utils import counters
        from torch.fx.experimental.proxy_tensor import make_fx

        function = self._function
        torch._dynamo.reset()
        counters.clear()
        # A plain lambda: the compiler skips functions that torch itself has wrapped.
        compiled = torch.compile(lambda *inputs: function(*inputs))
        compiled(*args)
        if not counters["stats"]["unique_graphs"]:
            compiled = torch.compile(make_fx(function)(*args))
            compiled(*args)
        return compiled
