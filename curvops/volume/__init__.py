"""How much of parameter space behaves like a minimum: log-volumes, in nats.

``ball``
    The unit ball and the threshold, the two terms that do not know the network.
``logdet``
    log det(H + cI) from eigenvalues, with its rounding error, honest about indefiniteness.
``quadratic``
    The volume of the ellipsoid on which the quadratic model stays below a threshold.
"""

from __future__ import annotations

from curvops.errors import IndefiniteError
from curvops.volume.ball import log_threshold, log_unit_ball
from curvops.volume.logdet import LogDet, logdet_from_eigenvalues
from curvops.volume.quadratic import QuadraticVolume, log_ellipsoid, quadratic_volume

__all__ = [
    "IndefiniteError",
    "LogDet",
    "QuadraticVolume",
    "log_ellipsoid",
    "log_threshold",
    "log_unit_ball",
    "logdet_from_eigenvalues",
    "quadratic_volume",
]
