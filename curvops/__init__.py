"""curvops: curvature of neural networks without forming it."""

from __future__ import annotations

from curvops import datasets, landscape, linalg, plotting, training, volume
from curvops.autodiff.affine import Affine
from curvops.linalg import (
    EighResult,
    Estimate,
    SpectralDensity,
    UnconvergedWarning,
    diagonal,
    eigsh,
    frobenius_norm,
    logdet,
    solve,
    spectral_density,
    trace,
)
from curvops.operators import (
    BlockDiagonalLinearOperator,
    CGInverseLinearOperator,
    CurvatureLinearOperator,
    DiagonalLinearOperator,
    EFLinearOperator,
    FisherMCLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    IdentityLinearOperator,
    JacobianLinearOperator,
    LinearOperator,
    NeumannInverseLinearOperator,
    SubmatrixLinearOperator,
    TransposedJacobianLinearOperator,
)
from curvops.risk import EmpiricalRisk
from curvops.volume import (
    LearningCoefficient,
    basin_volume,
    local_learning_coefficient,
    volume_scaling,
)

__version__ = "0.1.0"

__all__ = [
    # the risk and its operators
    "Affine",
    "BlockDiagonalLinearOperator",
    "CGInverseLinearOperator",
    "CurvatureLinearOperator",
    "DiagonalLinearOperator",
    "EFLinearOperator",
    "EmpiricalRisk",
    "FisherMCLinearOperator",
    "GGNDiagonalLinearOperator",
    "GGNLinearOperator",
    "HessianLinearOperator",
    "IdentityLinearOperator",
    "JacobianLinearOperator",
    "LinearOperator",
    "NeumannInverseLinearOperator",
    "SubmatrixLinearOperator",
    "TransposedJacobianLinearOperator",
    # questions
    "basin_volume",
    "diagonal",
    "eigsh",
    "frobenius_norm",
    "local_learning_coefficient",
    "logdet",
    "solve",
    "spectral_density",
    "trace",
    "volume_scaling",
    # answers
    "EighResult",
    "Estimate",
    "LearningCoefficient",
    "SpectralDensity",
    "UnconvergedWarning",
    # modules
    "datasets",
    "landscape",
    "linalg",
    "plotting",
    "training",
    "volume",
]
