r"""How likely a Gaussian prior is to fall into an ellipsoid: a weighted sum of squares, exactly.

.. math::
    \Pr\Bigl[\tfrac12 \sum_i \lambda_i x_i^2 \le T\Bigr], \qquad
    x_i \sim \mathcal{N}(-\theta_i, \sigma^2)
    \qquad
    = \frac{1}{2\pi i} \int e^{K(z) - z T} \frac{dz}{-z}

    K(z) = \sum_i -\tfrac12 \log(1 - z \sigma^2 \lambda_i)
        + \frac{z \lambda_i \theta_i^2 / 2}{1 - z \sigma^2 \lambda_i}

The contour goes through the saddle point left of zero, where the integrand is largest, and bends to
the right, where it falls faster than any power. On it the trapezoidal rule converges geometrically,
so that probabilities of exp(-10⁵) are known to ten digits.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from curvops.errors import InputError

_DROP = 45.0
_FIRST, _LAST = 64, 1 << 16
_RTOL = 1e-11


def log_gaussian_ellipsoid(
    eigenvalues: Tensor, offsets: Tensor, std: float, threshold: float
) -> float:
    r"""Return the log-probability of an ellipsoid around θ* under a Gaussian around zero.

    .. math:: \log \Pr\bigl[\tfrac12 (\theta - \theta^*)^T A (\theta - \theta^*) \le T\bigr],
        \qquad \theta \sim \mathcal{N}(0, \sigma^2 I)

    Args:
        eigenvalues: Of ``A``, ``[P]``, none negative, at least one positive.
        offsets: ``Vᵀ θ*`` in the eigenvectors' basis, ``[P]``.
        std: ``σ``.
        threshold: ``T > 0``.

    Returns:
        Nats.

    Raises:
        InputError: If an eigenvalue is negative, or none is positive.

    Source:
        H. E. Daniels, Tail probability approximations (1987), for the saddle point; L. N.
        Trefethen and J. A. C. Weideman, The exponentially convergent trapezoidal rule (2014).

    Example:
        Two parameters of the same curvature: the square of a distance is exponential.

        >>> import math, torch
        >>> ones, zeros = torch.ones(2), torch.zeros(2)
        >>> value = log_gaussian_ellipsoid(ones, zeros, std=1.0, threshold=1e-3)
        >>> round(value - math.log(-math.expm1(-1e-3)), 9)
        0.0
    """
    lam = eigenvalues.detach().to("cpu", torch.float64)
    if bool((lam < 0).any()) or not bool((lam > 0).any()):
        raise InputError(
            "an ellipsoid needs eigenvalues that are not negative, and one that is positive; got "
            f"values from {float(lam.min()):g} to {float(lam.max()):g}."
        )
    shift = (offsets.detach().to("cpu", torch.float64) / std).square()[lam > 0]
    # In units in which T is 1, and the prior's variance too.
    scale = lam[lam > 0] * std**2 / threshold
    saddle = _saddle(scale, shift)
    bend = _bend(scale, shift, saddle)
    reach = _reach(scale, shift, saddle, bend)
    count, last = _FIRST, math.nan
    while count <= _LAST:
        value = _trapezoid(scale, shift, saddle, bend, reach, count)
        if abs(value - last) <= _RTOL * max(1.0, abs(value)):
            break
        count, last = 2 * count, value
    return min(value, 0.0)


def _derivatives(scale: Tensor, shift: Tensor, s: float) -> tuple[float, float, float]:
    """Return K', K'' and K''' at a real point."""
    r = scale / (1 - s * scale)
    b = shift / (1 - s * scale)
    return (
        float((0.5 * r * (1 + b)).sum()),
        float((0.5 * r**2 * (1 + 2 * b)).sum()),
        float((r**3 * (1 + 3 * b)).sum()),
    )


def _saddle(scale: Tensor, shift: Tensor) -> float:
    """Return where K(z) - z - log(-z) is least on the negative axis."""

    def slope(log_s: float) -> float:
        s = -math.exp(log_s)
        return _derivatives(scale, shift, s)[0] - 1 - 1 / s

    low, high = -1.0, 1.0
    while slope(low) < 0:
        low -= 2.0
    while slope(high) > 0:
        high += 2.0
    return -math.exp(brentq(slope, low, high, xtol=1e-8))


def _bend(scale: Tensor, shift: Tensor, saddle: float) -> float:
    """Return the curvature of the path on which the integrand falls fastest, to third order."""
    _, second, third = _derivatives(scale, shift, saddle)
    second, third = second + saddle**-2, third - 2 * saddle**-3
    return third / (6 * second)


def _log_integrand(
    scale: Tensor, shift: Tensor, saddle: float, bend: float, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the complex logarithm of the integrand, and dz/du, at the contour's parameter."""
    z = torch.complex(saddle + bend * u.square(), u).unsqueeze(1)
    w = 1 - z * scale
    K = (-0.5 * w.log() + 0.5 * z * scale * shift / w).sum(1)
    z = z.squeeze(1)
    # Both halves of the contour lie on the same side of the cut of the logarithm of -z.
    return K - z - (-z).log(), torch.complex(2 * bend * u, torch.ones_like(u))


def _reach(scale: Tensor, shift: Tensor, saddle: float, bend: float) -> float:
    """Return up to where the integrand is worth adding up."""
    u = torch.zeros(1, dtype=torch.float64)
    top = float(_log_integrand(scale, shift, saddle, bend, u)[0].real)
    reach = -saddle * 1e-6
    for _ in range(200):
        at = torch.tensor([reach], dtype=torch.float64)
        value, factor = _log_integrand(scale, shift, saddle, bend, at)
        if float((value + factor.log()).real) < top - _DROP:
            break
        reach *= 1.5
    return reach


def _trapezoid(
    scale: Tensor, shift: Tensor, saddle: float, bend: float, reach: float, count: int
) -> float:
    # The other half is the conjugate, so that the real part is all there is.
    u = torch.linspace(0, reach, count + 1, dtype=torch.float64)
    parts = [
        _log_integrand(scale, shift, saddle, bend, part) for part in u.split(_chunk(len(scale)))
    ]
    values = torch.cat([value + factor.log() for value, factor in parts])
    top = float(values[0].real)
    terms = (values - top).exp().imag
    terms[0] /= 2
    # dz = i du (1 + ...), over 2 π i, twice: what is left is the imaginary part over π.
    return top + math.log(float(terms.sum()) * reach / count / math.pi)


def _chunk(dim: int) -> int:
    return max(1, (1 << 22) // dim)
