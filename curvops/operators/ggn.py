"""The generalized Gauss–Newton matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from curvops.autodiff import BlockMap, Linearization
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.factor import FactorLinearOperator
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

    def gram_factor(self) -> tuple[FactorLinearOperator, float]:
        """Return V and c with G = V Vᵀ + cI: V = Jᵀ × a root of ∂²ℓ/∂f², c the weight decay.

        V is ``[P, r]`` with one column per datum and output, r = N·C; with it,
        :func:`~curvops.linalg.logdet.logdet` is exact where r is small.

        Raises:
            InputError: If the loss has negative curvature in its prediction, or is not a sum of
                one term per datum.
        """
        factor = FactorLinearOperator(self.risk, self.risk.loss_func.hessian_roots)
        return factor, self.risk.weight_decay

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        hessian = lin.loss.hessian(lin.prediction.detach(), lin.batch.y)
        return lambda v: lin.vjp(hessian(lin.jvp(v)))
