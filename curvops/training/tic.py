"""The Takeuchi information criterion: gradient noise over curvature."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from curvops.training.curvature import Point
from curvops.training.quantity import Every, Measured, Quantity
from curvops.training.run import plain_fields
from curvops.training.sharpness import finite


@dataclass(frozen=True)
class TICResult:
    """Noise over curvature, two ways.

    Attributes:
        diagonal: Σ_j Σ_jj/G_jj over parameters with curvature; ``None`` if there are none, or
            where it is not finite, as all of these.
        ratio_of_traces: tr Σ/tr G; ``None`` if tr G = 0.
        noise_trace: tr Σ.
        curvature_trace: tr G.
        num_params: Parameters with curvature, over which ``diagonal`` sums.
        num_data: N of the data looked at.
        seconds: How long it took.
        notes: Why a number is missing.
    """

    diagonal: float | None
    ratio_of_traces: float | None
    noise_trace: float | None
    curvature_trace: float | None
    num_params: int
    num_data: int
    seconds: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return both."""
        shown = ["–" if x is None else f"{x:.4g}" for x in (self.diagonal, self.ratio_of_traces)]
        return f"TIC: Σ over G by diagonals {shown[0]}, by traces {shown[1]} (N = {self.num_data})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return plain_fields(self)


class TIC(Quantity):
    r"""The Takeuchi information criterion, tr(Σ H⁻¹), with Σ and H by diagonals or by traces.

    .. math::
        \operatorname{tr}(\Sigma H^{-1}) \approx \sum_j \Sigma_{jj} / G_{jj}, \qquad
        \operatorname{tr}\Sigma / \operatorname{tr} G

    Divided by the number of training data it estimates the gap between test and training loss at
    a minimum. H is the Gauss-Newton matrix G, whose diagonal is never negative. Both are
    those of the data looked at; Σ is the unbiased covariance of the individual gradients.

    Cost: one gradient of every datum for Σ, and one for every datum and output for the diagonal.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ...

    Source:
        Thomas et al. 2020, On the interplay between noise and curvature and its effect on
        optimization and generalization (arXiv:1906.07774). Takeuchi 1976.

    Example:
        >>> TIC(every=200).due(200)
        True
    """

    name = "tic"
    looks_at_risk = True

    def __init__(self, every: Every = 200) -> None:
        super().__init__(every)

    def wants_point(self, step: int) -> bool:
        """Ask for the point."""
        return self.due(step)

    def at_point(self, point: Point) -> Iterable[Measured]:
        """Compute both diagonals."""
        begin = time.perf_counter()
        covariance, count = point.curvature.gradient_variances()
        diagonal = point.curvature.ggn_diagonal.diagonal.double()
        curved = diagonal > torch.finfo(point.curvature.risk.dtype).eps * diagonal.max()
        noise, curvature = float(covariance.sum()), float(diagonal.sum())
        ratio = float((covariance[curved] / diagonal[curved]).sum())
        num_params = int(curved.sum())
        yield Measured(
            point.step,
            TICResult(
                diagonal=finite(ratio) if num_params else None,
                ratio_of_traces=finite(noise / curvature) if curvature > 0 else None,
                noise_trace=finite(noise),
                curvature_trace=finite(curvature),
                num_params=num_params,
                num_data=count,
                seconds=time.perf_counter() - begin,
                notes=tuple(_missing(noise, curvature, ratio, num_params)),
            ),
        )


def _missing(noise: float, curvature: float, ratio: float, num_params: int) -> Iterable[str]:
    """Say why numbers are missing."""
    if finite(noise) is None:
        yield "the covariance of the gradients is not finite: the run has diverged"
    if finite(curvature) is None:
        yield "the curvature is not finite: the run has diverged"
    elif not num_params:
        yield "no parameter has curvature"
    elif finite(noise) is not None and None in (finite(ratio), finite(noise / curvature)):
        yield "noise over curvature is too large for a number"
