"""Peak memory of a product, each in a process of its own.

A process imports, builds the problem, multiplies once with a tiny model so that lazy imports and
thread pools exist, and notes its resident set. What the peak exceeds that by is the number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import ours
from benchmarks.isolated import ProbeError, probe
from benchmarks.options import Options
from benchmarks.products import TOO_WIDE
from benchmarks.results import Row
from benchmarks.targets import MEMORY_BUDGET

COLUMNS = (1, 8, 32)
RESULT = "the result alone"

WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "residuals": {"keep": "residuals"},
    "graph": {"keep": "graph"},
    "streamed": ours.STREAMED,
    f"budget {MEMORY_BUDGET}": {"memory_budget": MEMORY_BUDGET},
}


@dataclass(frozen=True)
class Case:
    """One process: a row, and the knobs of our operator.

    Attributes:
        row: What is measured.
        knobs: The engine's keyword arguments.
        peer: The key of the peer, if it is one.
    """

    row: Row
    knobs: dict[str, Any]
    peer: str = ""


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one problem after the other."""
    for name in options.problems:
        problem = options.build(name)
        if problem is None:
            continue
        rows = [
            Row(name, "Hessian", RESULT, columns=K, value=round(problem.dim * K * 4e-6, 1))
            for K in COLUMNS
        ]
        for case in cases(options, name):
            row = case.row
            if row.status == "measured":
                options.say(f"{name}: {row.library} {row.variant}, K = {row.columns}")
                row = measure(options, case)
            rows.append(row)
        yield rows


def cases(options: Options, name: str) -> Iterator[Case]:
    """Yield what to measure on one problem."""
    yield Case(Row(name, "gradient", "torch"), {})
    for variant, knobs in WAYS.items():
        for columns in COLUMNS:
            yield Case(Row(name, "Hessian", "curvops", variant, columns), knobs)
    for key, peer in zip(options.peers, options.chosen_peers()):
        for columns in COLUMNS if peer.blocks else (1,):
            row = Row(name, "Hessian", peer.name, columns=columns)
            if peer.missing():
                row = replace(row, status=str(peer.missing()))
            elif columns > 1 and columns >= TOO_WIDE.get(name, columns + 1):
                row = replace(row, status="not run", note="one vmap over all columns")
            yield Case(row, {}, key)


def measure(options: Options, case: Case) -> Row:
    """Run one case in a process of its own, and return its row in megabytes."""
    row = case.row
    order = {
        "problem": row.problem,
        "quick": options.quick,
        "root": None if options.root is None else str(options.root),
        "threads": options.threads,
        "library": row.library,
        "peer": case.peer,
        "quantity": row.quantity,
        "columns": row.columns,
        "knobs": case.knobs,
    }
    peaks = []
    for _ in range(options.repeats or 1):
        try:
            found = probe("memory_probe", order)
        except ProbeError as error:
            return replace(row, status="fails", note=str(error))
        peaks.append(found["peak_mb"])
    extra = {"error": found["error"]} if found["error"] is not None else {}
    peaks.sort()
    middle = peaks[len(peaks) // 2]
    return replace(row, value=middle, low=peaks[0], high=peaks[-1], rounds=len(peaks), extra=extra)
