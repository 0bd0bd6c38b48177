"""The loss along one path or several, and the barriers on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from curvops.errors import InputError, ShapeError
from curvops.landscape.path_scan import PathScan
from curvops.plotting.style import current, full_tick_labels, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MANY_DECADES = 50.0
"""From this ratio of losses on, the axis is logarithmic."""


def path(
    scans: PathScan | Sequence[PathScan],
    *,
    metric: str | None = None,
    x: Literal["t", "distance"] = "t",
    labels: Sequence[str] | None = None,
    barriers: bool = True,
    scale: Literal["auto", "linear", "log"] = "auto",
    ax: Axes | None = None,
) -> Axes:
    """Draw the loss along paths, with the barrier of each in the legend.

    A loss that is not finite leaves a gap. The dot is where the barrier is highest.

    Args:
        scans: Results of :func:`curvops.landscape.path_scan.scan_path`.
        metric: Draw this metric instead of the loss.
        x: Against t, or against the distance along the path, in units of the parameters.
        labels: What the paths are called; their kinds by default.
        barriers: Whether to write barriers into the legend.
        scale: Of the losses; ``"auto"`` is logarithmic where they span a factor of 50.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is nothing to draw, no such metric or axis, or no value is finite.
        ShapeError: If there are not as many labels as paths.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting
        >>> from curvops.landscape.path_scan import PathScan
        >>> t = torch.linspace(0, 1, 5)
        >>> scan = PathScan("segment", t, t, t * (1 - t) + 1, {}, False, torch.float32, 5, 0.1)
        >>> ax = plotting.path(scan, ax=plotting.new_axes())
        >>> ax.get_legend().get_texts()[0].get_text()
        'segment, barrier 0.25'
    """
    drawn = [scans] if isinstance(scans, PathScan) else list(scans)
    if not drawn:
        raise InputError("scans is empty: there is no path to draw.")
    names = [scan.name for scan in drawn] if labels is None else list(labels)
    if len(names) != len(drawn):
        raise ShapeError(f"{len(names)} labels for {len(drawn)} paths.")
    if x not in ("t", "distance"):
        raise InputError(f'x is {x!r}; it must be "t" or "distance".')
    if scale not in ("auto", "linear", "log"):
        raise InputError(f'scale is {scale!r}; it must be "auto", "linear" or "log".')
    values = [_values(scan, metric) for scan in drawn]
    everything = np.concatenate(values)
    finite = everything[np.isfinite(everything)]
    if not finite.size:
        raise InputError("No value on these paths is finite.")
    ax, colours = resolve(ax), current()
    series = (colours.primary, colours.accent, colours.third, colours.fourth)
    dashes = ("-", (0, (5, 1.8)), (0, (1.3, 1.3)), (0, (5, 1.5, 1.3, 1.5)))
    for i, (scan, name, numbers) in enumerate(zip(drawn, names, values, strict=True)):
        where = (scan.times if x == "t" else scan.distances).numpy()
        label = plain(name)
        if metric is None and barriers:
            label += f", barrier {scan.barrier:.3g}"
        colour = series[i % len(series)]
        ax.plot(where, numbers, color=colour, linestyle=dashes[i % len(dashes)], label=label)
        if metric is None and barriers and np.isfinite(scan.barrier) and scan.barrier > 0:
            top = int(scan.excess.argmax())
            ax.plot(where[top], numbers[top], marker="o", markersize=5, color=colour)
    low, high = float(finite.min()), float(finite.max())
    if scale == "log" and low <= 0:
        raise InputError('scale="log" needs positive values.')
    if scale == "log" or (
        scale == "auto" and metric is None and low > 0 and high > _MANY_DECADES * low
    ):
        ax.set_yscale("log")
    else:
        full_tick_labels(ax)
    ax.set_xlabel("t" if x == "t" else "distance along the path")
    ax.set_ylabel(plain(metric or "loss"))
    ax.legend(loc="best")
    return ax


def _values(scan: PathScan, metric: str | None) -> np.ndarray:
    if metric is None:
        return scan.losses.numpy()
    if metric not in scan.metrics:
        raise InputError(
            f"There is no metric {metric!r} on the {scan.name}; known: {[*scan.metrics]}."
        )
    return scan.metrics[metric].numpy()
