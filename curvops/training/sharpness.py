"""Sharpness: the largest eigenvalues of the Hessian, beside where the optimizer turns unstable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from curvops.errors import InputError
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.training.curvature import Point
from curvops.training.quantity import Every, Measured, Quantity
from curvops.training.run import plain_fields
from curvops.training.stability import Stability, stability

TOLERANCE = 1e-3
"""Relative residual of eigenpairs; the error of an eigenvalue is about its square."""


@dataclass(frozen=True)
class SharpnessResult:
    """The largest eigenvalues, and the bound of stability.

    Attributes:
        eigenvalues: λ, largest first, of the Hessian, or of P⁻¹(H + λI) where the optimizer has
            a preconditioner P or adds λI.
        residuals: ‖Av − λv‖ of each.
        threshold: The bound of stability of λ_max; ``None`` where none is known.
        learning_rate: η; ``None`` where none is seen.
        preconditioned: Whether the matrix is not the plain Hessian.
        converged: Whether every residual is as small as asked.
        num_matvecs: Products with the matrix, each about a gradient of the data looked at.
        seconds: How long it took.
        notes: What is missing, and why.
    """

    eigenvalues: tuple[float, ...]
    residuals: tuple[float, ...]
    threshold: float | None
    learning_rate: float | None
    preconditioned: bool
    converged: bool
    num_matvecs: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def sharpness(self) -> float:
        """λ_max."""
        return self.eigenvalues[0]

    @property
    def ratio(self) -> float | None:
        """λ_max over the threshold; for gradient descent λ_max η/2. 1 is the edge of stability."""
        return None if self.threshold is None else self.eigenvalues[0] / self.threshold

    def __str__(self) -> str:
        """Return λ_max beside its bound."""
        bound = "" if self.threshold is None else f", stable below {self.threshold:.4g}"
        return f"λ_max = {self.sharpness:.4g}{bound} ({self.num_matvecs} matvecs)"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python, with sharpness and ratio."""
        return {"sharpness": self.sharpness, "ratio": self.ratio, **plain_fields(self)}


class Sharpness(Quantity):
    r"""The top eigenvalues of the Hessian, warm-started, beside the bound of stability.

    For gradient descent the bound is 2/η, with momentum (2 + 2β)/η; for Adam it is
    (2 + 2β₁)/((1 − β₁)η) for the Hessian preconditioned by its state (see
    :mod:`curvops.training.stability`). Training with a constant step size drives λ_max up to the
    bound, where it hovers.

    Cost: some 20 to 60 products of the data looked at the first time, fewer after it.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ...
        k: How many eigenvalues.
        preconditioned: Use the optimizer's preconditioner where it has one.
        tol: Relative residual of the eigenpairs.

    Raises:
        InputError: If an argument is impossible.

    Source:
        Cohen et al. 2021 (arXiv:2103.00065); Cohen et al. 2022 (arXiv:2207.14484).

    Example:
        >>> Sharpness(every=50, k=5).due(100)
        True
    """

    name = "sharpness"
    looks_at_risk = True

    def __init__(
        self,
        every: Every = 50,
        k: int = 1,
        *,
        preconditioned: bool = True,
        tol: float = TOLERANCE,
    ) -> None:
        super().__init__(every)
        self.k = checked_k(k)
        if not 0.0 < tol < 1.0:
            raise InputError(f"tol is a relative residual in (0, 1), got {tol!r}.")
        self._preconditioned, self._tol = preconditioned, tol

    def wants_point(self, step: int) -> bool:
        """Ask for the point."""
        return self.due(step)

    def at_point(self, point: Point) -> Iterable[Measured]:
        """Find the eigenpairs."""
        begin = time.perf_counter()
        bound = stability(point.optimizer, point.params)
        if not self._preconditioned and bound.inverse is not None:
            bound = Stability(bound.learning_rate, None, note="the preconditioner is left out")
        matrix = _matrix(point, bound)
        shared = 0.0
        if matrix is point.curvature.hessian:
            found, doubt, shared = point.top_of_hessian(self.k, self._tol)
        else:
            found, doubt = point.curvature.top(
                matrix, self.k, "preconditioned", self._tol, point.seed
            )
        order = range(len(found.eigenvalues) - 1, max(len(found.eigenvalues) - 1 - self.k, -1), -1)
        yield Measured(
            point.step,
            SharpnessResult(
                eigenvalues=tuple(float(found.eigenvalues[i]) for i in order),
                residuals=tuple(float(found.residuals[i]) for i in order),
                threshold=bound.threshold,
                learning_rate=bound.learning_rate,
                preconditioned=matrix is not point.curvature.hessian,
                converged=all(bool(found.converged[i]) for i in order),
                num_matvecs=found.num_matvecs,
                seconds=max(time.perf_counter() - begin, shared),
                notes=tuple(text for text in (bound.note, doubt) if text),
            ),
        )


def _matrix(point: Point, bound: Stability) -> LinearOperator:
    """Return √P⁻¹ (H + λI) √P⁻¹, which has the eigenvalues of P⁻¹(H + λI)."""
    matrix: LinearOperator = point.curvature.hessian
    if bound.shift:
        matrix = matrix.shift(bound.shift)
    if bound.inverse is None:
        return matrix
    dtype = point.curvature.hessian.dtype
    named = {n: d.sqrt().to(dtype) for n, d in zip(point.params, bound.inverse, strict=True)}
    root = DiagonalLinearOperator(named, space=matrix.in_space)
    return root @ matrix @ root


def checked_k(k: int) -> int:
    """Return a number of eigenpairs.

    Raises:
        InputError: If it is not a positive integer.
    """
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InputError(f"k must be a positive integer, got {k!r}.")
    return k


def finite(value: float | torch.Tensor) -> float | None:
    """Return a number, or ``None`` where it is not finite."""
    number = float(value)
    return number if math.isfinite(number) else None
