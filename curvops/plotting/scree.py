"""Eigenvalues by rank, computed in one way beside another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from curvops.plotting.style import as_array, current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


def scree(
    eigenvalues: ArrayLike | torch.Tensor,
    *,
    reference: ArrayLike | torch.Tensor | None = None,
    label: str = "computed",
    reference_label: str = "dense",
    ax: Axes | None = None,
) -> Axes:
    """Draw eigenvalues against their rank, largest first, and a reference beside them.

    Args:
        eigenvalues: Values ``[k]`` in any order.
        reference: The values to compare with, ranked the same way.
        label: What the legend calls the first.
        reference_label: What the legend calls the second.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes; logarithmic if every value is positive.

    Raises:
        InputError: If there is nothing to draw, or values are not finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> from curvops import plotting
        >>> ax = plotting.scree([1.0, 3.0], reference=[3.0, 1.0], ax=plotting.new_axes())
        >>> ax.get_xlabel()
        'rank'
    """
    values = np.sort(as_array(eigenvalues, "eigenvalues"))[::-1]
    ax, colours = resolve(ax), current()
    from matplotlib.ticker import MaxNLocator

    lowest = values[-1]
    if reference is not None:
        expected = np.sort(as_array(reference, "reference"))[::-1]
        lowest = min(lowest, expected[-1])
        rings(ax, expected, reference_label)
    ax.plot(
        np.arange(1, len(values) + 1),
        values,
        linestyle="none",
        marker="x",
        markersize=6,
        markeredgewidth=1.8,
        color=colours.primary,
        label=label,
    )
    if lowest > 0:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("rank")
    ax.set_ylabel("eigenvalue")
    if reference is not None:
        ax.legend(loc="upper right")
    return ax


def rings(ax: Axes, values: np.ndarray, label: str) -> None:
    """Draw values against their rank as open circles, around what they are compared with."""
    ax.plot(
        np.arange(1, len(values) + 1),
        values,
        linestyle="none",
        marker="o",
        markersize=9,
        markerfacecolor="none",
        markeredgewidth=1.5,
        color=current().accent,
        label=label,
    )
