"""Where individual gradients come from: BackPACK where it can be trusted, else the data again.

Before the first step BackPACK is rehearsed on a few data, in evaluation mode and away from the
user's graph, buffers and random state (:mod:`curvops.training.rehearsal`): what its layers say is
compared with gradients taken datum by datum. A model whose layers hold the data on another axis,
are used twice, write to their input, or whose parameters are used outside of their layers, is
found there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from curvops.autodiff import Forward, FunctionalModel, unwrap
from curvops.errors import InputError
from curvops.losses import Loss
from curvops.nesting import leading_size, map_tensors
from curvops.rng import PrivateRNG, preserved_rng
from curvops.training.backpack import Collector, unsupported
from curvops.training.curvature import evaluation_mode
from curvops.training.draws import Draw
from curvops.training.functional import FromData, holds_data
from curvops.training.individual import (
    Blocks,
    Individual,
    Overwritten,
    check_loss,
    losses_and_slopes,
    losses_of_data,
    slice_data,
    versions_of,
)
from curvops.training.rehearsal import difference, mixes_data, rehearsal_point

Way = Literal["auto", "backpack", "functional"]

_REHEARSED = 3
"""Data of the rehearsal."""

_WATCHED: WeakSet[nn.Module] = WeakSet()
"""Models whose layers are being listened to, in an open block of a monitor."""


class Seen:
    """What was seen of a mini-batch.

    Attributes:
        prediction: The model's output, detached, if it was called once and returned a tensor.
        totals: The weighted loss of each datum ``[B]``, where the prediction was seen.
        normalizer: Z_b.
        size: B.
        individual: The data one by one, where they were asked for.
        note: Why they do not come from BackPACK, where that is so for this mini-batch alone.
    """

    def __init__(self, size: int) -> None:
        self.prediction: Tensor | None = None
        self.totals: Tensor | None = None
        self.normalizer = 1.0
        self.size = size
        self.note = ""
        self.individual: Individual | None = None
        self._calls = self._version = 0

    def see_prediction(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Take the model's output (a forward hook)."""
        if not torch.is_grad_enabled():
            return
        self._calls += 1
        single = self._calls == 1 and isinstance(output, Tensor)
        self.prediction, self._version = (output.detach(), output._version) if single else (None, 0)

    def check_prediction(self) -> None:
        """Drop the model's output if somebody wrote to it."""
        if self.prediction is not None and self.prediction._version != self._version:
            self.prediction = None


class Source:
    """Makes the :class:`~curvops.training.individual.Individual` of every mini-batch.

    Args:
        model: The module, as the user calls it.
        loss: The loss.
        params: The trained parameters, by name.
        way: ``"backpack"`` or ``"functional"`` to insist, ``"auto"`` for the first if it can.
        forward: How to call the model on X, where ``model(X)`` does not fit.
        autocast: What the forward pass runs in, in the functional way.
        seed: Seeds what random layers draw in the functional way.

    Attributes:
        note: Why BackPACK is not used; empty while it is.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        params: Mapping[str, nn.Parameter],
        way: Way = "auto",
        forward: Forward | None = None,
        autocast: torch.dtype | None = None,
        seed: int = 0,
    ) -> None:
        if way not in ("auto", "backpack", "functional"):
            raise InputError(f'individual must be "auto", "backpack" or "functional", got {way!r}.')
        self._loss, self._params, self._way = loss, params, way
        self._inner = unwrap(model)
        self._model = FunctionalModel(self._inner, tuple(params), forward, autocast)
        self._model.clone_buffers = True  # a training pass of ours must not count as one of theirs
        self._rng = PrivateRNG(seed)
        self._forward, self._called = forward, model
        self._checked = False
        self._seen, self._handle, self._collects = Seen(0), None, False
        self._norms = [(n, m) for n, m in self._inner.named_modules() if isinstance(m, _BatchNorm)]
        self._all = list(self._inner.parameters())
        self._trained = [p.requires_grad for p in self._all]
        self.note = ""
        self._collector: Collector | None = None
        if way == "functional":
            self.note = "asked for"
            return
        reason = self._reason(model, forward)
        if reason is None:
            self._collector = Collector(self._inner, list(params.values()))
        else:
            self._without(reason)

    def _reason(self, model: nn.Module, forward: Forward | None) -> str | None:
        if forward is not None:
            return "the model is called through forward="
        if hasattr(model, "_orig_mod"):
            return "the model is compiled"
        return unsupported(self._inner, list(self._params.values()))

    def _without(self, reason: str) -> None:
        """Go on without BackPACK.

        Raises:
            InputError: If it was insisted on.
        """
        if self._way == "backpack":
            raise InputError(
                f'individual="backpack" cannot be had: {reason}. Use individual="auto".'
            )
        self.note, self._collector = reason, None

    @property
    def way(self) -> str:
        """``"backpack"`` or ``"functional"``."""
        return "functional" if self._collector is None else "backpack"

    def predict(self, X: Any) -> Any:
        """Call the model as the user does."""
        return self._called(X) if self._forward is None else self._forward(self._called, X)

    def check(self, X: Any, y: Any) -> str | None:
        """Check model, loss and BackPACK on a first mini-batch; later, what may have changed.

        Returns:
            Why the data of a later mini-batch have no gradients of their own; ``None`` if they do.

        Raises:
            InputError: If data of a batch influence one another, or the loss is no sum over data.
        """
        if self._inner in _WATCHED:
            raise InputError(
                "another monitor has a block open on this model; give one monitor all quantities."
            )
        changed = self._changed()
        if self._checked:
            return changed
        if changed is not None:
            raise InputError(changed)
        size = leading_size(X)
        few, holds = min(size, _REHEARSED), holds_data((X, y), size)
        X_few, y_few = slice_data((X, y), 0, few, size)
        X_few = map_tensors(Tensor.detach, X_few)  # hooks on inputs that need a gradient stay out
        params = {name: p.detach() for name, p in self._params.items()}
        with evaluation_mode(self._inner), preserved_rng(), self._model.at(params) as predict:
            with torch.no_grad():
                prediction = predict(X_few)
            check_loss(self._loss, prediction, y_few, few)
        point = rehearsal_point(self._inner, self._model, params, X_few)
        if mixes_data(self._inner, self._model, point, X_few, few, holds):
            raise InputError(
                "the model's prediction for one datum depends on the other data of its batch, so "
                "that no datum has a gradient of its own. Leave out the quantities that need "
                "individual gradients."
            )
        if self._collector is not None:
            reason = self._rehearse(self._collector, point, X_few, y_few, few, holds)
            if reason is not None:
                self._without(reason)
        self._checked = True
        return None

    def _changed(self) -> str | None:
        """Return what makes individual gradients impossible now, if anything does."""
        for name, module in self._norms:
            if module.training:
                return (
                    f"{type(module).__name__} {name!r} is in training mode: it mixes the data of "
                    "a batch, so that no datum has a gradient of its own. Put it in eval mode, "
                    "use GroupNorm, or leave out the quantities that need individual gradients."
                )
        if [p.requires_grad for p in self._all] != self._trained:
            return "parameters were frozen or unfrozen since the monitor began; start another one."
        return None

    def _rehearse(
        self,
        collector: Collector,
        params: Mapping[str, Tensor],
        X: Any,
        y: Any,
        size: int,
        holds: Sequence[bool],
    ) -> str | None:
        """Return how BackPACK fails on a few data, if it does."""
        active = {name: p.clone().requires_grad_() for name, p in params.items()}
        with evaluation_mode(self._inner), preserved_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = FromData(
                self._model, self._loss, params, X, y, size, PrivateRNG(0), holds=holds
            )
            try:
                collector.begin(size)
                try:
                    with (
                        torch.inference_mode(False),
                        torch.enable_grad(),
                        self._model.at(active) as predict,
                    ):
                        total = self._loss.total(predict(X), y)
                        torch.autograd.grad(total, list(active.values()), allow_unused=True)
                finally:
                    collector.end()
                found: Individual | str = collector.trouble or ""
                if collector.prediction is not None:
                    totals, slopes = losses_and_slopes(self._loss, collector.prediction, y)
                    found = collector.collected(slopes, totals, 1.0, lambda _: expected)
            except Exception as error:
                told = str(error).strip().splitlines() or [""]
                return f"the model does not run under BackPACK ({told[0][:120]})"
            if isinstance(found, str):
                return found
            return difference(self._model, found, expected)

    def begin(self, size: int, individual: bool = True, directions: Sequence[Blocks] = ()) -> None:
        """Watch the user's passes on a mini-batch from here to :meth:`end`.

        Args:
            size: Number of data B.
            individual: Whether individual gradients will be asked for.
            directions: d, whose products with individual gradients will be asked for.
        """
        self._seen, self._handle = Seen(size), None
        self._collects = individual and self._collector is not None
        if self._collects and self._collector is not None:
            self._collector.begin(size, directions)
            _WATCHED.add(self._inner)
        elif self._forward is None:
            self._handle = self._inner.register_forward_hook(self._seen.see_prediction)

    def end(self) -> None:
        """Stop watching, and leave the model as it was."""
        _WATCHED.discard(self._inner)
        if self._collects and self._collector is not None:
            self._collector.end()
            self._seen.prediction = self._collector.prediction
        elif self._handle is not None:
            self._handle.remove()
            self._seen.check_prediction()

    def seen(self, X: Any, y: Any, start: Callable[[], Blocks] | None) -> Seen:
        """Return what was seen of a mini-batch.

        Args:
            X: The inputs.
            y: The targets.
            start: Returns copies of the parameters at which the passes were made; ``None`` where
                individual gradients are not asked for.
        """
        seen, size = self._seen, self._seen.size
        prediction = seen.prediction if self._forward is None else None
        slopes, versions = None, versions_of((X, y))
        if prediction is not None:
            seen.normalizer = self._normalizer(prediction, y, size)
            if self._collects:
                seen.totals, slopes = losses_and_slopes(self._loss, prediction, y)
            else:
                seen.totals = losses_of_data(self._loss, prediction, y)
        if start is None:
            return seen

        draw = Draw(self._rng)

        def again(params: Mapping[str, Tensor] | None) -> Individual:
            if versions_of((X, y)) != versions:
                raise Overwritten
            if params is not None:
                return FromData(self._model, self._loss, params, X, y, size, draw)
            at = dict(zip(self._params, start(), strict=True))
            return FromData(self._model, self._loss, at, X, y, size, draw, prediction)

        seen.individual = self._taken(seen, slopes, again) if self._collects else again(None)
        if seen.totals is None:
            seen.totals, seen.normalizer = seen.individual.totals, seen.individual.normalizer
        return seen

    def _taken(
        self,
        seen: Seen,
        slopes: Tensor | None,
        again: Callable[[Mapping[str, Tensor] | None], Individual],
    ) -> Individual:
        """Return what BackPACK collected, or the same from the data with a note."""
        collector = self._collector
        assert collector is not None
        made: Individual | str = collector.trouble or ""
        if not made and seen.totals is not None and slopes is not None:
            made = collector.collected(slopes, seen.totals, seen.normalizer, again)
        collector.clear()
        if not isinstance(made, str):
            return made
        seen.note = made
        if self._way == "backpack":
            raise InputError(f'individual="backpack" gave nothing: {made}. Use individual="auto".')
        return again(None)

    def _normalizer(self, prediction: Tensor, y: Any, size: int) -> float:
        if self._loss.reduction == "sum":
            return 1.0
        return self._loss.normalizer(y, size, lambda: prediction)
