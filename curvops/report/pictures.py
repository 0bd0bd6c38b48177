"""matplotlib axes as inline SVG whose colours follow the page, light or dark.

Pictures are drawn in the light theme; then each of its colours becomes a CSS variable. Letters
are drawn as paths, so that a picture looks the same on every machine and holds no markup from
outside.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

from curvops.plotting.style import DARK, LIGHT, Theme, theme
from curvops.report.blocks import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], object]
"""Draws one picture into the axes it is given."""

_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>\s*", re.DOTALL)
_SIZE = re.compile(r'(<svg [^>]*?)width="[^"]*pt" ')
_HEIGHT = re.compile(r'(<svg [^>]*?)height="[^"]*pt" ')
_IDS = re.compile(r'(\bid="|href="#|url\(#)')


def picture(
    name: str, alt: str, *draws: Draw, caption: str = "", width: float = 6.4, height: float = 3.6
) -> Figure:
    """Draw one or more pictures, two in a row.

    Args:
        name: Unique within the page; made of letters, digits and dashes.
        alt: What it shows, for those who do not see it.
        draws: One function for each pair of axes, in reading order.
        caption: What to look for.
        width: In inches, at the size of the page's text.
        height: In inches.

    Returns:
        The figure as a block.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    with theme(LIGHT):
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas

        with rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
            canvas = Canvas(figsize=(width, height), layout="constrained")
            columns = min(len(draws), 2)
            grid = canvas.subplots(-(-len(draws) // columns), columns, squeeze=False)
            for place, draw in zip_longest(grid.flat, draws):
                if draw is None:
                    place.set_axis_off()
                else:
                    draw(place)
            buffer = io.StringIO()
            canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Figure(svg=_inline(buffer.getvalue(), name), alt=alt, caption=caption)


def css_variables(colours: Theme) -> str:
    """Return a theme's colours as CSS declarations."""
    return "".join(f"--plot-{name}:{value};" for name, value in colours.to_dict().items())


LIGHT_VARIABLES, DARK_VARIABLES = css_variables(LIGHT), css_variables(DARK)


def _inline(svg: str, name: str) -> str:
    """Make a stand-alone SVG document an element of a page."""
    svg = _METADATA.sub("", _PROLOGUE.sub("", svg)).strip()
    svg = _HEIGHT.sub(r"\1", _SIZE.sub(r"\1", svg, count=1), count=1)
    # Several pictures share a page, and with it one namespace of ids.
    svg = _IDS.sub(rf"\g<1>{name}-", svg)
    for colour, value in LIGHT.to_dict().items():
        svg = svg.replace(value, f"var(--plot-{colour},{value})")
    return svg
