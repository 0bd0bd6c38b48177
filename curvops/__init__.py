"""curvops: curvature of neural networks without forming it."""

from __future__ import annotations

from curvops.operators import (
    BlockDiagonalLinearOperator,
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
    SubmatrixLinearOperator,
    TransposedJacobianLinearOperator,
)
from curvops.risk import EmpiricalRisk

__version__ = "0.1.0"

__all__ = [
    "BlockDiagonalLinearOperator",
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
    "SubmatrixLinearOperator",
    "TransposedJacobianLinearOperator",
]
