"""A spectral density: the bulk as a curve with its band, the outliers as ticks with names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from curvops.errors import InputError
from curvops.linalg.density_result import SpectralDensity
from curvops.plotting.style import as_array, current, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

_POINTS = 1000
_NAMED = 8
"""More outliers than this are not written out one by one."""

_DECADES = 8
"""What a logarithmic axis shows below the peak."""


def density(
    result: SpectralDensity,
    *,
    bandwidth: float | None = None,
    scale: Literal["linear", "log"] = "linear",
    eigenvalues: ArrayLike | torch.Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the density of the eigenvalues, smoothed, with its band over the probes.

    On a logarithmic axis a single outlier among millions is seen, and so are gaps.

    Args:
        result: What :func:`curvops.linalg.density.spectral_density` returned.
        bandwidth: Of the Gaussian it is smoothed by, in units of the eigenvalues; by default
            :attr:`~curvops.linalg.density_result.SpectralDensity.bandwidth`.
        scale: Of the vertical axis.
        eigenvalues: The true ones, to draw as a histogram behind the curve.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If ``bandwidth`` is not positive or there is no such scale.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops.linalg.density import spectral_density
        >>> from curvops.plotting.style import new_axes
        >>> A = torch.diag(torch.cat([torch.linspace(0, 1, 100), torch.tensor([4.0])]))
        >>> ax = density(spectral_density(A, 4, 20, deflate=1), scale="log", ax=new_axes())
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['4 probes, 20 steps', '95 % band', '1 outlier: 4']
    """
    if scale not in ("linear", "log"):
        raise InputError(f'scale must be "linear" or "log", got {scale!r}.')
    h = result.bandwidth if bandwidth is None else bandwidth
    low, high = result.interval
    x = torch.linspace(low - 4 * h, high + 4 * h, _POINTS, dtype=torch.float64)
    if len(result.outliers):  # peaks may be narrower than the distance of points
        around = torch.linspace(-4 * h, 4 * h, 33, dtype=torch.float64)
        x = torch.cat([x, (result.outliers.unsqueeze(1) + around).flatten()]).sort().values
    curve = result.pdf(x, h)
    ax, colours = resolve(ax), current()
    floor = 0.0
    if scale == "log":
        ax.set_yscale("log")
        floor = float(curve.values.max()) * 10.0**-_DECADES
        ax.set_ylim(floor, 3 * float(curve.values.max()))
    if eigenvalues is not None:
        values = as_array(eigenvalues, "eigenvalues")
        ax.hist(
            values,
            bins="auto",
            density=True,
            color=colours.grid,
            label=f"{len(values)} true eigenvalues",
        )
    probes, steps = result.nodes.shape
    plural = "" if probes == 1 else "s"
    ax.plot(
        x,
        curve.values.clamp(min=floor),
        color=colours.primary,
        label=f"{probes} probe{plural}, {steps} steps",
    )
    if probes > 1:
        ax.fill_between(
            x,
            curve.lower.clamp(min=floor),
            curve.upper.clamp(min=floor),
            color=colours.primary,
            alpha=0.25,
            linewidth=0,
            label="95 % band",
        )
    if len(result.outliers):
        ax.plot(
            result.outliers,
            [0.965] * len(result.outliers),
            linestyle="none",
            marker="|",
            markersize=11,
            markeredgewidth=1.3,
            color=colours.accent,
            transform=ax.get_xaxis_transform(),
            label=_name(result),
            clip_on=False,
        )
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3, columnspacing=1.4)
    return ax


def _name(result: SpectralDensity) -> str:
    """Return how many outliers there are, and where."""
    values = result.outliers.tolist()
    count = f"{len(values)} outlier{'s' if len(values) > 1 else ''}"
    if len(values) > _NAMED:
        return f"{count}: {values[0]:.3g} … {values[-1]:.3g}"
    return f"{count}: {', '.join(f'{value:.3g}' for value in values)}"
