"""The unit ball and the threshold: the terms of a log-volume that do not know the network.

In thousands of dimensions a volume under- or overflows every float, so all of it is in nats.
"""

from __future__ import annotations

import math

from curvops.errors import InputError


def log_unit_ball(dim: int) -> float:
    r"""Return the log-volume of the unit ball in ``dim`` dimensions, in nats.

    .. math:: \log V_P = \tfrac{P}{2} \log \pi - \log \Gamma(\tfrac{P}{2} + 1)

    Exact to rounding. Stirling's form ``-log(P pi)/2 + (P/2) log(2 pi e/P)`` exceeds it by about
    ``1/(6P)``.

    Args:
        dim: The number of dimensions ``P``; zero is a point, of volume one.

    Returns:
        The log-volume in nats.

    Raises:
        InputError: If ``dim`` is negative.

    Example:
        >>> import math
        >>> round(math.exp(log_unit_ball(3)) / math.pi, 12)  # 4/3
        1.333333333333
    """
    if dim < 0:
        raise InputError(f"dim is {dim}; a ball needs at least 0 dimensions.")
    return dim / 2 * math.log(math.pi) - math.lgamma(dim / 2 + 1)


def log_threshold(dim: int, threshold: float) -> float:
    r"""Return :math:`\tfrac{P}{2} \log(2T)`, the threshold's share of a quadratic log-volume.

    A ball of radius :math:`\sqrt{2T}` is where :math:`\tfrac12 \|x\|^2 \le T`.

    Args:
        dim: The number of dimensions ``P``.
        threshold: The allowed increase ``T`` of the loss, in the loss's units.

    Returns:
        The term in nats.

    Raises:
        InputError: If ``dim`` is negative, or ``threshold`` not positive and finite.

    Example:
        >>> log_threshold(1710, 2.0)
        1185.2816787575064
    """
    if dim < 0:
        raise InputError(f"dim is {dim}; a ball needs at least 0 dimensions.")
    if not (threshold > 0 and math.isfinite(threshold)):
        raise InputError(f"threshold is {threshold}; it must be positive and finite.")
    return dim / 2 * math.log(2 * threshold)
