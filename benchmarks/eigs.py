"""The largest eigenpairs of the Hessian, end to end: what a user waits for, in gradients.

The time includes everything from the bare model and data on: the operator's construction,
tracing, and the solver's own arithmetic.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks import native_eigs, ours
from benchmarks.options import Options
from benchmarks.peers.base import Budget, BudgetExceededError, Eigenpairs, NotOfferedError
from benchmarks.problems import Problem
from benchmarks.results import MEASURED, Row
from benchmarks.scipy_eigs import eigsh
from benchmarks.targets import EIGENPAIRS_K, EIGENPAIRS_RESIDUAL
from benchmarks.timing import collected, duration, summarize

MOST_PRODUCTS = 3000
"""After so many products a solver is stopped and what it has is judged."""

AROUND = 7
"""Gradients timed before a run, and after it."""

SETTLE = 0.5
"""Seconds until threads that wait for work have gone to sleep."""

Solve = Callable[[Problem, int, float, Budget], Eigenpairs]


@dataclass
class _Runs:
    """What one solver did, run after run."""

    row: Row
    solve: Solve
    ratios: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pairs: Eigenpairs | None = None
    products: int = 0
    residual: float = 0.0


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one problem after the other."""
    k = 5 if options.quick else EIGENPAIRS_K
    most = 200 if options.quick else MOST_PRODUCTS
    repeats = options.repeats or (1 if options.quick else 3)
    for name in options.problems:
        problem = options.build(name)
        if problem is not None:
            yield list(_measure(options, name, problem, k, most, repeats))


def _measure(
    options: Options, name: str, problem: Problem, k: int, most: int, repeats: int
) -> Iterator[Row]:
    solvers = list(_solvers(options, name))
    baseline = ours.gradient(problem)
    baseline()
    judge = _Judge(problem)
    for _ in range(repeats):
        for solver in solvers:
            # What missed the residual takes longest, and its time is no competitor.
            if solver.row.status == MEASURED and solver.residual <= 2 * EIGENPAIRS_RESIDUAL:
                options.say(f"{problem.name}: {k} eigenpairs, {solver.row.library}")
                _once(solver, problem, k, most, baseline)
                if solver.pairs is not None:
                    solver.residual = judge.residual(solver.pairs)
    reference = solvers[0].pairs
    for solver in solvers:
        row = solver.row
        if solver.pairs is not None:
            row = row.timed(summarize(solver.ratios, solver.seconds))
            extra = {"products": solver.products, "k": k, "residual": _two(solver.residual)}
            if reference is not None:
                extra["difference"] = _two(_difference(solver.pairs, reference))
            row = replace(row, extra={**row.extra, **extra}, note=solver.pairs.settings)
        yield row


def _solvers(options: Options, name: str) -> Iterator[_Runs]:
    yield _Runs(Row(name, "eigenpairs", "curvops", "own solver"), native_eigs.solve)
    yield _Runs(Row(name, "eigenpairs", "curvops", "SciPy eigsh"), _scipy_over_ours)
    for peer in options.chosen_peers():
        row = Row(name, "eigenpairs", peer.name, "SciPy eigsh" if peer.blocks else "own solver")
        if peer.missing():
            row = replace(row, status=str(peer.missing()))
        yield _Runs(row, peer.eigenpairs)


def _scipy_over_ours(problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
    op = ours.prepared(problem, "Hessian")
    try:
        return eigsh(lambda v: op @ v, problem, k, tol, budget)
    finally:
        ours.release(op)


def _once(solver: _Runs, problem: Problem, k: int, most: int, baseline: Callable[[], Any]) -> None:
    """Run a solver once, between gradients.

    Not with gradients between its products: those of SciPy's solver would share the cores with
    threads of numpy's that wait for work, and be counted as three times as long.
    """
    budget, found = Budget(most), []
    unit = [duration(baseline) for _ in range(AROUND)]
    try:
        with collected():
            seconds = duration(
                lambda: found.append(solver.solve(problem, k, EIGENPAIRS_RESIDUAL, budget))
            )
    except NotOfferedError as error:
        solver.row = replace(solver.row, status="not offered", note=str(error))
        return
    except BudgetExceededError as error:
        solver.row = replace(solver.row, status="gave up", note=str(error))
        return
    except Exception as error:
        note = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else ""
        solver.row = replace(solver.row, status="fails", note=note or type(error).__name__)
        return
    solver.pairs, solver.products = found[0], budget.used
    time.sleep(SETTLE)
    unit += [duration(baseline) for _ in range(AROUND)]
    seconds = solver.pairs.seconds or seconds
    solver.ratios.append(seconds / statistics.median(unit))
    solver.seconds.append(seconds)


class _Judge:
    """Measures how good eigenpairs really are, by products of our own in float32."""

    def __init__(self, problem: Problem) -> None:
        self._operator = ours.prepared(problem, "Hessian")

    def residual(self, pairs: Eigenpairs) -> float:
        """Return the worst ‖Hv − λv‖ / |λ|."""
        worst = 0.0
        for value, vector in zip(pairs.values, pairs.vectors.T):
            unit = vector / vector.norm()
            residual = (self._operator @ unit - value * unit).norm() / value.abs()
            worst = max(worst, float(residual))
        return worst


def _difference(pairs: Eigenpairs, reference: Eigenpairs) -> float:
    """Return the largest relative difference of the eigenvalues, both sorted."""
    mine, theirs = (p.values.double().cpu().sort().values for p in (pairs, reference))
    return float(((mine - theirs).abs() / theirs.abs()).max())


def _two(number: float) -> float:
    return float(f"{number:.2g}")
