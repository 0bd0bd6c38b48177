"""Where the time went: one bar a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from curvops.errors import ShapeError
from curvops.plotting.style import as_array, current, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


def timing(
    names: Sequence[str], seconds: ArrayLike | torch.Tensor, *, ax: Axes | None = None
) -> Axes:
    """Draw durations as horizontal bars, in the order given, from top to bottom.

    Args:
        names: What took the time.
        seconds: How long, ``[len(names)]``.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        ShapeError: If there are not as many names as durations.
        InputError: If there is nothing to draw.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> from curvops import plotting
        >>> ax = plotting.timing(["train", "eigsh"], [2.0, 0.5], ax=plotting.new_axes())
        >>> ax.get_xlabel()
        'seconds'
    """
    values = as_array(seconds, "seconds")
    if len(names) != len(values):
        raise ShapeError(f"{len(names)} names for {len(values)} durations.")
    ax, colours = resolve(ax), current()
    places = np.arange(len(values))
    bars = ax.barh(places, values, height=0.66, color=colours.primary)
    ax.bar_label(bars, [_duration(s) for s in values], padding=4, fontsize=9)
    ax.set_yticks(places, [plain(name, 40) for name in names])
    ax.invert_yaxis()
    ax.margins(x=0.14)
    ax.set_xlim(left=0)
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("seconds")
    return ax


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
