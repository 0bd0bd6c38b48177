"""One mini-batch at many points: stacked under vmap, or one point after another.

Which of the two is faster depends on the model, on the sizes and on the machine, so it is measured
on the first batch, at several widths, and remembered; so is whether points that are affine in few
directions should share products. A model that vmap cannot vectorise (recurrent kernels, control
flow that depends on values), or that answers differently under it, is evaluated point by point,
with the same numbers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.autodiff.batch_maps import TRACE_ERRORS
from curvops.autodiff.determinism import saved_bytes
from curvops.autodiff.evaluation import Evaluation
from curvops.autodiff.keeping import Keeping
from curvops.autodiff.measure import synchronize
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.model import FunctionalModel
from curvops.data import Batch, parse_bytes, split
from curvops.rng import PrivateRNG

_WIDTHS = (1, 4, 16, 64, 256)
"""Points that go through the model together, to be compared; more gain nothing."""
_WORSE = 2.0
"""Times the best seconds per point beyond which wider blocks are not tried: four small points may
well take longer together than apart, and 64 a tenth."""
_BETTER = 0.8
"""Times the best seconds per point below which a plan is preferred to simpler ones: what is about
as fast should not be left to chance, since another plan rounds otherwise."""
_REPEATS, _LONG = 4, 0.05
"""Runs of a trial, and seconds beyond which it needs no more."""
_GRAPHS = 2
"""Times what a graph keeps that evaluating it forwards and backwards takes."""
_INFINITY = float("inf")


@dataclass(frozen=True)
class Plan:
    """How points are evaluated.

    Attributes:
        width: How many at a time.
        shared: Whether they share the products of layers that see the data.
    """

    width: int
    shared: bool = False


_LOOP = Plan(1)


class Ensemble:
    """Evaluates a model at many points, on one batch after another.

    Args:
        model: The model. What is measured about it is kept for later calls.
    """

    def __init__(self, model: FunctionalModel) -> None:
        self.model = model
        # By dtype, and with gradients or without; what is evaluated hardly matters.
        self._pace: dict[tuple[torch.dtype, bool], dict[Plan, float]] = {}
        self._failed: set[tuple[Hashable, str]] = set()
        self._bytes_per_datum: float | None = None

    def of(self, model: FunctionalModel) -> Ensemble:
        """Return an ensemble of the same model in another dtype, sharing what is measured."""
        other = copy.copy(self)
        other.model, other._bytes_per_datum = model, None
        return other

    def run(self, evaluation: Evaluation, batch: Batch, options: Keeping) -> Tensor:
        """Return the quantity of a batch at every point, ``[K, *]``.

        Args:
            evaluation: What is evaluated, and where.
            batch: The mini-batch.
            options: How many points at once, and in how much memory.
        """
        with evaluation.on(batch):
            limit = self._affordable(evaluation, batch, options)
            plan = self._choose(evaluation, batch, limit, options)
            results: list[Tensor] = []
            start, count = 0, len(evaluation.points)
            while start < count:
                left = count - start
                stop = start + -(-left // -(-left // plan.width))
                try:
                    result = self._evaluate(evaluation, plan, start, stop)
                except TRACE_ERRORS as error:
                    if plan == _LOOP:
                        raise
                    plan = self._retreat(evaluation, plan, error)
                    continue
                evaluation.commit()
                results.append(result)
                start = stop
            return torch.cat(results)

    def parts(self, evaluation: Evaluation, batch: Batch, options: Keeping) -> Iterator[Batch]:
        """Yield a batch cut so that what one point makes of it fits the budget.

        Only for batches that are sums over their data.
        """
        size = max(1, int(_bytes(options) / self._per_datum(evaluation, batch)))
        yield from split(batch, -(-batch.size // -(-batch.size // size)))

    def may_share(self, evaluation: Evaluation) -> bool:
        """Tell whether it can pay to know what points have in common."""
        return evaluation.can_share and (evaluation.key, "shared") not in self._failed

    @staticmethod
    def _evaluate(evaluation: Evaluation, plan: Plan, start: int, stop: int) -> Tensor:
        if stop - start > 1:
            return evaluation.several(start, stop, plan.shared)
        return evaluation.single(start, plan.shared).unsqueeze(0)

    def _retreat(self, evaluation: Evaluation, plan: Plan, error: BaseException) -> Plan:
        """Return a more careful plan after a failure."""
        if is_out_of_memory(error):
            return Plan(max(1, plan.width // 2), plan.shared and plan.width > 1)
        if plan.width > 1:
            self._failed.add((evaluation.key, "stacked"))
        else:
            self._failed.add((evaluation.key, "shared"))
        return _LOOP

    # ------------------------------------------------------------------ the choice

    def _choose(self, evaluation: Evaluation, batch: Batch, limit: int, options: Keeping) -> Plan:
        """Return how many points to put through the model together, and how."""
        columns, key = options.columns, evaluation.key
        stacks = not evaluation.is_random and limit > 1 and (key, "stacked") not in self._failed
        if columns == "loop" or evaluation.is_random or len(evaluation.points) == 1:
            return _LOOP
        if columns != "auto":
            width = limit if columns == "vmap" else min(int(columns), limit)
            return Plan(width) if stacks else _LOOP
        products = evaluation.num_products * self._per_datum(evaluation, batch) * batch.size
        best, seconds = _LOOP, self._seconds(evaluation, _LOOP, limit)
        if evaluation.shares and self.may_share(evaluation) and products <= _bytes(options) // 2:
            shared = self._seconds(evaluation, Plan(1, shared=True), limit)
            if shared < _BETTER * seconds:
                best, seconds = Plan(1, shared=True), shared
        for width in _WIDTHS[1:]:
            if not stacks or width // 4 >= limit:
                break
            plan = Plan(width, best.shared)
            stacked = self._seconds(evaluation, plan, limit)
            if stacked < _BETTER * seconds:
                best, seconds = plan, stacked
            elif stacked > _WORSE * seconds:
                break
        return Plan(min(best.width, limit), best.shared)

    def _seconds(self, evaluation: Evaluation, plan: Plan, limit: int) -> float:
        """Return the seconds that a point takes, measured once; infinity where the plan fails."""
        pace = self._pace.setdefault((evaluation.points.like.dtype, evaluation.with_gradients), {})
        kind = "stacked" if plan.width > 1 else "shared"
        if plan != _LOOP and (evaluation.key, kind) in self._failed:
            return _INFINITY
        if plan not in pace:
            seconds = self._try(evaluation, Plan(min(plan.width, limit), plan.shared))
            if seconds == _INFINITY:  # which concerns this quantity alone
                return seconds
            pace[plan] = seconds
        return pace[plan]

    def _try(self, evaluation: Evaluation, plan: Plan) -> float:
        """Return the seconds that a point takes, infinity if the plan fails or answers wrongly."""
        kind = "stacked" if plan.width > 1 else "shared"

        def run() -> Tensor:
            return self._evaluate(evaluation, plan, 0, plan.width)

        try:
            least = 2 if plan.shared else 1  # the first time makes what is shared
            result, first, again = _timed(run, evaluation.points.like.device, least)
            agrees = plan == _LOOP or _agree(result[0], evaluation.single(0))
        except TRACE_ERRORS as error:
            if plan == _LOOP:
                raise
            agrees = is_out_of_memory(error)
            first = again = _INFINITY
        if not agrees or (kind == "shared" and plan.shared and not evaluation.has_shared):
            self._failed.add((evaluation.key, kind))
            return _INFINITY
        # What the first run alone does, all points of a batch share.
        return again / plan.width + max(0.0, first - again) / len(evaluation.points) * plan.shared

    # ------------------------------------------------------------------ memory

    def _affordable(self, evaluation: Evaluation, batch: Batch, options: Keeping) -> int:
        """Return how many points fit the budget together, at least one."""
        points, per_datum = evaluation.points, self._per_datum(evaluation, batch)
        # Kernels copy blocks into layouts of their own; gradients are blocks too.
        fixed = points.num_bytes * (3 if evaluation.with_gradients else 2)
        per_point = fixed + per_datum * batch.size
        allowed = max(_bytes(options) // 2, _bytes(options) - points.held_bytes)
        return max(1, min(len(points), int(allowed / per_point)))

    def _per_datum(self, evaluation: Evaluation, batch: Batch) -> float:
        if self._bytes_per_datum is None:
            point = evaluation.points.one(0)
            saved = saved_bytes(self.model, point, batch.X, PrivateRNG(seed=0))
            self._bytes_per_datum = max(1.0, saved / batch.size)
        return self._bytes_per_datum * (_GRAPHS if evaluation.with_gradients else 1)


def _bytes(options: Keeping) -> int:
    assert options.memory_budget is not None
    return parse_bytes(options.memory_budget, "memory_budget")


def _timed(
    run: Callable[[], Tensor], device: torch.device, least: int
) -> tuple[Tensor, float, float]:
    """Return a result and the seconds that a first run and a later one take."""
    seconds: list[float] = []
    while len(seconds) < least or (len(seconds) < _REPEATS and sum(seconds) < _LONG):
        start = time.perf_counter()
        result = run()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return result, seconds[0], min(seconds)


def _agree(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e4 * torch.finfo(b.dtype).eps
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
