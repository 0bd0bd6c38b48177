"""A histogram of eigenvalues on a logarithmic axis, negative ones included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from curvops.errors import InputError
from curvops.plotting.style import as_array, current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

_BINS_PER_DECADE = 6


def spectrum(
    eigenvalues: ArrayLike | torch.Tensor,
    *,
    noise: float | None = None,
    marked: ArrayLike | torch.Tensor | None = None,
    marked_label: str = "largest",
    ax: Axes | None = None,
) -> Axes:
    """Draw a histogram of eigenvalues with logarithmic axes.

    Positive and negative values each get their logarithmic bins; what is smaller in magnitude
    than ``noise`` is counted in one bin at zero. Where nothing is negative or noise, the axis is
    plainly logarithmic.

    Args:
        eigenvalues: Values ``[P]`` in any order.
        noise: The magnitude below which a value is as good as zero; by default ``1e-12`` of the
            largest.
        marked: Values to mark with ticks above the bars, such as the outliers.
        marked_label: What the legend calls them.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is nothing to draw, values are not finite, or ``noise`` not positive.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting
        >>> ax = plotting.spectrum(torch.logspace(-3, 1, 50), ax=plotting.new_axes())
        >>> ax.get_xscale()
        'log'
    """
    values = as_array(eigenvalues, "eigenvalues")
    largest = float(np.abs(values).max())
    if noise is None:
        noise = 1e-12 * (largest or 1.0)
    if noise <= 0:
        raise InputError(f"noise is {noise}; it must be positive.")
    ax, colours = resolve(ax), current()
    from matplotlib.ticker import NullFormatter

    is_zero = np.abs(values) <= noise
    positive, negative = values[(values > 0) & ~is_zero], values[(values < 0) & ~is_zero]
    only_positive = len(positive) == len(values)
    # The decade between the noise and the smallest value that stands out would be empty.
    floor = float(np.abs(values[~is_zero]).min()) if not is_zero.all() else noise
    linear = 10.0 ** np.floor(np.log10(floor))  # a power of ten, so that ticks keep their distance
    if only_positive:
        ax.set_xscale("log")
    else:
        ax.set_xscale("symlog", linthresh=linear, linscale=1.0)
    if len(positive):
        ax.hist(
            positive,
            _bins(positive),
            histtype="stepfilled",
            color=colours.primary,
            label=f"{len(positive)} positive",
        )
    if len(negative):
        edges = [-edge for edge in reversed(_bins(-negative))]
        ax.hist(
            negative,
            edges,
            histtype="stepfilled",
            color=colours.accent,
            label=f"{len(negative)} negative",
        )
    if is_zero.any():
        label = f"{int(is_zero.sum())} within ±{noise:.1g}"
        ax.bar(0, is_zero.sum(), 0.6 * linear, color=colours.muted, label=label)
    ax.set_yscale("log")
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(bottom=0.7)
    if marked is not None:
        _mark(ax, as_array(marked, "marked"), marked_label)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("number of eigenvalues")
    # Bars may be anywhere, so the legend stands above them all.
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, columnspacing=1.4)
    return ax


def _bins(values: NDArray[np.float64]) -> list[float]:
    """Return logarithmic bin edges that hold all of the (positive) values."""
    low, high = np.log10(values.min()), np.log10(values.max())
    number = max(1, int(np.ceil((high - low) * _BINS_PER_DECADE)))
    middle, half = (low + high) / 2, number / _BINS_PER_DECADE / 2 + 1e-9
    return [float(edge) for edge in 10 ** np.linspace(middle - half, middle + half, number + 1)]


def _mark(ax: Axes, values: NDArray[np.float64], label: str) -> None:
    """Draw one tick a value along the top edge."""
    ax.plot(
        values,
        np.full(len(values), 0.965),
        linestyle="none",
        marker="|",
        markersize=11,
        markeredgewidth=1.3,
        color=current().ink,
        transform=ax.get_xaxis_transform(),
        label=f"{len(values)} {label}",
        clip_on=False,
    )
