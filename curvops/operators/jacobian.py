"""The Jacobian of all predictions and its transpose; no loss involved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from curvops.autodiff import BlockMap, Linearization, Params, Product
from curvops.operators.curvature import CurvatureLinearOperator, outputs_space
from curvops.operators.linear import LinearOperator
from curvops.risk import EmpiricalRisk
from curvops.tensors import Space


class _WithoutLoss(CurvatureLinearOperator):
    """What the two Jacobians share: they are built from a model and data alone."""

    _transposed: CurvatureLinearOperator | None = None

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        params: Params,
        data: Iterable[Any],
        **options: Any,
    ) -> None:
        super().__init__(model_func, None, params, data, **options)

    def _turned(self, kind: type[_WithoutLoss]) -> LinearOperator:
        """Return the transpose, the same one every time: what it keeps serves later products."""
        if self._transposed is None:
            self._transposed = kind.from_risk(self.risk, **asdict(self._keeper.options))
            self._transposed._transposed = self
        return self._transposed


class JacobianLinearOperator(_WithoutLoss):
    """The Jacobian J = ∂(f_θ(x_1), …, f_θ(x_N))/∂θ, of shape ``[N·C, P]``.

    Rows are ordered by datum, then by the prediction's own axes, row-major. In list format the
    product is one tensor ``[N, *]`` of the predictions' shape (flat where it varies).

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        params: As there.
        data: As there; the targets are not used.
        options: Further arguments, as there.

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

    def _product(self) -> Product:
        return Product(self._chain, gives="predictions")

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        return lambda v: [lin.jvp(v)]

    def _matmat(self, X: Tensor) -> Tensor:
        return self.risk.predictions_along(self._keeper, X, self.shape[0])

    def _adjoint(self) -> LinearOperator:
        return self._turned(TransposedJacobianLinearOperator)


class TransposedJacobianLinearOperator(_WithoutLoss):
    """The transposed Jacobian Jᵀ, of shape ``[P, N·C]`` (see :class:`JacobianLinearOperator`).

    Args:
        model_func: See :class:`~curvops.operators.curvature.CurvatureLinearOperator`.
        params: As there.
        data: As there; the targets are not used.
        options: Further arguments, as there.

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

    def _product(self) -> Product:
        return Product(self._chain, takes="predictions")

    def _chain(self, lin: Linearization, extras: Sequence[Tensor]) -> BlockMap:
        return lambda u: lin.vjp(*u)

    def _matmat(self, X: Tensor) -> Tensor:
        return self.risk.pulled_back(self._keeper, X)

    def _adjoint(self) -> LinearOperator:
        return self._turned(JacobianLinearOperator)
