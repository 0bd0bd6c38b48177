"""How the top eigenspace turns while training goes on, and what is in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.landscape.eigenspaces import Eigenspaces
from curvops.plotting.eigenvalues_over_steps import integer_steps
from curvops.plotting.style import current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def turning(track: Eigenspaces, *, ax: Axes | None = None) -> Axes:
    """Draw how far the top eigenspace has turned, and the share of the gradient in it.

    Overlaps are with the point before and with the last point; the dashed line is what random
    subspaces would have.

    Args:
        track: The result of :func:`curvops.landscape.eigenspaces.eigenspaces`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes, from 0 to 1.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    ax, colours = resolve(ax), current()
    steps = track.steps.numpy()
    last = track.overlaps[:, -1].numpy()
    series = [
        ("overlap with previous", steps[1:], track.overlap_with_previous.numpy(), "-"),
        ("overlap with last", steps, last, (0, (5, 1.8))),
        ("share of the gradient", steps, track.gradient_shares.numpy(), (0, (1.3, 1.3))),
    ]
    colour_of = (colours.primary, colours.third, colours.fourth)
    for (label, x, y, dashes), colour in zip(series, colour_of, strict=True):
        # Where only neighbours were compared, the last is known beside one other point.
        if np.isfinite(y).sum() > (2 if y is last else 0):
            ax.plot(x, y, color=colour, linestyle=dashes, marker="o", markersize=3, label=label)
    ax.axhline(
        track.random_level,
        color=colours.accent,
        linestyle=(0, (4, 2.5)),
        linewidth=1.4,
        label=f"random, {track.random_level:.2g}",
    )
    ax.set_ylim(-0.03, 1.03)
    integer_steps(ax)
    ax.set_ylabel("share")
    ax.legend(loc="best")
    return ax
