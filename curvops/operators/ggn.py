"""The generalized Gauss–Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from curvops.autodiff import BlockMap, Linearization
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.risk import EmpiricalRisk


class GGNLinearOperator(CurvatureLinearOperator):
    """The generalized Gauss–Newton G = (1/Z) Σ_n J_nᵀ ∇²_f ℓ_n J_n + λI, shape ``[P, P]``.

    J_n = ∂f_θ(x_n)/∂θ, for every loss that torch can differentiate twice with respect to the
    prediction, of any shape (Schraudolph, Fast curvature matrix-vector products, 2002). Equal
    to the Hessian where the model is linear in θ. Symmetric; positive semidefinite for losses
    convex in the prediction, among them all of torch's that are recognised.

    Raises:
        DifferentiationError: If the model cannot be differentiated twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(2, 3)
        >>> data = [(torch.randn(4, 2), torch.tensor([0, 1, 2, 1]))]
        >>> G = GGNLinearOperator(model, nn.CrossEntropyLoss(), model, data)
        >>> G
        <9x9 GGNLinearOperator: torch.float32 on cpu, self-adjoint, positive semidefinite>
    """

    SELF_ADJOINT = True

    def _bind(self, risk: EmpiricalRisk, **keeping: Any) -> None:
        super()._bind(risk, **keeping)
        self.POSITIVE_SEMIDEFINITE = risk.loss_func.convex

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        hessian = lin.loss.hessian(lin.prediction.detach(), lin.batch.y)
        return lambda v: lin.vjp(hessian(lin.jvp(v)))
