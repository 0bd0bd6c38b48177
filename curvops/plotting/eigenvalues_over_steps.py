"""The largest eigenvalues while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curvops.landscape.eigenspaces import Eigenspaces
from curvops.plotting.style import current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def eigenvalues_over_steps(track: Eigenspaces, *, ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues against the steps of a training, λmax on top.

    Eigenvalues that have not converged are hollow.

    Args:
        track: The result of :func:`curvops.landscape.eigenspaces.eigenspaces`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes; logarithmic if every eigenvalue is positive.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    ax, colours = resolve(ax), current()
    steps, values = track.steps.numpy(), track.eigenvalues.numpy()
    k = values.shape[1]
    for i in range(k - 1, -1, -1):
        top = i == 0
        ax.plot(
            steps,
            values[:, i],
            color=colours.primary if top else colours.muted,
            linewidth=2.2 if top else 1.0,
            marker="o",
            markersize=4 if top else 2.5,
            label="λmax" if top else f"ranks 2 to {k}" if i == k - 1 else None,
        )
        missed = ~track.converged[:, i].numpy()
        ax.plot(
            steps[missed],
            values[missed, i],
            linestyle="none",
            marker="o",
            markersize=6,
            markerfacecolor=colours.paper,
            markeredgecolor=colours.accent,
        )
    if values.min() > 0:
        ax.set_yscale("log")
    integer_steps(ax)
    ax.set_ylabel("eigenvalue")
    ax.legend(loc="best")
    return ax


def integer_steps(ax: Axes) -> None:
    """Count steps in whole numbers along the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step")
