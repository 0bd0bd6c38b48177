"""How far directions reach, and where the volume is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.plotting.style import current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curvops.volume.star_result import StarVolume


def star_radii(volume: StarVolume, *, bins: int = 40, ax: Axes | None = None) -> Axes:
    """Draw the radii of a star domain: how many directions reach so far, and their volume.

    Where few directions speak for all of the volume, the two hardly overlap.

    Args:
        volume: The result of :func:`curvops.volume.star.star_volume`.
        bins: How many bars.
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
        >>> plotting.star_radii(star, ax=plotting.new_axes()).get_ylabel()
        'share'
    """
    ax, colours = resolve(ax), current()
    radii, shares = volume.radii.numpy(), volume.log_weights.softmax(0).numpy()
    counts = np.full(len(radii), 1 / len(radii))
    low, high = float(radii.min()), float(radii.max())
    pad = 0.02 * (high - low) or 0.05 * high
    edges = np.linspace(low - pad, high + pad, bins + 1)
    for weights, colour, label in (
        (counts, colours.primary, "of the directions"),
        (shares, colours.accent, "of the volume"),
    ):
        heights, _ = np.histogram(radii, edges, weights=weights)
        ax.stairs(heights, edges, color=colour, fill=True, alpha=0.3)
        ax.stairs(heights, edges, color=colour, label=label, linewidth=1.6)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("radius R, in units of the preconditioned directions")
    ax.set_ylabel("share")
    ax.legend()
    return ax
