"""Any other loss: a callable whose reduction, and if need be normaliser, the user states."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.losses.base import Loss, Target
from curvops.nesting import slice_datum

Normalizer = Callable[[Tensor, Target], "float | Tensor"]


class CustomLoss(Loss):
    """A callable ``loss(prediction, target) -> scalar`` that averages or sums over data.

    Under "mean" its total is Z_b times its value, with Z_b the number of data unless
    ``normalizer(prediction, target)`` says otherwise. Per-datum quantities assume that it is
    *separable*: a sum (or average) of one term per datum.
    """

    def __init__(
        self,
        function: Callable[[Tensor, Target], Tensor],
        reduction: str,
        normalizer: Normalizer | None,
    ) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self.reduction = reduction
        self._function = function
        self._normalizer = normalizer

    def total(self, prediction: Tensor, target: Target) -> Tensor:
        if self.reduction == "sum":
            return self._value(prediction, target)
        count = self._count(prediction, target)
        if count == 0.0:  # an average over nothing is NaN, and contributes nothing
            return (prediction * 0.0).sum()
        return count * self._value(prediction, target)

    def check(self, prediction: Tensor, target: Target, size: int) -> None:
        self._value(prediction, target)
        counts_data = self._normalizer is None and self.reduction == "mean"
        if counts_data and (prediction.ndim == 0 or prediction.shape[0] != size):
            raise InputError(
                f"{self.name} averages, but over what? The batch holds {size} data and the "
                f"prediction has shape {list(prediction.shape)}. Pass normalizer=fn(prediction, "
                "y), returning what the average divides by."
            )

    def check_separable(self, prediction: Tensor, target: Target) -> None:
        whole, apart = self.total(prediction, target), self.per_datum(prediction, target).sum()
        tolerance = 1e3 * torch.finfo(whole.dtype).eps * max(1.0, prediction.shape[0] ** 0.5)
        if not torch.isclose(whole, apart, rtol=tolerance, atol=tolerance):
            raise InputError(
                f"{self.name} is not a sum of one term per datum ({whole.item():.6g} for a batch, "
                f"{apart.item():.6g} for its data one by one), so gradients of individual data "
                "and Fisher matrices are not defined for it."
            )

    def per_datum(self, prediction: Tensor, target: Target) -> Tensor:
        size = prediction.shape[0]
        return torch.stack(
            [self.total(prediction[n : n + 1], slice_datum(target, n, size)) for n in range(size)]
        )

    def normalizer(self, target: Target, size: int, predict: Callable[[], Tensor]) -> float:
        if self._normalizer is None:
            return float(size)
        return self._count(predict(), target)

    def scores(self, prediction: Tensor, target: Target) -> Tensor:
        return self.gradient(prediction, target)

    def _count(self, prediction: Tensor, target: Target) -> float:
        if self._normalizer is None:
            return float(prediction.shape[0])
        count = float(self._normalizer(prediction.detach(), target))
        if not 0.0 <= count < float("inf"):
            raise InputError(f"normalizer= returned {count}; it must be finite and nonnegative.")
        return count

    def _value(self, prediction: Tensor, target: Target) -> Tensor:
        value = self._function(prediction, target)
        if not isinstance(value, Tensor):
            raise InputError(f"{self.name} returned {type(value).__name__}, not a torch.Tensor.")
        if value.numel() != 1:
            raise ShapeError(
                f"{self.name} returned a tensor of shape {list(value.shape)}; it must return one "
                'number. Average or sum it, and pass reduction="mean" or "sum".'
            )
        return value.reshape(())
