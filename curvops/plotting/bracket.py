"""A log-volume between its bounds: what rays see below, what a soft basin says above."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from curvops.errors import InputError
from curvops.plotting.style import current, plain, resolve
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.star_result import StarVolume

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bracket(
    bridge: BridgeVolume,
    stars: Mapping[str, StarVolume | float],
    *,
    ax: Axes | None = None,
) -> Axes:
    """Draw the bracket around a log-volume: star domains, the bridge, and Chernoff's bound.

    Shaded is what the best star domain and Chernoff's bound leave; the bridge stands in it with
    its 95 % interval, and its single runs as small marks.

    Args:
        bridge: From :func:`curvops.volume.bridge.bridge_volume`, by tempering.
        stars: Lower bounds by name: star domains of the same basin, or published numbers.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If the bridge has no upper bound, there is no lower one, or a star domain is of
            another measure or threshold.
        MissingDependencyError: If matplotlib is not installed.
    """
    if bridge.chernoff is None:
        raise InputError('a bridge by path="splitting" has no Chernoff bound to draw.')
    if not stars:
        raise InputError("stars is empty; a bracket needs at least one lower bound.")
    for name, star in stars.items():
        if isinstance(star, StarVolume) and (star.symbol, star.threshold) != (
            bridge.symbol,
            bridge.threshold,
        ):
            raise InputError(
                f"the star domain {name!r} is {star.symbol} at a threshold of {star.threshold:g}, "
                f"the bridge {bridge.symbol} at {bridge.threshold:g}."
            )
    ax, colours = resolve(ax), current()
    values = {name: float(star) for name, star in stars.items()}
    upper = float(bridge.chernoff)
    ax.axvspan(max(values.values()), upper, color=colours.grid, zorder=0)
    rows = len(values)
    for row, (name, value) in enumerate(values.items()):
        star = stars[name]
        if isinstance(star, StarVolume):
            ax.errorbar(value, row, xerr=star.stderr, color=colours.third, capsize=3)
        ax.plot(value, row, marker=">", markersize=7, linestyle="none", color=colours.third)
    _interval(ax, bridge.log_volume, rows, bridge.lower, bridge.upper, colours.primary)
    ax.plot(bridge.log_volume, rows, marker="o", markersize=6, color=colours.primary)
    samples = bridge.volume.samples.tolist()
    ax.plot(samples, [rows] * len(samples), "|", markersize=10, color=colours.primary)
    bound = bridge.chernoff
    _interval(ax, upper, rows + 1, bound.lower, bound.upper, colours.accent)
    ax.plot(upper, rows + 1, marker="<", markersize=7, linestyle="none", color=colours.accent)
    whole = "bridge, whole level set" if bridge.is_global else "bridge"
    ax.set_yticks(range(rows + 2), [*map(plain, values), whole, "Chernoff"])
    ax.set_ylim(rows + 1.6, -0.6)
    ax.grid(visible=False, axis="y")
    ax.margins(x=0.08)
    ax.set_xlabel(f"{bridge.symbol}(cost ≤ {bridge.threshold:g})  [nats]")
    return ax


def _interval(ax: Axes, value: float, row: int, low: float, high: float, colour: str) -> None:
    """Draw an interval, where it is finite."""
    if abs(high - low) < float("inf"):
        ax.errorbar(
            value,
            row,
            xerr=[[value - low], [high - value]],
            color=colour,
            capsize=4,
            elinewidth=1.2,
        )
