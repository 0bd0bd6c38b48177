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

_NEAR, _FAR = 500, 1100
"""How many powers of two t is from 1 in the units of a fit, and how many before there is none."""

_STRAIGHT = 64.0
"""A parabola whose slope changes by fewer roundings than this is a line."""

Four = tuple[float, float, float, float]
"""One number for f(0), f(t), f'(0), f'(t) each."""


_NONE: Four = (0.0, 0.0, 0.0, 0.0)

_DIVERGED = "an observation is not finite: the loss has diverged, or the step has"
_APART = "losses, slopes and length are too far apart for floating point"
_ONE_DATUM = "the batch has one datum, so that no variance can be told"
_UNKNOWN = "a variance is not finite: the loss has diverged, or it is not known"

_OBSERVED = ("f(0)", "f(t)", "f'(0)", "f'(t)")


@dataclass(frozen=True)
class StepSize:
    """The effective length of one step.

    Attributes:
        alpha: t/t* − 1, by the formula whatever the status; −1 for a step of length 0, NaN only
            where an observation is not finite, or they are too far apart for floating point.
        stderr: Its standard error by propagation of the noise of the observations; 0 without.
        status: ``"ok"``: a minimum lies ahead of the start. ``"concave"``: the parabola has a
            maximum. ``"linear"``: it has no bend beyond rounding. ``"uphill"``: its minimum lies
            behind the start. ``"zero_step"``: the parameters did not move. ``"undetermined"``:
            no variance can be told (one datum), or there is no number.
        length: t = ‖d‖, in units of the parameters.
        coefficients: w₀, w₁, w₂ of the parabola; infinite where too large for a number.
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

    Solved in closed form: four observations of three numbers meet one condition, t (f'(0) + f'(t))
    = 2 (f(t) − f(0)), and each gives way to it by its part of the variance. No weights are
    subtracted, and units are those of losses and slopes, so that no ratio of variances cancels
    and steps of any length do not overflow.

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
        return _nothing(t, f, g, _DIVERGED)
    known = v is not None and all(math.isfinite(x) for x in v)
    units = _units(f, g, t)
    if units is None:
        return _nothing(t, f, g, _APART)
    by_loss, by_slope = units
    powers = (by_loss, by_loss, by_slope, by_slope)
    y = [_scaled(x, -n) for x, n in zip((*f, *g), powers, strict=True)]
    span = _scaled(t, by_slope - by_loss)
    trusted = v if known and v is not None else _NONE
    deviations, weighted, notes = _floored(y, span, trusted, powers, eps)
    w0, start, end, both, u, z = _fitted(y, span, deviations)
    alpha, status = _classify(start, end - start, eps)
    stderr = 0.0
    if start and math.isfinite(alpha):
        a, b = (deviation / abs(start) for deviation in deviations[2:])
        # Of f'(t) + α f'(0), with −α and 1 − α from the slopes, where they do not cancel.
        stderr = math.hypot(u * b * (both / start), z * b, z * a * (end / start))
    if not all(math.isfinite(x) for x in (w0, start, end, stderr)):
        return _nothing(t, f, g, _APART)
    if not known:
        notes = (_ONE_DATUM if v is None else _UNKNOWN,)
        status, stderr, weighted = UNDETERMINED, 0.0, _NONE
    elif not any(v or ()):
        stderr, weighted = 0.0, _NONE
    part, power = math.frexp(t)
    w2 = _scaled((end - start) / (2.0 * part), by_slope - power)
    coefficients = (_scaled(w0, by_loss), _scaled(start, by_slope), w2)
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
    alpha, status = _classify(slope, t * bend, torch.finfo(risk.dtype).eps)
    end = loss + t * (slope + w[2])
    if not all(math.isfinite(x) for x in (*w, t, end)):
        return _nothing(t, (loss, end), (slope, slope + t * bend), _DIVERGED)
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


def _nothing(t: float, f: tuple[float, float], g: tuple[float, float], note: str) -> StepSize:
    nan = math.nan
    return StepSize(nan, 0.0, UNDETERMINED, t, (nan, nan, nan), f, g, notes=(note,))


def _scaled(x: float, power: int) -> float:
    """Return x 2ᵖ, infinity where it is too large."""
    try:
        return math.ldexp(x, power)
    except OverflowError:
        return math.copysign(math.inf, x)


def _units(f: tuple[float, float], g: tuple[float, float], t: float) -> tuple[int, int] | None:
    """Return powers of two for losses and slopes in which they, and t, are near 1.

    Where they cannot all be, the smaller part of the parabola gives way; ``None`` if it is beyond
    all floating point.
    """
    height, slope, step = (math.frexp(x)[1] for x in (max(map(abs, f)), max(map(abs, g)), t))
    if not any(f):
        height = slope + step if any(g) else 0
    if not any(g):
        slope = height - step
    excess = slope + step - height
    if abs(excess) > _FAR:
        return None
    return height + max(excess - _NEAR, 0), slope + max(-excess - _NEAR, 0)


def _floored(
    y: Sequence[float], t: float, v: Sequence[float], powers: Sequence[int], eps: float
) -> tuple[list[float], Four, tuple[str, ...]]:
    """Return standard deviations that are at least those of rounding.

    Args:
        y: f(0), f(t), f'(0), f'(t), in units.
        t: The length, in units.
        v: Variances, not in units.
        powers: Of two, the units of y.
        eps: Relative rounding.

    Returns:
        Standard deviations in units, their squares not in units, and a note on what was raised.
    """
    height, slope = max(abs(y[0]), abs(y[1])), max(abs(y[2]), abs(y[3]))
    # What is exactly zero is as uncertain as the rest of the parabola, in its units.
    height = height or t * slope or 1.0
    slope = slope or height / t
    deviations, weighted, raised = [], [], []
    for name, x, n, size in zip(_OBSERVED, v, powers, (height, height, slope, slope), strict=True):
        deviation, floor = _scaled(math.sqrt(x), -n), max(eps, 1e-150) * size
        if deviation < floor:
            raised.append(name)
            deviation, x = floor, _scaled(floor, n) * _scaled(floor, n)
        deviations.append(deviation)
        weighted.append(x)
    notes = (f"no variance above rounding in {', '.join(raised)}: floored",) if raised else ()
    a, b, c, d = weighted
    return deviations, (a, b, c, d), notes


def _fitted(
    y: Sequence[float], t: float, deviations: Sequence[float]
) -> tuple[float, float, float, float, float, float]:
    """Return f(0), f'(0), f'(t), f'(0) + f'(t), and how much f'(0) and the losses give way.

    The latter are the deviations of f'(0) and of 2 (f(t) − f(0))/t over that of the condition.
    """
    f0, ft, g0, gt = y
    losses = [2.0 * deviation / t for deviation in deviations[:2]]
    largest = max(*losses, *deviations[2:])
    p, q, u, w = (x / largest for x in (*losses, *deviations[2:]))
    pp, qq, uu, ww = p * p, q * q, u * u, w * w
    total = pp + qq + uu + ww
    secant = 2.0 * (ft - f0) / t
    # A mean of what was observed and of what the other three say; squares of weights may vanish.
    w0 = ((uu + ww + qq) * f0 + p * (p * (ft - 0.5 * t * (g0 + gt)))) / total
    start = ((ww + pp + qq) * g0 + u * (u * (secant - gt))) / total
    end = ((uu + pp + qq) * gt + w * (w * (secant - g0))) / total
    both = ((pp + qq) * (g0 + gt) + (uu + ww) * secant) / total
    root = math.sqrt(total)
    return w0, start, end, both, u / root, math.hypot(p, q) / root


def _classify(slope: float, change: float, eps: float) -> tuple[float, str]:
    """Return α and the status from f'(0) and f'(t) − f'(0)."""
    if abs(slope) <= _STRAIGHT * eps * abs(change):  # the start is where the parabola turns
        if change == 0.0:
            return -1.0, LINEAR
        return math.inf, UPHILL if change > 0.0 else CONCAVE
    alpha = -change / slope - 1.0
    if abs(change) <= _STRAIGHT * eps * abs(slope):
        return alpha, LINEAR
    if change < 0.0:
        return alpha, CONCAVE
    return alpha, UPHILL if slope > 0.0 else OK
