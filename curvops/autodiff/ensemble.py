"""One mini-batch at many points: stacked under vmap, or one point after another.

Which of the two is faster depends on the model, on the sizes and on the machine, so it is measured
on the first batch, at several widths, and remembered. A model that vmap cannot vectorise (recurrent
kernels, control flow that depends on values), or answers differently under it, is evaluated point
by point, with the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from curvops.autodiff.batch_maps import TRACE_ERRORS, without_fallback_warnings
from curvops.autodiff.determinism import saved_bytes
from curvops.autodiff.keeping import Keeping
from curvops.autodiff.linearization import Blocks
from curvops.autodiff.measure import synchronize
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.once import refuse_once_differentiable
from curvops.data import Batch, parse_bytes, split
from curvops.errors import DifferentiationError, explained
from curvops.rng import PrivateRNG
from curvops.tensors import Space

Quantity = Callable[[Tensor, Any], Tensor]
"""``(prediction, target) -> Tensor``, a sum over the batch; 0-dim where it is differentiated."""

Add = Callable[[int, int, Blocks], None]
"""Takes the first point, their number c, and gradients: ``[*shape]`` for one, ``[c, *shape]``."""

_WIDTHS = (1, 4, 16, 64)
"""Points that go through the model together, to be compared; beyond 64 nothing is gained."""
_WORSE = 1.1
"""Times the best seconds per point beyond which wider blocks are not tried."""
_LONG = 0.05
"""Seconds of a trial that need no repetition."""
_GRAPHS = 2
"""Times what a graph keeps that evaluating it forwards and backwards takes."""


class Points:
    """Points in parameter space as rows, and the parameters' blocks in them.

    Args:
        rows: ``[K, P]``.
        params: Tensors by name, for shapes and dtypes.
    """

    def __init__(self, rows: Tensor, params: dict[str, Tensor]) -> None:
        self.rows = rows
        self.num_bytes = rows.shape[1] * rows.element_size()
        self._space = Space.of(params)
        self._dtypes = [p.dtype for p in params.values()]
        self._singles: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        """Return the number of points K."""
        return len(self.rows)

    def one(self, k: int) -> dict[str, Tensor]:
        """Return the parameters of one point, tensors ``[*shape]`` by name."""
        if k not in self._singles:
            self._singles[k] = self._named(self.rows[k], ())
        return self._singles[k]

    def several(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return the parameters of a range of points, tensors ``[c, *shape]`` by name."""
        return self._named(self.rows[start:stop], (stop - start,))

    def _named(self, rows: Tensor, leading: tuple[int, ...]) -> dict[str, Tensor]:
        parts = rows.split(self._space.numels, dim=-1)
        layout = zip(self._space.names, self._space.shapes, self._dtypes, parts, strict=True)
        return {n: part.view([*leading, *s]).to(dtype) for n, s, dtype, part in layout}


class Ensemble:
    """Evaluates a model at many points, on one batch after another.

    Args:
        model: The model. What is measured about it is kept for later calls.
    """

    def __init__(self, model: FunctionalModel) -> None:
        self.model = model
        self._pace: dict[Hashable, dict[int, float]] = {}
        self._is_sequential: set[Hashable] = set()
        self._bytes_per_datum: float | None = None

    def values(
        self,
        key: Hashable,
        quantity: Quantity,
        points: Points,
        batch: Batch,
        options: Keeping,
        rngs: list[PrivateRNG] | None = None,
    ) -> Tensor:
        """Return the quantity of a batch at every point, ``[K, *]``.

        Args:
            key: Names the quantity, for what is remembered about it.
            quantity: What to evaluate.
            points: The points.
            batch: The mini-batch.
            options: How many points at once, and in how much memory.
            rngs: A stream of random numbers for each point, if the model may draw some.
        """
        run = _Values(self.model, quantity, points, batch, rngs)
        return self._run(("values", key), run, options)

    def gradients(
        self,
        key: Hashable,
        quantity: Quantity,
        points: Points,
        batch: Batch,
        options: Keeping,
        add: Add,
        rngs: list[PrivateRNG] | None = None,
    ) -> tuple[Tensor, bool]:
        """Return the quantity at every point, and whether no prediction depends on them.

        Args:
            key: Names the quantity, for what is remembered about it.
            quantity: What to differentiate.
            points: The points.
            batch: The mini-batch.
            options: How many points at once, and in how much memory.
            add: Called with the gradients of one range of points after the other.
            rngs: A stream of random numbers for each point, if the model may draw some.
        """
        run = _Gradients(self.model, quantity, points, batch, rngs)
        run.add = add
        return self._run(("gradients", key), run, options), run.is_constant

    def parts(
        self, batch: Batch, points: Points, options: Keeping, with_gradients: bool
    ) -> Iterator[Batch]:
        """Yield a batch cut so that one point's work on it fits the budget.

        Only for batches that are sums over their data.
        """
        allowed = self._allowed(options)
        fixed = 2 * points.num_bytes if with_gradients else 0
        per_datum = self._per_datum(points, batch, with_gradients)
        size = max(1, int((allowed - fixed) / per_datum)) if allowed > fixed else 1
        yield from split(batch, -(-batch.size // -(-batch.size // size)))

    def _run(self, key: Hashable, run: _Values, options: Keeping) -> Tensor:
        limit = self._affordable(run, options)
        width = self._choose(key, run, limit, options)
        results: list[Tensor] = []
        start, count = 0, len(run.points)
        while start < count:
            left = count - start
            stop = start + -(-left // -(-left // width))
            try:
                result = run.several(start, stop) if width > 1 else run.single(start).unsqueeze(0)
            except TRACE_ERRORS as error:
                if width == 1:
                    raise
                if is_out_of_memory(error):
                    width //= 2
                else:
                    self._is_sequential.add(key)
                    width = 1
                continue
            run.commit()
            results.append(result)
            start = stop
        return torch.cat(results)

    def _choose(self, key: Hashable, run: _Values, limit: int, options: Keeping) -> int:
        """Return how many points to put through the model together."""
        columns = options.columns
        if columns == "loop" or limit == 1 or key in self._is_sequential or run.is_random:
            return 1
        if columns != "auto":
            return limit if columns == "vmap" else min(int(columns), limit)
        pace = self._pace.setdefault(key, {})
        best = 1
        for width in _WIDTHS:
            if width > 1 and width // 4 >= limit:
                break
            if width not in pace:
                pace[width] = self._try(key, run, min(width, limit))
            if pace[width] < pace[best]:
                best = width
            elif pace[width] > _WORSE * pace[best]:
                break
        return min(best, limit)

    def _try(self, key: Hashable, run: _Values, width: int) -> float:
        """Return the seconds that a point takes in a block of this width, infinity if it fails."""
        if key in self._is_sequential:
            return float("inf")
        if width == 1:
            _, seconds = _timed(lambda: run.single(0), run.device)
            return seconds
        try:
            together, seconds = _timed(lambda: run.several(0, width), run.device)
        except TRACE_ERRORS as error:
            if not is_out_of_memory(error):
                self._is_sequential.add(key)
            return float("inf")
        if not _agree(together[0], run.single(0)):
            self._is_sequential.add(key)
        return float("inf") if key in self._is_sequential else seconds / width

    def _affordable(self, run: _Values, options: Keeping) -> int:
        """Return how many points fit the budget together, at least one."""
        per_datum = self._per_datum(run.points, run.batch, run.with_gradients)
        # Kernels copy blocks into layouts of their own; gradients are blocks too.
        fixed = run.points.num_bytes * (3 if run.with_gradients else 1)
        per_point = fixed + per_datum * run.batch.size
        return max(1, min(len(run.points), int(self._allowed(options) / per_point)))

    def _per_datum(self, points: Points, batch: Batch, with_gradients: bool) -> float:
        if self._bytes_per_datum is None:
            saved = saved_bytes(self.model, points.one(0), batch.X, PrivateRNG(seed=0))
            self._bytes_per_datum = max(1.0, saved / batch.size)
        return self._bytes_per_datum * (_GRAPHS if with_gradients else 1)

    @staticmethod
    def _allowed(options: Keeping) -> int:
        assert options.memory_budget is not None
        return parse_bytes(options.memory_budget, "memory_budget")


class _Values:
    """The quantity at one point or a range of them, without gradients."""

    with_gradients = False

    def __init__(
        self,
        model: FunctionalModel,
        quantity: Quantity,
        points: Points,
        batch: Batch,
        rngs: list[PrivateRNG] | None,
    ) -> None:
        self.points, self.batch = points, batch
        self._model, self._quantity, self._rngs = model, quantity, rngs

    @property
    def is_random(self) -> bool:
        """Whether the points have their own random streams."""
        return self._rngs is not None

    @property
    def device(self) -> torch.device:
        """Where the points live."""
        return self.points.rows.device

    def single(self, k: int) -> Tensor:
        """Return the quantity at point k, a 0-dim tensor."""
        rng = nullcontext() if self._rngs is None else self._rngs[k].active()
        with torch.no_grad(), rng, self._model.at(self.points.one(k)) as predict:
            return self._quantity(predict(self.batch.X), self.batch.y)

    def several(self, start: int, stop: int) -> Tensor:
        """Return the quantity at a range of points, ``[c]``."""
        with torch.no_grad():
            return self._stacked(self.points.several(start, stop))

    def commit(self) -> None:
        """Deliver what the last call computed beside its answer."""

    def _stacked(self, params: dict[str, Tensor]) -> Tensor:
        # Left open until all is done: checkpointed modules run their forward again.
        with ExitStack() as substitution, without_fallback_warnings():

            def at(params: dict[str, Tensor]) -> Tensor:
                predict = substitution.enter_context(self._model.at(params))
                return self._quantity(predict(self.batch.X), self.batch.y)

            values: Tensor = vmap(at)(params)
            return self._finished(values, params)

    def _finished(self, values: Tensor, params: dict[str, Tensor]) -> Tensor:
        return values


class _Gradients(_Values):
    """The quantity and its gradient; the gradients are delivered by :meth:`commit`."""

    with_gradients = True
    add: Add
    is_constant = True
    _waiting: tuple[int, int, Blocks]

    def single(self, k: int) -> Tensor:
        params = {name: p.detach().requires_grad_() for name, p in self.points.one(k).items()}
        rng = nullcontext() if self._rngs is None else self._rngs[k].active()
        with torch.enable_grad(), rng, self._model.at(params) as predict:
            prediction = predict(self.batch.X)
            refuse_once_differentiable(prediction)
            value = self._quantity(prediction, self.batch.y)
            if prediction.requires_grad and not value.requires_grad:
                raise DifferentiationError(
                    "the loss does not depend differentiably on the prediction."
                )
            gradient = self._gradient(value, params)
        self._waiting = k, 1, gradient
        return value.detach()

    def several(self, start: int, stop: int) -> Tensor:
        blocks = self.points.several(start, stop)
        params = {name: p.detach().requires_grad_() for name, p in blocks.items()}
        with torch.enable_grad():
            values = self._stacked(params)
        self._waiting = start, stop - start, self._waiting[2]
        return values

    def commit(self) -> None:
        self.add(*self._waiting)

    def _finished(self, values: Tensor, params: dict[str, Tensor]) -> Tensor:
        self._waiting = 0, 0, self._gradient(values.sum(), params)
        return values.detach()

    def _gradient(self, value: Tensor, params: dict[str, Tensor]) -> Blocks:
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in params.values()]
        self.is_constant = False
        with explained("differentiating the model"):
            return list(torch.autograd.grad(value, list(params.values()), materialize_grads=True))


def _timed(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """Return a result and the seconds it takes, the better of two unless it is long."""
    best = float("inf")
    while True:
        start = time.perf_counter()
        result = run()
        synchronize(device)
        seconds = time.perf_counter() - start
        if best < float("inf") or seconds > _LONG:
            return result, min(best, seconds)
        best = seconds


def _agree(a: Tensor, b: Tensor) -> bool:
    tolerance = 1e4 * torch.finfo(a.dtype).eps
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)
