"""How a basin's log-volume grows with the threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.plotting.style import current, full_tick_labels, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curvops.volume.volume_scaling import VolumeScaling


def volume_scaling(result: VolumeScaling, *, ax: Axes | None = None) -> Axes:
    """Draw log V against the threshold, with errors; open markers are lower bounds.

    Args:
        result: The result of :func:`curvops.volume.volume_scaling.volume_scaling`.
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
        >>> result = volume.volume_scaling(risk, [0.1, 1.0], measure="lebesgue")
        >>> plotting.volume_scaling(result, ax=plotting.new_axes()).get_ylabel()
        'log V  [nats]'
    """
    ax, colours = resolve(ax), current()
    x, y, error = (t.numpy() for t in (result.thresholds, result.log_volume, result.stderr))
    ax.errorbar(x, y, yerr=error, color=colours.primary, capsize=3)
    draw_points(ax, x, y, result.converged.numpy())
    ax.set_ylabel(f"{result.symbol}  [nats]")
    threshold_axis(ax, result)
    return ax


def threshold_axis(ax: Axes, result: VolumeScaling) -> None:
    """Give an axis over thresholds its scale, its name and its ticks."""
    ax.set_xscale("log")
    ax.set_xlabel(f"threshold ε of the {'divergence' if result.cost == 'kl' else 'loss'}")
    full_tick_labels(ax)


def draw_points(
    ax: Axes,
    x: np.ndarray,
    y: np.ndarray,
    sure: np.ndarray,
) -> None:
    """Draw markers, open ones where nothing vouches for the number."""
    colours = current()
    for which, face in ((sure, colours.primary), (~sure, colours.paper)):
        ax.plot(
            x[which],
            y[which],
            linestyle="none",
            marker="o",
            markersize=6,
            color=colours.primary,
            markerfacecolor=face,
        )
