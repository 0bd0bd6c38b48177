"""Which end of the spectrum is wanted, in SciPy's words."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Which = Literal["LM", "LA", "SA", "BE"]
WHICH = ("LM", "LA", "SA", "BE")


def wanted(values: Tensor, which: Which, k: int) -> Tensor:
    """Return where the k wanted of ascending values are, ascending ``[min(k, n)]``.

    Args:
        values: ``[n]``, ascending.
        which: ``"LM"`` largest magnitude, ``"LA"`` largest, ``"SA"`` smallest, ``"BE"`` half from
            each end, one more from the high end if k is odd.
        k: How many.

    Example:
        >>> wanted(torch.tensor([-4.0, -1.0, 0.0, 2.0, 3.0]), "BE", 3)
        tensor([0, 3, 4])
    """
    n = len(values)
    k = min(k, n)
    if which == "LM":
        return values.abs().argsort(stable=True)[n - k :].sort().values
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return torch.cat([torch.arange(low), torch.arange(n - (k - low), n)])


def margin(others: Tensor, values: Tensor, which: Which) -> float:
    """Return how far other values are from being wanted, negative if one of them is.

    Args:
        others: Values that are not among the wanted, ``[m]``.
        values: The wanted ones, ascending.
        which: Their end.
    """
    low, high = float(others.min()), float(others.max())
    if which == "LM":
        return float(values.abs().min()) - max(high, -low)
    split = {"LA": 0, "SA": len(values), "BE": len(values) // 2}[which]
    gaps = []
    if split:
        gaps.append(low - float(values[split - 1]))
    if split < len(values):
        gaps.append(float(values[split]) - high)
    return min(gaps)


def prominence(values: Tensor, which: Which) -> Tensor:
    """Return how far each of the wanted values is from the last one that is wanted ``[k]``.

    Args:
        values: The wanted ones, ascending.
        which: Their end.
    """
    if which == "LM":
        return values.abs() - values.abs().min()
    split = {"LA": 0, "SA": len(values), "BE": len(values) // 2}[which]
    low, high = values[:split], values[split:]
    return torch.cat([low[-1:] - low, high - high[:1]])
