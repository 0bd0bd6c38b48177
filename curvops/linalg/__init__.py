"""Matrix-free linear algebra: anything with ``shape``, ``dtype``, ``device`` and ``@``."""

from __future__ import annotations

from curvops.linalg.density import spectral_density
from curvops.linalg.density_result import SpectralDensity
from curvops.linalg.diagonal import diagonal
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.linalg.estimate import Estimate, UnconvergedWarning, VectorEstimate
from curvops.linalg.frobenius import frobenius_norm
from curvops.linalg.logdet import logdet
from curvops.linalg.matrix import Matrix
from curvops.linalg.solve import SolveResult, solve
from curvops.linalg.trace import trace

__all__ = [
    "EighResult",
    "Estimate",
    "Matrix",
    "SolveResult",
    "SpectralDensity",
    "UnconvergedWarning",
    "VectorEstimate",
    "diagonal",
    "eigsh",
    "frobenius_norm",
    "logdet",
    "solve",
    "spectral_density",
    "trace",
]
