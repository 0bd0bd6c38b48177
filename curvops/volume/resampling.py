"""Weighted points: how many they are worth, and drawing some of them by weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective(log_weights: Tensor) -> float:
    r"""Return the effective number of weighted points, :math:`(\sum w)^2 / \sum w^2`.

    Example:
        >>> import torch
        >>> round(effective(torch.tensor([0.0, 0.0, -torch.inf])), 12)
        2.0
    """
    w = log_weights.to(torch.float64)
    if not bool((w > -math.inf).any()):
        return 0.0
    return float((2 * w.logsumexp(0) - (2 * w).logsumexp(0)).exp())


def normalised(log_weights: Tensor) -> Tensor:
    """Return weights with sum one; zeros if all are."""
    return log_weights.softmax(0).nan_to_num(0.0)


def as_shares(weights: Tensor) -> Tensor:
    """Return weights with sum one; all alike if none has any."""
    total = weights.sum()
    return weights / total if total > 0 else torch.full_like(weights, 1 / len(weights))


def systematic(weights: Tensor, number: int, generator: torch.Generator) -> Tensor:
    r"""Draw indices by weight, each appearing ``number · w`` times, rounded up or down.

    Args:
        weights: ``[N]``, with sum one.
        number: How many to draw.
        generator: Where the one random number comes from.

    Returns:
        Indices ``[number]``, in ascending order.

    Source:
        Kitagawa 1996; Douc, Cappé & Moulines 2005, Comparison of resampling schemes.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> systematic(torch.tensor([0.5, 0.0, 0.5]), 4, generator)
        tensor([0, 0, 2, 2])
    """
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=generator.device)
    places = (torch.arange(number, dtype=torch.float64) + offset.cpu()) / number
    edges = weights.to("cpu", torch.float64).cumsum(0)
    index = torch.searchsorted(edges / edges[-1], places, right=True)
    # Rounding may leave the last edge below the last place; no index may have weight zero.
    last = int((weights > 0).nonzero()[-1])
    return index.clamp(max=last).to(weights.device)
