"""The monitor: quantities of curvature and noise from the training loop one has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from curvops.autodiff import Forward, unwrap
from curvops.errors import InputError
from curvops.losses import Normalizer, as_loss
from curvops.nesting import leading_size
from curvops.training.block import Block, Step
from curvops.training.curvature import PROBE_SIZE, Curvature, Point, Probe
from curvops.training.individual import Batch, Overwritten, joined, shares
from curvops.training.quantity import Quantity, Setting, checked
from curvops.training.recorder import Recorder
from curvops.training.run import STEP, Record, Run, plain
from curvops.training.source import Seen, Source, Way
from curvops.training.update import Updates, innermost


class Monitor:
    """Measures quantities while a model is trained, and leaves the training as it is.

    The loop stays as it is, but for one line around the forward and backward pass::

        monitor = Monitor(model, loss_func, optimizer, [Alpha(), GradientNoise()], log="run.jsonl")
        for X, y in loader:
            with monitor.step(X, y):
                loss = loss_func(model(X), y)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    Gradients may be clipped, scaled or accumulated over several blocks, step sizes scheduled, the
    optimizer be any: a step is what the parameters did between two blocks. The parameters are bit
    for bit those of the same training without a monitor.

    Args:
        model: The module that the loop calls.
        loss_func: The loss, one term per datum, as in :class:`~curvops.EmpiricalRisk`.
        optimizer: The optimizer; one of torch also says when it steps.
        quantities: What to measure.
        log: A file that every value is appended to as soon as it is measured, one JSON object a
            line; read it with :func:`read_journal`.
        data: A re-iterable of batches ``(X, y)`` for quantities that look at the risk itself;
            without it they look at a probe set, the first mini-batches that pass by.
        probe_size: Data of that probe set.
        reduction: ``"mean"`` or ``"sum"``, for losses that have no such attribute.
        normalizer: ``fn(prediction, y) -> Z_b`` for losses that average over something else than
            the data.
        forward: ``(model, X) -> prediction`` where ``model(X)`` does not fit.
        individual: Where individual gradients come from: ``"backpack"``, ``"functional"``, or
            ``"auto"`` for the first where all layers are supported.
        autocast: The dtype of mixed precision, where quantities call the model themselves.
        live: Show the latest values in a table in the terminal.
        keep: How many records to keep in memory, the latest ones; all by default.
        seed: Seeds what is random. The global generators are not touched.

    Raises:
        InputError: If an argument is impossible.
        DataError: If ``log`` cannot be written.
        MissingDependencyError: If ``live`` is asked for and rich is not installed.

    Example:
        >>> from curvops.training import Alpha, Monitor
        >>> with torch.random.fork_rng():
        ...     model = nn.Linear(2, 1)
        >>> sgd, loss_func = torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss()
        >>> X, y = torch.eye(2), torch.ones(2, 1)
        >>> monitor = Monitor(model, loss_func, sgd, [Alpha()])
        >>> for _ in range(3):
        ...     with monitor.step(X, y):
        ...         loss_func(model(X), y).backward()
        ...     sgd.step()
        ...     sgd.zero_grad()
        >>> steps, alphas = monitor.run.series("alpha", "alpha")
        >>> steps, monitor.individual
        ([0, 1], 'backpack')
    """

    def __init__(
        self,
        model: nn.Module,
        loss_func: Callable[..., Any],
        optimizer: Any,
        quantities: Iterable[Quantity],
        log: str | os.PathLike[str] | None = None,
        *,
        data: Iterable[Any] | None = None,
        probe_size: int = PROBE_SIZE,
        reduction: str | None = None,
        normalizer: Normalizer | None = None,
        forward: Forward | None = None,
        individual: Way = "auto",
        autocast: torch.dtype | None = None,
        live: bool = False,
        keep: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, got {type(model).__name__}.")
        inner = unwrap(model)
        params = {n: p for n, p in inner.named_parameters() if p.requires_grad}
        if not params:
            raise InputError("model has no parameter that requires a gradient.")
        self.quantities = checked(quantities)
        if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 0):
            raise InputError(f"keep must be a nonnegative integer or None, got {keep!r}.")
        loss = as_loss(loss_func, reduction, normalizer)
        self._loss_func, self._optimizer, self._params, self._seed = (
            loss_func, optimizer, params, seed
        )  # fmt: skip
        self._source = Source(model, loss, params, individual, forward, autocast, seed)
        self._probe = Probe(probe_size)
        self._curvature = Curvature(
            inner, loss_func, params, data, self._probe, reduction=reduction,
            normalizer=normalizer, forward=forward, autocast=autocast,
        )  # fmt: skip
        eps = max(torch.finfo(p.dtype).eps for p in params.values())
        setting = Setting(tuple(params), [p.shape for p in params.values()], eps, seed)
        for quantity in self.quantities:
            quantity.bind(setting)
        self._recorder = Recorder(self._describe(inner, loss.name), log, live, keep)
        # ExactAlpha has no point of its own, but looks at the risk as well.
        self._looks_at_probe = data is None and any(q.looks_at_risk for q in self.quantities)
        self._updates = Updates(params, optimizer, self._finish)
        self._number = 0
        self._in_block = self._closed = self._finished = self._needs_individual = False
        self._blocks: list[Seen] = []
        self._owed: set[Quantity] = set()
        self._spent = 0.0

    def _describe(self, model: nn.Module, loss: str) -> dict[str, Any]:
        return {
            "version": version("curvops"),
            "torch": torch.__version__,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": type(model).__name__,
            "num_params": sum(p.numel() for p in self._params.values()),
            "loss": loss,
            "optimizer": type(innermost(self._optimizer)).__name__,
            "quantities": [q.name for q in self.quantities],
            "individual": self._source.way,
            "why": self._source.note,
        }

    # ------------------------------------------------------------------ in the loop

    def step(self, X: Any, y: Any) -> Block:
        """Watch the forward and the backward pass of a mini-batch, made in the ``with`` block.

        Args:
            X: The inputs, as the model is called with.
            y: The targets.

        Returns:
            A context manager that gives the :class:`Step`; several blocks without an update
            between them belong to one.

        Raises:
            InputError: At the first block, if data of a batch influence one another or the loss
                is no sum over data; if blocks are nested; if the monitor is closed.
        """
        if self._closed:
            raise InputError("the monitor is closed.")
        if self._in_block:
            raise InputError("a block of this monitor is open already; blocks cannot be nested.")
        return Block(self, X, y)

    def backward(self, X: Any, y: Any, *, scale: float = 1.0) -> Tensor:
        """Make the forward and the backward pass of a mini-batch, and return its loss.

        Args:
            X: The inputs.
            y: The targets.
            scale: What to multiply the loss by before ``backward``, such as one over the number
                of mini-batches that are accumulated.

        Returns:
            The loss, detached and not scaled.
        """
        with self.step(X, y):
            loss: Tensor = self._loss_func(self._source.predict(X), y)
            torch.autograd.backward(loss * scale)
        return loss.detach()

    # ------------------------------------------------------------------ what was found

    @property
    def individual(self) -> str:
        """Where individual gradients come from: ``"backpack"`` or ``"functional"``."""
        return self._source.way

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know: why BackPACK is not used, for instance."""
        why = self._source.note
        return (f"individual gradients by vmap: {why}",) if why else ()

    @property
    def run(self) -> Run:
        """What was measured so far."""
        return self._recorder.run

    @property
    def records(self) -> tuple[Record, ...]:
        """The records so far, in the order in which they were measured."""
        return self.run.records

    @property
    def seconds(self) -> float:
        """Time spent on measuring so far, outside of the user's own passes."""
        return self._spent

    def latest(self, quantity: str) -> Record | None:
        """Return the latest record of a quantity, ``None`` if there is none yet."""
        return self._recorder.latest(quantity)

    def to_dict(self) -> dict[str, Any]:
        """Return header and records as plain Python."""
        return self.run.to_dict()

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each step (see :meth:`Run.table`).

        Raises:
            MissingDependencyError: If pandas is not installed.
        """
        return self.run.to_pandas()

    def close(self) -> None:
        """Measure what is left of the last step, remove all hooks, close the journal."""
        if self._closed:
            return
        if self._in_block:
            self._source.end()
        with self._timed():
            self._finish()
        self._closed = True
        self._updates.close()
        self._updates.forget()
        self._recorder.close()

    def __enter__(self) -> Monitor:
        """Return the monitor; leaving the ``with`` block closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ inside

    def _enter(self, X: Any, y: Any) -> Step:
        """Begin a block."""
        begin = time.perf_counter()
        if self._blocks and self._has_moved():
            self._complete()
        needs_individual = any(q.wants_individual(self._number) for q in self.quantities)
        if needs_individual:
            reason = self._source.check(X, y)
            if reason is not None:
                needs_individual = False
                self._recorder.abandon(self._number, self.quantities, InputError(reason))
        if not self._blocks:
            needs_update = any(q.wants_update(self._number) for q in self.quantities)
            self._updates.begin(needs_individual or needs_update or not self._updates.announced)
            self._finished = False
            if self._looks_at_probe:
                self._probe.see(X, y)
        self._needs_individual = needs_individual
        self._source.begin(leading_size(X), needs_individual, self._directions())
        self._in_block = True
        self._spent += time.perf_counter() - begin
        return Step(self._number)

    def _leave(self, step: Step, X: Any, y: Any, failed: bool) -> None:
        """End a block."""
        begin = time.perf_counter()
        self._in_block = False
        self._source.end()
        if failed:
            return
        seen = self._source.seen(X, y, self._updates.copies if self._needs_individual else None)
        self._blocks.append(seen)
        if seen.totals is not None and seen.normalizer:
            step.loss = float(seen.totals.sum()) / seen.normalizer
        if len(self._blocks) == 1:
            self._at_point()
        self._spent += time.perf_counter() - begin

    def _has_moved(self) -> bool:
        """Tell whether the blocks so far belong to a step that is over."""
        if self._updates.stepped or self._updates.moved():
            return True
        # An optimizer that was not allowed to step (mixed precision overflowed): the gradients
        # are gone, so that the next block does not add to them.
        return all(p.grad is None or not bool(p.grad.any()) for p in self._params.values())

    def _directions(self) -> list[Sequence[Tensor]]:
        return [d for q in self.quantities for d in q.request(self._number).directions]

    def _at_point(self) -> None:
        """Measure what depends on the point alone."""
        due = [q for q in self.quantities if q.wants_point(self._number)]
        self._owed.update(due)
        if not self._owed or not self._curvature.ready:
            return
        due = [q for q in self.quantities if q in self._owed]
        self._owed.clear()
        k = max(int(getattr(q, "k", 0)) for q in due)
        point = Point(self._number, self._curvature, self._optimizer, self._params, k, self._seed)
        with self._curvature.at_current_point():
            for quantity in due:
                self._recorder.take(self._number, quantity, partial(quantity.at_point, point))

    def _finish(self) -> None:
        """Measure what the data of the step say; called before the optimizer moves."""
        if self._finished or not self._blocks or self._in_block:
            return
        self._finished = True
        with self._timed():
            self._record_step()
            batch = self._batch()
            if batch is None:
                return
            requests = [q.request(self._number) for q in self.quantities]
            try:
                found = shares(batch.measure(joined(requests)), requests)
            except Overwritten as error:
                self._recorder.abandon(self._number, self.quantities, error)
                return
            for quantity, request, share in zip(self.quantities, requests, found, strict=True):
                if request:
                    ask = partial(quantity.at_batch, self._number, batch, share)
                    self._recorder.take(self._number, quantity, ask)

    def _complete(self) -> None:
        """End the step that the optimizer has made."""
        self._finish()
        wanted = [q for q in self.quantities if q.wants_update(self._number)]
        if wanted:
            update, batch = self._updates.update(self._number), self._batch()
            for quantity in wanted:
                if batch is None and quantity.wants_individual(self._number):
                    continue  # it has been told why
                ask = partial(quantity.at_update, update, batch, self._curvature)
                self._recorder.take(self._number, quantity, ask)
        self._blocks.clear()
        self._number += 1

    def _batch(self) -> Batch | None:
        """Return the data of the step one by one, if they were asked for."""
        parts = tuple(s.individual for s in self._blocks if s.individual is not None)
        if len(parts) < len(self._blocks):
            return None
        notes = [f"individual gradients by vmap: {s.note}" for s in self._blocks if s.note]
        return Batch(parts, (*self.notes, *dict.fromkeys(notes)))

    def _record_step(self) -> None:
        """Record the loss, the step size and the number of data."""
        values: dict[str, Any] = {}
        if all(s.totals is not None for s in self._blocks):
            totals = torch.cat([s.totals for s in self._blocks if s.totals is not None])
            z = sum(s.normalizer for s in self._blocks)
            values["loss"] = float(totals.sum()) / z if z else None
            values["batch_size"] = sum(s.size for s in self._blocks)
        groups = getattr(innermost(self._optimizer), "param_groups", [])
        rates = [float(group["lr"]) for group in groups if "lr" in group]
        if rates:
            values["learning_rate"] = max(rates)
        self._recorder.keep([Record(self._number, STEP, plain(values))])

    @contextmanager
    def _timed(self) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._spent += time.perf_counter() - begin
