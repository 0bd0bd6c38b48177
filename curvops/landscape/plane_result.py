"""What a scan of a plane found, and where points off the plane belong on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.landscape.storage import Stored
from curvops.table import data_frame


@dataclass(frozen=True, eq=False)
class Plane(Stored):
    r"""Losses on a grid of a plane: :math:`L(o + x \hat u + y \hat v)`.

    Attributes:
        labels: What the two axes are called.
        x: Coordinates along u ``[X]``, in units of the first axis.
        y: Coordinates along v ``[Y]``, in units of the second.
        losses: The losses ``[Y, X]``, NaN and infinity included.
        origin: The point at the coordinates (0, 0), ``[P]``.
        axes: The vectors û and v̂ ``[P, 2]``.
        loss: The loss at the origin.
        marks: Coordinates of points that are worth showing ``[M, 2]``: the origin, or the three
            points the plane goes through.
        mark_labels: What they are called.
        mark_losses: The losses there ``[M]``.
        metrics: Other values on the grid ``[Y, X]``, by name.
        dtype: What the net was evaluated in.
        num_losses: How many losses were evaluated.
        num_gradients: How many gradients the axes took.
        num_matvecs: How many Hessian products the axes took.
        seconds: How long it took.
    """

    labels: tuple[str, str]
    x: Tensor
    y: Tensor
    losses: Tensor
    origin: Tensor
    axes: Tensor
    loss: float
    marks: Tensor
    mark_labels: tuple[str, ...]
    mark_losses: Tensor
    metrics: dict[str, Tensor]
    dtype: torch.dtype
    num_losses: int
    num_gradients: int
    num_matvecs: int
    seconds: float

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return where points lie above the plane, and how far.

        Args:
            points: One point ``[P]`` or columns of them ``[P, T]``.

        Returns:
            Coordinates ``[T, 2]`` of the nearest points of the plane, and the distances to them
            ``[T]``, in units of the parameters.

        Raises:
            ShapeError: If the points do not fit.
        """
        if points.ndim not in (1, 2) or points.shape[0] != self.origin.shape[0]:
            raise ShapeError(
                f"points has shape {list(points.shape)}; expected [{self.origin.shape[0]}] or "
                f"[{self.origin.shape[0]}, T]."
            )
        columns = points.reshape(points.shape[0], -1).to("cpu", torch.float64)
        axes = self.axes.to("cpu", torch.float64)
        apart = columns - self.origin.to("cpu", torch.float64).unsqueeze(1)
        # The axes need not be orthogonal: the normal equations are two by two.
        coordinates = torch.linalg.solve(axes.T @ axes, axes.T @ apart)
        return coordinates.T, (apart - axes @ coordinates).norm(dim=0)

    def __str__(self) -> str:
        """Return the axes, their range, and the losses on them."""
        finite = self.losses[self.losses.isfinite()]
        span = (
            f"{float(finite.min()):.4g} to {float(finite.max()):.4g}" if len(finite) else "nowhere"
        )
        gaps = self.losses.numel() - len(finite)
        left, right, bottom, top = (float(v) for v in (*self.x[[0, -1]], *self.y[[0, -1]]))
        return (
            f"plane of {self.labels[0]} [{left:.3g}, {right:.3g}] × {self.labels[1]} "
            f"[{bottom:.3g}, {top:.3g}], {len(self.x)} × {len(self.y)} points: loss {span}"
            + (f", {gaps} not finite" if gaps else "")
            + f", {self.loss:.6g} at the origin ({self.num_losses} losses)"
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each point of the grid.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        table = {
            "x": self.x.repeat(len(self.y)),
            "y": self.y.repeat_interleave(len(self.x)),
            "loss": self.losses.flatten(),
        }
        table |= {name: values.flatten() for name, values in self.metrics.items()}
        return data_frame(table)


@dataclass(frozen=True, eq=False)
class Overlay(Stored):
    r"""Points beside a plane: their true losses, and those of the plane below them.

    Attributes:
        label: What the points are called.
        coordinates: Where each lies above the plane ``[T, 2]``.
        distances: How far above it ``[T]``, in units of the parameters.
        losses: The true loss of each ``[T]``.
        plane_losses: The loss at the nearest point of the plane ``[T]``, evaluated there and not
            interpolated.
        num_losses: How many losses were evaluated.
        seconds: How long it took.
    """

    label: str
    coordinates: Tensor
    distances: Tensor
    losses: Tensor
    plane_losses: Tensor
    num_losses: int
    seconds: float

    def __len__(self) -> int:
        """Return how many points there are."""
        return len(self.losses)

    def __str__(self) -> str:
        """Return how far the points are off the plane, and what difference it makes."""
        apart = (self.losses - self.plane_losses).abs()
        return (
            f"{self.label}: {len(self)} points, up to {float(self.distances.max()):.3g} off the "
            f"plane, where the loss differs by up to {float(apart.max()):.3g}"
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each point.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        return data_frame(
            {
                "x": self.coordinates[:, 0],
                "y": self.coordinates[:, 1],
                "distance": self.distances,
                "loss": self.losses,
                "plane_loss": self.plane_losses,
            }
        )


def check_axes(axes: Tensor, labels: tuple[str, str]) -> None:
    """Raise an error if two axes do not span a plane.

    Raises:
        InputError: If one is (nearly) a multiple of the other.
    """
    u, v = (axis / axis.norm() for axis in axes.to("cpu", torch.float64).T)
    # As good as parallel: coordinates of points would be all rounding.
    if float((v - u * (u @ v)).norm()) < 8 * torch.finfo(axes.dtype).eps:
        raise InputError(
            f"the directions {labels[0]!r} and {labels[1]!r} are parallel, so they span no plane. "
            "Pass two that are not."
        )
