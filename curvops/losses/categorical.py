"""Cross entropy and negative log-likelihood of class labels, with weights, masks and smoothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops.errors import DataError, ShapeError
from curvops.losses.base import Draw, Loss, OutputMap, Target


class CategoricalLoss(Loss):
    """``nn.CrossEntropyLoss`` and ``nn.NLLLoss`` on predictions ``[N, C, *]``.

    With p = softmax f and a the label mass of a position (its weight, with smoothing or
    probabilities the total weight over the classes), the output Hessian is a (diag p − ppᵀ),
    and E[s sᵀ] equals it for s = √a (p − e_ŷ), ŷ ~ p. For class indices Z_b = Σ weight[y] over
    the valid positions; for class probabilities it is their number, as torch defines it.
    """

    class_axis = 1
    convex = True

    def __init__(self, module: nn.CrossEntropyLoss | nn.NLLLoss) -> None:
        self.name = type(module).__name__
        self.reduction = module.reduction
        self.ignore_index = module.ignore_index
        self._module = module
        self._from_log_probabilities = isinstance(module, nn.NLLLoss)
        self._smoothing = float(getattr(module, "label_smoothing", 0.0))
        self._classes: int | None = None

    def check(self, prediction: Tensor, target: Target, size: int) -> None:
        if prediction.ndim < 2:
            raise ShapeError(
                f"{self.name} needs predictions [N, C, *]; got {list(prediction.shape)}."
            )
        self._classes = prediction.shape[1]
        weight = self._module.weight
        if weight is not None and weight.shape != (self._classes,):
            raise ShapeError(
                f"{self.name} has weights {list(weight.shape)} for {self._classes} classes."
            )

    def check_target(self, target: Target, size: int, batch: str) -> None:
        if not isinstance(target, Tensor) or target.ndim == 0 or target.shape[0] != size:
            shape = list(target.shape) if isinstance(target, Tensor) else type(target).__name__
            raise DataError(
                f"{batch} has {size} data but targets {shape}; {self.name} expects [N, *] class "
                "indices or [N, C, *] class probabilities."
            )
        if target.is_floating_point():
            if target.ndim < 2 or target.shape[1] != self._classes:
                raise DataError(
                    f"{batch}: class probabilities {list(target.shape)} do not fit "
                    f"{self._classes} classes. For class indices use .long()."
                )
            return
        valid = target[target != self._module.ignore_index]
        if valid.numel() and self._classes is not None:
            low, high = int(valid.min()), int(valid.max())
            if low < 0 or high >= self._classes:
                raise DataError(
                    f"{batch}: target {low if low < 0 else high} is out of range for "
                    f"{self._classes} classes (ignore_index is {self._module.ignore_index})."
                )

    def total(self, prediction: Tensor, target: Target) -> Tensor:
        return self._evaluate(prediction, target, "sum")

    def per_datum(self, prediction: Tensor, target: Target) -> Tensor:
        return self._evaluate(prediction, target, "none").reshape(prediction.shape[0], -1).sum(1)

    def normalizer(self, target: Target, size: int, predict: Callable[[], Tensor]) -> float:
        if target.is_floating_point():
            return float(target.numel() // target.shape[1])
        valid = target != self._module.ignore_index
        if self._module.weight is None:
            return float(valid.sum())
        weight = self._module.weight.detach().to(target.device)
        return float(weight[target[valid]].sum(dtype=torch.float64))

    def gradient(self, prediction: Tensor, target: Target) -> Tensor:
        if self._from_log_probabilities:
            return super().gradient(prediction, target)
        labels = self._label_mass_per_class(prediction, target)
        return prediction.softmax(1) * labels.sum(1, keepdim=True) - labels

    def hessian(self, prediction: Tensor, target: Target) -> OutputMap:
        if self._from_log_probabilities:
            warnings.warn(
                "NLLLoss is linear in its prediction, so its GGN is zero. Use CrossEntropyLoss "
                "on the logits (without a LogSoftmax layer) to get the usual GGN.",
                stacklevel=2,
            )
            return torch.zeros_like
        p = prediction.detach().softmax(1)
        mass = self._label_mass_per_class(prediction, target).sum(1, keepdim=True)
        scaled = mass * p

        def apply(v: Tensor) -> Tensor:
            return scaled * (v - (p * v).sum(1, keepdim=True))

        return apply

    def hessian_roots(self, prediction: Tensor, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
        if self._from_log_probabilities:
            return
        p = self.to_terms(prediction.detach().softmax(1))
        mass = self.to_terms(self._label_mass_per_class(prediction, target)).sum(-1)
        signs = prediction.new_ones(prediction.shape[0])
        # diag p − ppᵀ = SSᵀ with S = diag √p − p √pᵀ, one column per position and class.
        for t in range(p.shape[1]):
            for c in range(p.shape[2]):
                column = torch.zeros_like(p)
                root = (mass[:, t] * p[:, t, c]).sqrt()
                column[:, t] = -root.unsqueeze(1) * p[:, t]
                column[:, t, c] += root
                yield self.from_terms(column, prediction), signs

    def scores(self, prediction: Tensor, target: Target) -> Tensor:
        weight, labels = self._weights_and_labels(prediction, target)
        if self._from_log_probabilities:
            return -weight.sqrt().unsqueeze(1) * labels
        smooth = self._smoothing
        labels = (1.0 - smooth) * labels + smooth / labels.shape[1]
        p = prediction.detach().softmax(1)
        return weight.sqrt().unsqueeze(1) * (p * labels.sum(1, keepdim=True) - labels)

    def sampled_scores(self, prediction: Tensor, target: Target, draw: Draw) -> Tensor:
        f = self.to_terms(prediction.detach()).to(torch.float64)
        p = f.exp() if self._from_log_probabilities else f.softmax(-1)
        u = draw(*p.shape[:2]).to(p.device)
        label = (u.unsqueeze(-1) >= p.cumsum(-1)).sum(-1).clamp(max=p.shape[-1] - 1)
        one_hot = _one_hot(label, p.shape[-1]).to(p)
        mass = self._label_mass_per_class(prediction, target).sum(1, keepdim=True)
        score = -one_hot if self._from_log_probabilities else p - one_hot
        root = self.to_terms(mass.sqrt()).to(score)
        return self.from_terms(root * score, prediction).to(prediction.dtype)

    def _evaluate(self, prediction: Tensor, target: Target, reduction: str) -> Tensor:
        weight = self._class_weight(prediction)
        ignore_index = self._module.ignore_index
        if self._from_log_probabilities:
            return F.nll_loss(
                prediction, target, weight, ignore_index=ignore_index, reduction=reduction
            )
        return F.cross_entropy(
            prediction,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=self._smoothing,
        )

    def _class_weight(self, prediction: Tensor) -> Tensor | None:
        weight = self._module.weight
        return None if weight is None else weight.detach().to(prediction)

    def _weights_and_labels(self, prediction: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Return each position's weight ``[N, *]`` and unsmoothed labels ``[N, C, *]``."""
        weight = self._class_weight(prediction)
        if weight is None:
            weight = prediction.new_ones(prediction.shape[1])
        by_class = weight.reshape(-1, *[1] * (prediction.ndim - 2))
        if target.is_floating_point():
            labels = target.to(prediction)
            return (by_class * labels).sum(1), labels
        valid = target != self._module.ignore_index
        label = target.masked_fill(~valid, 0)
        labels = _one_hot(label, prediction.shape[1]).movedim(-1, 1).to(prediction)
        return weight[label] * valid, labels * valid.unsqueeze(1)

    def _label_mass_per_class(self, prediction: Tensor, target: Target) -> Tensor:
        """Return the coefficients m of total = −Σ_c m_c log p_c, ``[N, C, *]``."""
        _, labels = self._weights_and_labels(prediction, target)
        if self._smoothing:
            valid = 1.0
            if not target.is_floating_point():
                valid = (target != self._module.ignore_index).unsqueeze(1).to(prediction)
            uniform = self._smoothing / prediction.shape[1] * valid
            labels = (1.0 - self._smoothing) * labels + uniform
        weight = self._class_weight(prediction)
        if weight is None:
            return labels
        return labels * weight.reshape(-1, *[1] * (prediction.ndim - 2))


def _one_hot(label: Tensor, classes: int) -> Tensor:
    """Return ``[*, C]``; unlike torch's function it can be traced, as it reads no value."""
    return label.unsqueeze(-1) == torch.arange(classes, device=label.device)
