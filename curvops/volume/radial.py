r"""The radial integral of a Gaussian along a ray, in logs.

.. math:: \log \int_0^R r^{P-1} \exp(-b r - \tfrac{c}{2} r^2)\, dr

In P dimensions its mass sits in a shell of a width of about :math:`\sqrt{1/2c}`, or, where the ray
is cut off before, within a layer of a thickness of about R/P. The logarithm of the integrand is
concave: it has one peak, and what is more than 45 nats below it adds less than a rounding.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_DROP = 45.0
"""Nats below the peak at which the integrand is cut off; exp(-45) is 3e-20."""

_NODES = 64
"""Gauss–Legendre nodes on the window; exp(-45 x²) and exp(-45 x) are exact to 1e-14 with them."""

_HALVINGS = 60


def peak(dim: int, b: Tensor, c: Tensor) -> Tensor:
    """Return where ``r^(P-1) exp(-b r - c r²/2)`` is largest on ``r >= 0``."""
    # The root of c r² + b r = P - 1, without cancellation for either sign of b.
    root = (b.square() + 4 * c * (dim - 1)).sqrt()
    return torch.where(b > 0, 2 * (dim - 1) / (b + root), (root - b) / (2 * c))


def shell_end(dim: int, b: Tensor, c: Tensor) -> Tensor:
    """Return the radius beyond which the integral has no mass left."""
    top = peak(dim, b, c)
    # Beyond the peak the logarithm falls at least as fast as -c (r - peak)²/2.
    return top + (2 * _DROP / c).sqrt()


def log_shell(dim: int, b: Tensor, c: Tensor, radius: Tensor) -> Tensor:
    r"""Return :math:`\log \int_0^R r^{P-1} e^{-b r - c r^2/2} dr`, exact to rounding.

    Args:
        dim: ``P``, at least 1.
        b: ``[K]``, float64.
        c: Positive, ``[K]``.
        radius: ``R >= 0``, ``[K]``; may be infinite.

    Returns:
        Nats ``[K]``; minus infinity where ``R`` is 0.

    Example:
        Without a cut it is a Gamma function: log(2^(P/2 - 1) Gamma(P/2)) for b = 0, c = 1.

        >>> import math, torch
        >>> one = torch.ones(1, dtype=torch.float64)
        >>> value = log_shell(4810, 0 * one, one, math.inf * one)
        >>> abs(float(value) - (2404 * math.log(2) + math.lgamma(2405))) < 1e-9
        True
    """
    top = peak(dim, b, c)
    high = torch.minimum(radius, shell_end(dim, b, c))
    # A ray of no length has no mass; it is given some here, and loses it below.
    empty = high <= 0
    high = torch.where(empty, torch.ones_like(high), high)
    best = torch.minimum(top, high)

    def height(r: Tensor) -> Tensor:
        power = (dim - 1) * r.log() if dim > 1 else torch.zeros_like(r)
        return power - b * r - c * r.square() / 2

    ceiling = height(best)

    def cut(outer: Tensor) -> Tensor:
        """Return a point between ``outer`` and the peak that leaves out next to nothing."""
        inner = best
        for _ in range(_HALVINGS):
            middle = (outer + inner) / 2
            below = height(middle) < ceiling - _DROP
            outer, inner = torch.where(below, middle, outer), torch.where(below, inner, middle)
        return outer

    total = torch.zeros_like(best)
    # Split at the peak: a ray that is cut off before it ends where the integrand is largest.
    for start, stop in ((cut(torch.zeros_like(best)), best), (best, cut(high))):
        r = start + (stop - start) * _nodes(b)
        weighted = _weights(b) * (height(r) - ceiling).exp()
        total += weighted.sum(0) * (stop - start)
    value = ceiling + total.log()
    return torch.where(empty, torch.full_like(value, -torch.inf), value)


def _nodes(like: Tensor) -> Tensor:
    """Return the nodes on [0, 1] as a column ``[n, 1]``."""
    nodes = torch.from_numpy((np.polynomial.legendre.leggauss(_NODES)[0] + 1) / 2)
    return nodes.to(like.device).unsqueeze(1)


def _weights(like: Tensor) -> Tensor:
    weights = torch.from_numpy(np.polynomial.legendre.leggauss(_NODES)[1] / 2)
    return weights.to(like.device).unsqueeze(1)
