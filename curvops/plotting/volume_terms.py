"""What a quadratic log-volume is made of: its three terms, adding up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from curvops.errors import InputError
from curvops.plotting.style import current, resolve
from curvops.volume.quadratic import QuadraticVolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def volume_terms(volume: QuadraticVolume, *, ax: Axes | None = None) -> Axes:
    """Draw the terms of a quadratic log-volume as bars, each starting where the last one ended.

    Args:
        volume: The result of :func:`curvops.volume.quadratic_volume`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If it is a volume under a Gaussian, which has no terms.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting, volume
        >>> result = volume.quadratic_volume(torch.ones(3), threshold=0.5)
        >>> plotting.volume_terms(result, ax=plotting.new_axes()).get_xlabel()
        'log-volume  [nats]'
    """
    if math.isnan(volume.logdet):
        raise InputError(
            "volume is the probability of an ellipsoid under a Gaussian, which is no sum of terms; "
            'draw it with plotting.volumes, or use measure="lebesgue".'
        )
    ax, colours = resolve(ax), current()
    terms = np.array([volume.ball_term, volume.threshold_term, -volume.logdet / 2])
    ends = terms.cumsum()
    lefts, widths = np.append(ends - terms, 0.0), np.append(terms, volume.log_volume)
    labels = ["unit ball", "threshold", "−½ log det", "log V"]
    tints = [colours.primary, colours.primary, colours.primary, colours.accent]
    places = np.arange(len(widths))
    bars = ax.barh(places, widths, left=lefts, height=0.62, color=tints)
    signs = [f"{w:+.1f}" for w in terms] + [f"{volume.log_volume:.1f}"]
    # The number stands beyond the bar's end on the side it points to.
    for bar, text, left, width in zip(bars, signs, lefts, widths):
        ax.annotate(
            text.replace("-", "−"),
            (left + width, bar.get_y() + bar.get_height() / 2),
            xytext=(5 if width >= 0 else -5, 0),
            textcoords="offset points",
            ha="left" if width >= 0 else "right",
            va="center",
            fontsize=9,
        )
    for place, end in zip(places, ends):
        ax.plot([end, end], [place + 0.31, place + 0.69], color=colours.muted, linewidth=0.9)
    ax.axvline(0, color=colours.muted, linewidth=0.9)
    ax.set_yticks(places, labels)
    ax.invert_yaxis()
    # Bars pin the axis to their bases, which here would hide the longest one.
    ax.use_sticky_edges = False
    ax.margins(x=0.2)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("log-volume  [nats]")
    return ax
