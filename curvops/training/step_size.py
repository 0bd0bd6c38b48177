r"""The effective step length α: where on the parabola along its step did an update stop?

.. math::
    \alpha = t / t_* - 1, \qquad t_* = -w_1 / (2 w_2), \qquad q(s) = w_0 + w_1 s + w_2 s^2

−1: it did not move; 0: it stepped to the minimum; 1: to the other side, at the same height. The
parabola is fitted to loss and slope at both ends of the step, each with its own noise
(:func:`fit_step`), or is the quadratic model of a whole risk (:func:`exact_step`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from curvops.errors import InputError
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.tensors import Vector
from curvops.training.run import plain_fields

OK = "ok"
CONCAVE = "concave"
LINEAR = "linear"
UPHILL = "uphill"
ZERO_STEP = "zero_step"
UNDETERMINED = "undetermined"

STATUSES = (OK, CONCAVE, LINEAR, UPHILL, ZERO_STEP, UNDETERMINED)
"""What may stand beside α; only ``"ok"`` makes it a distance to a minimum."""

_STRAIGHT = 64.0
"""A parabola whose slope changes by fewer roundings than this is a line."""

Four = tuple[float, float, float, float]
"""One number for f(0), f(t), f'(0), f'(t) each."""

Three = tuple[float, float, float]
Rows = tuple[tuple[float, ...], ...]

_NONE: Four = (0.0, 0.0, 0.0, 0.0)

_OBSERVED = ("f(0)", "f(t)", "f'(0)", "f'(t)")


@dataclass(frozen=True)
class StepSize:
    """The effective length of one step.

    Attributes:
        alpha: t/t* − 1, by the formula whatever the status; −1 for a step of length 0, NaN only
            where an observation is not finite.
        stderr: Its standard error by propagation of the noise of the observations; 0 without.
        status: ``"ok"``: a minimum lies ahead of the start. ``"concave"``: the parabola has a
            maximum. ``"linear"``: it has no bend beyond rounding. ``"uphill"``: its minimum lies
            behind the start. ``"zero_step"``: the parameters did not move. ``"undetermined"``:
            no variance can be told (one datum), or an observation is not finite.
        length: t = ‖d‖, in units of the parameters.
        coefficients: w₀, w₁, w₂ of the parabola.
        losses: f(0) and f(t), as observed.
        slopes: f'(0) and f'(t), loss per unit of length.
        variances: Of f(0), f(t), f'(0), f'(t), as weighted; all 0 where there is no noise.
        notes: What was floored, or why there is no number.
    """

    alpha: float
    stderr: float
    status: str
    length: float
    coefficients: tuple[float, float, float]
    losses: tuple[float, float]
    slopes: tuple[float, float]
    variances: Four = (0.0, 0.0, 0.0, 0.0)
    notes: tuple[str, ...] = ()

    def __float__(self) -> float:
        """Return α."""
        return self.alpha

    def __str__(self) -> str:
        """Return α with its error, and the status unless it is ok."""
        error = f" ± {self.stderr:.2g}" if self.stderr else ""
        doubt = "" if self.status == OK else f" ({self.status})"
        return f"α = {self.alpha:.3g}{error}{doubt}"

    def __call__(self, s: float) -> float:
        """Return the parabola at the distance ``s`` from the start."""
        w0, w1, w2 = self.coefficients
        return w0 + s * (w1 + s * w2)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return plain_fields(self)


def fit_step(
    losses: Sequence[float],
    slopes: Sequence[float],
    length: float,
    variances: Sequence[float] | None = None,
    *,
    eps: float = sys.float_info.epsilon,
) -> StepSize:
    r"""Fit a parabola to loss and slope at both ends of a step, by generalised least squares.

    .. math::
        w = (\Phi^T \Lambda^{-1} \Phi)^{-1} \Phi^T \Lambda^{-1} y, \quad
        y = \begin{pmatrix} f(0) \\ f(t) \\ f'(0) \\ f'(t) \end{pmatrix}, \quad
        \Phi = \begin{pmatrix} 1 & 0 & 0 \\ 1 & t & t^2 \\ 0 & 1 & 0 \\ 0 & 1 & 2t \end{pmatrix}

    Solved for (w₀, w₁, t w₂), by QR of rows that are weighted and sorted: nothing is squared, so
    that steps of any length and variances of any ratio do not overflow.

    Args:
        losses: f(0) and f(t).
        slopes: f'(0) and f'(t), loss per unit of length.
        length: t ≥ 0.
        variances: The diagonal of Λ, of f(0), f(t), f'(0), f'(t). ``None`` or NaN where they are
            not known: the status is ``"undetermined"``, and the number that of equal trust.
        eps: Relative rounding of the observations. A variance is at least that of rounding.

    Returns:
        The effective step length.

    Raises:
        InputError: If there are not two losses, two slopes and four variances, the length is
            negative, or a variance is.

    Source:
        Schneider, Dangel & Hennig 2021, Cockpit: a practical debugging tool for the training of
        deep neural networks (arXiv:2102.06604), section 2 and its appendix.

    Example:
        >>> step = fit_step([2.0, 0.0], [-2.0, 0.0], 2.0, [1, 1, 1, 1])  # (s - 2)² / 2
        >>> round(step.alpha, 12), step.status
        (0.0, 'ok')
        >>> print(fit_step([2.0, 2.0], [-2.0, 2.0], 4.0, [0.1, 0.1, 0.1, 0.1]))
        α = 1 ± 0.1
        >>> fit_step([2.0, 2.0], [-2.0, -2.0], 0.0).status
        'zero_step'
    """
    f, g, t, v = _checked(losses, slopes, length, variances)
    if t == 0.0:
        line = (f[0], g[0], 0.0)
        return StepSize(-1.0, 0.0, ZERO_STEP, 0.0, line, f, g)
    if not all(math.isfinite(x) for x in (*f, *g, t)):
        note = "an observation is not finite: the loss has diverged, or the step has"
        nothing = (math.nan, math.nan, math.nan)
        return StepSize(math.nan, 0.0, UNDETERMINED, t, nothing, f, g, notes=(note,))
    known = v is not None and all(math.isfinite(x) for x in v)
    weighted, notes = _floored(f, g, t, v if known and v is not None else _NONE, eps)
    w, root = _least_squares((*f, *g), t, weighted)
    alpha, stderr, status = _classify(w, root, eps)
    if not known:
        notes = ("the batch has one datum, so that no variance can be told",)
        status, stderr, weighted = UNDETERMINED, 0.0, _NONE
    elif not any(v or ()):
        stderr, weighted = 0.0, _NONE
    coefficients = (w[0], w[1], w[2] / t)
    return StepSize(alpha, stderr, status, t, coefficients, f, g, weighted, notes)


def exact_step(risk: EmpiricalRisk, step: Vector) -> StepSize:
    r"""Return α of a step on a whole risk, from its gradient and one Hessian product.

    .. math:: \alpha = -\frac{d^T H d}{g^T d} - 1, \qquad
        d = -\eta g: \quad \alpha = \eta \frac{g^T H g}{g^T g} - 1

    It is what :func:`fit_step` finds where the risk is a quadratic and there is no noise.

    Args:
        risk: The risk; its current point is where the step starts.
        step: d, in any format of a vector. For gradient descent, ``-eta * risk.gradient()``.

    Returns:
        The effective step length, without noise: the f(t) and f'(t) in it are the model's.

    Raises:
        InputError: If ``step`` has more than one column.

    Example:
        >>> from torch import nn
        >>> risk = EmpiricalRisk(
        ...     nn.Linear(2, 1, bias=False),
        ...     nn.MSELoss(),
        ...     [torch.ones(1, 2)],
        ...     [(torch.eye(2), torch.zeros(2, 1))],
        ... )  # L = |θ|² / 2
        >>> print(exact_step(risk, -1.5 * risk.gradient()))
        α = 0.5
    """
    columns, _ = risk.space.read(step, risk.dtype, risk.device, "step")
    if columns.shape[1] != 1:
        raise InputError(f"exact_step() takes one step, got {columns.shape[1]} columns.")
    size = float(columns.abs().max())
    if size == 0.0:
        slope = float(risk.gradient().norm())
        loss = float(risk.loss())
        return fit_step([loss, loss], [slope, slope], 0.0)
    direction = columns[:, 0].double() / size
    norm = float(direction.norm())
    direction, t = direction / norm, size * norm
    gradient = risk.gradient().double()
    operator = HessianLinearOperator.from_risk(risk)
    bend = float(direction @ (operator @ direction.to(risk.dtype)).double())
    slope, loss = float(gradient @ direction), float(risk.loss())
    w = (loss, slope, 0.5 * t * bend)
    alpha, _, status = _classify(w, (), torch.finfo(risk.dtype).eps)
    end = loss + t * (slope + w[2])
    return StepSize(
        alpha, 0.0, status, t, (loss, slope, 0.5 * bend), (loss, end), (slope, slope + t * bend)
    )


def _checked(
    losses: Sequence[float],
    slopes: Sequence[float],
    length: float,
    variances: Sequence[float] | None,
) -> tuple[tuple[float, float], tuple[float, float], float, tuple[float, ...] | None]:
    if len(losses) != 2 or len(slopes) != 2:
        raise InputError(f"expected two losses and two slopes, got {len(losses)}, {len(slopes)}.")
    t = float(length)
    if t < 0.0:
        raise InputError(f"length must be nonnegative, got {length!r}.")
    f, g = (float(losses[0]), float(losses[1])), (float(slopes[0]), float(slopes[1]))
    if variances is None:
        return f, g, t, None
    v = tuple(float(x) for x in variances)
    if len(v) != 4 or any(x < 0.0 for x in v):
        raise InputError(f"variances must be four nonnegative numbers, got {list(variances)}.")
    return f, g, t, v


def _floored(
    f: tuple[float, float],
    g: tuple[float, float],
    t: float,
    v: Sequence[float],
    eps: float,
) -> tuple[Four, tuple[str, ...]]:
    """Return variances that are at least those of rounding, and a note on what was raised."""
    height, slope = max(map(abs, f)), max(map(abs, g))
    # What is exactly zero is as uncertain as the rest of the parabola, in its units.
    height = height or min(t * slope, 1e300) or 1.0
    slope = slope or min(height / t, 1e300)
    floors = [max(eps * x, 1e-150) ** 2 for x in (height, height, slope, slope)]
    raised = [name for name, x, floor in zip(_OBSERVED, v, floors, strict=True) if x < floor]
    notes = (f"no variance above rounding in {', '.join(raised)}: floored",) if raised else ()
    a, b, c, d = (max(x, floor) for x, floor in zip(v, floors, strict=True))
    return (a, b, c, d), notes


def _least_squares(y: Sequence[float], t: float, variances: Sequence[float]) -> tuple[Three, Rows]:
    """Return (w₀, w₁, t w₂), and R⁻¹ of the weighted system: their covariance is R⁻¹R⁻ᵀ.

    Householder's reflections on four rows, in plain numbers: at every step of a training run this
    takes a fifth of the time that calls into linear algebra take.
    """
    phi = ((1.0, 0.0, 0.0), (1.0, t, t), (0.0, 1.0, 0.0), (0.0, 1.0, 2.0))
    weights = [1.0 / math.sqrt(v) for v in variances]
    rows = [[x * w for x in row] + [b * w] for row, w, b in zip(phi, weights, y, strict=True)]
    # Reflections are stable for rows of any size when large ones come first.
    rows.sort(key=lambda row: -max(abs(row[0]), abs(row[1]), abs(row[2])))
    scales = [max(abs(row[k]) for row in rows) for k in range(3)]
    A = [[*(row[k] / scales[k] for k in range(3)), row[3]] for row in rows]
    for k in range(3):
        norm = math.hypot(*(A[i][k] for i in range(k, 4)))
        reflector = [0.0] * k + [A[i][k] for i in range(k, 4)]
        reflector[k] += math.copysign(norm, reflector[k])
        size = math.hypot(*reflector)
        reflector = [x / size for x in reflector]
        for j in range(k, 4):
            along = 2.0 * sum(reflector[i] * A[i][j] for i in range(k, 4))
            for i in range(k, 4):
                A[i][j] -= along * reflector[i]
    (a, b, c, x), (_, d, e, y2), (_, _, f, z), _ = A
    w2 = z / f
    w1 = (y2 - e * w2) / d
    w0 = (x - b * w1 - c * w2) / a
    inverse = (
        (1.0 / a, -b / (a * d), (b * e / d - c) / (a * f)),
        (0.0, 1.0 / d, -e / (d * f)),
        (0.0, 0.0, 1.0 / f),
    )
    w = (w0 / scales[0], w1 / scales[1], w2 / scales[2])
    unscaled = tuple(tuple(x / s for x in row) for row, s in zip(inverse, scales, strict=True))
    return w, unscaled


def _classify(w: Three, root: Rows, eps: float) -> tuple[float, float, str]:
    """Return α, its standard error and the status from (w₀, w₁, t w₂) and a covariance's root."""
    slope, change = w[1], 2.0 * w[2]  # f'(0), and f'(t) − f'(0)
    if abs(slope) <= _STRAIGHT * eps * abs(change):  # the start is where the parabola turns
        if change == 0.0:
            return -1.0, 0.0, LINEAR
        return math.inf, 0.0, UPHILL if change > 0.0 else CONCAVE
    alpha = -change / slope - 1.0
    to_slope, to_bend = change / slope / slope, -2.0 / slope
    stderr = 0.0
    if root and math.isfinite(to_slope):
        stderr = math.hypot(*(to_slope * p + to_bend * q for p, q in zip(root[1], root[2])))
    if abs(change) <= _STRAIGHT * eps * abs(slope):
        return alpha, stderr, LINEAR
    if change < 0.0:
        return alpha, stderr, CONCAVE
    return alpha, stderr, UPHILL if slope > 0.0 else OK
