"""What a scan along rays found, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.landscape.noise import Noise
from curvops.landscape.roughness import roughness, second_difference
from curvops.landscape.storage import Stored
from curvops.table import data_frame

QUANTITIES = ("loss", "rise", "roughness", "grit", "curvature", "two_sided_curvature")


class Quantity(NamedTuple):
    """One quantity of a scan.

    Attributes:
        distances: Where it is known ``[S, K]``.
        values: Its values ``[S, K]``; NaN where a loss it needs is not finite.
        floors: What rounding alone would show ``[S, K]``.
        resolved: Whether it stands out of the rounding ``[S, K]``.
    """

    distances: Tensor
    values: Tensor
    floors: Tensor
    resolved: Tensor


@dataclass(frozen=True, eq=False)
class Rays(Stored):
    r"""Losses on ``K`` rays from a point, at ``S`` distances each with ratio 2.

    What is derived from a loss, the next and that of the point has ``S − 1`` rows: at distance h
    it needs :math:`l(2h)`.

    Attributes:
        labels: What the rays are called: ``"random 3 on fc1"``.
        directions: What each direction is: ``"random"``.
        subspaces: The substring or glob each is confined to; ``"*"`` for all parameters.
        lengths: The norm of each direction before it was normalised ``[K]``.
        normalization: What directions were normalised by; distances are in units of them.
        distances: ``[S, K]``; each row is the row above times two, to the last bit.
        losses: The loss at each distance ``[S, K]``, NaN and infinity included.
        loss: The loss at the point.
        noise: The rounding errors of the losses (see :mod:`curvops.landscape.noise`).
        metrics: Other values at each distance ``[S, K]``, by name.
        point_metrics: The same at the point.
        losses_behind: The loss at each distance in the other direction ``[S, K]``, if asked for.
        dtype: What the net was evaluated in.
        num_losses: How many losses were evaluated, also for the noise.
        num_gradients: How many gradients the directions took.
        num_matvecs: How many Hessian products the directions took.
        seconds: How long it took.
    """

    labels: tuple[str, ...]
    directions: tuple[str, ...]
    subspaces: tuple[str, ...]
    lengths: Tensor
    normalization: str
    distances: Tensor
    losses: Tensor
    loss: float
    noise: Noise
    metrics: dict[str, Tensor]
    point_metrics: dict[str, float]
    losses_behind: Tensor | None
    dtype: torch.dtype
    num_losses: int
    num_gradients: int
    num_matvecs: int
    seconds: float

    @property
    def difference(self) -> Tensor:
        r"""The second difference :math:`\Delta = l_0 - 2 l(h) + l(2h)`, ``[S − 1, K]``."""
        return second_difference(self._start[:-1], self.losses[:-1], self.losses[1:])

    @property
    def difference_floor(self) -> Tensor:
        """What rounding alone would show as a second difference, ``[S − 1, K]``."""
        return self.noise.difference

    @property
    def resolved(self) -> Tensor:
        """Where the second difference stands out of the rounding, ``[S − 1, K]``.

        Where it does not, roughness, grit and curvature say nothing about the loss.
        """
        return self.difference.abs() > self.difference_floor

    @property
    def grit(self) -> Tensor:
        r""":math:`\Delta / h`, ``[S − 1, K]``; λh on a quadratic of curvature λ."""
        return self.difference / self.distances[:-1]

    @property
    def curvature(self) -> Tensor:
        r""":math:`\Delta / h^2`, ``[S − 1, K]``; centred at h, not at the point."""
        return self.difference / self.distances[:-1] ** 2

    @property
    def two_sided_curvature(self) -> Tensor:
        r""":math:`(l(-h) - 2 l_0 + l(h)) / h^2`, ``[S, K]``: dᵀHd up to O(h²).

        Raises:
            InputError: If the scan did not look behind.
        """
        difference = second_difference(self._behind, self._start, self.losses)
        return difference / self.distances**2

    @property
    def roughness(self) -> Tensor:
        """How much longer the path over the middle point is, ``[S − 1, K]``, free of cancellation.

        See :func:`curvops.landscape.roughness.roughness`.
        """
        return roughness(self._start[:-1], self.losses[:-1], self.losses[1:], self.distances[:-1])

    @property
    def roughness_floor(self) -> Tensor:
        """The roughness that rounding alone would show, ``[S − 1, K]``."""
        return self._roughness_of(self.difference_floor)

    @property
    def roughness_error(self) -> Tensor:
        """How far rounding may move each roughness, ``[S − 1, K]``.

        It is quadratic in the difference, so that this is more than the floor where the roughness
        stands out of it.
        """
        size, error = self.difference.abs(), self.difference_floor
        return self._roughness_of(size + error) - self._roughness_of((size - error).clamp(min=0))

    def quantity(self, name: str) -> Quantity:
        """Return a quantity by name, with its distances, floors and mask.

        Args:
            name: ``"loss"``, ``"rise"`` (over the loss at the point), ``"roughness"``,
                ``"grit"``, ``"curvature"``, ``"two_sided_curvature"`` or a metric, which has no
                floor.

        Raises:
            InputError: If there is no such quantity.
        """
        h = self.distances[:-1]
        floor, resolved = self.difference_floor, self.resolved
        if name == "loss":
            floors = self.noise.loss
            return Quantity(self.distances, self.losses, floors, self.losses.abs() > floors)
        if name == "rise":
            floors, rise = self.noise.rise, self.losses - self.loss
            return Quantity(self.distances, rise, floors, rise.abs() > floors)
        if name == "roughness":
            return Quantity(h, self.roughness, self.roughness_floor, resolved)
        if name == "grit":
            return Quantity(h, self.grit, floor / h, resolved)
        if name == "curvature":
            return Quantity(h, self.curvature, floor / h**2, resolved)
        if name == "two_sided_curvature":
            values = self.two_sided_curvature
            floors = self.noise.two_sided_difference / self.distances**2
            return Quantity(self.distances, values, floors, values.abs() > floors)
        if name in self.metrics:
            values = self.metrics[name]
            return Quantity(self.distances, values, torch.zeros_like(values), values.isfinite())
        known = ", ".join([*QUANTITIES, *self.metrics])
        raise InputError(f"There is no quantity {name!r} in this scan; known: {known}.")

    def __str__(self) -> str:
        """Return one row a ray: where it begins to stand out of the rounding, and what it is."""
        start, end = float(self.distances.min()), float(self.distances.max())
        dtype = str(self.dtype).removeprefix("torch.")
        rows = [
            f"{len(self.labels)} rays, {len(self.distances)} distances from {start:.3g} to "
            f"{end:.3g} in {dtype}, loss {self.loss:.6g} ± {self.noise.point_loss:.1g} "
            f"({self.num_losses} losses, {self.num_matvecs} matvecs)"
        ]
        resolved, curvature, rough = self.resolved, self.curvature, self.roughness
        for k, label in enumerate(self.labels):
            seen = resolved[:, k].nonzero()[:, 0]
            if not len(seen):
                rows.append(f"  {label}: within the rounding everywhere")
                continue
            first, last = int(seen[0]), int(seen[-1])
            rows.append(
                f"  {label}: from {float(self.distances[first, k]):.2g}, curvature "
                f"{float(curvature[first, k]):.3g}; at {float(self.distances[last, k]):.2g} "
                f"roughness {float(rough[last, k]):.3g}, loss {float(self.losses[-1, k]):.4g} "
                "at the end"
            )
        return "\n".join(rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and what is derived from them as plain Python."""
        derived = {name: getattr(self, name).tolist() for name in _DERIVED}
        if self.losses_behind is not None:
            derived["two_sided_curvature"] = self.two_sided_curvature.tolist()
        return super().to_dict() | derived

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each distance on each ray.

        What needs the next distance is NaN in a ray's last row.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        num, num_rays = self.losses.shape

        def spread(of: tuple[str, ...]) -> list[str]:
            return [name for name in of for _ in range(num)]

        table: dict[str, Any] = {
            "ray": spread(self.labels),
            "direction": spread(self.directions),
            "subspace": spread(self.subspaces),
            "distance": _long(self.distances),
            "loss": _long(self.losses),
            "loss_floor": _long(self.noise.loss),
        }
        table |= {name: _long(values) for name, values in self.metrics.items()}
        if self.losses_behind is not None:
            table["loss_behind"] = _long(self.losses_behind)
            table["two_sided_curvature"] = _long(self.two_sided_curvature)
        gap = torch.full((1, num_rays), torch.nan, dtype=torch.float64)
        for name in ("difference", "roughness", "grit", "curvature"):
            table[name] = _long(torch.cat([getattr(self, name), gap]))
        for name in ("roughness", "grit", "curvature"):
            table[f"{name}_floor"] = _long(torch.cat([self.quantity(name).floors, gap]))
        never = torch.zeros(1, num_rays, dtype=torch.bool)
        table["resolved"] = _long(torch.cat([self.resolved, never]))
        return data_frame(table)

    @property
    def _start(self) -> Tensor:
        return torch.full_like(self.losses, self.loss)

    @property
    def _behind(self) -> Tensor:
        if self.losses_behind is None:
            raise InputError("This scan did not look behind the point; pass two_sided=True.")
        return self.losses_behind

    def _roughness_of(self, difference: Tensor) -> Tensor:
        """Return the roughness of the same chords with another second difference."""
        return roughness(
            self._start[:-1], self.losses[:-1], self.losses[1:], self.distances[:-1], difference
        )


_DERIVED = ("difference", "difference_floor", "resolved", "grit", "curvature", "roughness")


def _long(values: Tensor) -> Tensor:
    """Return ``[S, K]`` ray by ray."""
    return values.T.reshape(-1)
