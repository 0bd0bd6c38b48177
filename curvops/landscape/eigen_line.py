"""The loss along the top eigenvector and along one of the bulk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from curvops.errors import InputError
from curvops.landscape.line import Lines, line
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.operators.hessian import HessianLinearOperator

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_FARTHEST = 0.5
"""How far a line goes where the loss hardly rises, as a part of ‖θ‖."""

_RISE = 0.1
"""The least rise of the loss, in its units, that a line is long enough to show."""


def eigen_lines(
    risk: EmpiricalRisk,
    pairs: EighResult | None = None,
    *,
    k: int = 20,
    ranks: Sequence[int] | None = None,
    radius: float | None = None,
    num: int = 41,
    seed: int | torch.Generator = 0,
) -> Lines:
    r"""Evaluate the loss along eigenvectors of the Hessian, beside its quadratic model.

    .. math:: L(\theta + s v_i), \qquad L(\theta) + s \, g^T v_i + \tfrac{s^2}{2} \lambda_i

    By default along the first, which stands out, and the k-th, which is in the bulk once k is
    larger than the number of outliers (for a classifier, about its number of classes).

    Args:
        risk: The risk; its current point is the middle of every line.
        pairs: Eigenpairs that are there already; by default the k largest are computed.
        k: How many to compute.
        ranks: Which ones, 1 for the largest eigenvalue; by default the first and the last.
        radius: How far to go to either side, for all lines. By default to where the quadratic
            model has risen by the loss itself (at least by 0.1), or half of ‖θ‖ where that is
            nearer.
        num: Number of steps on each line; odd.
        seed: Of the eigensolver.

    Raises:
        InputError: If a rank does not exist, or another argument is impossible.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> params = {"w": torch.tensor([1.0, 1.0, 1.0])}
        >>> scale = torch.tensor([3.0, 1.0, 0.1])
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 3))]
        >>> risk = EmpiricalRisk(lambda p, x: x * scale * p["w"], torch.nn.MSELoss(), params, data)
        >>> lines = eigen_lines(risk, k=2, num=5)
        >>> lines.labels, [round(c, 4) for c in lines.curvatures.tolist()]
        (('rank 1, λ = 6', 'rank 2, λ = 0.667'), [6.0, 0.6667])
    """
    num_matvecs = 0
    if pairs is None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise InputError(f"k must be an integer of 1 or more, got {k!r}.")
        matrix = HessianLinearOperator.from_risk(risk)
        pairs = eigsh(matrix, min(k, risk.space.dim), "LA", seed=seed)
        num_matvecs = pairs.num_matvecs
    if pairs.eigenvectors is None:
        raise InputError("pairs has no eigenvectors; compute it with return_eigenvectors=True.")
    count = len(pairs.eigenvalues)
    chosen = ([1, count] if count > 1 else [1]) if ranks is None else list(ranks)
    for rank in chosen:
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= count:
            raise InputError(f"ranks holds {rank!r}; there are eigenpairs of rank 1 to {count}.")
    if not chosen:
        raise InputError("ranks is empty.")
    at = [count - rank for rank in chosen]  # eigenvalues ascend
    values = [float(pairs.eigenvalues[i]) for i in at]
    radii = [_radius(risk, value) for value in values] if radius is None else radius
    found = line(
        risk,
        pairs.eigenvectors[:, at],
        radius=radii,
        num=num,
        curvatures=values,
        labels=[f"rank {rank}, λ = {value:.3g}" for rank, value in zip(chosen, values)],
    )
    return replace(found, num_matvecs=num_matvecs)


def _radius(risk: EmpiricalRisk, value: float) -> float:
    rise = max(abs(float(risk.loss())), _RISE)
    farthest = _FARTHEST * float(risk.theta.norm()) or 1.0
    return min(math.sqrt(2 * rise / abs(value)), farthest) if value else farthest
