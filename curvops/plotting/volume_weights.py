"""On how few directions the volume of a star domain rests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.plotting.style import current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curvops.volume.star_result import StarVolume


def volume_weights(volume: StarVolume, *, ax: Axes | None = None) -> Axes:
    """Draw the share of the volume that the heaviest directions hold, against their number.

    The dashed line is what directions of equal weight would hold; the vertical one is the effective
    sample size.

    Args:
        volume: The result of :func:`curvops.volume.star.star_volume`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import EmpiricalRisk, plotting, volume
        >>> model = torch.nn.Linear(3, 1, bias=False)
        >>> data = [(torch.eye(3), torch.zeros(3, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), [torch.zeros(1, 3)], data)
        >>> star = volume.star_volume(risk, threshold=0.1, prior_std=1.0, num_directions=20)
        >>> plotting.volume_weights(star, ax=plotting.new_axes()).get_xlabel()
        'number of directions, the heaviest first'
    """
    ax, colours = resolve(ax), current()
    shares = np.sort(volume.weights.numpy())[::-1].cumsum()
    ranks = np.arange(1, len(shares) + 1)
    ax.plot(
        ranks,
        ranks / len(ranks),
        color=colours.muted,
        linestyle="--",
        linewidth=1.2,
        label="equal weights",
    )
    ax.step(ranks, shares, where="post", color=colours.primary, label="their share of the volume")
    ax.plot(ranks[:1], shares[:1], marker="o", markersize=5, color=colours.primary)
    if volume.directions == "random":
        ax.axvline(volume.ess, color=colours.accent, linewidth=1.4, label=f"ESS {volume.ess:.3g}")
    ax.set_xscale("log")
    ax.set_ylim(0, 1.05)
    ax.set_xlabel("number of directions, the heaviest first")
    ax.set_ylabel("share")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, columnspacing=1.4)
    return ax
