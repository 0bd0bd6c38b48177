"""A scan along rays: any of its quantities against distance, hollow where rounding hides it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from curvops.errors import InputError
from curvops.landscape.ray_result import QUANTITIES, Quantity, Rays
from curvops.plotting.style import Theme, current, full_tick_labels, plain, resolve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Grouping = Literal["direction", "subspace"]

_DASHES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (5, 1.5, 1.2, 1.5)))
_NAMES = {
    "loss": "loss",
    "rise": "|loss − loss at θ|",
    "roughness": "roughness",
    "grit": "|grit|",
    "curvature": "|curvature|",
    "two_sided_curvature": "|two-sided curvature|",
}

_EMPTY = {"loss": "upper left"} | dict.fromkeys(("rise", "roughness", "grit"), "lower right")
"""Where rising curves leave room for the legend."""


@dataclass(frozen=True)
class _Ray:
    """How one ray is drawn."""

    index: int
    colour: str
    dashes: Any


def rays(
    scan: Rays,
    quantity: str = "loss",
    *,
    only: str | Sequence[str] | None = None,
    by: Grouping | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a quantity of a scan along rays against the distance, one line a ray.

    Both axes are logarithmic; signed quantities are drawn by magnitude, with triangles that point
    down where they are negative. What does not stand out of the rounding is hollow and not
    joined, and the shade below is what rounding alone would show (the median over the rays). A
    loss that is not finite leaves a gap.

    Args:
        scan: The result of :func:`curvops.landscape.ray.rays`.
        quantity: ``"loss"``, ``"rise"``, ``"roughness"``, ``"grit"``, ``"curvature"``,
            ``"two_sided_curvature"``, or one of its metrics (on a linear axis).
        only: Substrings or globs over the labels of the rays to draw; all by default.
        by: What the colours tell apart: by default the directions, or the subspaces if there is
            one direction only. What they do not is told by dashes.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no such quantity or ray, or no value is finite.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import landscape, plotting
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = [(torch.eye(2).double(), torch.zeros(2, 1).double())]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> scan = landscape.rays(risk, ["descent", "random"], num=4)
        >>> ax = plotting.rays(scan, ax=plotting.new_axes())
        >>> ax.get_xscale(), [text.get_text() for text in ax.get_legend().get_texts()]
        ('log', ['descent', 'random'])
    """
    found = scan.quantity(quantity)
    chosen = _chosen(scan, only)
    colours = current()
    styles, legend = _styles(scan, chosen, by, colours)
    if not bool(found.values[:, chosen].isfinite().any()):
        raise InputError(f"No {quantity} on these rays is finite.")
    ax = resolve(ax)
    is_metric = quantity not in QUANTITIES
    any_negative = False
    for style in styles:
        any_negative |= _draw(ax, found, style, colours, len(chosen), signed=not is_metric)
    ax.set_xscale("log")
    if not is_metric:
        ax.set_yscale("log")
        _limit(ax, found, chosen)
        if quantity != "loss":
            _shade(ax, found, chosen, colours)
    else:
        full_tick_labels(ax)
    if quantity == "loss" or quantity in scan.point_metrics:
        at_point = scan.point_metrics.get(quantity, scan.loss)
        if is_metric or at_point > 0:
            ax.axhline(at_point, color=colours.muted, linewidth=1.0, zorder=1)
    if any_negative:
        legend.append(("negative", {"marker": "v", "color": colours.muted, "linestyle": "none"}))
    _label(ax, legend, _EMPTY.get(quantity, "best"))
    ax.set_xlabel("distance from θ")
    ax.set_ylabel(_NAMES.get(quantity, plain(quantity)))
    return ax


def _chosen(scan: Rays, only: str | Sequence[str] | None) -> list[int]:
    if only is None:
        return list(range(len(scan.labels)))
    patterns = [only] if isinstance(only, str) else list(only)
    chosen = [
        k
        for k, label in enumerate(scan.labels)
        if any(
            fnmatchcase(label, p) if any(c in p for c in "*?[") else p in label for p in patterns
        )
    ]
    if not chosen:
        raise InputError(f"only={only!r} matches none of the rays {list(scan.labels)[:20]}.")
    return chosen


def _styles(
    scan: Rays, chosen: list[int], by: Grouping | None, colours: Theme
) -> tuple[list[_Ray], list[tuple[str, dict[str, Any]]]]:
    """Return a style for each ray, and what the legend says of them."""
    directions = list(dict.fromkeys(scan.directions[k] for k in chosen))
    subspaces = list(dict.fromkeys(scan.subspaces[k] for k in chosen))
    if by is None:
        by = "subspace" if len(directions) == 1 and len(subspaces) > 1 else "direction"
    if by not in ("direction", "subspace"):
        raise InputError(f'by is {by!r}; it must be "direction" or "subspace".')
    is_by_direction = by == "direction"
    palette = (colours.primary, colours.accent, colours.third, colours.fourth)
    outer, inner = (directions, subspaces) if is_by_direction else (subspaces, directions)
    styles = []
    for k in chosen:
        pair = (scan.directions[k], scan.subspaces[k])
        first, second = pair if is_by_direction else pair[::-1]
        g, d = outer.index(first), inner.index(second)
        # More groups than colours share them, told apart by their dashes.
        dashes = _DASHES[(d + g // len(palette)) % len(_DASHES)]
        styles.append(_Ray(k, palette[g % len(palette)], dashes))

    def name(of: str) -> str:
        return "all parameters" if of == "*" else plain(of)

    legend: list[tuple[str, dict[str, Any]]] = [
        (
            name(group),
            {
                "color": palette[g % len(palette)],
                "linestyle": _DASHES[(g // len(palette)) % len(_DASHES)],
            },
        )
        for g, group in enumerate(outer)
    ]
    if len(inner) > 1:
        legend += [
            (name(group), {"color": colours.muted, "linestyle": _DASHES[d % len(_DASHES)]})
            for d, group in enumerate(inner)
        ]
    return styles, legend


def _draw(
    ax: Axes, found: Quantity, style: _Ray, colours: Theme, num: int, *, signed: bool
) -> bool:
    """Draw one ray, and return whether something in it is negative."""
    k = style.index
    x, y = found.distances[:, k].numpy(), found.values[:, k].numpy()
    seen = found.resolved[:, k].numpy() & np.isfinite(y)
    negative = seen & (y < 0) if signed else np.zeros_like(seen)
    size = np.abs(y) if signed else y
    alpha = 1.0 if num <= 6 else 0.75
    width, dot = (1.7, 3.4) if num <= 6 else (1.1, 2.4)
    ax.plot(
        x,
        np.where(seen, size, np.nan),
        color=style.colour,
        linestyle=style.dashes,
        linewidth=width,
        alpha=alpha,
    )
    for marker, shown in (("o", seen & ~negative), ("v", negative)):
        ax.plot(
            x,
            np.where(shown, size, np.nan),
            linestyle="none",
            marker=marker,
            markersize=dot,
            color=style.colour,
            alpha=alpha,
        )
    hidden = np.isfinite(y) & ~seen
    ax.plot(
        x,
        np.where(hidden & (size > 0), size, np.nan),
        linestyle="none",
        marker="o",
        markersize=dot + 0.4,
        markerfacecolor="none",
        markeredgecolor=style.colour,
        markeredgewidth=0.7,
        alpha=0.55,
    )
    return bool(negative.any())


def _limit(ax: Axes, found: Quantity, chosen: list[int]) -> None:
    """Do not go further below what can be seen than it takes to see where that ends."""
    values, floors = found.values[:, chosen].abs(), found.floors[:, chosen]
    seen = values[found.resolved[:, chosen] & values.isfinite() & (values > 0)]
    if not len(seen):
        return
    known = floors[floors.isfinite() & (floors > 0)]
    hidden = values[~found.resolved[:, chosen] & values.isfinite() & (values > 0)]
    low, high = float(seen.min()), float(seen.max())
    if len(hidden) and len(known):
        low = min(low, float(known.min()) / 30)
        high = max(high, float(hidden.max()))
    pad = max((high / low) ** 0.04, 1.15)
    ax.set_ylim(low / pad, high * pad)


def _shade(ax: Axes, found: Quantity, chosen: list[int], colours: Theme) -> None:
    """Shade what rounding alone would show."""
    floors = found.floors[:, chosen].nanmedian(dim=1).values
    x = found.distances[:, chosen].log().mean(1).exp()
    known = floors.isfinite() & (floors > 1e-240)
    if bool(known.any()):
        ax.fill_between(
            x[known].numpy(),
            floors[known].numpy(),
            floors[known].numpy() * 1e-60,  # below the axis, also if it is moved later
            color=colours.grid,
            linewidth=0,
            zorder=0.5,
        )


def _label(ax: Axes, legend: list[tuple[str, dict[str, Any]]], place: Any) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **style) for _, style in legend]
    box = ax.legend(handles, [name for name, _ in legend], loc=place, fontsize=8, handlelength=1.9)
    box.set_frame_on(True)
    box.get_frame().set(facecolor=current().paper, edgecolor="none", alpha=0.75)
