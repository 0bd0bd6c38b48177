"""The ladders of a bridge: the cost, the normaliser, and how the chains fare, rung by rung."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from curvops.errors import InputError
from curvops.plotting.style import current, new_panels, resolve
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.smc import Step

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "cost": "mean cost",
    "log_z": "log Z  [nats]",
    "ess": "effective share",
    "acceptance": "acceptance",
    "families": "families",
}


def bridge(result: BridgeVolume, *, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw the ladders of a bridge, one panel below the other.

    Against the inverse temperature, or the level of the cost when splitting: the mean cost, down to
    the threshold; the effective share of the points; the acceptance of the moves. One line a run.

    Args:
        result: From :func:`curvops.volume.bridge.bridge_volume`.
        axes: Where to draw, three of them; a new figure by default.

    Returns:
        The axes, one for each panel.

    Raises:
        InputError: If there are not three axes.
        MissingDependencyError: If matplotlib is not installed.
    """
    quantities = ("cost", "ess", "acceptance")
    shared = axes is None
    axes = new_panels(len(quantities)) if axes is None else axes
    if len(axes) != len(quantities):
        raise InputError(f"{len(axes)} axes for {len(quantities)} panels.")
    for quantity, ax in zip(quantities, axes, strict=True):
        bridge_panel(result, quantity, ax=ax)
        if shared and ax is not axes[-1]:
            ax.set_xlabel("")
    return list(axes)


def bridge_panel(result: BridgeVolume, quantity: str, *, ax: Axes | None = None) -> Axes:
    """Draw one quantity along the ladders of a bridge, one line a run.

    What was found on the way back, on a round trip, is dashed.

    Args:
        result: From :func:`curvops.volume.bridge.bridge_volume`.
        quantity: ``"cost"``, ``"log_z"``, ``"ess"`` (as a share of the points), ``"acceptance"``,
            or ``"families"``, how many of the first points have descendants.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no such quantity.
        MissingDependencyError: If matplotlib is not installed.
    """
    if quantity not in _LABELS:
        names = ", ".join(f'"{name}"' for name in _LABELS)
        raise InputError(f"quantity must be one of {names}; got {quantity!r}.")
    ax, colours = resolve(ax), current()
    splitting = result.path == "splitting"
    for ladder in result.ladders:
        warm = [s for s in ladder if s.stage in ("reference", "temper", "split")]
        back = [s for s in ladder if s.stage == "return"]
        for steps, style in ((warm, "-"), (back, "--")):
            points = [(s.level if splitting else s.beta, _value(s, quantity)) for s in steps]
            kept = [(x, y) for x, y in points if x > 0.0 and math.isfinite(y)]
            if kept:
                x, y = np.array(kept).T
                marker = "o" if len(kept) < 40 else ""
                ax.plot(
                    x, y, style, marker=marker, markersize=3, linewidth=1.2,
                    color=colours.primary if style == "-" else colours.third,
                )  # fmt: skip
    ax.set_xscale("log")
    if splitting:
        ax.set_xlabel(f"level of the cost  [{result.unit}]")
        ax.invert_xaxis()
    else:
        ax.set_xlabel("inverse temperature β")
    ax.set_ylabel(_LABELS[quantity])
    if quantity == "cost":
        positive = all(s.mean_cost > 0.0 for ladder in result.ladders for s in ladder)
        ax.set_yscale("log" if positive else "linear")
        ax.axhline(result.threshold, color=colours.accent, linewidth=1.2, linestyle=(0, (4, 2.5)))
        ax.annotate(
            f"ε = {result.threshold:g}",
            (0.0, result.threshold),
            xycoords=("axes fraction", "data"),
            xytext=(4, 4),
            textcoords="offset points",
            color=colours.accent,
            fontsize=9,
        )
    elif quantity in ("ess", "acceptance"):
        ax.set_ylim(0.0, 1.05)
    return ax


def _value(step: Step, quantity: str) -> float:
    values = {
        "cost": step.mean_cost,
        "log_z": step.log_z,
        "ess": step.ess / step.num_points,
        "acceptance": step.acceptance,
        "families": float(step.num_families),
    }
    return values[quantity]
