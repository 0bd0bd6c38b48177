"""What an eigensolver found, and how good it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class EighResult:
    """Eigenpairs of a symmetric matrix, each with its residual.

    Attributes:
        eigenvalues: λ ``[k]``, ascending, float64, on the matrix's device.
        eigenvectors: Unit vectors ``[P, k]`` as columns, or ``None`` if they were not asked for.
        residuals: ‖Av − λv‖ of each pair ``[k]``, rounding included: there is an eigenvalue of
            ``A`` within this distance of λ.
        converged: Whether each residual is as small as asked ``[k]``.
        num_matvecs: Products of the matrix with one vector that it took.
        seconds: How long it took.
        which: Which end of the spectrum was asked for.
        tol: The relative residual that was asked for.
        method: ``"krylov"`` or ``"dense"``.
        num_restarts: How often the basis was cut back to Ritz vectors.
        num_checks: Fresh random directions that were searched for missed copies.
        start: Where the iteration for a matrix that is not very different begins, ``[P]``: the
            eigenvectors, and a little of what was next in line.

    Example:
        >>> import torch
        >>> from curvops.linalg.eigsh import eigsh
        >>> print(eigsh(torch.diag(torch.arange(1.0, 6.0)), k=2))
        2 eigenvalues (LM) in [4, 5], 2 converged: residual at most ... (5 matvecs)
    """

    eigenvalues: Tensor
    eigenvectors: Tensor | None
    residuals: Tensor
    converged: Tensor
    num_matvecs: int
    seconds: float
    which: str
    tol: float
    method: str
    num_restarts: int = 0
    num_checks: int = 0
    start: Tensor | None = None

    def __str__(self) -> str:
        """Return how many were found, where, and how good they are."""
        low, high = float(self.eigenvalues[0]), float(self.eigenvalues[-1])
        return (
            f"{len(self.eigenvalues)} eigenvalues ({self.which}) in [{low:.6g}, {high:.6g}], "
            f"{int(self.converged.sum())} converged: residual at most "
            f"{float(self.residuals.max()):.2g} ({self.num_matvecs} matvecs)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but vectors as plain Python."""
        return {
            "eigenvalues": self.eigenvalues.tolist(),
            "residuals": self.residuals.tolist(),
            "converged": self.converged.tolist(),
            "num_matvecs": self.num_matvecs,
            "seconds": self.seconds,
            "which": self.which,
            "tol": self.tol,
            "method": self.method,
            "num_restarts": self.num_restarts,
            "num_checks": self.num_checks,
        }
