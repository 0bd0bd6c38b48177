"""Costs in closed form, with the interface of a cost of a risk and none of its overhead."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from curvops.volume.spectral_form import SpectralForm


class ClosedForm:
    """A cost from a function of rows ``[M, P]``; gradients by autograd."""

    unit = "units of the loss"

    def __init__(self, function: Callable[[Tensor], Tensor], theta: Tensor) -> None:
        self.function = function
        self.theta = theta
        self.num_evaluations = 0
        self.source = SimpleNamespace(space=SimpleNamespace(shapes=(theta.shape,)))

    @property
    def dim(self) -> int:
        return self.theta.numel()

    def __call__(self, X: Tensor) -> Tensor:
        return self.with_gradient(X)[0]

    def with_gradient(self, X: Tensor) -> tuple[Tensor, Tensor]:
        self.num_evaluations += X.shape[1]
        rows = X.T.detach().clone().requires_grad_()
        values = self.function(rows)
        [gradient] = torch.autograd.grad(values.sum(), rows)
        return values.detach().to(torch.float64), gradient.T


def ellipse(values: Tensor, theta: Tensor | None = None, **_: Any) -> ClosedForm:
    """½ Σ λ (w - θ)²."""
    point = torch.zeros_like(values) if theta is None else theta
    return ClosedForm(lambda x: 0.5 * (values * (x - point).square()).sum(1), point)


def curvature(values: Tensor, tau: float, std: float) -> Any:
    """A preconditioner that knows a diagonal curvature."""
    form = SpectralForm(len(values), values.double(), None)
    return SimpleNamespace(
        form=form,
        tau=tau,
        std=std,
        gaussian=lambda beta, s=std: form.root(lambda x: (beta * x + s**-2).rsqrt()),
    )
