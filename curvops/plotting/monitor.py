"""A monitored run: one panel for each quantity, over the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from curvops.errors import InputError
from curvops.plotting.style import current, full_tick_labels, new_panels, plain, resolve
from curvops.training.monitor import Monitor
from curvops.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def monitor(
    run: Run | Monitor,
    *,
    panels: Iterable[str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw what a run has measured, one panel below the other.

    Args:
        run: A monitor, its run, or one read from a journal.
        panels: Names of quantities, in the order in which to draw them; by default the loss and
            all that were measured.
        axes: Where to draw, one for each panel; a new figure by default.

    Returns:
        The axes, one for each panel.

    Raises:
        InputError: If nothing was measured, a panel is unknown, or axes do not fit.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> from curvops import plotting
        >>> from curvops.training import Record, Run
        >>> run = Run({}, tuple(Record(i, "alpha", {"alpha": 0.1 * i}) for i in range(5)))
        >>> [ax] = plotting.monitor(run, axes=[plotting.new_axes()])
        >>> ax.get_ylabel()
        'α'
    """
    run = run.run if isinstance(run, Monitor) else run
    shared = False
    known = [name for name in _PANELS if name in run.quantities]
    chosen = panels_of(run) if panels is None else list(panels)
    for name in chosen:
        if name not in known:
            told = ", ".join(known) or "nothing"
            raise InputError(f"there is no panel {name!r}; the run has {told}.")
    if not chosen:
        raise InputError("the run has measured nothing that can be drawn.")
    if axes is None:
        axes = new_panels(len(chosen))
        shared = True
    if len(axes) != len(chosen):
        raise InputError(f"{len(axes)} axes for {len(chosen)} panels.")
    for name, ax in zip(chosen, axes, strict=True):
        monitor_panel(run, name, ax=ax)
        if shared and ax is not axes[-1]:
            ax.set_xlabel("")
    return list(axes)


def panels_of(run: Run) -> list[str]:
    """Return the quantities of a run that have a panel of their own, in the usual order."""
    known = [name for name in _PANELS if name in run.quantities]
    if "alpha" in known and "exact_alpha" in known:
        known.remove("exact_alpha")  # both are in one panel
    return known


def monitor_panel(run: Run | Monitor, quantity: str, *, ax: Axes | None = None) -> Axes:
    """Draw one quantity of a run over the steps.

    Args:
        run: A monitor, its run, or one read from a journal.
        quantity: Its name: ``"step"`` (the loss), ``"alpha"``, ``"sharpness"``, ...
        ax: Where to draw; a new figure by default.

    Returns:
        The axes.

    Raises:
        InputError: If the run has not measured it.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> from curvops import plotting
        >>> from curvops.training import Record, Run
        >>> run = Run({}, (Record(0, "step", {"loss": 2.0}), Record(1, "step", {"loss": 1.0})))
        >>> plotting.monitor_panel(run, "step", ax=plotting.new_axes()).get_ylabel()
        'loss'
    """
    run = run.run if isinstance(run, Monitor) else run
    if quantity not in _PANELS or quantity not in run.quantities:
        raise InputError(
            f"the run has not measured {quantity!r}; it has {', '.join(run.quantities)}."
        )
    ax = resolve(ax)
    _PANELS[quantity](run, ax)
    ax.set_xlabel("step")
    if not ax.has_data():
        ax.text(0.5, 0.5, "no value", transform=ax.transAxes, ha="center", color=current().muted)
    return ax


def _series(run: Run, quantity: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    if not any(name in r.values for r in run.records if r.quantity == quantity):
        return np.array([]), np.array([])
    steps, values = run.series(quantity, name)
    return np.array(steps), np.array(values, dtype=np.float64)


def _points(
    ax: Axes, x: np.ndarray, y: np.ndarray, label: str | None, color: str, **o: Any
) -> None:
    """Draw a line, with points where there are few."""
    if len(x):
        marker: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(x) <= 40 else {}
        ax.plot(x, y, color=color, label=label, **(marker | o))


def _scale(ax: Axes, values: Iterable[np.ndarray]) -> None:
    """Take a logarithmic axis where values are positive and span more than a decade."""
    together = np.concatenate([np.asarray(v) for v in values] or [np.array([])])
    together = together[np.isfinite(together)]
    if len(together) and together.min() > 0 and together.max() > 10 * together.min():
        ax.set_yscale("log")
    else:
        full_tick_labels(ax)


def _loss(run: Run, ax: Axes) -> None:
    x, y = _series(run, "step", "loss")
    _points(ax, x, y, None, current().ink, linewidth=1.4)
    _scale(ax, [y])
    ax.set_ylabel("loss")


def _alpha(run: Run, ax: Axes) -> None:
    """Draw a point for every step, hollow where it is no distance to a minimum."""
    colours = current()
    drawn = [r for r in run.records if r.quantity in ("alpha", "exact_alpha")]
    drawn = [r for r in drawn if r.values.get("alpha") is not None]
    for quantity, ok, label, marker, edge, face in (
        ("alpha", True, "of mini-batches", "o", colours.primary, colours.primary),
        ("alpha", False, "no minimum ahead", "o", colours.muted, "none"),
        ("exact_alpha", True, "of the risk", "D", colours.accent, colours.accent),
        ("exact_alpha", False, "no minimum ahead", "D", colours.muted, "none"),
    ):
        mine = [
            r
            for r in drawn
            if r.quantity == quantity and (r.values.get("status", "ok") == "ok") is ok
        ]
        if mine:
            ax.plot(
                [r.step for r in mine], [r.values["alpha"] for r in mine], linestyle="none",
                marker=marker, markersize=3.5, alpha=0.8, markerfacecolor=face,
                markeredgecolor=edge, label=label,
            )  # fmt: skip
    good = np.array([r.values["alpha"] for r in drawn], dtype=np.float64)
    for level in (-1.0, 0.0, 1.0):
        ax.axhline(level, color=colours.muted, linewidth=1.0 if level else 1.4, zorder=0.5)
    if len(good):
        # A few steps along which the loss is nearly a line have an α as large as one likes.
        low, high = np.quantile(good, [0.02, 0.98])
        ax.set_ylim(min(low, -1.3) - 0.2, max(high, 1.3) + 0.2)
    ax.set_ylabel("α")
    _legend(ax)


def _noise(run: Run, ax: Axes) -> None:
    colours = current()
    drawn = []
    for name, label, color in (
        ("noise_scale", "noise scale tr Σ/‖g‖²", colours.primary),
        ("batch_size", "batch size", colours.muted),
    ):
        x, y = _series(run, "gradient_noise", name)
        _points(ax, x, y, label, color)
        drawn.append(y)
    _scale(ax, drawn)
    ax.set_ylabel("data")
    _legend(ax)


def _sharpness(run: Run, ax: Axes) -> None:
    colours = current()
    rows = [r for r in run.records if r.quantity == "sharpness" and r.values.get("eigenvalues")]
    count = max((len(r.values["eigenvalues"]) for r in rows), default=0)
    drawn = []
    for k in range(count - 1, -1, -1):
        mine = [r for r in rows if len(r.values["eigenvalues"]) > k]
        x = np.array([r.step for r in mine])
        y = np.array([r.values["eigenvalues"][k] for r in mine], dtype=np.float64)
        color = colours.primary if k == 0 else colours.muted
        label = "λ_max" if k == 0 else ("next eigenvalues" if k == count - 1 else None)
        _points(ax, x, y, label, color, linewidth=1.8 if k == 0 else 0.9)
        drawn.append(y)
    x, y = _series(run, "sharpness", "threshold")
    if len(x):
        ax.plot(x, y, color=colours.accent, linestyle=(0, (4, 2.5)), label="edge of stability")
        drawn.append(y)
    _scale(ax, drawn)
    ax.set_ylabel("eigenvalue")
    _legend(ax)


def _trace(run: Run, ax: Axes) -> None:
    colours = current()
    rows = [r for r in run.records if r.quantity == "hessian_trace" and "traces" in r.values]
    names = list(dict.fromkeys(name for r in rows for name in r.values["layers"]))
    palette = [colours.primary, colours.accent, colours.third, colours.fourth]
    for i, name in enumerate(names[: len(palette)]):
        mine = [
            (r.step, r.values["layers"].index(name), r) for r in rows if name in r.values["layers"]
        ]
        ax.errorbar(
            [step for step, _, _ in mine],
            [r.values["traces"][at] for _, at, r in mine],
            [r.values["stderrs"][at] for _, at, r in mine],
            color=palette[i], label=plain(name), marker="o", markersize=3, capsize=2,
        )  # fmt: skip
    ax.set_ylabel("trace")
    _legend(ax)


def _tic(run: Run, ax: Axes) -> None:
    colours = current()
    drawn = []
    for name, label, color in (
        ("diagonal", "by diagonals", colours.primary),
        ("ratio_of_traces", "by traces", colours.accent),
    ):
        x, y = _series(run, "tic", name)
        _points(ax, x, y, label, color)
        drawn.append(y)
    _scale(ax, drawn)
    ax.set_ylabel("TIC")
    _legend(ax)


def _subspace(run: Run, ax: Axes) -> None:
    colours = current()
    for name, label, color in (
        ("overlap", "overlap with before", colours.primary),
        ("gradient_fraction", "part of the gradient", colours.accent),
    ):
        x, y = _series(run, "subspace_overlap", name)
        _points(ax, x, y, label, color)
    ax.set_ylim(-0.03, 1.05)
    ax.set_ylabel("top subspace")
    _legend(ax)


def _stopping(run: Run, ax: Axes) -> None:
    x, y = _series(run, "early_stopping", "evidence")
    _points(ax, x, y, None, current().primary)
    ax.axhline(0.0, color=current().muted, linewidth=1.2, zorder=0.5)
    ax.set_ylabel("evidence to stop")


def _legend(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    if len(unique) < 2:
        return
    # Above the panel, for points may lie anywhere within: the empty title keeps the place.
    ax.set_title(" ", fontsize=8)
    legend = ax.legend(
        unique.values(), unique.keys(), loc="lower right", bbox_to_anchor=(1.0, 1.0),
        ncols=len(unique), frameon=False, borderaxespad=0.1, fontsize=8, handlelength=1.4,
        columnspacing=1.0, handletextpad=0.5,
    )  # fmt: skip
    legend.set_in_layout(False)


_PANELS: dict[str, Callable[[Run, Axes], None]] = {
    "step": _loss,
    "alpha": _alpha,
    "exact_alpha": _alpha,
    "gradient_noise": _noise,
    "sharpness": _sharpness,
    "hessian_trace": _trace,
    "subspace_overlap": _subspace,
    "tic": _tic,
    "early_stopping": _stopping,
}
