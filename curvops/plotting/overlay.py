"""The true loss of points beside that of a plane below them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.errors import InputError
from curvops.landscape.plane_result import Overlay
from curvops.plotting.style import current, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANY_DECADES = 20.0


def overlay(points: Overlay, *, ax: Axes | None = None) -> Axes:
    """Draw the true loss of each point, and the loss of the plane below it.

    The gap between both is what a picture of the plane does not show.

    Args:
        points: The result of :func:`curvops.landscape.plane.overlay`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes; logarithmic if the losses span a factor of 20.

    Raises:
        InputError: If no loss is finite.
        MissingDependencyError: If matplotlib is not installed.
    """
    true, below = points.losses.numpy(), points.plane_losses.numpy()
    both = np.concatenate([true, below])
    finite = both[np.isfinite(both)]
    if not finite.size:
        raise InputError(f"No loss of {points.label!r} is finite.")
    ax, colours = resolve(ax), current()
    from matplotlib.ticker import MaxNLocator

    steps = np.arange(len(points))
    ax.fill_between(steps, true, below, color=colours.grid, linewidth=0, zorder=1)
    ax.plot(steps, true, color=colours.primary, linewidth=2.0, label="true loss")
    ax.plot(
        steps,
        below,
        color=colours.accent,
        linewidth=1.6,
        linestyle=(0, (4, 2.5)),
        label="loss of the plane below",
    )
    if finite.min() > 0 and finite.max() > _MANY_DECADES * finite.min():
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_title(plain(points.label), loc="left")
    ax.set_xlabel("point")
    ax.set_ylabel("loss")
    ax.legend(loc="best")
    return ax
