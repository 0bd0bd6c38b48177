"""Where a trajectory goes along two of its components, beside a random walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.errors import InputError
from curvops.landscape.trajectory_pca import TrajectoryPCA
from curvops.plotting.style import current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trajectory(
    pca: TrajectoryPCA,
    *,
    first: int = 0,
    second: int = 1,
    null: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw a trajectory along two of its components, with the curve of a random walk below it.

    Args:
        pca: The result of :func:`curvops.landscape.trajectory_pca.trajectory_pca`.
        first: The component of the horizontal axis, from 0.
        second: That of the vertical axis.
        null: Whether to draw where a random walk of the same variance would be: the Lissajous
            figure of two cosines, turned over so that it starts on the same side.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes, of equal scale.

    Raises:
        InputError: If there are no such components.
        MissingDependencyError: If matplotlib is not installed.
    """
    count = pca.coordinates.shape[1]
    for name, index in (("first", first), ("second", second)):
        if not isinstance(index, int) or not 0 <= index < count:
            raise InputError(f"{name} is {index!r}, but there are {count} components.")
    ax, colours = resolve(ax), current()
    chosen = [first, second]
    points = pca.coordinates[:, chosen].numpy()
    x, y = points.T
    if null:
        walk = pca.null_coordinates[:, chosen].numpy()
        # The signs of components mean nothing.
        alike = np.sign((walk * points).sum(0))
        walk = walk * np.where(alike == 0, 1.0, alike)
        ax.plot(
            walk[:, 0],
            walk[:, 1],
            color=colours.accent,
            linestyle=(0, (4, 2.5)),
            linewidth=1.5,
            label="random walk",
        )
    ax.plot(x, y, color=colours.muted, linewidth=0.9, zorder=2)
    ax.scatter(
        x,
        y,
        c=np.arange(len(points)),
        cmap="viridis",
        s=18,
        edgecolors=colours.ink,
        linewidths=0.4,
        zorder=3,
        label="trajectory, from dark to light",
    )
    ax.plot(x[:1], y[:1], marker="o", markersize=9, markerfacecolor="none", color=colours.ink)
    ax.plot(x[-1:], y[-1:], marker="*", markersize=13, color=colours.accent, zorder=4)
    ax.set_aspect("equal", adjustable="datalim")
    for axis, index in ((ax.set_xlabel, first), (ax.set_ylabel, second)):
        own, walk_share = float(pca.explained[index]), float(pca.null[index])
        axis(f"component {index + 1}: {own:.1%} (walk {walk_share:.1%})")
    ax.legend(loc="best")
    return ax
