"""The distribution of eigenvalues as a cumulative curve, beside the true one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from curvops.linalg.density_result import SpectralDensity
from curvops.plotting.style import as_array, current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

_POINTS = 1000


def cumulative(
    result: SpectralDensity,
    *,
    eigenvalues: ArrayLike | torch.Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the share of the eigenvalues that are at most x, with its band over the probes.

    Args:
        result: What :func:`curvops.linalg.density.spectral_density` returned.
        eigenvalues: The true ones, whose curve is drawn beside it.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes; the horizontal one is logarithmic if everything is positive, and symmetrically
        logarithmic from a thousandth of the largest otherwise.

    Raises:
        InputError: If ``eigenvalues`` is empty or not finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops.linalg.density import spectral_density
        >>> from curvops.plotting.style import new_axes
        >>> A = torch.diag(torch.logspace(-2, 1, 100))
        >>> cumulative(spectral_density(A, 4, 20), ax=new_axes()).get_xscale()
        'log'
    """
    low, high = result.interval
    values = None if eigenvalues is None else np.sort(as_array(eigenvalues, "eigenvalues"))
    if values is not None:
        low, high = min(low, float(values[0])), max(high, float(values[-1]))
    ax, colours = resolve(ax), current()
    largest = max(abs(low), abs(high)) or 1.0
    if low > 0:
        ax.set_xscale("log")
        grid = torch.logspace(np.log10(low), np.log10(high), _POINTS, dtype=torch.float64)
    else:
        threshold = 1e-3 * largest
        ax.set_xscale("symlog", linthresh=threshold)
        outer = torch.logspace(-3, 0, _POINTS // 2, dtype=torch.float64) * largest
        inner = torch.linspace(-threshold, threshold, _POINTS // 2, dtype=torch.float64)
        grid = torch.cat([-outer.flip(0), inner, outer])
        grid = grid[(grid >= low) & (grid <= high)]
    # Both sides of the outliers' steps.
    known = result.outliers
    x = torch.cat([grid, known, known - 1e-12 * known.abs()]).sort().values
    curve = result.cdf(x)
    if values is not None:
        shares = np.arange(1, len(values) + 1) / len(values)
        ax.step(
            np.concatenate([values[:1], values]),
            np.concatenate([[0.0], shares]),
            where="post",
            color=colours.accent,
            linewidth=3,
            alpha=0.7,
            label=f"{len(values)} true eigenvalues",
        )
    probes, steps = result.nodes.shape
    ax.plot(x, curve.values, color=colours.primary, label=f"{probes} probes, {steps} steps")
    if probes > 1:
        ax.fill_between(x, curve.lower, curve.upper, color=colours.primary, alpha=0.25, linewidth=0)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("share at most as large")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, columnspacing=1.4)
    return ax
