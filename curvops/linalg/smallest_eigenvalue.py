r"""A lower bound of the spectrum from Lanczos with random start vectors, at a stated confidence.

The smallest Ritz value is never below the smallest eigenvalue; how far above may it be? Suppose
that ``x`` is an eigenvalue, with unit eigenvector ``u``. Its components in the Lanczos basis
follow the same recurrence as the orthonormal polynomials, so that the first determines all, and
no sum of squares exceeds ``‖u‖² = 1``:

.. math:: \frac{(u^T z)^2}{\|z\|^2} \le \Big(\sum_{j=0}^{m} p_j(x)^2\Big)^{-1}

Below the Ritz values the polynomials explode, and ``z`` would have to be nearly orthogonal to
``u``. But ``uᵀz`` of a random ``z`` is a standard normal number, and the sum of n squares is below
the quantile of χ² with n degrees of freedom as rarely as one asks. All ``x`` that would need such
a coincidence are excluded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from scipy.special import chdtri
from torch import Tensor

from curvops.linalg.block_lanczos import BlockLanczos
from curvops.linalg.lanczos import Tridiagonals

FAILURE = 1e-4
"""How often the bound may be above the smallest eigenvalue."""

_NEAREST, _STRIDE, _STRIDES, _BISECTIONS = 1e-14, 8.0, 60, 6
"""Distances below the Ritz values that are tried, relative to their spread: to 3 % in the end."""


def below_tridiagonals(T: Tridiagonals, failure: float = FAILURE) -> float:
    r"""Return a number below the spectrum, from Lanczos runs with random start vectors.

    Args:
        T: One tridiagonal matrix a start vector, whose squared norm is on average P: Gaussian,
            uniform on the sphere, or (up to conspiracies of signs) Rademacher.
        failure: The probability of being wrong.

    Returns:
        The bound; minus infinity if there is no run.

    Source:
        The largest mass at a point, the Christoffel function: Szegő, Orthogonal Polynomials,
        theorem 3.41.3. Random starts: Kuczyński & Woźniakowski 1992, whose bound holds for the
        worst spectrum, where this one uses the spectrum seen.

    Example:
        >>> import torch
        >>> from curvops.linalg.lanczos import lanczos
        >>> from curvops.linalg.matrix import Products
        >>> from curvops.linalg.probes import Probes
        >>> A = torch.diag(torch.linspace(1.0, 2.0, 200, dtype=torch.float64))
        >>> T = lanczos(Products(A), Probes(200, "gaussian").take(4), 20)
        >>> 0.9 < below_tridiagonals(T) < 1.0
        True
    """
    if not len(T.alpha):
        return float("-inf")
    values = torch.linalg.eigvalsh(T.dense())

    def largest_share(x: float) -> float:
        return float((T.norms.square() * _christoffel(T, x)).sum())

    return _descend(values, largest_share, float(chdtri(len(T.alpha), 1.0 - failure)))


def below_block(space: BlockLanczos, failure: float = FAILURE) -> float:
    r"""Return a number below the spectrum, from a block Krylov space with a Gaussian start.

    With ``Z = Q₁R`` and ``y = Qᵀu``, the blocks of ``y`` follow from ``y₁ = R⁻ᵀ Zᵀu`` by the
    three-term recurrence, ``y = G(x) y₁``. ``‖y‖ ≤ 1`` leaves
    :math:`\|Z^T u\|^2 \le 1 / \lambda_{\min}(R^{-1} G^T G R^{-T})`.

    Args:
        space: The space, of at least one step.
        failure: The probability of being wrong.

    Returns:
        The bound; minus infinity if the start block has dependent columns.
    """
    R = space.start_coefficients
    count = R.shape[1]
    if R.shape[0] != count or not space.num_blocks:
        return float("-inf")
    values = torch.linalg.eigvalsh(space.dense())
    quantile = float(chdtri(count, 1.0 - failure))

    def largest_share(x: float) -> float:
        return _largest_start(space, x, quantile)

    return _descend(values, largest_share, quantile)


def _descend(values: Tensor, largest_share: Callable[[float], float], quantile: float) -> float:
    """Return the largest x found, below all Ritz values, at which the share is too small."""
    top = float(values.min())
    spread = max(float(values.max()) - top, abs(top), 1e-300)
    far = near = _NEAREST * spread
    for _ in range(_STRIDES):
        if largest_share(top - far) < quantile:
            break
        near, far = far, _STRIDE * far
    else:
        return float("-inf")
    for _ in range(_BISECTIONS):
        middle = (near * far) ** 0.5
        if largest_share(top - middle) < quantile:
            far = middle
        else:
            near = middle
    return top - far


def _christoffel(T: Tridiagonals, x: float) -> Tensor:
    """Return 1 / Σ_j p_j(x)² of each measure ``[K]``, p_0 = 1."""
    before, now = torch.zeros_like(T.norms), torch.ones_like(T.norms)
    total, coupling = now.clone(), torch.zeros_like(now)
    for j in range(T.alpha.shape[1]):
        # Beyond 1e150 squares overflow, and the share is nothing in any case.
        after = ((x - T.alpha[:, j]) * now - coupling * before) / T.beta[:, j]
        ended = ~(after.abs() < 1e150)
        after = torch.where(ended, 1e150, after)
        before, now, coupling = now, after, T.beta[:, j]
        total += after.square()
    return 1.0 / total


def _largest_start(space: BlockLanczos, x: float, quantile: float) -> float:
    """Return the largest ‖Zᵀu‖² of an eigenvector with eigenvalue x, or a number too small."""
    R = space.start_coefficients
    now = torch.linalg.inv(R).T
    before, coupling = now[:0], now.new_zeros(len(now), 0)
    gram = now.T @ now
    share = _inverse_smallest(gram)
    for diagonal, lower in zip(space.diagonals, space.couplings, strict=True):
        if share < quantile:
            return share
        if not len(lower):  # nothing leads out of the space: u would be orthogonal to all of it
            return 0.0
        right = x * now - diagonal @ now - coupling @ before
        after = torch.linalg.pinv(lower.T) @ right
        before, now, coupling = now, after, lower
        gram = gram + after.T @ after
        share = min(share, _inverse_smallest(gram))
    return share


def _inverse_smallest(gram: Tensor) -> float:
    return 1.0 / max(float(torch.linalg.eigvalsh(gram)[0]), 1e-300)
