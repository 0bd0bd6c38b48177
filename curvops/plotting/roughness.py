"""The roughness along rays, on logarithmic axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from curvops.landscape.ray_result import Rays
from curvops.plotting.ray import Grouping, rays

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def roughness(
    scan: Rays,
    *,
    only: str | Sequence[str] | None = None,
    by: Grouping | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the roughness along rays: how much longer the path over the middle point is.

    On a smooth function of curvature λ it rises like (λh)²/8; a kink at the point would make it
    level. See :func:`curvops.plotting.ray.rays` for what is hollow and shaded.

    Args:
        scan: The result of :func:`curvops.landscape.ray.rays`.
        only: Substrings or globs over the labels of the rays to draw; all by default.
        by: What the colours tell apart, ``"direction"`` or ``"subspace"``.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If there is no such ray, or no value is finite.
        MissingDependencyError: If matplotlib is not installed.
    """
    return rays(scan, "roughness", only=only, by=by, ax=ax)
