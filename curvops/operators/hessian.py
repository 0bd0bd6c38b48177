"""The Hessian of the empirical risk."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from curvops.autodiff import BlockMap, Linearization
from curvops.operators.curvature import CurvatureLinearOperator


class HessianLinearOperator(CurvatureLinearOperator):
    """The Hessian H = ∇²L(θ) = (1/Z) Σ_n ∇² ℓ(f_θ(x_n), y_n) + λI, of shape ``[P, P]``.

    Symmetric, in general indefinite. A product costs the gradient and one backward pass
    through it (Pearlmutter, Fast exact multiplication by the Hessian, 1994).

    Raises:
        DifferentiationError: If the model or the loss has no second derivative.

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

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        return lin.hvp
