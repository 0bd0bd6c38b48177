"""The loss along a line, beside what the quadratic model predicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curvops.errors import InputError
from curvops.landscape.line import Lines
from curvops.plotting.style import current, full_tick_labels, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def line(lines: Lines, *, index: int = 0, ax: Axes | None = None) -> Axes:
    """Draw the loss along one line, with the quadratic model's prediction.

    The axis follows the loss: where the model leaves it, the prediction is cut off.

    Args:
        lines: The result of :func:`curvops.landscape.line`.
        index: Which of its lines.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no such line, or no loss on it is finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting
        >>> from curvops.landscape import Lines
        >>> steps = torch.linspace(-1, 1, 5).unsqueeze(1)
        >>> one = torch.ones(1)
        >>> scan = Lines(("top",), steps, steps**2, 0.0, 0 * one, 2 * one, 6, 0, 0.1)
        >>> plotting.line(scan, ax=plotting.new_axes()).get_title(loc="left")
        'top'
    """
    if not -len(lines.labels) <= index < len(lines.labels):
        raise InputError(f"index is {index}, but there are {len(lines.labels)} lines.")
    steps = lines.steps[:, index].numpy()
    losses, model = lines.losses[:, index].numpy(), lines.quadratic[:, index].numpy()
    finite = np.isfinite(losses)
    if not finite.any():
        raise InputError(f"No loss along {lines.labels[index]!r} is finite.")
    ax, colours = resolve(ax), current()
    # The dashes lie on top: where the two agree, both are seen.
    ax.plot(steps, losses, color=colours.primary, linewidth=2.2, label="loss")
    ax.plot(
        steps,
        model,
        color=colours.accent,
        linewidth=1.6,
        linestyle=(0, (4, 2.5)),
        label="quadratic",
    )
    ax.plot([0], [lines.loss], marker="o", markersize=5, color=colours.ink, linestyle="none")
    low, high = float(losses[finite].min()), float(losses[finite].max())
    pad = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(low - pad, high + pad)
    full_tick_labels(ax)
    ax.set_title(plain(lines.labels[index]), loc="left")
    ax.set_xlabel("distance from θ")
    ax.set_ylabel("loss")
    ax.legend(loc="best")
    return ax
