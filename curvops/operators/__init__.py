"""Linear operators: the algebra, and one file per operator."""

from __future__ import annotations

from curvops.operators.algebra import (
    AdjointLinearOperator,
    ProductLinearOperator,
    ScaledLinearOperator,
    SumLinearOperator,
)
from curvops.operators.block_diagonal import BlockDiagonalLinearOperator
from curvops.operators.cg_inverse import CGInverseLinearOperator
from curvops.operators.curvature import CurvatureLinearOperator
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.ef import EFLinearOperator
from curvops.operators.fisher import FisherMCLinearOperator
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.ggn_diagonal import GGNDiagonalLinearOperator
from curvops.operators.hessian import HessianLinearOperator
from curvops.operators.identity import IdentityLinearOperator
from curvops.operators.jacobian import (
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)
from curvops.operators.linear import LinearOperator
from curvops.operators.neumann import NeumannInverseLinearOperator
from curvops.operators.scipy_export import SciPyLinearOperator
from curvops.operators.submatrix import SubmatrixLinearOperator

__all__ = [
    "AdjointLinearOperator",
    "BlockDiagonalLinearOperator",
    "CGInverseLinearOperator",
    "CurvatureLinearOperator",
    "DiagonalLinearOperator",
    "EFLinearOperator",
    "FisherMCLinearOperator",
    "GGNDiagonalLinearOperator",
    "GGNLinearOperator",
    "HessianLinearOperator",
    "IdentityLinearOperator",
    "JacobianLinearOperator",
    "LinearOperator",
    "NeumannInverseLinearOperator",
    "ProductLinearOperator",
    "ScaledLinearOperator",
    "SciPyLinearOperator",
    "SubmatrixLinearOperator",
    "SumLinearOperator",
    "TransposedJacobianLinearOperator",
]
