"""A quantity of the prediction, at one point or several of them, with its gradient or without."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from curvops.autodiff.affine import SharedProducts
from curvops.autodiff.batch_maps import without_fallback_warnings
from curvops.autodiff.linearization import Blocks
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.once import refuse_once_differentiable
from curvops.autodiff.points import Points
from curvops.data import Batch
from curvops.errors import DifferentiationError, explained
from curvops.rng import PrivateRNG

Quantity = Callable[[Tensor, Any], Tensor]
"""``(prediction, target) -> Tensor``, a sum over the batch; 0-dim where it is differentiated."""

Add = Callable[[int, int, Blocks], None]
"""Takes the first point, their number c, and gradients: ``[*shape]`` for one, ``[c, *shape]``."""


class Evaluation:
    """A quantity at many points, without gradients.

    Args:
        model: The model.
        name: Names the quantity, for what is remembered about it.
        quantity: What to evaluate.
        points: Where.
        rngs: A stream of random numbers for each point, if the model may draw some.
    """

    with_gradients = False

    def __init__(
        self,
        model: FunctionalModel,
        name: Hashable,
        quantity: Quantity,
        points: Points,
        rngs: list[PrivateRNG] | None = None,
    ) -> None:
        self.key: Hashable = (type(self), name)
        self.points = points
        self._model, self._quantity, self._rngs = model, quantity, rngs

    @property
    def is_random(self) -> bool:
        """Whether the points have their own random streams."""
        return self._rngs is not None

    @property
    def can_share(self) -> bool:
        """Whether points may share products, if they are affine."""
        return not (self.with_gradients or self.is_random or self._model.has_autocast)

    @property
    def shares(self) -> bool:
        """Whether there are products to share, fewer than points."""
        return self.can_share and 1 < self.num_products < len(self.points)

    @property
    def num_products(self) -> int:
        """How many products take the place of one for each point."""
        return len(self.points) if self.points.form is None else self.points.form.num_products

    @property
    def has_shared(self) -> bool:
        """Whether some layer of the model has shared products on this batch."""
        return self._products is not None and self._products.is_used

    @contextmanager
    def on(self, batch: Batch) -> Iterator[None]:
        """Work on a batch while the context is open."""
        form, named = self.points.form, self.points.named
        self._batch = batch
        self._products: SharedProducts | None = None
        if self.shares:
            assert form is not None
            directions = [named(direction) for direction in form.directions.T.contiguous()]
            self._products = SharedProducts(batch.X, named(form.origin), directions)
            self._numbers = form.coefficients.T.tolist()
        with self._model.visiting(self.points.like.device) as self._visit:
            yield
        self._products = None

    def single(self, k: int, shared: bool = False) -> Tensor:
        """Return the quantity at point k."""
        params, X = self.points.one(k), self._batch.X
        rng = nullcontext() if self._rngs is None else self._rngs[k].active()
        with torch.no_grad(), rng:
            with self._sharing(params, self._numbers[k] if shared else None):
                prediction = self._visit(params)(X)
            return self._quantity(prediction, self._batch.y)

    def several(self, start: int, stop: int, shared: bool = False) -> Tensor:
        """Return the quantity at a range of points, ``[c, *]``."""
        with torch.no_grad():
            return self._stacked(self.points.several(start, stop), start, stop, shared)

    def commit(self) -> None:
        """Deliver what the last call computed beside its answer."""

    def _stacked(self, params: dict[str, Tensor], start: int, stop: int, shared: bool) -> Tensor:
        form = self.points.form
        coefficients = form.coefficients[:, start:stop].T if shared and form is not None else None
        # Left open until all is done: checkpointed modules run their forward again.
        with ExitStack() as substitution, without_fallback_warnings():

            def at(params: dict[str, Tensor], coefficients: Tensor | None) -> Tensor:
                predict = substitution.enter_context(self._model.at(params))
                with self._sharing(params, coefficients):
                    prediction = predict(self._batch.X)
                return self._quantity(prediction, self._batch.y)

            axes = (0, None if coefficients is None else 0)
            values: Tensor = vmap(at, in_dims=axes)(params, coefficients)
            return self._finished(values, params)

    def _finished(self, values: Tensor, params: dict[str, Tensor]) -> Tensor:
        return values

    def _sharing(
        self, params: Mapping[str, Tensor], coefficients: Tensor | list[float] | None
    ) -> AbstractContextManager[None]:
        if coefficients is None or self._products is None:
            return nullcontext()
        return self._products.at(params, coefficients)


class Differentiation(Evaluation):
    """A quantity and its gradient; the gradients are delivered by :meth:`commit`.

    Args:
        add: Called with the gradients of one range of points after the other.

    Attributes:
        is_constant: Whether no prediction so far depended on any parameter.
    """

    with_gradients = True

    def __init__(self, *args: Any, add: Add, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add = add
        self._waiting: Blocks = []
        self._range = (0, 0)
        self.is_constant = True

    def single(self, k: int, shared: bool = False) -> Tensor:
        """Return the quantity at point k, and keep its gradient for :meth:`commit`."""
        params = {name: p.detach().requires_grad_() for name, p in self.points.one(k).items()}
        rng = nullcontext() if self._rngs is None else self._rngs[k].active()
        with torch.enable_grad(), rng:
            prediction = self._visit(params)(self._batch.X)
            refuse_once_differentiable(prediction)
            value = self._quantity(prediction, self._batch.y)
            if prediction.requires_grad and not value.requires_grad:
                raise DifferentiationError(
                    "the loss does not depend differentiably on the prediction."
                )
            self._waiting, self._range = self._gradient(value, params), (k, 1)
        return value.detach()

    def several(self, start: int, stop: int, shared: bool = False) -> Tensor:
        """Return the quantity at a range of points ``[c]``, and keep its gradients."""
        blocks = self.points.several(start, stop)
        params = {name: p.detach().requires_grad_() for name, p in blocks.items()}
        with torch.enable_grad():
            values = self._stacked(params, start, stop, shared=False)
        self._range = start, stop - start
        return values

    def commit(self) -> None:
        """Deliver the gradients of the last call."""
        self._add(*self._range, self._waiting)

    def _finished(self, values: Tensor, params: dict[str, Tensor]) -> Tensor:
        self._waiting = self._gradient(values.sum(), params)
        return values.detach()

    def _gradient(self, value: Tensor, params: dict[str, Tensor]) -> Blocks:
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in params.values()]
        self.is_constant = False
        with explained("differentiating the model"):
            return list(torch.autograd.grad(value, list(params.values()), materialize_grads=True))
