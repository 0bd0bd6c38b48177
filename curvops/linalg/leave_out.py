r"""What each probe of a sketch says without itself, and how far to trust their mean.

The samples :math:`t_i`, each from the sketch without probe i, share all other probes. Their
scatter :math:`\sum_i (t_i - \bar t)^2 / k(k-1)` treats them as independent and is too small: by 1.5
for XTrace and by 2 to 3 for XNysTrace on common spectra. The jackknife is not: with
:math:`\bar t_{(i)}` the *whole* estimate from all probes but i,

.. math:: \operatorname{Var} \bar t \;\lesssim\; \operatorname{Var} \bar t_{(1)}
    \;\le\; \mathbb{E} \sum_i \Big(\bar t_{(i)} - \tfrac1k \sum_j \bar t_{(j)}\Big)^2

(Efron & Stein 1981, The jackknife estimate of variance, eq. 1.4). It needs every pair of probes
left out, which costs no products: two directions of the basis go instead of one. Variances here
are the larger of the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.linalg.sketch import Sketch, ratio

RESOLVED = 1e-10
"""Pairs whose directions differ by less (in squared sine) cannot be told apart."""


def quadratic(sketch: Sketch, H: Tensor, crossed: Tensor, form: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return samples of ``tr C`` and the variance of their mean, for ``C`` seen by a sketch.

    .. math:: t_i = \operatorname{tr} Q_{(i)}^T C Q_{(i)} + c_i\, x_i^T C x_i, \qquad
        x_i = \omega_i - Q_{(i)} Q_{(i)}^T \omega_i

    Args:
        sketch: The sketch.
        H: ``Qᵀ C Q`` ``[r, r]``.
        crossed: ``Qᵀ (C + Cᵀ) omega`` ``[r, k]``.
        form: ``omegaᵀ C omega`` of each probe ``[k]``.

    Returns:
        Samples ``[k]`` and the variance, a scalar.
    """
    S, W = sketch.omitted(), sketch.Q.T @ sketch.omega
    exists = S.square().sum(0).round()
    dim, rank = sketch.products.dim, sketch.Q.shape[1]
    total = torch.trace(H)
    norms, inner = sketch.omega.square().sum(0), W.square().sum(0)
    whole = form - (W * crossed).sum(0) + (W * (H @ W)).sum(0)
    slope = S.T @ (crossed - (H + H.T) @ W)
    sHs, sW = S.T @ H @ S, S.T @ W
    own, removed = sW.diagonal(), sHs.diagonal()

    def factors(left: Tensor, squares: Tensor) -> Tensor:
        if not sketch.rescales:
            return torch.ones_like(squares)
        return ratio(left.expand_as(squares), squares, dim)

    # Taking s_i out of the basis puts (s_iᵀ w) s_i back into what the probe sees outside.
    rest = whole + own * slope.diagonal() + own.square() * removed
    samples = total - removed
    samples = samples + factors(dim - rank + exists, norms - inner + own.square()) * rest

    # The same for pairs, row i and the sample of column j: coefficients of s_i and s_j.
    cosine, weight = pairs(S)
    alpha = (sW - cosine * own) * weight
    beta = (own - cosine * sW) * weight
    both = sHs + sHs.T
    rest = whole + alpha * slope + beta * slope.diagonal() + alpha * beta * both
    rest = rest + alpha.square() * removed.unsqueeze(1) + beta.square() * removed
    squares = norms - inner + alpha * sW + beta * own
    gone = exists.unsqueeze(1) + exists
    part = total - weight * (removed.unsqueeze(1) + removed - cosine * both)
    two = part + factors(dim - rank + gone, squares) * rest
    return samples, variance(samples, torch.where(weight > 0, two, samples))


def pairs(S: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines ``c`` between omitted directions, and ``1 / (1 - c²)``, both ``[k, k]``.

    Both are zero on the diagonal; the weight is zero for pairs that cannot be told apart.
    """
    cosine = (S.T @ S).fill_diagonal_(0.0)
    squared_sine = 1 - cosine.square()
    resolved = squared_sine > RESOLVED
    weight = torch.where(resolved, 1 / squared_sine, torch.zeros_like(squared_sine))
    return cosine, weight.fill_diagonal_(0.0)


def variance(samples: Tensor, two: Tensor) -> Tensor:
    """Return the variance of the mean of samples, the larger of scatter and jackknife.

    Args:
        samples: Samples ``[k]``, each without its own probe.
        two: ``[k, k]``; row i, column j holds the sample of probe j without i and j. The
            diagonal is not looked at.
    """
    k = len(samples)
    if k < 2:
        return samples.new_full((), torch.inf)
    replicates = (two.sum(1) - two.diagonal()) / (k - 1)
    jackknife = (replicates - replicates.mean()).square().sum()
    return torch.maximum(jackknife, samples.var() / k)
