"""A trajectory: what its components explain beside a random walk's, and where it goes in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.errors import InputError
from curvops.landscape.trajectory_pca import TrajectoryPCA
from curvops.plotting.style import current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def explained_variance(pca: TrajectoryPCA, *, num: int = 20, ax: Axes | None = None) -> Axes:
    """Draw the share of the variance of each component, beside a random walk's.

    Only where the points are above the line have they fewer directions than chance would give
    them.

    Args:
        pca: The result of :func:`curvops.landscape.trajectory_pca.trajectory_pca`.
        num: How many components to draw, at most.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes, with a logarithmic vertical axis.

    Raises:
        InputError: If ``num`` is not positive.
        MissingDependencyError: If matplotlib is not installed.
    """
    if isinstance(num, bool) or not isinstance(num, int) or num < 1:
        raise InputError(f"num must be an integer of 1 or more, got {num!r}.")
    shares, walk = pca.explained[:num].numpy(), pca.null[:num].numpy()
    ax, colours = resolve(ax), current()
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rank = np.arange(1, len(shares) + 1)
    ax.plot(
        rank,
        walk,
        color=colours.accent,
        linestyle=(0, (4, 2.5)),
        marker="o",
        markersize=7,
        markerfacecolor="none",
        markeredgewidth=1.4,
        label=f"random walk, first two {walk[:2].sum():.0%}",
    )
    shown = np.where(shares > 1e-12, shares, np.nan)  # rounding
    ax.plot(
        rank,
        shown,
        color=colours.primary,
        marker="o",
        markersize=4.5,
        label=f"trajectory, first two {shares[:2].sum():.0%}",
    )
    ax.set_yscale("log")
    low = min(float(np.nanmin(shown)), float(walk.min()))
    ax.set_ylim(max(low / 2, 1e-9), 1.3)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("component")
    ax.set_ylabel("share of the variance")
    ax.legend(loc="best")
    return ax


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
