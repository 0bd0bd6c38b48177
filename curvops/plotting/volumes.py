"""Log-volumes by method, each with its interval, and what is only a bound drawn as one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from curvops.errors import InputError
from curvops.plotting.style import current, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from curvops.volume.bridge_result import BridgeVolume
    from curvops.volume.quadratic import QuadraticVolume
    from curvops.volume.star_result import StarVolume

    Result = QuadraticVolume | StarVolume | BridgeVolume


def volumes(results: Mapping[str, Result], *, ax: Axes | None = None) -> Axes:
    """Draw log-volumes of a basin, one a row: value, standard error, 95 % interval.

    A thick bar is one standard error, a thin one with caps the interval. An open marker with an
    arrow is a lower bound: the volume is there or further right. A bar across is Chernoff's upper
    bound, where a bridge has one.

    Args:
        results: By name, the first on top; from :func:`curvops.volume.basin.basin_volume`.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is nothing to draw, or volumes of different measures are mixed.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting, volume
        >>> small, large = (volume.quadratic_volume(torch.ones(3), threshold=t) for t in (0.1, 1.0))
        >>> ax = plotting.volumes({"T = 0.1": small, "T = 1": large}, ax=plotting.new_axes())
        >>> ax.get_xlabel()
        'log V  [nats]'
    """
    if not results:
        raise InputError("results is empty; expected log-volumes by name.")
    symbols = {name: result.symbol for name, result in results.items()}
    if len(set(symbols.values())) > 1:
        raise InputError(
            f"results mixes measures, whose numbers cannot be compared: {symbols}. Ask all methods "
            'for the same measure=, "lebesgue" or "gaussian".'
        )
    ax, colours = resolve(ax), current()
    for row, result in enumerate(results.values()):
        _row(ax, row, result)
    bounds = [
        (row, bound)
        for row, result in enumerate(results.values())
        if (bound := _chernoff(result)) is not None
    ]
    if bounds:
        ax.plot(
            [bound for _, bound in bounds],
            [row for row, _ in bounds],
            linestyle="none",
            marker="|",
            markersize=18,
            markeredgewidth=2,
            color=colours.accent,
            label="Chernoff's upper bound",
        )
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0))
    ax.set_yticks(range(len(results)), [plain(name) for name in results])
    ax.set_ylim(len(results) - 0.5, -0.5)
    ax.margins(x=0.12)
    ax.set_xlabel(f"{next(iter(symbols.values()))}  [nats]")
    ax.grid(axis="y", visible=False)
    return ax


def _row(ax: Axes, row: int, result: Any) -> None:
    colours, value = current(), result.log_volume
    below, above = (
        abs(end - value) if math.isfinite(end) else 0.0 for end in (result.lower, result.upper)
    )
    ax.errorbar(
        value,
        row,
        xerr=[[below], [above]],
        fmt="none",
        ecolor=colours.primary,
        elinewidth=1.2,
        capsize=4,
    )
    if result.converged and math.isfinite(result.stderr):
        ends = [value - result.stderr, value + result.stderr]
        ax.plot(ends, [row, row], color=colours.primary, linewidth=4, solid_capstyle="butt")
    ax.plot(
        value,
        row,
        linestyle="none",
        marker="o",
        markersize=6,
        color=colours.primary,
        markerfacecolor=colours.primary if result.converged else colours.paper,
    )
    if math.isinf(result.upper):
        ax.annotate(
            "",
            (value, row),
            xytext=(34, 0),
            textcoords="offset points",
            arrowprops={"arrowstyle": "<-", "color": colours.primary},
        )


def _chernoff(result: Any) -> float | None:
    bound = getattr(result, "chernoff", None)
    return None if bound is None else float(bound)
