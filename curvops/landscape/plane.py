r"""The loss on a plane: through a point along two directions, or through three points.

.. math::
    L(\theta + x \hat u + y \hat v), \qquad
    L(w_1 + x \hat u + y \hat v), \quad u = w_2 - w_1, \quad
    v = (w_3 - w_1) - \hat u \hat u^T (w_3 - w_1)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor

from curvops.autodiff.affine import Affine
from curvops.errors import InputError
from curvops.landscape.directions import Wanted, directions
from curvops.landscape.normalization import Ignore, Normalization
from curvops.landscape.plane_result import Overlay, Plane, check_axes
from curvops.landscape.scan import Metrics, check_metrics, check_start, evaluate, in_dtype
from curvops.landscape.situation import read_point

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

Extent = Union[float, Sequence[float], Sequence[Sequence[float]]]
"""A radius; one for each axis; or ``(low, high)`` for each axis."""


def plane(
    risk: EmpiricalRisk,
    u: Wanted,
    v: Wanted,
    *,
    extent: Extent = 1.0,
    resolution: int | tuple[int, int] = 41,
    normalization: Normalization = "unit",
    ignore: Ignore | None = "biasbn",
    subspace: str = "*",
    orthogonal: bool = False,
    metrics: Metrics = (),
    dtype: torch.dtype | None = None,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> Plane:
    r"""Evaluate the loss on a plane through the current point of a risk.

    .. math:: L(\theta + x \hat u + y \hat v)

    Args:
        risk: The risk; its current point is the origin, and is left untouched.
        u: The first axis, one direction as in :func:`~curvops.landscape.directions.directions`.
        v: The second; of two ``"random"`` each is another.
        extent: How far to go: a radius, one for each axis, or ``((x_low, x_high), (y_low,
            y_high))``, in units of the axes.
        resolution: Points on each axis, or on both; an odd number has the origin on the grid if
            that is in the middle.
        normalization: ``"unit"``, ``"filter"``, ``"layer"`` or ``"none"``.
        ignore: ``"biasbn"``: by filter or layer, biases and normalisation layers are not moved.
        subspace: A substring or glob over the names of the parameters, onto which both axes are
            projected.
        orthogonal: Take from v what is along u, so that the picture has true angles. Random
            directions are nearly orthogonal as they are. v keeps its length.
        metrics: What to compute beside the loss.
        dtype: Evaluate the whole net in another dtype.
        seed: Of random directions and the eigensolver.
        progress: Show a bar over the points.

    Returns:
        The losses on the grid. A loss that is NaN or infinite is kept as it is.

    Raises:
        InputError: If an argument is impossible, a direction is zero, or both are parallel.
        ShapeError: If a direction does not fit the parameters.
        NonFiniteError: If the loss at the point is NaN or infinite.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), [torch.zeros(1, 2)], data)
        >>> scan = plane(risk, torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), resolution=3)
        >>> scan.losses.tolist()
        [[1.0, 0.5, 1.0], [0.5, 0.0, 0.5], [1.0, 0.5, 1.0]]
    """
    start = perf_counter()
    named = check_metrics(metrics)
    x, y = _axis_values(_ranges(extent), _counts(resolution))
    risk = in_dtype(risk, dtype)
    check_start(risk, named)
    both_random = isinstance(u, str) and u == v == "random"
    found = directions(
        risk,
        ["random"] if both_random else [u, v],
        subspaces=subspace,
        normalization=normalization,
        ignore=ignore,
        num_random=2 if both_random else 1,
        seed=seed,
    )
    if len(found) != 2:
        raise InputError(f"u and v are {len(found)} directions together; pass one each.")
    labels = (found.labels[0], found.labels[1])
    axes = found.columns
    check_axes(axes, labels)
    if orthogonal:
        axes = _orthogonalised(axes)
    return _scan(
        risk,
        risk.theta,
        axes,
        x,
        y,
        labels=labels,
        marks=torch.zeros(1, 2, dtype=torch.float64),
        mark_labels=("θ",),
        metrics=named,
        num_gradients=found.num_gradients,
        num_matvecs=found.num_matvecs,
        start=start,
        progress=progress,
    )


def plane_through(
    risk: EmpiricalRisk,
    first: Any,
    second: Any,
    third: Any,
    *,
    margin: float = 0.25,
    resolution: int | tuple[int, int] = 41,
    names: Iterable[str] = ("w₁", "w₂", "w₃"),
    metrics: Metrics = (),
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Plane:
    r"""Evaluate the loss on the plane through three points.

    .. math:: L(w_1 + x \hat u + y \hat v), \qquad u = w_2 - w_1, \quad
        v = (w_3 - w_1) - \hat u \hat u^T (w_3 - w_1)

    Args:
        risk: The risk; its current point does not matter.
        first: A point in any format, a dict with further names in it (a ``state_dict``), a module
            or a risk with the same parameters. It has the coordinates (0, 0).
        second: Another, at (‖u‖, 0).
        third: A third, above the axis through the first two.
        margin: How far to go beyond the points, as a part of their extent.
        resolution: Points on each axis, or on both.
        names: What the three points are called.
        metrics: What to compute beside the loss.
        dtype: Evaluate the whole net in another dtype.
        progress: Show a bar over the points.

    Returns:
        The losses on the grid, with the points as marks and orthonormal axes.

    Raises:
        InputError: If an argument is impossible, or the points lie on a line.
        ShapeError: If a point does not fit the parameters.
        NonFiniteError: If the loss at the first point is NaN or infinite.

    Source:
        Garipov, Izmailov, Podoprikhin, Vetrov & Wilson 2018, Loss surfaces, mode connectivity, and
        fast ensembling of DNNs, appendix A.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> points = [torch.tensor(p) for p in ([0.0, 0.0], [3.0, 4.0], [0.0, 5.0])]
        >>> plane_through(risk, *points, resolution=5).marks.tolist()
        [[0.0, 0.0], [5.0, 0.0], [4.0, 3.0]]
    """
    start = perf_counter()
    named = check_metrics(metrics)
    counts = _counts(resolution)
    if not 0 <= margin < math.inf:
        raise InputError(f"margin is {margin!r}; it must be a finite part of the extent, ≥ 0.")
    labels = tuple(names)
    if len(labels) != 3:
        raise InputError(f"names holds {len(labels)} names; expected one for each point, 3.")
    risk = in_dtype(risk, dtype)
    pairs = zip((first, second, third), ("first", "second", "third"), strict=True)
    w1, w2, w3 = (read_point(risk, point, what) for point, what in pairs)
    check_start(risk.at(w1), named)
    u, v = w2 - w1, w3 - w1
    axis_labels = (f"{labels[0]} → {labels[1]}", f"→ {labels[2]}")
    if not bool(u.any()) or not bool(v.any()):
        other = labels[2] if bool(u.any()) else labels[1]
        raise InputError(f"{labels[0]!r} and {other!r} are the same point: there is no plane.")
    check_axes(torch.stack([u, v], dim=1), axis_labels)
    axes = _orthogonalised(torch.stack([u / u.norm(), v / v.norm()], dim=1))
    far = torch.stack([torch.zeros_like(u), u, v], dim=1)
    marks = (axes.T @ far).T.to("cpu", torch.float64)
    marks[:2, 1] = 0.0  # rounding
    low, high = marks.min(0).values, marks.max(0).values
    beyond = margin * (high - low)
    pairs_of_ends = torch.stack([low - beyond, high + beyond], dim=1).tolist()
    x, y = _axis_values([(a, b) for a, b in pairs_of_ends], counts)
    return _scan(
        risk,
        w1,
        axes,
        x,
        y,
        labels=axis_labels,
        marks=marks,
        mark_labels=labels,
        metrics=named,
        num_gradients=0,
        num_matvecs=0,
        start=start,
        progress=progress,
    )


def overlay(
    risk: EmpiricalRisk,
    plane: Plane,
    points: Any,
    *,
    label: str = "trajectory",
    progress: bool = False,
) -> Overlay:
    """Return the true losses of points beside those of a plane below them.

    A trajectory drawn on a plane lies above it, not in it: what the plane shows at its projection
    is another loss than that of the trajectory.

    Args:
        risk: The risk that the plane was evaluated on, in the same dtype.
        plane: The plane.
        points: Points in order, as columns ``[P, T]`` in any format.
        label: What the points are called.
        progress: Show a bar over the points.

    Returns:
        Where the points lie above the plane, and both losses of each.

    Raises:
        ShapeError: If the points or the plane do not fit the risk.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = [(torch.eye(3), torch.zeros(3, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), [torch.zeros(1, 3)], data)
        >>> below = plane(risk, *torch.eye(3)[:2], resolution=3)
        >>> over = overlay(risk, below, torch.tensor([[1.0], [0.0], [2.0]]))
        >>> over.coordinates.tolist(), over.distances.tolist()
        ([[1.0, 0.0]], [2.0])
        >>> [round(float(part), 4) for part in (over.losses, over.plane_losses)]
        [1.6667, 0.3333]
    """
    start = perf_counter()
    columns, _ = risk.space.read(points, risk.dtype, risk.device, "points")
    coordinates, distances = plane.project(columns)
    origin, axes = (t.to(columns) for t in (plane.origin, plane.axes))
    num, where = columns.shape[1], coordinates.T
    losses = evaluate(risk, [columns, Affine(origin, axes, where)], progress=progress).losses
    return Overlay(
        label=label,
        coordinates=coordinates,
        distances=distances,
        losses=losses[:num],
        plane_losses=losses[num:],
        num_losses=2 * num,
        seconds=perf_counter() - start,
    )


def _scan(
    risk: EmpiricalRisk,
    origin: Tensor,
    axes: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    labels: tuple[str, str],
    marks: Tensor,
    mark_labels: tuple[str, ...],
    metrics: Metrics,
    num_gradients: int,
    num_matvecs: int,
    start: float,
    progress: bool,
) -> Plane:
    """Evaluate the marks and the grid, row by row."""
    nodes = torch.stack([x.repeat(len(y)), y.repeat_interleave(len(x))], dim=1)
    points = torch.cat([torch.zeros(1, 2, dtype=torch.float64), marks, nodes])
    values = evaluate(risk, [Affine(origin, axes, points.T)], metrics, progress=progress)
    first = 1 + len(marks)
    shape = (len(y), len(x))
    return Plane(
        labels=labels,
        x=x,
        y=y,
        losses=values.losses[first:].reshape(shape),
        origin=origin.cpu(),
        axes=axes.cpu(),
        loss=float(values.losses[0]),
        marks=marks,
        mark_labels=mark_labels,
        mark_losses=values.losses[1:first],
        metrics={name: v[first:].reshape(shape) for name, v in values.metrics.items()},
        dtype=risk.dtype,
        num_losses=len(points),
        num_gradients=num_gradients,
        num_matvecs=num_matvecs,
        seconds=perf_counter() - start,
    )


def _orthogonalised(axes: Tensor) -> Tensor:
    """Take from the second axis what is along the first; it keeps its length."""
    u, v = axes.T
    length = v.norm()
    for _ in range(2):  # once loses digits where the axes are nearly parallel
        v = v - u * (u @ v / (u @ u))
    return torch.stack([u, v * (length / v.norm())], dim=1)


def _counts(resolution: int | tuple[int, int]) -> tuple[int, int]:
    counts = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
    if len(counts) != 2 or not all(isinstance(n, int) and n >= 2 for n in counts):
        raise InputError(
            f"resolution is {resolution!r}; it must be an integer of at least 2, or two of them."
        )
    return counts[0], counts[1]


def _ranges(extent: Extent) -> list[tuple[float, float]]:
    try:
        ends = torch.as_tensor(extent, dtype=torch.float64)
    except (TypeError, ValueError):
        ends = torch.zeros(0)  # ragged, or no numbers
    if ends.ndim == 0:
        ends = ends.expand(2)
    if ends.shape == (2,):
        ends = torch.stack([-ends, ends], dim=1)
    is_good = ends.shape == (2, 2) and bool(ends.isfinite().all())
    if not is_good or not bool((ends[:, 0] < ends[:, 1]).all()):
        raise InputError(
            f"extent is {extent!r}; it must be a positive radius, one for each axis, or "
            "((x_low, x_high), (y_low, y_high))."
        )
    return [(float(low), float(high)) for low, high in ends]


def _axis_values(
    ranges: Sequence[tuple[float, float]], counts: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    x, y = (
        torch.linspace(low, high, n, dtype=torch.float64)
        for (low, high), n in zip(ranges, counts, strict=True)
    )
    return x, y
