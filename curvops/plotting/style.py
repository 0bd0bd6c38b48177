"""The look of every picture: two themes, and nothing that outlives a ``with`` block.

matplotlib's global settings are changed only while a theme is open; a picture drawn into the
caller's own axes takes its colours from the theme and leaves the axes' own style alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from curvops.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Theme:
    """Colours by what they mean; each is used for one thing only, so that it can be restyled.

    Attributes:
        paper: Behind everything.
        ink: Text and the most important marks.
        muted: Axis lines, tick labels, secondary marks.
        grid: Grid lines.
        primary: What was measured.
        accent: What it is compared with, or what deserves a look.
        third: A third series.
        fourth: A fourth series.
    """

    paper: str
    ink: str
    muted: str
    grid: str
    primary: str
    accent: str
    third: str
    fourth: str

    def to_dict(self) -> dict[str, str]:
        """Return the colours by name."""
        return asdict(self)


# Series colours differ in lightness as well as in hue, so that they survive grey printing and
# the common colour deficiencies.
LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2230",
    muted="#5f6878",
    grid="#e2e6ec",
    primary="#2458b3",
    accent="#d4570f",
    third="#0f8f77",
    fourth="#7d4bb3",
)
DARK = Theme(
    paper="#14171f",
    ink="#e8ebf1",
    muted="#9aa4b5",
    grid="#2c323f",
    primary="#7fb0ff",
    accent="#ff9d5c",
    third="#4fd1b5",
    fourth="#c79bff",
)
_THEMES = {"light": LIGHT, "dark": DARK}
_current: ContextVar[Theme] = ContextVar("curvops_plotting_theme", default=LIGHT)


def current() -> Theme:
    """Return the theme in force."""
    return _current.get()


@contextmanager
def theme(name: str | Theme) -> Iterator[Theme]:
    """Draw with a theme's colours inside the ``with`` block.

    Args:
        name: ``"light"``, ``"dark"``, or a :class:`Theme` of your own.

    Raises:
        InputError: If there is no theme of that name.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> from curvops import plotting
        >>> with plotting.theme("dark") as colours:
        ...     ax = plotting.scree([3.0, 2.0, 1.0], ax=plotting.new_axes())
        >>> colours.paper
        '#14171f'
    """
    if isinstance(name, str) and name not in _THEMES:
        raise InputError(f"There is no theme {name!r}; known: {', '.join(_THEMES)}.")
    chosen = _THEMES[name] if isinstance(name, str) else name
    mpl = matplotlib()
    token = _current.set(chosen)
    try:
        with mpl.rc_context(_settings(chosen)):
            yield chosen
    finally:
        _current.reset(token)


def matplotlib() -> Any:
    """Import matplotlib, or say which extra brings it."""
    try:
        import matplotlib as module
    except ImportError as error:
        raise MissingDependencyError(
            "Pictures need matplotlib, which is not installed. "
            'Install the extra "plot": pip install "curvops[plot]".'
        ) from error
    return module


def new_axes(width: float = 6.4, height: float = 3.6) -> Axes:
    """Return axes in a new figure of the theme's colours, unknown to pyplot.

    Nothing keeps such a figure alive or shows it in a window, which suits files and reports.

    Args:
        width: In inches.
        height: In inches.
    """
    matplotlib()
    from matplotlib.figure import Figure

    with theme(current()):
        return Figure(figsize=(width, height), layout="constrained").subplots()


def resolve(ax: Axes | None) -> Axes:
    """Return the axes to draw in; without any, those of a new pyplot figure."""
    if ax is not None:
        return ax
    matplotlib()
    from matplotlib import pyplot

    with theme(current()):
        return pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")[1]


def new_panels(count: int) -> list[Axes]:
    """Return axes one below the other, which share x, in a new pyplot figure."""
    matplotlib()
    from matplotlib import pyplot

    with theme(current()):
        size = (6.4, 1.0 + 1.7 * count)
        panels = pyplot.subplots(
            count, 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
        )[1]
    return list(panels[:, 0])


def as_array(values: ArrayLike | torch.Tensor, what: str) -> NDArray[np.float64]:
    """Return one-dimensional finite numbers as a float64 array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise InputError(f"{what} has shape {list(array.shape)}; expected a non-empty [N].")
    if not np.isfinite(array).all():
        raise InputError(f"{what} holds non-finite values.")
    return array


def plain(text: str, limit: int = 60) -> str:
    """Make a string from a model or a file safe to draw: no mathematics, one line, not too long."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return text.replace("$", r"\$")


def full_tick_labels(ax: Axes) -> None:
    """Write the numbers of the vertical axis in full, not as differences to an offset."""
    from matplotlib.ticker import ScalarFormatter

    formatter = ax.yaxis.get_major_formatter()
    if isinstance(formatter, ScalarFormatter):  # logarithmic axes have another
        formatter.set_useOffset(False)


def _settings(colours: Theme) -> dict[str, Any]:
    return {
        "figure.facecolor": colours.paper,
        "savefig.facecolor": colours.paper,
        "axes.facecolor": colours.paper,
        "axes.edgecolor": colours.muted,
        "axes.labelcolor": colours.ink,
        "axes.titlecolor": colours.ink,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 10,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.prop_cycle": _cycle(colours),
        "grid.color": colours.grid,
        "grid.linewidth": 0.8,
        "text.color": colours.ink,
        "xtick.color": colours.muted,
        "ytick.color": colours.muted,
        "xtick.labelcolor": colours.ink,
        "ytick.labelcolor": colours.ink,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "legend.labelcolor": colours.ink,
        "font.size": 10,
        "lines.linewidth": 1.8,
        "axes.unicode_minus": True,
    }


def _cycle(colours: Theme) -> Any:
    from cycler import cycler

    return cycler(color=[colours.primary, colours.accent, colours.third, colours.fourth])
