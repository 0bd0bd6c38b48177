r"""How the volume of a basin grows with what the cost may rise by.

.. math:: \frac{d \log V}{d \log \varepsilon} = \sum_i w_i \, q_i, \qquad
    q_i = \frac{\varepsilon}{m_i} \frac{d m_i}{d R_i}
        \Big/ \partial_r \mathrm{cost}(\theta^* + R_i d_i)

The mass m of a direction grows as its end R moves outward, and how far it moves is what the slope
of the cost says there. So the exponent is exact at every threshold, and no difference of two noisy
volumes.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.estimate import UnconvergedWarning
from curvops.risk import EmpiricalRisk
from curvops.table import data_frame
from curvops.volume.cost import Kind as CostKind
from curvops.volume.forms import Curvature
from curvops.volume.preconditioner import check_threshold
from curvops.volume.prior import Measure
from curvops.volume.result import with_error
from curvops.volume.scope import Scope
from curvops.volume.star_domain import Look
from curvops.volume.survey import Directions, Prepared, survey


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class VolumeScaling:
    """Log-volumes and local exponents over thresholds, from one set of directions.

    Attributes:
        thresholds: ``ε``, ascending, ``[E]``.
        log_volume: In nats, ``[E]``.
        stderr: Their errors ``[E]``; see :class:`~curvops.volume.star_result.StarVolume`.
        lower: What each exceeds with 95 % confidence, ``[E]``.
        exponent: d log V / d log ε, ``[E]``: P/2 in a regular minimum.
        exponent_stderr: Its errors ``[E]``.
        ess: Effective sample sizes ``[E]``.
        converged: Whether they are at least 10, ``[E]``.
        reentered: The shares of the rays that leave and come back, ``[E]``.
        cost: ``"loss"`` or ``"kl"``.
        measure: What it is measured with.
        preconditioner: The kind of map that directions went through.
        directions: ``"random"``, or ``"all"`` of a line or a plane.
        num_directions: How many.
        dim: The number of parameters ``P``.
        num_evaluations: Points at which the cost was computed.
        num_matvecs: Products with the curvature, for the preconditioner.
        seconds: How long it took.
    """

    thresholds: Tensor
    log_volume: Tensor
    stderr: Tensor
    lower: Tensor
    exponent: Tensor
    exponent_stderr: Tensor
    ess: Tensor
    converged: Tensor
    reentered: Tensor
    cost: str
    measure: Measure
    preconditioner: str
    directions: str
    num_directions: int
    dim: int
    num_evaluations: int
    num_matvecs: int
    seconds: float

    @property
    def symbol(self) -> str:
        """``"log V"`` or ``"log p"``."""
        return self.measure.symbol

    def __str__(self) -> str:
        """Return one row a threshold."""
        rows = [f"{self.num_directions} directions, P = {self.dim}, {self.preconditioner}"]
        for k, threshold in enumerate(self.thresholds.tolist()):
            value = with_error(float(self.log_volume[k]), float(self.stderr[k]))
            slope = with_error(float(self.exponent[k]), float(self.exponent_stderr[k]))
            doubt = "" if self.converged[k] else f", lower bound (ESS {float(self.ess[k]):.2g})"
            rows.append(f"  ε = {threshold:<8.3g} {self.symbol} = {value}, exponent {slope}{doubt}")
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python; tensors become lists."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["measure"] = self.measure.to_dict()
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in plain.items()}

    def to_pandas(self) -> Any:
        """Return one row a threshold.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        return data_frame({k: v for k, v in columns.items() if isinstance(v, Tensor)})


def volume_scaling(
    risk: EmpiricalRisk,
    thresholds: Sequence[float],
    *,
    cost: CostKind = "loss",
    measure: str | Measure = "gaussian",
    prior_std: float | None = None,
    preconditioner: Prepared = "auto",
    curvature: Curvature = "ggn",
    rank: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scope: Scope = None,
    num_directions: int = 1000,
    directions: Directions = "auto",
    num_pilot: int = 64,
    grid: int = 8,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> VolumeScaling:
    r"""Return the log-volume of the star domain and its local exponent at several thresholds.

    .. math:: \log V(\varepsilon), \qquad \frac{d \log V}{d \log \varepsilon}

    All thresholds share the directions, and the preconditioner, which is that of their geometric
    mean. The arguments are those of :func:`~curvops.volume.star.star_volume`. A gradient of the
    cost is computed at the end of every ray.

    Args:
        risk: The risk; its current point is θ*.
        thresholds: ``ε``, in any order, all different.
        cost: As there.
        measure: As there.
        prior_std: As there.
        preconditioner: As there.
        curvature: As there.
        rank: As there.
        optimizer: As there.
        scope: As there.
        num_directions: As there.
        directions: As there.
        num_pilot: As there.
        grid: As there.
        seed: As there.
        progress: As there.

    Returns:
        Log-volumes and exponents with their errors, by ascending threshold.

    Raises:
        InputError: If an argument is impossible, or the basin has no end along a direction.
        NonFiniteError: If the cost is NaN somewhere on the way.

    Warns:
        UnconvergedWarning: If an effective sample size is below 10.

    Source:
        S. Watanabe, Algebraic Geometry and Statistical Learning Theory (2009), theorem 7.1: at a
        singular minimum V(ε) is about c ε^λ (-log ε)^(m-1).

    Example:
        The area of {|x y| < t} in the square is 4 t (1 - log t), with ε = t².

        >>> import math, torch
        >>> from curvops.volume.prior import Box
        >>> def product(params, X):
        ...     return params["w"].prod() * X
        >>> data = [(torch.ones(1, 1).double(), torch.zeros(1, 1).double())]
        >>> params = {"w": torch.zeros(2).double()}
        >>> risk = EmpiricalRisk(product, torch.nn.MSELoss(), params, data)
        >>> result = volume_scaling(risk, [1e-2, 1e-4], measure=Box(-1.0, 1.0))
        >>> result.exponent
        tensor([0.4108, 0.3486], dtype=torch.float64)
        >>> round(float(result.log_volume[1].exp()), 6), round(0.4 * (1 - math.log(0.1)), 6)
        (1.321034, 1.321034)
    """
    start = time.perf_counter()
    ordered = _checked(thresholds)
    found = survey(
        risk,
        ordered,
        cost=cost,
        measure=measure,
        prior_std=prior_std,
        preconditioner=preconditioner,
        curvature=curvature,
        rank=rank,
        optimizer=optimizer,
        scope=scope,
        num_directions=num_directions,
        directions=directions,
        num_pilot=num_pilot,
        grid=grid,
        seed=seed,
        progress=progress,
        growth=True,
    )
    look = found.look
    means = [look.mean(row) for row in range(len(ordered))]
    slopes = [_exponent(look, row) for row in range(len(ordered))]

    def column(values: list[Any]) -> Tensor:
        floats = values and isinstance(values[0], float)
        return torch.tensor(values, dtype=torch.float64 if floats else None)

    result = VolumeScaling(
        thresholds=column(ordered),
        log_volume=column([mean.value for mean in means]),
        stderr=column([mean.stderr for mean in means]),
        lower=column([mean.lower for mean in means]),
        exponent=column([value for value, _ in slopes]),
        exponent_stderr=column([error for _, error in slopes]),
        ess=column([mean.ess for mean in means]),
        converged=column([mean.converged for mean in means]),
        reentered=look.reentered.to(torch.float64).mean(1).cpu(),
        cost=found.cost.kind,
        measure=found.measure,
        preconditioner=found.preconditioner.kind,
        directions=found.directions,
        num_directions=look.log_mass.shape[1],
        dim=found.cost.dim,
        num_evaluations=found.cost.num_evaluations,
        num_matvecs=found.preconditioner.num_matvecs,
        seconds=time.perf_counter() - start,
    )
    missed = int((~result.converged).sum())
    if missed:
        warnings.warn(
            f"volume_scaling: at {missed} of {len(ordered)} thresholds the effective sample size "
            "is below 10: the volumes there are lower bounds, and the exponents those of a few "
            "directions. Use a better preconditioner, or more directions.",
            UnconvergedWarning,
            stacklevel=2,
        )
    return result


def _exponent(look: Look, row: int) -> tuple[float, float]:
    """Return the weighted mean of the directions' exponents, and its error."""
    shares = (look.log_mass[row] + look.log_weight).softmax(0)
    mean = float((shares * look.growth[row]).sum())
    if not look.sampled:
        return mean, look.error
    spread = (shares * (look.growth[row] - mean)).square().sum()
    return mean, float(spread.sqrt())


def _checked(thresholds: Sequence[float]) -> list[float]:
    try:
        values = [float(e) for e in thresholds]
    except TypeError:
        raise InputError(f"thresholds must be a list of numbers, got {thresholds!r}.") from None
    if not values:
        raise InputError("thresholds is empty.")
    for value in values:
        check_threshold(value)
    if len(set(values)) < len(values):
        raise InputError(f"thresholds holds a value twice: {sorted(values)}.")
    return sorted(values)
