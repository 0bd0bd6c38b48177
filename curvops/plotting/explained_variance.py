"""What the components of a trajectory explain, beside those of a random walk."""

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
