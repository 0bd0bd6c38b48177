r"""Chernoff's inequality: what a soft basin says about the level set from above.

.. math::
    \log \mu(\mathrm{cost} \le \varepsilon) \le \log Z_\beta + \beta \varepsilon,
    \qquad Z_\beta = \int e^{-\beta \, \mathrm{cost}} \, d\mu,

for every :math:`\beta \ge 0`, because :math:`1[c \le \varepsilon] \le e^{\beta (\varepsilon - c)}`.
The right-hand side is convex in β and smallest where :math:`\mathbb{E}_\beta[\mathrm{cost}] =
\varepsilon`.
"""

from __future__ import annotations

import math

from scipy import stats

from curvops.errors import InputError


def chernoff_bound(log_z: float, beta: float, threshold: float) -> float:
    r"""Return :math:`\log Z_\beta + \beta \varepsilon`, an upper bound of a log-volume in nats.

    Args:
        log_z: ``log Z_β``, the log-mass of the soft basin, in nats.
        beta: ``β ≥ 0``, in nats per unit of the cost.
        threshold: ``ε``, in units of the cost.

    Raises:
        InputError: If ``beta`` is negative: the inequality then points the other way.

    Source:
        Chernoff 1952, A measure of asymptotic efficiency for tests of a hypothesis based on the
        sum of observations.

    Example:
        The cost is uniform on [0, 1], so that Z = (1 - exp(-β)) / β, and a tenth lies below 0.1.

        >>> import math
        >>> log_z = math.log((1 - math.exp(-10.0)) / 10.0)
        >>> round(math.exp(chernoff_bound(log_z, 10.0, threshold=0.1)), 3)
        0.272
    """
    if not beta >= 0.0:
        raise InputError(f"beta is {beta}; Chernoff's bound needs an inverse temperature >= 0.")
    return log_z + beta * threshold


def student(level: float, number: int) -> float:
    """Return by how many standard errors of a mean of ``number`` values an interval reaches out.

    Infinite for a single value, which says nothing about its error.

    Example:
        >>> round(student(0.95, 4), 3), student(0.95, 1)
        (3.182, inf)
    """
    return float(stats.t.ppf((1 + level) / 2, number - 1)) if number > 1 else math.inf
