"""How far predictions moved from given ones: the Kullback–Leibler divergence, to rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from curvops.errors import DataError
from curvops.losses.base import Target
from curvops.losses.categorical import CategoricalLoss

_SMALL = 0.5
"""Up to this change of a log-probability the series of exp cancels less than its sum."""

_LEAST = -1e4
"""Stands for the log-probability of what cannot happen, so that 0 log 0 is 0."""


class RelativeEntropy(CategoricalLoss):
    r"""The divergence of the model's categorical distribution from a given one.

    .. math::
        \mathrm{KL}(q \| p) = \sum_c q_c (\log q_c - \log p_c)
        = \sum_c q_c \, (e^{d_c} - 1 - d_c), \qquad d_c = \log p_c - \log q_c

    with p = softmax f. The right-hand form has no negative term, so a divergence far below one
    rounding of the cross entropy is still known to many digits. Z_b is the sum of the weights.
    In the prediction it has the Hessian w (diag p − ppᵀ), that of the cross entropy.

    A target is a pair ``(log_q, weight)``: log-probabilities of the prediction's shape
    ``[N, C, *]``, and one nonnegative weight a position, ``[N, *]``.
    """

    def __init__(self) -> None:
        super().__init__(nn.CrossEntropyLoss())
        self.name = "RelativeEntropy"

    def check_target(self, target: Target, size: int, batch: str) -> None:
        log_q, weight = target
        if log_q.shape[0] != size or log_q.shape[1] != self._classes:
            raise DataError(
                f"{batch} has {size} data of {self._classes} classes, but log-probabilities "
                f"{list(log_q.shape)}."
            )
        if weight.shape != log_q.movedim(1, -1).shape[:-1]:
            raise DataError(
                f"{batch}: weights {list(weight.shape)} do not fit log-probabilities "
                f"{list(log_q.shape)}."
            )

    def normalizer(self, target: Target, size: int, predict: Callable[[], Tensor]) -> float:
        return float(target[1].sum(dtype=torch.float64))

    def gradient(self, prediction: Tensor, target: Target) -> Tensor:
        weight, labels = self._weights_and_labels(prediction, target)
        return weight.unsqueeze(1) * (prediction.softmax(1) - labels)

    def _evaluate(self, prediction: Tensor, target: Target, reduction: str) -> Tensor:
        log_q: Tensor = target[0].to(prediction)
        weight: Tensor = target[1].to(prediction)
        log_p = prediction.log_softmax(1).clamp(min=_LEAST)
        d, q = log_p - log_q, log_q.exp()
        # Clamped where it is not used: an infinity there would turn its gradient to NaN.
        near = d.clamp(max=_SMALL)
        term = torch.where(d < _SMALL, q * (near.expm1() - near), log_p.exp() - q - q * d)
        each = weight * term.sum(1)
        return each if reduction == "none" else each.sum()

    def _weights_and_labels(self, prediction: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        return target[1].to(prediction), target[0].to(prediction).exp()

    def _label_mass_per_class(self, prediction: Tensor, target: Target) -> Tensor:
        weight, labels = self._weights_and_labels(prediction, target)
        return weight.unsqueeze(1) * labels


def log_probabilities(prediction: Tensor) -> Tensor:
    """Return log softmax over the classes ``[N, C, *]``, finite, rounded once."""
    exact = prediction.detach().to(torch.float64).log_softmax(1)
    return exact.clamp(min=_LEAST).to(prediction.dtype)
