"""The loss on a plane as a surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from curvops.errors import InputError
from curvops.landscape.plane_result import Plane
from curvops.plotting.plane import COLOURS, Scale, colour_scale, values_of
from curvops.plotting.style import Theme, current, matplotlib, plain, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS_ON_SURFACE = 64


def surface(
    scan: Plane,
    *,
    metric: str | None = None,
    scale: Scale = "auto",
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss on a plane as a surface in three dimensions.

    Losses that are not finite leave a hole; what lies beyond the limits is cut off.

    Args:
        scan: The result of :func:`curvops.landscape.plane.plane` or ``plane_through``.
        metric: Draw this metric instead of the loss.
        scale: Of height and colours; ``"auto"`` is logarithmic if the losses span a factor of 20.
        limits: The lowest and the highest value to draw.
        ax: Where to draw, made with ``projection="3d"``; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no such metric or scale, no value is finite, or the axes are flat.
        MissingDependencyError: If matplotlib is not installed.
    """
    values = values_of(scan, metric)
    norm, _, is_log = colour_scale(values, scale, _COLOURS_ON_SURFACE, limits)
    if ax is not None and getattr(ax, "name", "") != "3d":
        raise InputError('ax is flat; make it with projection="3d", or leave it out.')
    axes: Any = _new_axes() if ax is None else ax
    colours = current()
    low, high = float(norm.vmin), float(norm.vmax)
    inside = np.where(np.isfinite(values), values.clip(low, high), np.nan)
    height = np.log10(inside) if is_log else inside
    x, y = np.meshgrid(scan.x.numpy(), scan.y.numpy())
    # matplotlib has no logarithmic height: the surface is that of the logarithm.
    axes.plot_surface(
        x,
        y,
        height,
        facecolors=_facets(inside, norm),
        rcount=len(scan.y),
        ccount=len(scan.x),
        linewidth=0,
        antialiased=False,
        shade=True,
    )
    for (mx, my), loss in zip(scan.marks.tolist(), scan.mark_losses.tolist(), strict=True):
        if metric is None and np.isfinite(loss):
            top = np.log10(max(loss, low)) if is_log else loss
            axes.plot([mx], [my], [top], marker="o", markersize=5, color=colours.accent, zorder=9)
    _style(axes, colours, is_log)
    axes.set_xlabel(plain(scan.labels[0]))
    axes.set_ylabel(plain(scan.labels[1]))
    axes.set_zlabel(plain(metric or "loss"), labelpad=8)
    drawn: Axes = axes
    return drawn


def _new_axes() -> Any:
    matplotlib()
    from matplotlib import pyplot

    with theme(current()):
        figure = pyplot.figure(figsize=(6.4, 4.8), layout="constrained")
        return figure.add_subplot(projection="3d")


def _facets(values: np.ndarray, norm: Any) -> Any:
    """Return the colour of each point; a facet has that of its first."""
    from matplotlib import colormaps

    return colormaps[COLOURS](norm(np.nan_to_num(values, nan=float(norm.vmin))))


def _style(axes: Any, colours: Theme, is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.set_pane_color(colours.paper)
        axis._axinfo["grid"].update(color=colours.grid, linewidth=0.7)
        axis.set_major_locator(MaxNLocator(5))
    if is_log:
        axes.zaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{10.0**v:.2g}"))
    axes.view_init(elev=32, azim=-58)
    axes.set_box_aspect(None, zoom=0.86)  # room for the labels
