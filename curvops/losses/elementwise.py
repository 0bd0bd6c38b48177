"""Losses that are sums over elements of the prediction: squares, Bernoulli, Huber and so on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops.errors import DataError, InputError, ShapeError
from curvops.losses.base import Draw, Loss, OutputMap, Target, _grad

Evaluate = Callable[[Tensor, Target, str], Tensor]
"""``(prediction, target, reduction) -> Tensor``."""


class ElementwiseLoss(Loss):
    """A loss Σ_i ℓ(f_i, y_i) over elements; under "mean" Z_b is their number.

    A datum's loss is summed over its elements, the last axis being the classes and the axes
    before it the positions. KL divergence with ``reduction="batchmean"`` divides by the number
    of data instead.

    Args:
        module: The torch module, for its name and reduction.
        evaluate: ``(prediction, target, reduction) -> Tensor``.
    """

    convex = True

    def __init__(self, module: nn.Module, evaluate: Evaluate) -> None:
        self.name = type(module).__name__
        reduction = str(module.reduction)
        self._by_datum = reduction == "batchmean"
        self.reduction = "mean" if self._by_datum else reduction
        self._evaluate = evaluate

    def check(self, prediction: Tensor, target: Target, size: int) -> None:
        self._check(prediction, target)

    def check_target(self, target: Target, size: int, batch: str) -> None:
        observed = self.observed(target)
        if observed.ndim == 0 or observed.shape[0] != size:
            raise DataError(
                f"{batch} has {size} data but a target of shape {list(observed.shape)}; "
                f"{self.name} expects the prediction's shape [N, *]."
            )

    def total(self, prediction: Tensor, target: Target) -> Tensor:
        self._check(prediction, target)
        return self._evaluate(prediction, target, "sum")

    def per_datum(self, prediction: Tensor, target: Target) -> Tensor:
        self._check(prediction, target)
        values = self._evaluate(prediction, target, "none")
        return values.reshape(values.shape[0], -1).sum(1)

    def normalizer(self, target: Target, size: int, predict: Callable[[], Tensor]) -> float:
        return float(size if self._by_datum else self.observed(target).numel())

    def hessian(self, prediction: Tensor, target: Target) -> OutputMap:
        second = self.second_derivative(prediction, target)
        return lambda v: second * v

    def hessian_roots(self, prediction: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
        second = self.second_derivative(prediction, target).reshape(prediction.shape[0], -1)
        root = second.abs().sqrt()
        for d in range(root.shape[1]):
            column = torch.zeros_like(root)
            column[:, d] = root[:, d]
            yield column.reshape(prediction.shape), second[:, d].sign()

    def scores(self, prediction: Tensor, target: Target) -> Tensor:
        return self.gradient(prediction, target)

    def second_derivative(self, prediction: Tensor, target: Target) -> Tensor:
        """Return w ℓ″ of every element, of the prediction's shape."""
        return super().hessian(prediction, target)(torch.ones_like(prediction))

    @staticmethod
    def observed(target: Target) -> Tensor:
        """Return the tensor of the target that is compared with the prediction."""
        if not isinstance(target, Tensor):
            raise InputError(f"the target must be a tensor, not {type(target).__name__}.")
        return target

    def _check(self, prediction: Tensor, target: Target) -> None:
        shape = self.observed(target).shape
        if prediction.shape != shape:
            raise ShapeError(
                f"{self.name}: the prediction has shape {list(prediction.shape)}, the target "
                f"{list(shape)}; torch would broadcast them to a loss of every pair. Make the "
                "shapes equal, for example with y.unsqueeze(-1) or prediction.squeeze(-1)."
            )


class SquaredError(ElementwiseLoss):
    """``nn.MSELoss``: ℓ = (f − y)², whose model is y ~ N(f, ½)."""

    def second_derivative(self, prediction: Tensor, target: Target) -> Tensor:
        return torch.full_like(prediction, 2.0)

    def sampled_scores(self, prediction: Tensor, target: Target, draw: Draw) -> Tensor:
        noise = _normal(draw, prediction.shape).to(prediction)
        return noise * sqrt(2.0)


class LogisticLoss(ElementwiseLoss):
    """``nn.BCEWithLogitsLoss``: ℓ = BCE(σ(f), y), weighted by (w₊ y + 1 − y) · weight."""

    def __init__(self, module: nn.BCEWithLogitsLoss) -> None:
        def evaluate(f: Tensor, y: Target, reduction: str) -> Tensor:
            weight, pos_weight = _to(module.weight, f), _to(module.pos_weight, f)
            return F.binary_cross_entropy_with_logits(
                f, y.to(f.dtype), weight, pos_weight=pos_weight, reduction=reduction
            )

        super().__init__(module, evaluate)
        self._module: nn.BCEWithLogitsLoss = module

    def second_derivative(self, prediction: Tensor, target: Target) -> Tensor:
        p = prediction.detach().sigmoid()
        return self._weights(p, target) * (p * (1.0 - p))

    def scores(self, prediction: Tensor, target: Target) -> Tensor:
        p = prediction.detach().sigmoid()
        y = self.observed(target).to(p)
        return self._weights(p, target).sqrt() * (p - y)

    def sampled_scores(self, prediction: Tensor, target: Target, draw: Draw) -> Tensor:
        p = prediction.detach().sigmoid()
        label = (draw(*p.shape).to(p.device) < p).to(p)
        return self._weights(p, target).sqrt() * (p - label)

    def _weights(self, like: Tensor, target: Target) -> Tensor:
        weights = torch.ones_like(like)
        if (positive := _to(self._module.pos_weight, like)) is not None:
            y = target.to(like)
            weights = positive * y + 1.0 - y
        if (weight := _to(self._module.weight, like)) is not None:
            weights = weights * weight
        return weights


class BernoulliLoss(ElementwiseLoss):
    """``nn.BCELoss`` on probabilities f, weighted by ``weight``."""

    def __init__(self, module: nn.BCELoss) -> None:
        super().__init__(
            module,
            lambda f, y, reduction: F.binary_cross_entropy(
                f, y.to(f.dtype), _to(module.weight, f), reduction=reduction
            ),
        )
        self._module: nn.BCELoss = module

    def scores(self, prediction: Tensor, target: Target) -> Tensor:
        return self._score(prediction, target.to(prediction))

    def sampled_scores(self, prediction: Tensor, target: Target, draw: Draw) -> Tensor:
        label = draw(*prediction.shape).to(prediction.device) < prediction.detach()
        return self._score(prediction, label.to(prediction))

    def _score(self, prediction: Tensor, label: Tensor) -> Tensor:
        f = prediction.detach().requires_grad_()
        with torch.enable_grad():
            g = _grad(F.binary_cross_entropy(f, label, reduction="sum"), f, self.name)
        weight = _to(self._module.weight, g)
        return g if weight is None else g * weight.sqrt()


class GaussianLoss(ElementwiseLoss):
    """``nn.GaussianNLLLoss`` with targets ``(y, variance)``: ℓ = ½ log v + (f − y)²/2v."""

    def __init__(self, module: nn.GaussianNLLLoss) -> None:
        def evaluate(f: Tensor, target: Target, reduction: str) -> Tensor:
            y, variance = target
            return F.gaussian_nll_loss(
                f, y, variance, full=module.full, eps=module.eps, reduction=reduction
            )

        super().__init__(module, evaluate)
        self._eps = module.eps

    def sampled_scores(self, prediction: Tensor, target: Target, draw: Draw) -> Tensor:
        noise = _normal(draw, prediction.shape).to(prediction)
        given: Tensor = target[1]
        variance = given.to(prediction).clamp(min=self._eps)
        if variance.shape == prediction.shape[:-1]:
            variance = variance.unsqueeze(-1)
        return noise / variance.sqrt()

    @staticmethod
    def observed(target: Target) -> Tensor:
        if not (isinstance(target, (tuple, list)) and len(target) == 2):
            raise InputError("GaussianNLLLoss needs targets (y, variance), a pair of tensors.")
        return target[0]  # type: ignore[no-any-return]


def _to(weight: Tensor | None, like: Tensor) -> Tensor | None:
    return None if weight is None else weight.detach().to(like)


def _normal(draw: Draw, shape: torch.Size) -> Tensor:
    """Turn uniform draws into standard normal ones by inversion, one per element."""
    u = draw(*shape).clamp(min=2.0**-54)
    return torch.erfinv(2.0 * u - 1.0) * sqrt(2.0)
