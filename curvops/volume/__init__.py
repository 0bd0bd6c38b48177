"""How much of parameter space behaves like a minimum: log-volumes, in nats.

``basin``
    One question, three answers: the quadratic model, the star domain, the bridge.
``ball``
    The unit ball and the threshold, the two terms that do not know the network.
``quadratic``, ``ellipsoid``
    The ellipsoid on which the quadratic model stays below a threshold, of a matrix and of a risk.
``star``, ``volume_scaling``
    What can be seen from the minimum in straight lines, at one threshold and over many.
``bridge``
    The basin itself, by annealing from a Gaussian.
``cost``, ``prior``, ``scope``, ``preconditioner``
    What bounds a basin, what it is measured with, which parameters it is about, and where to look.
``logdet``
    log det(H + cI) from eigenvalues, with its rounding error, honest about indefiniteness.
``learning_coefficient``
    The exponent by which a basin's volume shrinks with its threshold, from chains.
``coefficient_sweep``
    The same over step sizes, localisations and temperatures.
``diagnostics``
    How well chains have mixed: R-hat, effective sample size, the error of an average.
``moves``
    Metropolis-adjusted moves of many chains at once.
"""

from __future__ import annotations

from curvops.errors import IndefiniteError
from curvops.volume.ball import log_threshold, log_unit_ball
from curvops.volume.basin import basin_volume
from curvops.volume.bridge import bridge_volume
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.coefficient_result import LearningCoefficient
from curvops.volume.coefficient_sweep import CoefficientSweep, coefficient_sweep
from curvops.volume.cost import Cost
from curvops.volume.ellipsoid import ellipsoid_volume
from curvops.volume.gaussian_ellipsoid import log_gaussian_ellipsoid
from curvops.volume.learning_coefficient import local_learning_coefficient
from curvops.volume.logdet import LogDet, logdet_from_eigenvalues
from curvops.volume.preconditioner import Preconditioner, build_preconditioner
from curvops.volume.prior import Box, Gaussian, Lebesgue, Measure
from curvops.volume.quadratic import QuadraticVolume, log_ellipsoid, quadratic_volume
from curvops.volume.scope import restrict
from curvops.volume.star import star_volume
from curvops.volume.star_result import StarVolume
from curvops.volume.volume_scaling import VolumeScaling, volume_scaling

__all__ = [
    "Box",
    "BridgeVolume",
    "Cost",
    "Gaussian",
    "CoefficientSweep",
    "IndefiniteError",
    "LearningCoefficient",
    "Lebesgue",
    "LogDet",
    "Measure",
    "Preconditioner",
    "QuadraticVolume",
    "StarVolume",
    "VolumeScaling",
    "basin_volume",
    "bridge_volume",
    "build_preconditioner",
    "ellipsoid_volume",
    "coefficient_sweep",
    "local_learning_coefficient",
    "log_ellipsoid",
    "log_gaussian_ellipsoid",
    "log_threshold",
    "log_unit_ball",
    "logdet_from_eigenvalues",
    "quadratic_volume",
    "restrict",
    "star_volume",
    "volume_scaling",
]
