"""The pictures of a run: bars for products and memory, lines for scaling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import bridge
from benchmarks.problems import TITLES
from benchmarks.report import problems_of
from benchmarks.results import MEASURED, Result, Row, find, select
from benchmarks.scaling import slopes
from benchmarks.targets import MEMORY_BUDGET
from curvops.plotting.style import LIGHT, theme

OURS, TORCH = LIGHT.primary, LIGHT.muted
PEER_COLOURS = {
    "curvlinops": LIGHT.accent,
    "curvlinops compiled": "#f0a878",
    "hessian-eigenthings": LIGHT.third,
    "pyhessian": LIGHT.fourth,
}
STREAMED = "#8fb0e3"


def draw(result: Result, path: Path) -> bool:
    """Draw a run into a PNG file; return whether there was anything to draw."""
    if result.benchmark not in _PICTURES or not any(row.value for row in result.rows):
        return False
    from matplotlib.figure import Figure

    with theme("light"):
        figure = Figure(layout="constrained")
        _PICTURES[result.benchmark](figure, result.rows)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Without the date in the metadata the same numbers give the same file.
        figure.savefig(path, dpi=96, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return True


def products(figure: Any, rows: Sequence[Row]) -> None:
    """Bars of one product (K = 1), a panel per matrix, a group per problem."""
    series = [
        ("curvops", "curvops", "auto", OURS),
        ("curvops, streamed", "curvops", "streamed", STREAMED),
        *((name, name, "", colour) for name, colour in PEER_COLOURS.items()),
    ]
    series = [s for s in series if select(rows, library=s[1])]
    names = problems_of(rows)
    figure.set_size_inches(9.0, 6.4)
    for axes, quantity in zip(figure.subplots(2, 1), ("Hessian", "GGN")):
        _groups(axes, rows, quantity, series, names)
        axes.axhline(1.0, color=LIGHT.ink, linewidth=0.9)
        axes.set_title(f"One {quantity} product over all data")
        axes.set_ylabel("full-data gradients")
        axes.set_ylim(bottom=0)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(series), 6))


def memory(figure: Any, rows: Sequence[Row]) -> None:
    """Bars of the peak for one vector and for blocks, a panel per problem."""
    names = problems_of(rows)
    figure.set_size_inches(9.0, 1.2 + 2.6 * len(names))
    ways = [(row.library, row.variant) for row in rows if row.value is not None]
    ways = list(dict.fromkeys(ways))
    colours = {1: OURS, 8: STREAMED, 32: LIGHT.accent}
    for axes, name in zip(figure.subplots(len(names), 1, squeeze=False)[:, 0], names):
        for offset, (columns, colour) in enumerate(colours.items()):
            places, heights = [], []
            for index, (library, variant) in enumerate(ways):
                key = {"problem": name, "library": library, "variant": variant}
                row = find(rows, columns=columns, **key)
                if row is not None and row.value is not None:
                    places.append(index + (offset - 1) * 0.27)
                    heights.append(row.value)
            bars = axes.bar(places, heights, width=0.25, color=colour, label=f"K = {columns}")
            axes.bar_label(bars, [f"{height:.0f}" for height in heights], fontsize=7, padding=2)
        axes.set_xticks(range(len(ways)), ["\n".join(_words(*way)) for way in ways], fontsize=8)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("MB")
        axes.margins(y=0.15)
        axes.set_title(f"{TITLES[name]}: peak memory of Hessian products")
    figure.axes[0].legend(ncols=3)


def scaling(figure: Any, rows: Sequence[Row]) -> None:
    """Double-logarithmic lines with their slopes, a panel per problem and axis."""
    axes_names = [axis for axis in ("N", "P", "K") if select(rows, axis=axis)]
    names = problems_of(rows)
    found = slopes(rows)
    figure.set_size_inches(3.3 * len(axes_names), 2.9 * len(names) + 0.4)
    grid = figure.subplots(len(names), len(axes_names), squeeze=False)
    titles = {"N": "data N", "P": "parameters P", "K": "columns K"}
    for axes_row, name in zip(grid, names):
        for axes, axis in zip(axes_row, axes_names):
            here = select(rows, problem=name, axis=axis)
            if not here:
                axes.set_axis_off()
                continue
            _lines(axes, here, found)
            axes.set_title(f"{TITLES[name]}: {titles[axis]}")
            axes.set_xlabel(titles[axis])
            axes.set_ylabel("time (smallest gradient = 1)")


def _lines(axes: Any, rows: Sequence[Row], found: dict[Any, float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    series = [("gradient", "", TORCH), ("Hessian", "kept", OURS), ("Hessian", "streamed", STREAMED)]
    for quantity, variant, colour in series:
        points = [
            row for row in select(rows, quantity=quantity, variant=variant) if row.value is not None
        ]
        if not points:
            continue
        slope = found.get((points[0].problem, points[0].axis, quantity, variant))
        words = f"{variant} {quantity}".strip() + (f": {slope:.2f}" if slope is not None else "")
        sizes, values = [p.size for p in points], [p.value for p in points]
        axes.loglog(sizes, values, "o-", color=colour, markersize=4, label=words)
    sizes = sorted({row.size for row in rows})
    axes.set_xticks(sizes, [_short(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.6)  # room for the legend
    axes.legend(title="slope", title_fontsize=8, fontsize=8, loc="upper left")


def _short(size: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if size >= 10 * unit or (size >= unit and letter == "M"):
            return f"{size / unit:.3g}{letter}"
    return str(size)


def _groups(
    axes: Any,
    rows: Sequence[Row],
    quantity: str,
    series: Sequence[tuple[str, str, str, str]],
    names: Sequence[str],
) -> None:
    width = 0.84 / len(series)
    for offset, (title, library, variant, colour) in enumerate(series):
        places, heights, errors, texts = [], [], [], []
        for index, name in enumerate(names):
            row = find(
                rows,
                problem=name,
                quantity=quantity,
                columns=1,
                library=library,
                variant=variant,
            )
            if row is None or (row.status != MEASURED and row.status != "disagrees"):
                continue
            places.append(index + (offset - (len(series) - 1) / 2) * width)
            value = row.value or 0.0
            heights.append(value)
            errors.append((value - (row.low or value), (row.high or value) - value))
            texts.append(f"{value:.1f}" if row.value else "disagrees")
        if not places:
            continue
        bars = axes.bar(places, heights, width=width * 0.92, color=colour, label=title)
        axes.errorbar(
            places, heights, yerr=list(zip(*errors)), fmt="none", ecolor=LIGHT.ink, elinewidth=0.7
        )
        for bar, text, (_, above) in zip(bars, texts, errors):
            wrong = text == "disagrees"
            axes.annotate(
                text,
                (bar.get_x() + bar.get_width() / 2, bar.get_height() + above),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=90 if wrong else 0,
            )
    axes.set_xticks(range(len(names)), [TITLES[name] for name in names])
    axes.grid(visible=False, axis="x")
    axes.margins(y=0.12)


def _words(library: str, variant: str) -> list[str]:
    if library == "torch":
        return ["gradient"]
    if library == "curvops":
        return ["curvops", variant.replace(MEMORY_BUDGET, f"\n{MEMORY_BUDGET}")]
    return [library.replace("-", "-\n").replace("the ", "").replace(" ", "\n")]


_PICTURES = {"products": products, "memory": memory, "scaling": scaling, "bridge": bridge.draw}
