"""The streaming base of every curvature operator: a sum over mini-batches, times a vector."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from curvops.autodiff import Linearization, Params
from curvops.operators.linear import LinearOperator
from curvops.passes import LinearMap
from curvops.risk import EmpiricalRisk
from curvops.tensors import Space

Self = TypeVar("Self", bound="CurvatureLinearOperator")


class CurvatureLinearOperator(LinearOperator):
    """A matrix A = (1/Z) Σ_b A_b + λI in parameter space, one term per mini-batch.

    A subclass states A_b v once, as a chain of jvp, vjp and hvp of the batch's
    :class:`~curvops.autodiff.Linearization`, in :meth:`_chain`. Columns share what does not
    depend on them; one batch is alive at a time.

    The operator follows its parameters: updates in place are seen by the next product.

    Args:
        model_func: An ``nn.Module``, or a callable ``(params_dict, X) -> prediction``.
        loss_func: ``(prediction, y) -> scalar``.
        params: What the risk is a function of, P numbers in all.
        data: A re-iterable of batches ``(X, y)``.
        progressbar: Show a bar over the batches of each product.
        check_deterministic: Refuse random models and changing data.
        num_data: The number of data you expect; another number found is an error.
        batch_size_fn: Number of data of a batch from its X.
        risk_options: Further arguments of :class:`~curvops.risk.EmpiricalRisk`.

    Attributes:
        risk: The empirical risk whose curvature this is.
    """

    risk: EmpiricalRisk

    def __init__(
        self,
        model_func: nn.Module | Callable[..., Any],
        loss_func: Callable[..., Any] | None,
        params: Params,
        data: Iterable[Any],
        *,
        progressbar: bool = False,
        check_deterministic: bool = True,
        num_data: int | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        **risk_options: Any,
    ) -> None:
        self._bind(
            EmpiricalRisk(
                model_func,
                loss_func,
                params,
                data,
                progressbar=progressbar,
                check_deterministic=check_deterministic,
                num_data=num_data,
                batch_size_fn=batch_size_fn,
                **risk_options,
            )
        )

    @classmethod
    def from_risk(cls: type[Self], risk: EmpiricalRisk, **options: Any) -> Self:
        """Return this curvature of an existing risk.

        Args:
            risk: The empirical risk; data, checks and caches are shared with it.
            options: The operator's own options, those of its constructor after ``data``.
        """
        operator = cls.__new__(cls)
        operator._bind(risk, **options)
        return operator

    def _bind(self, risk: EmpiricalRisk) -> None:
        """Attach to a risk. Subclasses with options extend the signature."""
        self.risk = risk
        in_space, out_space = self._spaces(risk)
        LinearOperator.__init__(self, in_space, out_space, risk.dtype, risk.device)

    def _spaces(self, risk: EmpiricalRisk) -> tuple[Space, Space]:
        return risk.space, risk.space

    def _chain(self, lin: Linearization) -> LinearMap:
        """Return v ↦ A_b v for the batch of ``lin``, on flat vectors."""
        raise NotImplementedError(f"{type(self).__name__} does not state its product.")

    def _matmat(self, X: Tensor) -> Tensor:
        product = self.risk.sum_products(self._chain, X, self.shape[0])
        if self.risk.weight_decay:
            product += self.risk.weight_decay * X
        return product


def outputs_space(risk: EmpiricalRisk) -> Space:
    """Return the space of all predictions, stacked over the data in their order."""
    shapes = [prediction.shape for prediction, _ in risk.predictions()]
    if len({shape[1:] for shape in shapes}) == 1 and all(shapes):
        rows = sum(shape[0] for shape in shapes)
        return Space(("prediction",), (torch.Size([rows, *shapes[0][1:]]),))
    return Space.flat(sum(shape.numel() for shape in shapes), "prediction")
