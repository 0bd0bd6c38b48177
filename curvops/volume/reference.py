"""The Gaussians that a ladder starts from: the prior, or one around θ* that fits into the basin."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from curvops.errors import DivergenceError, InputError
from curvops.volume.cloud import Chart, Rung
from curvops.volume.cost import Cost
from curvops.volume.preconditioner import Preconditioner
from curvops.volume.prior import Gaussian, Measure
from curvops.volume.spectral_form import SpectralForm
from curvops.volume.tilt import Tempered

_PILOT = 16
"""Draws that tell how wide a Gaussian may be."""

_INSIDE = 0.25
"""Share of them at which the cost must be finite."""

_SHRINK = 0.5


@dataclass(frozen=True)
class Reference:
    """The Gaussian that a ladder starts from, and as what."""

    chart: Chart
    first: Rung
    beta: float
    std: float


def prior_reference(cost: Cost, measure: Measure) -> Reference:
    """Return the Gaussian measure itself."""
    if not isinstance(measure, Gaussian):
        raise InputError(
            f'start="prior" draws from the measure, which needs measure="gaussian"; got '
            f'{measure.name!r}. Use start="laplace".'
        )
    theta, std = cost.theta, measure.std
    flat = SpectralForm(cost.dim, torch.zeros(0, dtype=torch.float64, device=theta.device), None)
    chart = Chart(
        cost=cost,
        measure=measure,
        center=torch.zeros_like(theta),
        root=flat.root(lambda x: torch.full_like(x, std)),
        shapes=tuple(cost.source.space.shapes),
    )
    return Reference(chart, Rung(1.0, Tempered(0.0)), beta=0.0, std=std)


def laplace_reference(
    cost: Cost,
    measure: Measure,
    preconditioner: Preconditioner,
    beta: float | None,
    generator: torch.Generator,
) -> Reference:
    """Return a Gaussian around θ* within which the quadratic model holds."""
    if beta is None:
        beta = 1.0 / preconditioner.tau
    form = preconditioner.form
    axes = form.eigenvectors is None
    std = measure.std if isinstance(measure, Gaussian) else preconditioner.std
    if math.isinf(std) and beta * form.smallest() <= 0.0:
        raise InputError(
            "the curvature of the preconditioner is singular, and neither the measure nor the "
            "preconditioner has a width, so no Gaussian around θ* has a normaliser. Use another "
            'preconditioner, or measure="gaussian".'
        )
    while True:
        chart = Chart(
            cost=cost,
            measure=measure,
            center=cost.theta,
            root=preconditioner.gaussian(beta, std),
            shapes=tuple(cost.source.space.shapes) if axes else None,
        )
        costs = cost(chart.theta(chart.draw(_PILOT, generator)))
        finite = costs[costs.isfinite()]
        excess = float(finite.mean()) - 2 * _quadratic_cost(form, beta, std)
        if len(finite) >= _PILOT * _INSIDE and beta * excess <= 1.0:
            return Reference(chart, Rung(0.0, Tempered(0.0)), beta=beta, std=std)
        # An infinite width has no half; the root mean square of the Gaussian's draws has.
        std = _SHRINK * (std if math.isfinite(std) else math.exp(chart.root.logabsdet() / cost.dim))
        if std < torch.finfo(cost.theta.dtype).eps * (1.0 + float(cost.theta.abs().max())):
            raise DivergenceError(
                f"the cost is not what the curvature says in any neighbourhood of θ* (at "
                f"beta={beta:.4g}, down to a width of {std:.3g}): θ* is not a minimum, or the "
                'gradient does not vanish there. Train on, or use start="prior".'
            )


def _quadratic_cost(form: SpectralForm, beta: float, std: float) -> float:
    r"""Return ``½ tr A (βA + I/s²)⁻¹``, the mean cost under the Gaussian if A were all."""
    precision = std**-2
    if beta == 0.0 and precision == 0.0:
        return math.inf
    return 0.5 * form.total(lambda x: x / (beta * x + precision))
