r"""The loss along straight lines through a point, beside what its quadratic model predicts.

.. math::
    s \mapsto L(\theta + s d), \qquad
    L(\theta) + s \, g^T d + \tfrac{s^2}{2} \, d^T H d, \qquad \|d\| = 1
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.landscape.scan import evaluate, on_rays
from curvops.landscape.storage import Stored
from curvops.operators.hessian import HessianLinearOperator
from curvops.table import data_frame
from curvops.tensors import Vector

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class Lines(Stored):
    """Losses on ``K`` lines through a point, at ``S`` steps each.

    Attributes:
        labels: What the lines are called, ``K`` names.
        steps: Signed distances from the point, ``[S, K]``, in units of the parameters.
        losses: The loss at each step, ``[S, K]``.
        loss: The loss at the point.
        slopes: ``g^T d`` of each line, ``[K]``.
        curvatures: ``d^T H d`` of each line, ``[K]``.
        num_losses: How many full losses were evaluated.
        num_matvecs: How many Hessian products were needed.
        seconds: How long it took.
    """

    labels: tuple[str, ...]
    steps: Tensor
    losses: Tensor
    loss: float
    slopes: Tensor
    curvatures: Tensor
    num_losses: int
    num_matvecs: int
    seconds: float

    @property
    def quadratic(self) -> Tensor:
        """What the quadratic model predicts at each step, ``[S, K]``."""
        return self.loss + self.steps * self.slopes + self.steps**2 / 2 * self.curvatures

    def __str__(self) -> str:
        """Return one row a line: its radius, slope, curvature, and how the ends compare."""
        rows = [f"{len(self.labels)} lines, {len(self.steps)} steps, loss {self.loss:.6g}"]
        for k, label in enumerate(self.labels):
            rows.append(
                f"  {label}: radius {float(self.steps[-1, k]):.3g}, "
                f"slope {float(self.slopes[k]):.3g}, curvature {float(self.curvatures[k]):.3g}, "
                f"ends {float(self.losses[0, k]):.4g} and {float(self.losses[-1, k]):.4g} "
                f"(quadratic {float(self.quadratic[0, k]):.4g} and "
                f"{float(self.quadratic[-1, k]):.4g})"
            )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the quadratic model as plain Python."""
        return super().to_dict() | {"quadratic": self.quadratic.tolist()}

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each step on each line.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        num = len(self.steps)
        return data_frame(
            {
                "line": [label for label in self.labels for _ in range(num)],
                "step": self.steps.T.flatten(),
                "loss": self.losses.T.flatten(),
                "quadratic": self.quadratic.T.flatten(),
            }
        )


def line(
    risk: EmpiricalRisk,
    directions: Vector,
    *,
    radius: float | Sequence[float] = 1.0,
    num: int = 41,
    curvatures: Sequence[float] | Tensor | None = None,
    labels: Iterable[str] | None = None,
) -> Lines:
    r"""Evaluate the loss along lines through the current point of a risk.

    .. math:: L(\theta + s d), \qquad s \in [-r, r], \quad \|d\| = 1

    Args:
        risk: The risk; its current point is the middle of every line and is left untouched.
        directions: One direction or ``K`` columns of them, in any format; scaled to length one.
        radius: How far to go to either side, for all lines or for each, in parameter units.
        num: Number of steps on each line; odd, so that the point itself is one of them.
        curvatures: ``d^T H d`` of the unit directions where known (eigenvalues, for
            eigenvectors); by default computed with one Hessian product of ``K`` columns.
        labels: Names of the lines.

    Returns:
        Steps and losses ``[num, K]``, with slopes and curvatures for the quadratic model.

    Raises:
        InputError: If a direction is zero, a radius not positive, or ``num`` even or below 3.
        ShapeError: If directions, radii, curvatures or labels disagree about ``K``.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), [torch.zeros(1, 2)], data)
        >>> scan = line(risk, torch.tensor([1.0, 1.0]), radius=2.0, num=5)
        >>> [round(value, 6) for value in scan.losses[:, 0].tolist()]
        [2.0, 0.5, 0.0, 0.5, 2.0]
    """
    start = perf_counter()
    columns, _ = risk.space.read(directions, risk.dtype, risk.device, "directions")
    num_lines = columns.shape[1]
    names = _labels(labels, num_lines)
    if num < 3 or num % 2 == 0:
        raise InputError(f"num is {num}; it must be odd and at least 3, so that 0 is a step.")
    norms = columns.norm(dim=0)
    if bool((norms == 0).any()):
        raise InputError(f"direction {int((norms == 0).nonzero()[0])} is zero.")
    columns = columns / norms
    radii = _per_line(radius, num_lines, "radius")
    if not all(r > 0 and math.isfinite(r) for r in radii.tolist()):
        raise InputError(f"radius is {radius}; it must be positive and finite.")
    steps = torch.linspace(-1, 1, num, dtype=torch.float64).unsqueeze(1) * radii
    gradient = risk.gradient()
    slopes = (gradient @ columns).to("cpu", torch.float64)
    num_matvecs = 0
    if curvatures is None:
        product = HessianLinearOperator.from_risk(risk) @ columns
        bends = (columns * product).sum(0).to("cpu", torch.float64)
        num_matvecs = num_lines
    else:
        bends = _per_line(curvatures, num_lines, "curvatures")
    return Lines(
        labels=names,
        steps=steps,
        losses=_losses(risk, columns, steps),
        loss=float(risk.loss()),
        slopes=slopes,
        curvatures=bends,
        num_losses=num * num_lines + 1,
        num_matvecs=num_matvecs,
        seconds=perf_counter() - start,
    )


def _losses(risk: EmpiricalRisk, columns: Tensor, steps: Tensor) -> Tensor:
    """Evaluate all points."""
    pieces = on_rays(risk.theta, columns, list(steps.T))
    return evaluate(risk, pieces).losses.reshape(*steps.T.shape).T


def _per_line(values: float | Sequence[float] | Tensor, num_lines: int, what: str) -> Tensor:
    """Return one float64 number a line, on the CPU."""
    tensor = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    if tensor.ndim == 0:
        tensor = tensor.expand(num_lines)
    if tensor.shape != (num_lines,):
        raise ShapeError(
            f"{what} has shape {list(tensor.shape)}; expected one number for each of the "
            f"{num_lines} directions."
        )
    return tensor.clone()


def _labels(labels: Iterable[str] | None, num_lines: int) -> tuple[str, ...]:
    if isinstance(labels, str):
        labels = [labels]
    names = tuple(f"direction {k}" for k in range(num_lines)) if labels is None else tuple(labels)
    if len(names) != num_lines:
        raise ShapeError(f"{len(names)} labels for {num_lines} directions.")
    return names
