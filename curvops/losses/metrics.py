"""What is averaged over the data beside the loss: accuracy, or any number a datum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.losses.base import Loss, Target
from curvops.losses.categorical import CategoricalLoss
from curvops.losses.elementwise import BernoulliLoss, LogisticLoss

Metric = Literal["accuracy"] | Callable[[Tensor, Target], Tensor]
"""``"accuracy"``, or ``(prediction, target) -> [N, *]``."""


class Average:
    """An average over all data of numbers that some batch at a time contributes.

    Args:
        metric: ``"accuracy"``, or ``fn(prediction, target)`` returning numbers ``[N, *]``.
        loss: Says which targets do not count, and what predictions mean.
        dtype: What sums are computed in.

    Attributes:
        key: Names the metric.

    Raises:
        InputError: If there is no such metric.

    Example:
        >>> import torch
        >>> average = Average("accuracy", None, torch.float32)
        >>> average(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0]))
        tensor([1., 2.])
    """

    def __init__(self, metric: Metric, loss: Loss | None, dtype: torch.dtype) -> None:
        if metric != "accuracy" and not callable(metric):
            raise InputError(
                f'metric must be "accuracy" or fn(prediction, y) -> numbers [N, *], got {metric!r}.'
            )
        # By where it is written: a lambda is a new one whenever it is passed.
        kind = type(metric)
        self.key = ("metric", *(getattr(metric, n, kind) for n in ("__module__", "__qualname__")))
        self._metric, self._loss, self._dtype = metric, loss, dtype

    def __call__(self, prediction: Tensor, target: Target) -> Tensor:
        """Return the sum over the batch and how many numbers went into it, ``[2]``."""
        if callable(self._metric):
            numbers, weight = self._metric(prediction, target), None
        else:
            numbers, weight = _hits(prediction, target, self._loss)
        if not isinstance(numbers, Tensor):
            raise InputError(f"the metric returned {type(numbers).__name__}, not a torch.Tensor.")
        numbers = numbers.to(self._dtype)
        weight = torch.ones_like(numbers) if weight is None else weight.to(self._dtype)
        return torch.stack([(weight * numbers).sum(), weight.sum()])

    def check(self, prediction: Tensor, target: Target, size: int) -> None:
        """Raise an error if a first batch shows that the metric does not fit.

        Raises:
            InputError: If targets are no labels (for accuracy).
            ShapeError: If the metric does not return a number for each datum.
        """
        self(prediction, target)
        if not callable(self._metric):
            return
        shape = self._metric(prediction, target).shape
        if not shape or shape[0] != size:
            raise ShapeError(
                f"the metric returned shape {list(shape)} for a batch of {size} data; expected "
                "[N, *], at least a number for each datum. Do not average inside the metric."
            )


def _hits(prediction: Tensor, target: Target, loss: Loss | None) -> tuple[Tensor, Tensor | None]:
    """Return which predictions are right, and which count."""
    if isinstance(target, Tensor) and target.dtype != torch.bool:
        labels = not target.is_floating_point()
        if labels and prediction.shape[:1] + prediction.shape[2:] == target.shape:
            ignored = None if loss is None else loss.ignore_index
            valid = target != (-100 if ignored is None else ignored)
            return prediction.argmax(1) == target, valid
        if isinstance(loss, CategoricalLoss) and prediction.shape == target.shape:
            return prediction.argmax(1) == target.argmax(1), None
    if isinstance(loss, (LogisticLoss, BernoulliLoss)) and isinstance(target, Tensor):
        threshold = 0.0 if isinstance(loss, LogisticLoss) else 0.5
        return (prediction > threshold) == (target > 0.5), None
    shape = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
    raise InputError(
        f"accuracy needs labels: class indices [N, *] for predictions [N, C, *], or binary "
        f"targets under a Bernoulli loss; predictions are {list(prediction.shape)}, targets "
        f"{shape}. Pass metric=fn(prediction, y) instead."
    )
