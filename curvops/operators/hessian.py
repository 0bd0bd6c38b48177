"""The Hessian of the empirical risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvops.autodiff import BlockMap, Linearization
from curvops.errors import DifferentiationError
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.risk import EmpiricalRisk


class HessianLinearOperator(CurvatureLinearOperator):
    """The Hessian H = ∇²L(θ) = (1/Z) Σ_n ∇² ℓ(f_θ(x_n), y_n) + λI, of shape ``[P, P]``.

    Symmetric, in general indefinite. A product costs the gradient and one backward pass
    through it (Pearlmutter, Fast exact multiplication by the Hessian, 1994).

    Unless ``check_deterministic=False``, uᵀHv = vᵀHu is verified once, for two random vectors
    on the first batch: some of torch's second derivatives are wrong (weight normalisation), and
    this shows it.

    Raises:
        DifferentiationError: If the model or the loss has no second derivative, or a wrong one.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False)
        >>> X, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> H = HessianLinearOperator(model, nn.MSELoss(), model, [(X, y)])
        >>> H.to_dense()  # (2/N) XᵀX
        tensor([[1., 0.],
                [0., 4.]])
    """

    SELF_ADJOINT = True

    def _bind(self, risk: EmpiricalRisk, **keeping: Any) -> None:
        super()._bind(risk, **keeping)
        if risk.check_deterministic:
            risk.for_each(_refuse_asymmetric, limit=1)

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        return lin.hvp


def _refuse_asymmetric(lin: Linearization) -> None:
    generator = torch.Generator().manual_seed(0)
    u, v = ([torch.randn(p.shape, generator=generator).to(p) for p in lin.params] for _ in range(2))
    hu, hv = lin.hvp(u), lin.hvp(v)
    gap = abs(_dot(u, hv) - _dot(v, hu))
    scale = (_dot(u, u) * _dot(hv, hv)) ** 0.5 + (_dot(v, v) * _dot(hu, hu)) ** 0.5
    if gap > 1e3 * torch.finfo(lin.prediction.dtype).eps * scale:
        raise DifferentiationError(
            "the Hessian that torch computes for this model is not symmetric, so one of its "
            f"second derivatives is wrong (uᵀHv and vᵀHu differ by {gap:.2g}, with "
            f"‖u‖‖Hv‖ = {scale / 2:.2g}). torch's weight normalisation is known to be; remove "
            "the parametrization, or use GGNLinearOperator, which does not need it."
        )


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))
