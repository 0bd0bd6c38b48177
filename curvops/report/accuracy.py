"""The share of right predictions, for problems whose targets are class indices."""

from __future__ import annotations

import torch

from curvops.risk import EmpiricalRisk


def accuracy(risk: EmpiricalRisk, ignore_index: int | None = None) -> float | None:
    """Return the share of positions whose largest logit is that of the target.

    Args:
        risk: A risk whose predictions are ``[N, C, *]`` and targets class indices ``[N, *]``.
        ignore_index: Targets of this value are not counted, nor are negative ones; by default
            what the loss ignores.

    Returns:
        A number in ``[0, 1]``; None where targets are no class indices.

    Example:
        >>> import torch
        >>> model = torch.nn.Identity()
        >>> logits, labels = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])
        >>> risk = EmpiricalRisk(
        ...     lambda params, X: params["w"] * X,
        ...     torch.nn.CrossEntropyLoss(),
        ...     {"w": torch.ones(1)},
        ...     [(logits, labels)],
        ... )
        >>> accuracy(risk)
        0.5
    """
    if ignore_index is None:
        ignored = risk.loss_func.ignore_index
        ignore_index = -100 if ignored is None else ignored
    right = counted = 0
    for prediction, target in risk.predictions():
        if (
            not isinstance(target, torch.Tensor)
            or target.is_floating_point()
            or target.dtype == torch.bool
            or prediction.ndim != target.ndim + 1
            or prediction.shape[:1] + prediction.shape[2:] != target.shape
        ):
            return None
        valid = (target != ignore_index) & (target >= 0)
        right += int(((prediction.argmax(1) == target) & valid).sum())
        counted += int(valid.sum())
    return right / counted if counted else None
