"""Products of many long rows with a few, by pieces that a core's cache holds.

A library's matrix product treats so flat a matrix at half the speed of memory, or less.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 4096
"""Columns that one small product takes: few rows of a basis so long stay in a core's cache."""

_GROUP = 16
"""How many chunks are turned before they are written back."""


def inner(X: Tensor, Y: Tensor) -> Tensor:
    """Return ``X Yᵀ`` of rows ``[n, P]`` and ``[m, P]``, summed in float64, on the CPU."""
    whole = X.shape[1] - X.shape[1] % _CHUNK
    chunks = torch.bmm(_chunks(X, whole), _chunks(Y, whole).mT)
    rest = X[:, whole:] @ Y[:, whole:].T
    return chunks.cpu().sum(0, dtype=torch.float64) + rest.cpu()


def combine(X: Tensor, rotation: Tensor, out: Tensor) -> None:
    """Write combinations of rows ``[n, P]``, as columns ``[n, p]``, to ``[p, P]``.

    These may be some of the rows themselves.
    """
    small = rotation.T.to(X.device, X.dtype)
    whole = X.shape[1] - X.shape[1] % _CHUNK
    if whole:
        parts = zip(_chunks(X, whole).split(_GROUP), _chunks(out, whole).split(_GROUP), strict=True)
        for part, new in parts:
            new.copy_(torch.bmm(small.expand(len(part), -1, -1), part))
    out[:, whole:] = small @ X[:, whole:]


def remove(V: Tensor, W: Tensor) -> Tensor:
    """Remove from rows ``W`` what lies in the orthonormal rows ``V``, in place; return ``V Wᵀ``.

    Once if they are almost orthogonal already, as after the recurrence; again while a sweep has
    removed more than a hundredth of what is left, for then its own rounding is no longer small
    beside the rest (Giraud, Langou & Rozložník 2005).

    Args:
        V: ``[n, P]``.
        W: ``[b, P]``.
    """
    total = torch.zeros(V.shape[0], W.shape[0], dtype=torch.float64)
    if not V.shape[0]:
        return total
    for _ in range(5):
        C = V @ W.T
        W.addmm_(C.T, V, alpha=-1)
        total += C.to("cpu", torch.float64)
        if bool((C.abs().amax(0) <= 0.01 * W.norm(dim=1)).all()):
            break
    return total


def _chunks(X: Tensor, whole: int) -> Tensor:
    """Return ``[chunks, n, columns]``, without a copy."""
    pieces: Tensor = X[:, :whole].unflatten(1, (-1, _CHUNK))
    return pieces.transpose(0, 1)
