r"""What principal components find in a random walk: the null that a trajectory is compared with.

A path of independent steps, the same in all directions, looks as if it had a few directions: the
first component of T points holds about 61 % of the variance in any number of dimensions, and the
projections on the components are cosines. For :math:`P \gg T` dimensions

.. math:: \rho_k = \frac{3}{2 (T^2 - 1) \sin^2(\pi k / 2T)} \to \frac{6}{\pi^2 k^2}, \qquad
    z_k(i) \propto \cos\frac{\pi k (i + 1/2)}{T}, \qquad k = 1, \dots, T - 1

because the Gram matrix of the centred points has, up to a factor, the inverse of the path's
Laplacian for its expectation.

Source:
    Antognini & Sohl-Dickstein, PCA of high dimensional random walks with comparison to neural
    network training, NeurIPS 2018, Eq. (10) and (12).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvops.errors import InputError


def random_walk_variance(num_points: int) -> Tensor:
    r"""Return the shares of the variance that the components of a random walk explain.

    .. math:: \rho_k = \frac{3}{2 (T^2 - 1) \sin^2(\pi k / 2T)}

    Args:
        num_points: T, the start included; at least 2.

    Returns:
        ρ ``[T - 1]``, descending, float64; they sum to one.

    Raises:
        InputError: If ``num_points`` is below 2.

    Source:
        Antognini & Sohl-Dickstein, NeurIPS 2018, Eq. (10), with the factor that makes the sum one.

    Example:
        >>> random_walk_variance(10)[:3].round(decimals=4).tolist()
        [0.6191, 0.1587, 0.0735]
    """
    T = _checked(num_points)
    k = torch.arange(1, T, dtype=torch.float64)
    return 1.5 / ((T**2 - 1) * torch.sin(math.pi * k / (2 * T)) ** 2)


def random_walk_coordinates(num_points: int, num_components: int = 2) -> Tensor:
    r"""Return where the points of a random walk lie along its components.

    .. math:: z_k(i) = \sqrt{2 \rho_k} \, \cos\frac{\pi k (i + 1/2)}{T}

    Args:
        num_points: T, the start included; at least 2.
        num_components: How many components, at most T − 1.

    Returns:
        Coordinates ``[T, k]``, float64, for a walk of total variance one.

    Raises:
        InputError: If a number is impossible.

    Example:
        >>> random_walk_coordinates(100).square().mean(0).round(decimals=4).tolist()
        [0.608, 0.152]
    """
    T = _checked(num_points)
    is_count = isinstance(num_components, int) and not isinstance(num_components, bool)
    if not is_count or not 1 <= num_components < T:
        raise InputError(f"num_components must be from 1 to {T - 1}, got {num_components!r}.")
    i = torch.arange(T, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(1, num_components + 1, dtype=torch.float64)
    waves = torch.cos(math.pi * k * (i + 0.5) / T)
    return (2 * random_walk_variance(T)[:num_components]).sqrt() * waves


def _checked(num_points: int) -> int:
    if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 2:
        raise InputError(f"num_points must be an integer of 2 or more, got {num_points!r}.")
    return num_points
