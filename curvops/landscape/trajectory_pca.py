r"""Principal components of a trajectory by its Gram matrix, beside those of a random walk.

.. math:: G_{ij} = \langle \theta_i - \bar\theta, \theta_j - \bar\theta \rangle
    = U \Lambda U^T, \qquad V = (\theta - \bar\theta)^T U \Lambda^{-1/2}

With T points of P numbers, T much smaller than P, the eigenvalues of the matrix ``[T, T]`` are all
there is, and no matrix ``[P, P]`` is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.data import parse_bytes
from curvops.errors import InputError
from curvops.landscape.random_walk import random_walk_coordinates, random_walk_variance
from curvops.landscape.storage import Stored
from curvops.landscape.trajectory import Trajectory
from curvops.table import data_frame

Blocks = Callable[[], Iterator[tuple[int, Tensor]]]
"""From nothing to rows ``[n, P]`` with the index of their first, as often as it is called."""

_COLUMNS = 2**18
"""Numbers of each point that are looked at in float64 at a time."""


@dataclass(frozen=True, eq=False)
class TrajectoryPCA(Stored):
    r"""The principal components of T points.

    Attributes:
        steps: The step of each point ``[T]``.
        explained: The share of the variance of each component, descending ``[T - 1]``.
        null: The shares of a random walk of as many points ``[T - 1]``. It holds for isotropic
            steps in many more than T dimensions.
        coordinates: The points along the first components ``[T, k]``, in units of the parameters.
        components: Unit vectors ``[P, k]``.
        mean: The mean of the points ``[P]``.
        variance: The mean of ‖θ_i − mean‖² over the points.
        seconds: How long it took.
    """

    steps: Tensor
    explained: Tensor
    null: Tensor
    coordinates: Tensor
    components: Tensor
    mean: Tensor
    variance: float
    seconds: float

    @property
    def null_coordinates(self) -> Tensor:
        """Where a random walk of the same variance would be, ``[T, k]``: cosines."""
        num, k = self.coordinates.shape
        walk: Tensor = self.variance**0.5 * random_walk_coordinates(num, k)
        return walk

    def __str__(self) -> str:
        """Return the shares of the first components, and the random walk's."""
        shown = min(3, len(self.explained))
        own = ", ".join(f"{share:.1%}" for share in self.explained[:shown].tolist())
        walk = ", ".join(f"{share:.1%}" for share in self.null[:shown].tolist())
        return (
            f"{len(self.steps)} points in {len(self.mean)} dimensions: components explain {own} "
            f"(a random walk's {walk})"
        )

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with one row for each component.

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        return data_frame(
            {
                "component": list(range(1, len(self.explained) + 1)),
                "explained": self.explained,
                "random_walk": self.null,
            }
        )


def trajectory_pca(
    trajectory: Trajectory,
    num_components: int = 2,
    *,
    memory_budget: int | str = "1GiB",
    progress: bool = False,
) -> TrajectoryPCA:
    """Return the principal components of a trajectory.

    Args:
        trajectory: At least two points, not all the same.
        num_components: How many components and coordinates to return, at most T − 1; the shares
            of the variance are those of all.
        memory_budget: What the points in memory may take; a trajectory on disk is read in blocks
            of half of it.
        progress: Show a bar over pairs of blocks.

    Returns:
        The components. The sign of each is such that its largest coordinate is positive.

    Raises:
        InputError: If there are too few points, or nothing varies.

    Source:
        Li et al., Visualizing the loss landscape of neural nets, NeurIPS 2018, Section 7;
        Antognini & Sohl-Dickstein, NeurIPS 2018, for what a random walk would show.

    Example:
        >>> import torch
        >>> trajectory = Trajectory()
        >>> for x in ([0.0, 0.0], [3.0, 0.0], [0.0, 1.0], [3.0, 1.0]):
        ...     recorded = trajectory.record(torch.tensor(x))
        >>> found = trajectory_pca(trajectory)
        >>> found.explained.round(decimals=6).tolist()
        [0.9, 0.1, 0.0]
        >>> found.components.abs().round(decimals=6).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    start = perf_counter()
    T = len(trajectory)
    if T < 2:
        raise InputError(f"the trajectory has {T} points; principal components need 2 or more.")
    is_count = isinstance(num_components, int) and not isinstance(num_components, bool)
    if not is_count or not 1 <= num_components < T:
        raise InputError(f"num_components must be from 1 to {T - 1}, got {num_components!r}.")

    def blocks() -> Iterator[tuple[int, Tensor]]:
        return trajectory.blocks(_half(memory_budget))

    mean = _mean(blocks, trajectory.space.dim, T)
    gram = _gram(blocks, mean, T, progress)
    values, vectors = torch.linalg.eigh(gram)
    order = torch.arange(T - 1, 0, -1)  # the smallest belongs to the mean, and is zero
    values, vectors = values[order].clamp(min=0), vectors[:, order]
    if not float(values[0]) > 0:
        raise InputError(f"all {T} points of the trajectory are the same: nothing varies.")
    coordinates = vectors[:, :num_components] * values[:num_components].sqrt()
    largest = coordinates.abs().argmax(0)
    signs = coordinates[largest, torch.arange(num_components)].sign()
    signs = torch.where(signs == 0, torch.ones_like(signs), signs)
    coordinates = coordinates * signs
    return TrajectoryPCA(
        steps=trajectory.steps,
        explained=values / values.sum(),
        null=random_walk_variance(T),
        coordinates=coordinates,
        components=_components(blocks, mean, vectors[:, :num_components] * signs),
        mean=mean,
        variance=float(values.sum()) / T,
        seconds=perf_counter() - start,
    )


def _half(memory_budget: int | str) -> int:
    return max(1, parse_bytes(memory_budget, "memory_budget") // 2)


def _mean(blocks: Blocks, dim: int, num: int) -> Tensor:
    total = torch.zeros(dim, dtype=torch.float64)
    for _, rows in blocks():
        for part in _spans(dim):
            total[part] += rows[:, part].double().sum(0)
    return total / num


def _gram(blocks: Blocks, mean: Tensor, num: int, progress: bool) -> Tensor:
    """Return the inner products of the centred points ``[T, T]``, centred once more."""
    gram = torch.zeros(num, num, dtype=torch.float64)
    with tqdm(unit="pair", desc="Gram matrix", leave=False, disable=not progress) as bar:
        for i, one in blocks():
            for j, other in blocks():
                if j > i:
                    break
                for part in _spans(len(mean)):
                    x = one[:, part].double() - mean[part]
                    y = x if i == j else other[:, part].double() - mean[part]
                    gram[i : i + len(one), j : j + len(other)] += x @ y.T
                bar.update()
    gram = gram.tril() + gram.tril(-1).T
    # The mean itself is rounded; what is left of it is taken from rows and columns.
    gram = gram - gram.mean(0)
    return gram - gram.mean(1, keepdim=True)


def _components(blocks: Blocks, mean: Tensor, vectors: Tensor) -> Tensor:
    """Return unit vectors ``[P, k]`` from eigenvectors of the Gram matrix ``[T, k]``."""
    found = torch.zeros(len(mean), vectors.shape[1], dtype=torch.float64)
    for i, rows in blocks():
        for part in _spans(len(mean)):
            x = rows[:, part].double() - mean[part]
            found[part] += x.T @ vectors[i : i + len(rows)]
    # Where a variance is as small as rounding, its component is not orthogonal to the others yet.
    Q, R = torch.linalg.qr(found)
    unit: Tensor = Q * torch.where(R.diagonal() < 0, -1.0, 1.0)
    return unit


def _spans(dim: int) -> Iterator[slice]:
    for start in range(0, dim, _COLUMNS):
        yield slice(start, min(start + _COLUMNS, dim))
