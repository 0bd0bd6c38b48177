"""The loss on the plane of a trajectory's first two components, with the trajectory above it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from curvops.errors import InputError
from curvops.landscape.directions import along
from curvops.landscape.plane import overlay, plane
from curvops.landscape.plane_result import Overlay, Plane
from curvops.landscape.scan import Metrics, in_dtype
from curvops.landscape.storage import Stored
from curvops.landscape.trajectory import Trajectory
from curvops.landscape.trajectory_pca import TrajectoryPCA

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


@dataclass(frozen=True, eq=False)
class TrajectoryPlane(Stored):
    """The plane below a trajectory.

    Attributes:
        plane: The loss on it; its origin is the mean of the points.
        overlay: The points above it, with their true losses.
        pca: The components that span it.
        seconds: How long it took, the components included if they were computed here.
    """

    plane: Plane
    overlay: Overlay
    pca: TrajectoryPCA
    seconds: float

    def __str__(self) -> str:
        """Return the plane, the points above it, and how much of their variance is in it."""
        inside, walk = (float(shares[:2].sum()) for shares in (self.pca.explained, self.pca.null))
        return (
            f"{self.plane}\n{self.overlay}\n"
            f"{inside:.1%} of the variance is in the plane (of a random walk's {walk:.1%})"
        )


def trajectory_plane(
    risk: EmpiricalRisk,
    trajectory: Trajectory,
    pca: TrajectoryPCA | None = None,
    *,
    margin: float = 0.25,
    resolution: int | tuple[int, int] = 31,
    metrics: Metrics = (),
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> TrajectoryPlane:
    """Evaluate the loss on the plane of a trajectory's first two principal components.

    Args:
        risk: The risk that the trajectory's points are points of.
        trajectory: Three points or more.
        pca: Its components, where they are there already.
        margin: How far to go beyond the points, as a part of the longer of their ranges.
        resolution: Points on each axis, or on both.
        metrics: What to compute on the plane beside the loss.
        dtype: What to evaluate the whole net in.
        progress: Show a bar.

    Returns:
        The plane through the mean of the points, and the points above it. Running averages of
        batch normalisation are those in the module, everywhere.

    Raises:
        InputError: If there are fewer than three points, or they lie on a line.
        ShapeError: If the points are not in the parameter space of the risk.
        NonFiniteError: If the loss at the mean of the points is not finite.

    Source:
        Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018, Section 7.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> trajectory = Trajectory()
        >>> for point in torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]]):
        ...     recorded = trajectory.record(point)
        >>> below = trajectory_plane(risk, trajectory, resolution=5)
        >>> torch.equal(below.overlay.coordinates.round(), below.pca.coordinates.round())
        True
    """
    start = perf_counter()
    if len(trajectory) < 3:
        raise InputError(f"the trajectory has {len(trajectory)} points; a plane needs 3 or more.")
    if not 0 <= margin < float("inf"):
        raise InputError(f"margin is {margin!r}; it must be a finite part of the range, ≥ 0.")
    found = trajectory.pca(2, progress=progress) if pca is None else pca
    if found.coordinates.shape[1] < 2:
        raise InputError("pca has a single component; compute two.")
    if float(found.explained[1]) < 1e-12:
        raise InputError("the points of the trajectory lie on a line: they span no plane.")
    risk = in_dtype(risk, dtype)
    space, fmt = trajectory.space, trajectory.format
    mean, *axes = (
        space.write(vector.unsqueeze(1), fmt)
        for vector in (found.mean, found.components[:, 0], found.components[:, 1])
    )
    names = [f"component {k + 1} ({found.explained[k]:.0%})" for k in range(2)]
    low, high = found.coordinates[:, :2].min(0).values, found.coordinates[:, :2].max(0).values
    beyond = margin * (high - low).max()
    extent = torch.stack([low - beyond, high + beyond], dim=1).tolist()
    below = plane(
        risk.at(mean),
        *(along(axis, name) for axis, name in zip(axes, names, strict=True)),
        extent=extent,
        resolution=resolution,
        metrics=metrics,
        progress=progress,
    )
    columns = space.write(trajectory.columns(), replace(fmt, is_vector=False))
    return TrajectoryPlane(
        plane=replace(below, mark_labels=("mean",)),
        overlay=overlay(risk, below, columns, progress=progress),
        pca=found,
        seconds=perf_counter() - start,
    )
