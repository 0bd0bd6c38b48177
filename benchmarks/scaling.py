"""Lines that should be straight: product time against data, parameters and columns.

All sizes of a line are timed in the same rounds, against the gradient of the smallest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks import ours
from benchmarks.options import Options
from benchmarks.problems import Problem
from benchmarks.results import Row
from benchmarks.timing import Task, interleave

WAYS: dict[str, dict[str, Any]] = {"kept": {}, "streamed": ours.STREAMED}

BATCHES = (2, 4, 8, 16, 32)
COLUMNS = (1, 2, 4, 8, 16, 32)
WIDTHS = {"mlp": (256, 512, 1024, 2048), "gpt": (64, 128, 256)}
PROBLEMS = ("mlp", "cnn", "gpt")


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one problem after the other."""
    quick = options.quick
    for name in options.problems:
        rows = line(options, name, "N", {"batches": BATCHES[:3] if quick else BATCHES})
        if name in WIDTHS:
            widths = WIDTHS[name][:2] if quick else WIDTHS[name]
            rows += line(options, name, "P", {"width": widths})
        rows += columns_line(options, name, COLUMNS[:4] if quick else COLUMNS)
        yield rows


def line(options: Options, name: str, axis: str, sizes: dict[str, Sequence[int]]) -> list[Row]:
    """Time the gradient and our Hessian products on a problem in several sizes."""
    ((argument, values),) = sizes.items()
    options.say(f"{name}: along {axis}, {argument} {', '.join(map(str, values))}")
    problems = [p for v in values if (p := options.build(name, **{argument: v})) is not None]
    entries: list[tuple[Row, Task]] = []
    operators = []
    for problem in problems:
        size = problem.num_data if axis == "N" else problem.dim
        row = _row(name, "gradient", "torch", "", axis, size)
        entries.append((row, ours.gradient(problem)))
        x = ours.vectors(problem, 1)[:, 0]
        for variant, knobs in WAYS.items():
            op = ours.prepared(problem, "Hessian", **knobs)
            operators.append(op)
            row = _row(name, "Hessian", "curvops", variant, axis, size)
            entries.append((row, _task(op, x)))
    return _timed(options, problems[0], entries, operators)


def columns_line(options: Options, name: str, columns: Sequence[int]) -> list[Row]:
    """Time blocks of K columns; the value is that of the whole block."""
    options.say(f"{name}: along K, {', '.join(map(str, columns))}")
    problem = options.build(name)
    if problem is None:
        return []
    entries: list[tuple[Row, Task]] = []
    operators = []
    for variant, knobs in WAYS.items():
        op = ours.prepared(problem, "Hessian", **knobs)
        operators.append(op)
        for K in columns:
            X = ours.vectors(problem, K)
            row = _row(name, "Hessian", "curvops", variant, "K", K)
            entries.append((row, _task(op, X)))
    return _timed(options, problem, entries, operators)


def slope(sizes: Iterable[float], values: Iterable[float]) -> float:
    """Return the least-squares slope of log value against log size; 1 is proportional."""
    x = [math.log(size) for size in sizes]
    y = [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    variance = sum((a - mean_x) ** 2 for a in x)
    return covariance / variance


def slopes(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], float]:
    """Return the slope of every line: by problem, axis, quantity and variant."""
    lines: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if row.value is not None:
            key = (row.problem, row.axis, row.quantity, row.variant)
            lines.setdefault(key, []).append(row)
    return {
        key: slope((row.size for row in points), (row.value or 0.0 for row in points))
        for key, points in lines.items()
        if len(points) > 1
    }


def _row(name: str, quantity: str, library: str, variant: str, axis: str, size: int) -> Row:
    columns = size if axis == "K" else 1
    return Row(name, quantity, library, variant, columns, axis, size)


def _timed(
    options: Options, smallest: Problem, entries: list[tuple[Row, Task]], operators: list[Any]
) -> list[Row]:
    for _, task in entries:
        for _ in range(3):
            task()
    tasks = {str(index): task for index, (_, task) in enumerate(entries)}
    summaries = interleave(ours.gradient(smallest), tasks, options.rounds())
    for op in operators:
        ours.release(op)
    return [row.timed(summaries[str(index)]) for index, (row, _) in enumerate(entries)]


def _task(op: Any, x: Any) -> Task:
    return lambda: op @ x
