"""The Jacobian of all predictions and its transpose; no loss involved."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

from curvops.autodiff import Linearization, Params
from curvops.operators.curvature import CurvatureLinearOperator, outputs_space
from curvops.operators.linear import LinearOperator
from curvops.risk import EmpiricalRisk
from curvops.tensors import BlockSum, Space


class _WithoutLoss(CurvatureLinearOperator):
    """What the two Jacobians share: they are built from a model and data alone."""

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        params: Params,
        data: Iterable[Any],
        **risk_options: Any,
    ) -> None:
        self._bind(EmpiricalRisk(model_func, None, params, data, **risk_options))


class JacobianLinearOperator(_WithoutLoss):
    """The Jacobian J = ∂(f_θ(x_1), …, f_θ(x_N))/∂θ, of shape ``[N·C, P]``.

    Rows are ordered by datum, then by the prediction's own axes, row-major. In list format the
    product is one tensor ``[N, *]`` of the predictions' shape (flat where it varies).

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        params: As there.
        data: As there; the targets are not used.
        risk_options: Arguments of :class:`~curvops.risk.EmpiricalRisk`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> JacobianLinearOperator(model, model, [(X, None)]).to_dense()
        tensor([[1., 2.],
                [3., 4.]])
    """

    def _spaces(self, risk: EmpiricalRisk) -> tuple[Space, Space]:
        return risk.space, outputs_space(risk)

    def _matmat(self, X: Tensor) -> Tensor:
        product = X.new_empty(self.shape[0], X.shape[1])

        def visit(lin: Linearization) -> None:
            rows = slice(lin.start, lin.start + lin.num_outputs)
            for k in range(X.shape[1]):
                product[rows, k] = lin.jvp(self.risk.blocks(X[:, k])).reshape(-1)

        self.risk.for_each(visit)
        return product

    def _adjoint(self) -> LinearOperator:
        return TransposedJacobianLinearOperator.from_risk(self.risk)


class TransposedJacobianLinearOperator(_WithoutLoss):
    """The transposed Jacobian Jᵀ, of shape ``[P, N·C]`` (see :class:`JacobianLinearOperator`).

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        params: As there.
        data: As there; the targets are not used.
        risk_options: Arguments of :class:`~curvops.risk.EmpiricalRisk`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> X = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> model = nn.Linear(2, 1, bias=False)
        >>> TransposedJacobianLinearOperator(model, model, [(X, None)]) @ torch.ones(2)
        tensor([4., 6.])
    """

    def _spaces(self, risk: EmpiricalRisk) -> tuple[Space, Space]:
        return outputs_space(risk), risk.space

    def _matmat(self, X: Tensor) -> Tensor:
        columns = X.T.contiguous()
        total = BlockSum(self.out_space, X.new_empty(X.shape[1], self.shape[0]))

        def visit(lin: Linearization) -> None:
            rows = slice(lin.start, lin.start + lin.num_outputs)
            for k, u in enumerate(columns):
                total.add(k, 1, lin.vjp(u[rows].reshape(lin.prediction.shape)))

        self.risk.for_each(visit)
        return total.value.T.contiguous()

    def _adjoint(self) -> LinearOperator:
        return JacobianLinearOperator.from_risk(self.risk)
