"""The map v ↦ A_b v of one mini-batch: on a live autograd graph, or on kept residuals."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum
from types import EllipsisType, NoneType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx
from torch.func import grad, jvp, vmap

from curvops.autodiff.constants import ConstantParts
from curvops.autodiff.linearization import Blocks, Linearization
from curvops.autodiff.memory import is_out_of_memory
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.product import BlockMap, Product
from curvops.autodiff.tracing import (
    SplitProduct,
    TracedProduct,
    split,
    storage_bytes,
    trace,
)
from curvops.data import Batch
from curvops.losses import Loss
from curvops.nesting import leaves, map_tensors, tensors_of

TRACE_ERRORS = (
    RuntimeError,
    NotImplementedError,
    TypeError,
    ValueError,
    AssertionError,
    AttributeError,
    LookupError,
)
"""What torch raises where a model cannot be traced; anything else is the model's own error."""

_PLAIN = (
    str, bytes, int, float, complex, bool, NoneType, EllipsisType, range, slice,
    torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Types whose values are all that their text shows."""


class BatchMap(Protocol):
    """v ↦ A_b v."""

    @property
    def is_constant(self) -> bool:
        """Whether no parameter has an influence on this batch."""

    def one(self, v: Blocks) -> Blocks:
        """Multiply one vector, given as one tensor per parameter."""

    def many(self, v: Blocks) -> Blocks:
        """Multiply a block of vectors, stacked on a *leading* axis of every tensor."""


class GraphMap:
    """Kept graph: every product is a backward pass through graphs that are built once."""

    def __init__(self, lin: Linearization, apply: BlockMap) -> None:
        self._lin = lin
        self._apply = apply
        self.is_built = False

    @property
    def is_constant(self) -> bool:
        return self._lin.is_constant

    def one(self, v: Blocks) -> Blocks:
        self.is_built = True
        with torch.enable_grad():
            return self._apply(v)

    def many(self, v: Blocks) -> Blocks:
        if not self.is_built:  # graphs must not be built inside vmap
            self.one([t[0] for t in v])
        with without_fallback_warnings():
            return list(vmap(lambda *t: tuple(self.one(list(t))))(*v))


class ResidualMap:
    """Kept residuals: every product runs the tangent graph, plain tensor operations."""

    def __init__(self, halves: SplitProduct, residuals: list[Tensor]) -> None:
        self._split = halves
        self._residuals = residuals

    def one(self, v: Blocks) -> Blocks:
        with torch.no_grad():
            return list(self._split.tangent(*self._residuals, *v))

    @property
    def is_constant(self) -> bool:
        return self._split.is_constant

    def many(self, v: Blocks) -> Blocks:
        with torch.no_grad(), without_fallback_warnings():
            return list(self._split.block(*self._residuals, *v))

    def num_bytes(self, shared: Sequence[Tensor]) -> int:
        """Bytes of the residuals that ``shared`` does not hold already."""
        return storage_bytes(self._residuals, shared)


@contextmanager
def without_fallback_warnings() -> Iterator[None]:
    """Silence vmap where it loops by itself: whether it pays is measured anyway."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


class ForwardOverReverse(Linearization):
    """A linearization whose hvp differentiates the gradient forwards, for tracing.

    Traced, it gives the better tangent graph: torch's double backward of a convolution runs
    half again the convolutions it needs.
    """

    def __init__(
        self,
        model: FunctionalModel,
        names: Sequence[str],
        fixed: Mapping[str, Tensor],
        predict: Callable[[Any], Tensor],
        loss: Loss | None,
        params: Blocks,
        batch: Batch,
    ) -> None:
        super().__init__(predict, loss, params, batch)
        self._model, self._names, self._fixed = model, names, fixed

    def hvp(self, v: Blocks) -> Blocks:
        def total(*params: Tensor) -> Tensor:
            at = dict(zip(self._names, params, strict=True))
            with self._model.at(at, self._fixed) as predict:
                return self.loss.total(predict(self.batch.X), self.batch.y)

        points = tuple(p.detach() for p in self.params)
        gradient = grad(total, argnums=tuple(range(len(points))))
        return list(jvp(gradient, points, tuple(v))[1])


class Tracer:
    """Traces a product for one batch shape after the other, and keeps the results.

    Args:
        model: The model.
        loss: The loss.
        product: What to trace.
        names: The parameters that vary.
    """

    def __init__(
        self, model: FunctionalModel, loss: Loss | None, product: Product, names: Sequence[str]
    ) -> None:
        self._model, self._loss, self._product, self._names = model, loss, product, names
        self._traced: dict[Any, TracedProduct] = {}
        self._splits: dict[Any, SplitProduct] = {}
        self.lean = self.compiled = False

    def __call__(self, lin: Linearization, extras: Sequence[Tensor]) -> ResidualMap:
        """Return the map of a batch, tracing it if its shape is new."""
        params, batch = [p.detach() for p in lin.params], lin.batch
        shape = (*_signature(batch), *(tuple(t.shape) for t in extras))
        fixed = self._model.fixed().values()
        inputs = [*params, *fixed, *tensors_of((batch.X, batch.y)), *extras]
        if shape not in self._traced:
            self._traced[shape] = self._trace(lin, inputs, extras)
        key = (self.lean, self.compiled, *shape)
        if key not in self._splits:
            self._splits[key] = self._split(self._traced[shape])
        return ResidualMap(self._splits[key], self._splits[key].residuals(inputs))

    def _split(self, traced: TracedProduct) -> SplitProduct:
        halves = split(traced, self.lean)
        if not self.compiled:
            return halves
        # Only the tangent graph: the primal one runs once per batch.
        one, block = torch.compile(halves.tangent), torch.compile(halves.block)
        return replace(halves, tangent=one, block=block)

    def _trace(
        self, lin: Linearization, inputs: list[Tensor], extras: Sequence[Tensor]
    ) -> TracedProduct:
        def traced_by(forward: bool) -> TracedProduct:
            with self._model.attributes_kept():  # a cache that was filled would hold no values
                function = self._function(lin.batch, len(extras), forward)
                return trace(function, inputs, self._product.example(lin))

        try:
            if not self._has_constant_parts(lin):
                traced = traced_by(forward=True)
                if self._error(traced, lin, inputs, extras) <= self._tolerance(lin):
                    return traced
        except TRACE_ERRORS as error:
            if is_out_of_memory(error):
                raise
        # Forward mode does not reach everything (checkpointing, some kernels), and torch's goes
        # through torch.no_grad; reverse over reverse does what autograd does, or fails for good.
        traced = traced_by(forward=False)
        if self._error(traced, lin, inputs, extras) > max(self._tolerance(lin), 1e-2):
            raise RuntimeError("what was traced is not the product that autograd computes")
        return traced

    def _has_constant_parts(self, lin: Linearization) -> bool:
        """Tell whether forward mode would go where autograd does not, whatever the values are."""
        own = Linearization(lin.predict, self._loss, lin.params, lin.batch)
        parts = ConstantParts()
        with parts:
            _ = own.prediction if self._loss is None else own.total
        return parts.found

    def _tolerance(self, lin: Linearization) -> float:
        """Return how far two orders of the same operations may be apart, relative."""
        dtype = torch.bfloat16 if self._model.has_autocast else lin.params[0].dtype
        return min(1e3 * torch.finfo(dtype).eps, 0.1)

    def _error(
        self,
        traced: TracedProduct,
        lin: Linearization,
        inputs: list[Tensor],
        extras: Sequence[Tensor],
    ) -> float:
        """Return how far a product is from autograd's own, relative, for a random vector."""
        generator = torch.Generator().manual_seed(0)
        example = self._product.example(lin)
        v = [torch.randn(t.shape, generator=generator).to(t) for t in example]
        own = Linearization(lin.predict, self._loss, lin.params, lin.batch)
        with torch.enable_grad():
            expected = self._product.chain(own, extras)(v)
        del own
        with torch.no_grad():
            found = fx.GraphModule(traced.root, traced.graph)(*inputs, *v)
        gap, scale = _norm([a - b for a, b in zip(found, expected, strict=True)]), _norm(expected)
        if not gap > 0.0:  # what is NaN is NaN in any form
            return 0.0
        return gap / scale if scale else math.inf

    def _function(self, batch: Batch, num_extras: int, forward: bool) -> Callable[..., Blocks]:
        model, names, fixed_names = self._model, self._names, list(self._model.fixed())

        def product(*tensors: Tensor) -> Blocks:
            stream = iter(tensors)
            params = [next(stream).detach().requires_grad_() for _ in names]
            fixed = {name: next(stream) for name in fixed_names}
            X, y = map_tensors(lambda _: next(stream), (batch.X, batch.y))
            extras = [next(stream) for _ in range(num_extras)]
            vector = list(stream)
            traced = Batch(batch.index, X, y, batch.size)
            at = dict(zip(names, params, strict=True))
            with torch.enable_grad(), model.at(at, fixed) as predict:
                lin: Linearization
                if forward:
                    lin = ForwardOverReverse(
                        model, names, fixed, predict, self._loss, params, traced
                    )
                else:
                    lin = Linearization(predict, self._loss, params, traced)
                return self._product.chain(lin, extras)(vector)

        return product


def _norm(blocks: Blocks) -> float:
    return math.hypot(*(float(t.detach().double().norm()) for t in blocks))


def _signature(batch: Batch) -> tuple[Any, ...]:
    """Return what a trace depends on: structure, shapes, dtypes and every other leaf.

    Raises:
        TypeError: If a leaf may hold tensors, which would be baked in.
    """
    return tuple((path, *_described(path, leaf)) for path, leaf in leaves((batch.X, batch.y)))


def _described(path: str, leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype
    if type(leaf) in _PLAIN or isinstance(leaf, (Enum, np.generic)):
        return type(leaf), repr(leaf)
    raise TypeError(
        f"a batch holds a {type(leaf).__name__} at (X, y){path}, whose content would be taken for "
        "a constant; tensors in dicts, tuples and lists can be traced"
    )
