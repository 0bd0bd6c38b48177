"""Learning coefficients over one choice, a line for every combination of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from curvops.errors import InputError
from curvops.plotting.style import current, resolve
from curvops.volume.coefficient_sweep import CoefficientSweep, SweepRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Choice = Literal["step_size", "localization", "inverse_temperature"]

_SYMBOLS = {"step_size": "step size", "localization": "γ", "inverse_temperature": "nβ"}


def coefficient_sweep(
    sweep: CoefficientSweep, along: Choice | None = None, *, ax: Axes | None = None
) -> Axes:
    """Draw the coefficients of a sweep against one of its choices: look for the plateau.

    Bars are 95 % intervals, longer below where SGLD's steps make the estimate too large. Hollow
    marks have not converged, and crosses on the axis mark chains that diverged.

    Args:
        sweep: The result of :func:`curvops.volume.coefficient_sweep`.
        along: What lies on the horizontal axis; by default the choice with the most values.
            Step sizes that were learned stand where they ended.
        ax: Where to draw; a new figure by default.

    Returns:
        The axes, logarithmic horizontally where that is possible.

    Raises:
        InputError: If there is no such choice.
        MissingDependencyError: If matplotlib is not installed.

    Example:
        >>> import torch
        >>> from curvops import plotting
        >>> from curvops.risk import EmpiricalRisk
        >>> from curvops.volume.coefficient_sweep import coefficient_sweep
        >>> data, zero = [(torch.eye(4), torch.zeros(4))], {"w": torch.zeros(4)}
        >>> risk = EmpiricalRisk(lambda p, x: x @ p["w"], torch.nn.MSELoss(), zero, data)
        >>> sweep = coefficient_sweep(risk, localizations=(0.1, 1.0), num_draws=40, num_leapfrog=2)
        >>> plotting.coefficient_sweep(sweep, ax=plotting.new_axes()).get_xlabel()
        'γ'
    """
    values = {name: {choice(run) for run in sweep.runs} for name, choice in _VALUES.items()}
    if along is not None and along not in _VALUES:
        raise InputError(f"along must be one of {', '.join(_VALUES)}; got {along!r}.")
    axis: str = along or max(_VALUES, key=lambda name: len(values[name]))
    others = [name for name in _VALUES if name != axis and len(values[name]) > 1]
    lines: dict[tuple[float | str, ...], list[SweepRun]] = {}
    for run in sweep.runs:
        lines.setdefault(tuple(_VALUES[name](run) for name in others), []).append(run)
    ax, colours = resolve(ax), current()
    cycle = [colours.primary, colours.accent, colours.third, colours.fourth]
    places: list[float] = []
    for number, (key, runs) in enumerate(lines.items()):
        label = ", ".join(f"{_SYMBOLS[n]} = {_told(v)}" for n, v in zip(others, key))
        places += _draw_line(ax, axis, runs, cycle[number % len(cycle)], label)
    if places and min(places) > 0 and max(places) > 5 * min(places):
        ax.set_xscale("log")
    ax.set_xlabel(_SYMBOLS[axis])
    ax.set_ylabel("λ̂")
    if others:
        ax.legend(loc="best")
    return ax


def _draw_line(ax: Axes, axis: str, runs: list[SweepRun], colour: str, label: str) -> list[float]:
    paper = current().paper
    found = sorted(
        ((_place(run, axis), run.result) for run in runs if run.result is not None),
        key=lambda pair: pair[0],
    )
    x = [place for place, _ in found]
    y = [result.value for _, result in found]
    ax.plot(x, y, color=colour, linewidth=1.0, alpha=0.6, label=label)
    for place, result in found:
        ax.errorbar(
            place,
            result.value,
            yerr=[[result.value - result.lower], [result.upper - result.value]],
            marker="o",
            markersize=5.5,
            color=colour,
            markerfacecolor=colour if result.converged else paper,
            capsize=3,
            linewidth=1.2,
        )
    lost = [_place(run, axis) for run in runs if run.result is None]
    lost = [place for place in lost if place == place]
    if lost:
        ax.plot(
            lost,
            [0.03] * len(lost),
            linestyle="none",
            marker="x",
            color=colour,
            transform=ax.get_xaxis_transform(),
        )
    return x + lost


def _place(run: SweepRun, axis: str) -> float:
    """Return where a run stands; NaN where its step size was to be learned and was not."""
    if axis == "step_size":
        if run.result is not None:
            return run.result.step_size
        return float("nan") if isinstance(run.step_size, str) else run.step_size
    return run.localization if axis == "localization" else run.inverse_temperature


def _told(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


_VALUES: dict[str, Callable[[SweepRun], float | str]] = {
    "step_size": lambda run: run.step_size,
    "localization": lambda run: run.localization,
    "inverse_temperature": lambda run: run.inverse_temperature,
}
