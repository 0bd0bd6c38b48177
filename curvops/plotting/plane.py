"""The loss on a plane as contours, with the points it goes through and the paths above it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from curvops.errors import InputError
from curvops.landscape.plane_result import Overlay, Plane
from curvops.plotting.style import Theme, current, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Scale = Literal["auto", "linear", "log"]

COLOURS = "viridis"
_MANY_DECADES = 20.0
"""From this ratio on, contours at equal steps would all lie at the edge."""


def plane(
    scan: Plane,
    overlay: Overlay | None = None,
    *,
    metric: str | None = None,
    scale: Scale = "auto",
    levels: int = 18,
    limits: tuple[float, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss on a plane as filled contours.

    Points of an overlay are filled with the colour of their *true* loss: where that is not the
    colour around them, the plane does not show what happens above it. Losses that are not finite
    leave a gap.

    Args:
        scan: The result of :func:`curvops.landscape.plane.plane` or ``plane_through``.
        overlay: Points above the plane, from :func:`curvops.landscape.plane.overlay`.
        metric: Draw this metric instead of the loss.
        scale: Of the colours; ``"auto"`` is logarithmic if the losses span a factor of 20.
        levels: How many contours.
        limits: The lowest and the highest value that has a colour of its own.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes, of equal scale.

    Raises:
        InputError: If there is no such metric or scale, the limits are empty, or no value is
            finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import landscape, plotting
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> scan = landscape.plane(risk, "descent", "random", resolution=9)
        >>> plotting.plane(scan, ax=plotting.new_axes()).get_xlabel()
        'descent'
    """
    values = values_of(scan, metric)
    norm, steps, is_log = colour_scale(values, scale, levels, limits)
    ax, colours = resolve(ax), current()
    masked = np.ma.masked_invalid(values)
    if bool(np.ma.getmaskarray(masked).any()):
        ax.set_facecolor(colours.grid)
    x, y = scan.x.numpy(), scan.y.numpy()
    beyond = "neither" if limits is None else "both"
    filled = ax.contourf(x, y, masked, levels=steps, norm=norm, cmap=COLOURS, extend=beyond)
    ax.contour(x, y, masked, levels=steps, colors=colours.ink, linewidths=0.35, alpha=0.5)
    if overlay is not None:
        _draw_overlay(ax, overlay, norm, colours, metric is None)
    _draw_marks(ax, scan, colours)
    _colour_bar(ax, filled, metric or "loss", steps, is_log, colours)
    ax.set_aspect("equal", adjustable="box")
    ax.locator_params(nbins=6)
    ax.grid(visible=False)
    ax.set_xlabel(plain(scan.labels[0]))
    ax.set_ylabel(plain(scan.labels[1]))
    return ax


def values_of(scan: Plane, metric: str | None) -> np.ndarray:
    """Return the losses, or a metric, ``[Y, X]``."""
    if metric is None:
        return scan.losses.numpy()
    if metric not in scan.metrics:
        raise InputError(f"There is no metric {metric!r} in this scan; known: {[*scan.metrics]}.")
    return scan.metrics[metric].numpy()


def colour_scale(
    values: np.ndarray, scale: Scale, levels: int, limits: tuple[float, float] | None
) -> tuple[Any, np.ndarray, bool]:
    """Return the norm of colours, the levels, and whether they are logarithmic."""
    from matplotlib.colors import LogNorm, Normalize

    if scale not in ("auto", "linear", "log"):
        raise InputError(f'scale is {scale!r}; it must be "auto", "linear" or "log".')
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise InputError(f"levels is {levels!r}; it must be an integer of at least 2.")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError("No value on this plane is finite.")
    low, high = (float(finite.min()), float(finite.max())) if limits is None else limits
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise InputError(f"limits is {limits!r}; it must be two finite numbers, the lower first.")
    is_log = scale == "log" or (scale == "auto" and low > 0 and high > _MANY_DECADES * low)
    if is_log and low <= 0:
        raise InputError('scale="log" needs positive values; pass limits=, or scale="linear".')
    if low == high:  # a plane that is level
        low, high = low - 0.5 * (abs(low) or 1.0), high + 0.5 * (abs(high) or 1.0)
    if is_log:
        return LogNorm(low, high), np.geomspace(low, high, levels), True
    return Normalize(low, high), np.linspace(low, high, levels), False


def _draw_overlay(ax: Axes, overlay: Overlay, norm: Any, colours: Theme, is_loss: bool) -> None:
    """Draw a path, its points in the colour of their true loss."""
    x, y = overlay.coordinates.T.numpy()
    # Ink on paper is seen on any colour.
    ax.plot(x, y, color=colours.paper, linewidth=2.6, zorder=3)
    ax.plot(x, y, color=colours.ink, linewidth=1.0, zorder=3)
    losses = overlay.losses.numpy()
    known = np.isfinite(losses)
    if is_loss:
        ax.scatter(
            x[known],
            y[known],
            c=losses[known],
            norm=norm,
            cmap=COLOURS,
            edgecolors=colours.ink,
            linewidths=0.7,
            s=26,
            zorder=4,
            label=f"{plain(overlay.label)}, filled with its true loss",
        )
        ax.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0))
    ax.plot(x[-1:], y[-1:], marker="*", markersize=11, color=colours.accent, zorder=5)


def _draw_marks(ax: Axes, scan: Plane, colours: Theme) -> None:
    for (x, y), label in zip(scan.marks.tolist(), scan.mark_labels, strict=True):
        ax.plot([x], [y], marker="o", markersize=7, color=colours.paper, zorder=5)
        ax.plot([x], [y], marker="o", markersize=4, color=colours.ink, zorder=5)
        note = ax.annotate(
            plain(label, 20),
            (x, y),
            xytext=(6, 5),
            textcoords="offset points",
            color=colours.ink,
            fontsize=11,
            zorder=6,
        )
        _outlined(note, colours)


def _outlined(text: Any, colours: Theme) -> None:
    """Put paper around letters, which then are read on any colour."""
    from matplotlib.patheffects import Normal, Stroke

    text.set_path_effects([Stroke(linewidth=1.8, foreground=colours.paper), Normal()])


def _colour_bar(
    ax: Axes, filled: Any, name: str, steps: np.ndarray, is_log: bool, colours: Theme
) -> None:
    from matplotlib.ticker import FuncFormatter

    bar = ax.figure.colorbar(filled, ax=ax, shrink=0.9, pad=0.02)
    bar.set_label(plain(name), color=colours.ink)
    if is_log:
        bar.set_ticks(list(steps[:: max(1, len(steps) // 6)]), minor=False)
        bar.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
    bar.ax.tick_params(labelcolor=colours.ink, color=colours.muted, labelsize=8)
    bar.outline.set_visible(False)
