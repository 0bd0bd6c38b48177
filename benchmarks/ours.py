"""curvops on a benchmark problem, the plain gradient it is measured in, and the true products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import curvops
from benchmarks.problems import Problem

CLASSES: dict[str, Any] = {
    "Hessian": curvops.HessianLinearOperator,
    "GGN": curvops.GGNLinearOperator,
    "EF": curvops.EFLinearOperator,
}

STREAMED = {"keep": "nothing"}
ANNOUNCED = 100
"""How many products a kept operator is told to expect."""


def gradient(problem: Problem) -> Callable[[], list[Tensor]]:
    """Return a function that computes one full-data gradient as anybody would, in plain torch."""
    model, loss, params = problem.model, problem.loss, problem.params

    def compute() -> list[Tensor]:
        total = [torch.zeros_like(p) for p in params]
        for X, y in problem.data:
            parts = torch.autograd.grad(loss(model(X), y), params)
            for sum_, part in zip(total, parts):
                sum_.add_(part, alpha=len(y) / problem.num_data)
        return total

    return compute


def operator(problem: Problem, quantity: str, **knobs: Any) -> Any:
    """Return our operator with the engine's knobs, on its own risk."""
    kind = CLASSES[quantity]
    return kind(problem.model, problem.loss, problem.params, problem.data, **knobs)


def prepared(problem: Problem, quantity: str, num_products: int = ANNOUNCED, **knobs: Any) -> Any:
    """Return our operator, told to expect many products."""
    op = operator(problem, quantity, **knobs)
    op.prepare(num_products=num_products)
    return op


def release(op: Any) -> None:
    """Free what an operator keeps."""
    op.release()


def vectors(problem: Problem, columns: int) -> Tensor:
    """Return seeded random columns ``[P, columns]``."""
    g = torch.Generator().manual_seed(7)
    first = problem.params[0]
    return torch.randn(problem.dim, columns, generator=g).to(first.device, first.dtype)


def truth(problem: Problem, quantity: str, columns: Tensor) -> Tensor:
    """Return the products ``[P, K]`` in float64, rebuilt for every product."""
    exact = problem.to(problem.params[0].device, torch.float64)
    return operator(exact, quantity, **STREAMED) @ columns.double()


def relative_error(product: Tensor, exact: Tensor) -> float:
    """Return the largest of ‖a − b‖ / ‖b‖ over the columns of matrices ``[P, K]``."""
    difference = product.double().reshape(exact.shape) - exact
    return float((difference.norm(dim=0) / exact.norm(dim=0)).max())
