r"""The volume of a basin in the quadratic model: an ellipsoid.

With :math:`L(\theta^* + x) \approx L^* + \tfrac12 x^T H x` the region where the loss rises by at
most :math:`T` is an ellipsoid, and with ``c`` added to regularise the flat directions

.. math:: \log V = \log V_P + \tfrac{P}{2} \log(2T) - \tfrac12 \log\det(H + cI).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.volume.ball import log_threshold, log_unit_ball
from curvops.volume.logdet import logdet_from_eigenvalues
from curvops.volume.prior import Lebesgue, Measure
from curvops.volume.result import with_error

_LEBESGUE = Lebesgue()


@dataclass(frozen=True)
class QuadraticVolume:
    """The log-volume, in nats, of a basin's ellipsoid, its terms, and the choices made.

    Attributes:
        log_volume: The sum of the three terms; under a Gaussian the probability, in logs.
        stderr: Its Monte-Carlo error, half that of the log-determinant; 0 where it is exact.
        lower: Lower end of what the log-determinant's bracket, or rounding, leaves.
        upper: Upper end.
        ball_term: ``log V_P``.
        threshold_term: ``(P/2) log(2T)``.
        logdet: ``log det(H + cI)``; it enters with the factor -1/2. Under a Gaussian the three
            terms have no meaning and are NaN.
        dim: ``P``.
        threshold: ``T``, in units of the loss.
        shift: ``c = weight_decay + prior_count / prior_std**2``.
        weight_decay: As given.
        prior_std: As given, or None.
        prior_count: As given.
        measure: What it is measured with.
        curvature: ``"hessian"`` or ``"ggn"``; ``"matrix"`` where one was given.
        how: Where the log-determinant comes from: ``"dense"``, ``"gram"``, ``"krylov"``, ``"slq"``.
        converged: Whether the bracket is as narrow as was asked.
        num_matvecs: Products with the curvature.
        seconds: How long it took.
    """

    log_volume: float
    stderr: float
    lower: float
    upper: float
    ball_term: float
    threshold_term: float
    logdet: float
    dim: int
    threshold: float
    shift: float
    weight_decay: float
    prior_std: float | None
    prior_count: float
    measure: Measure = _LEBESGUE
    curvature: str = "matrix"
    how: str = "dense"
    converged: bool = True
    num_matvecs: int = 0
    seconds: float = 0.0
    method: str = "quadratic"

    @property
    def error(self) -> float:
        """Half the width of the bracket."""
        return (self.upper - self.lower) / 2

    @property
    def symbol(self) -> str:
        """``"log V"`` or ``"log p"``."""
        return self.measure.symbol

    def __float__(self) -> float:
        """Return the log-volume."""
        return self.log_volume

    def __str__(self) -> str:
        """Return the log-volume with its error and the choices it rests on."""
        choices = f"P = {self.dim}, T = {self.threshold:g}, c = {self.shift:g}"
        if self.curvature != "matrix":
            choices += f", {self.curvature}"
        if not self.stderr:
            return f"{self.symbol} = {self.log_volume:.4f} ± {self.error:.1e} nats ({choices})"
        doubt = "" if self.converged else ", not converged"
        return (
            f"{self.symbol} = {with_error(self.log_volume, self.stderr)} "
            f"[{self.lower:.6g}, {self.upper:.6g}] nats ({choices}, {self.num_matvecs} matvecs"
            f"{doubt})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return plain | {"measure": self.measure.to_dict()}


def log_ellipsoid(dim: int, threshold: float, logdet: float) -> float:
    r"""Return the log-volume of :math:`\{x : \tfrac12 x^T A x \le T\}` in nats.

    .. math:: \log V = \log V_P + \tfrac{P}{2} \log(2T) - \tfrac12 \log\det A

    Args:
        dim: The number of dimensions ``P``.
        threshold: ``T``.
        logdet: ``log det A``, in nats.

    Returns:
        The log-volume in nats.

    Example:
        An ellipse with half-axes 2 and 3 has the area 6 pi.

        >>> import math
        >>> logdet = math.log(1 / 2**2) + math.log(1 / 3**2)
        >>> round(math.exp(log_ellipsoid(2, 0.5, logdet)) / math.pi, 12)
        6.0
    """
    return log_unit_ball(dim) + log_threshold(dim, threshold) - logdet / 2


def quadratic_volume(
    curvature: Tensor,
    *,
    threshold: float,
    weight_decay: float = 0.0,
    prior_std: float | None = None,
    prior_count: float = 1.0,
    noise: float | None = None,
) -> QuadraticVolume:
    r"""Return the log-volume of the ellipsoid on which the quadratic model rises by at most ``T``.

    .. math::
        \log V = \log V_P + \tfrac{P}{2} \log(2T) - \tfrac12 \log\det(H + cI),
        \qquad c = \lambda + k / \sigma^2

    Args:
        curvature: The symmetric matrix ``H`` ``[P, P]``, or all its eigenvalues ``[P]``.
        threshold: The allowed rise ``T`` of the loss, in the loss's units.
        weight_decay: The ``λ`` of ``(λ/2)‖θ‖²``. Pass 0 if ``H`` holds ``λI`` already, as the
            operators of a risk with weight decay do.
        prior_std: The standard deviation ``σ`` of the initial parameters; None adds nothing.
        prior_count: How many ``σ⁻²`` to count, ``k``.
        noise: The absolute error of one eigenvalue, see :func:`logdet_from_eigenvalues`.

    Returns:
        The log-volume with its terms and choices.

    Raises:
        IndefiniteError: If ``H + cI`` is not positive definite.
        InputError: If a choice is negative, not finite, or ``threshold`` is not positive.
        ShapeError: If ``curvature`` is neither square nor one-dimensional.

    Source:
        P. Hebbar (2022) for ``k = 1``; A. Scherlis and N. Belrose, arXiv 2501.18812.

    Example:
        >>> import torch
        >>> print(quadratic_volume(torch.eye(3, dtype=torch.float64), threshold=0.5))
        log V = 1.4324 ± ...e-16 nats (P = 3, T = 0.5, c = 0)
    """
    shift = regulariser(weight_decay, prior_std, prior_count)
    if curvature.ndim == 2 and curvature.shape[0] == curvature.shape[1]:
        eigenvalues = torch.linalg.eigvalsh(curvature.detach().to(torch.float64))
        # The noise of the result is that of the matrix, however precise its diagonalisation.
        if noise is None and curvature.numel():
            eps = torch.finfo(curvature.dtype).eps
            noise = len(eigenvalues) * eps * float(eigenvalues.abs().max())
    elif curvature.ndim == 1:
        eigenvalues = curvature
    else:
        raise ShapeError(
            f"curvature has shape {list(curvature.shape)}; expected a square matrix [P, P] or "
            "its eigenvalues [P]."
        )
    dim = len(eigenvalues)
    threshold_term = log_threshold(dim, threshold)
    logdet = logdet_from_eigenvalues(eigenvalues, shift, noise=noise)
    value = log_ellipsoid(dim, threshold, logdet.value)
    return QuadraticVolume(
        log_volume=value,
        stderr=0.0,
        lower=value - logdet.error / 2,
        upper=value + logdet.error / 2,
        ball_term=log_unit_ball(dim),
        threshold_term=threshold_term,
        logdet=logdet.value,
        dim=dim,
        threshold=float(threshold),
        shift=shift,
        weight_decay=float(weight_decay),
        prior_std=None if prior_std is None else float(prior_std),
        prior_count=float(prior_count),
    )


def regulariser(weight_decay: float, prior_std: float | None, prior_count: float) -> float:
    """Return ``c = λ + k/σ²``.

    Raises:
        InputError: If an ingredient is negative or not finite, or σ is not positive.

    Example:
        >>> regulariser(1e-5, prior_std=0.5, prior_count=1.0)
        4.00001
    """
    for name, value in (("weight_decay", weight_decay), ("prior_count", prior_count)):
        if not (value >= 0 and math.isfinite(value)):
            raise InputError(f"{name} is {value}; it must be finite and not negative.")
    if prior_std is None:
        return float(weight_decay)
    if not (prior_std > 0 and math.isfinite(prior_std)):
        raise InputError(f"prior_std is {prior_std}; it must be positive and finite.")
    return float(weight_decay) + prior_count / prior_std**2
