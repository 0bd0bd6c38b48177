"""Problems whose volumes are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curvops.risk import EmpiricalRisk


def rotation(dim: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]


def quadratic(
    matrix: Tensor, theta: Tensor | None = None, dtype: torch.dtype = torch.float64
) -> EmpiricalRisk:
    """The loss ½ (w - θ)ᵀ A (w - θ), as least squares of a linear model, at its minimum."""
    dim = len(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    X = (vectors * (values.clamp(min=0) / 2).sqrt()).T
    point = torch.zeros(dim, dtype=torch.float64) if theta is None else theta
    targets = X @ point.unsqueeze(1)

    def model(params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return inputs @ params["w"].unsqueeze(1)

    return EmpiricalRisk(
        model,
        nn.MSELoss(reduction="sum"),
        {"w": point.to(dtype)},
        [(X.to(dtype), targets.to(dtype))],
    )


def toy(dtype: torch.dtype = torch.float64) -> tuple[EmpiricalRisk, Tensor]:
    """A rotated quadratic of 200 parameters, eigenvalues from 100 to 1e-4; and those."""
    values, V = torch.logspace(2, -4, 200, dtype=torch.float64), rotation(200)
    return quadratic(V @ torch.diag(values) @ V.T, dtype=dtype), values


def crossing() -> EmpiricalRisk:
    """The normal crossing (w₁ w₂)², at zero."""

    def model(params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return params["w"].prod() * inputs

    data = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
    return EmpiricalRisk(model, nn.MSELoss(), {"w": torch.zeros(2).double()}, data)
