"""What is kept between products, how much of it, and how columns go through it.

The first product, and batches that do not fit the memory budget, are streamed: rebuilt for every
product, one batch alive at a time. The maps of the others stay, in one of the forms of
:mod:`curvops.autodiff.forms`. Tracing takes seconds, so it waits until the products that are
announced, or were already made, pay for it; then the forms are measured on the first batch and
the fastest stays.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curvops.autodiff.batch_maps import BatchMap, GraphMap, ResidualMap
from curvops.autodiff.forms import Forms
from curvops.autodiff.invalidation import state_of
from curvops.autodiff.keeping import Keeping
from curvops.autodiff.linearization import Linearization
from curvops.autodiff.measure import synchronize
from curvops.autodiff.memory import available_bytes, is_out_of_memory
from curvops.autodiff.model import FunctionalModel
from curvops.autodiff.product import Ends, ExtraStream, Product
from curvops.autodiff.rank_one import RankOneMap
from curvops.autodiff.widths import BLOCK, Widths
from curvops.data import Batch, parse_bytes, split
from curvops.errors import InputError, refuse_constant
from curvops.losses import Loss
from curvops.nesting import tensors_of

_WORKING = 4
"""Times its graph that one batch needs while it is multiplied with one column."""
_COPIES = 4
"""Of the columns, while they are multiplied: theirs, the sum's, its correction, the result."""
_SLACK = 0.9
"""Of a budget that is planned with; the rest goes to what an allocator rounds up and splits."""


@dataclass
class _Kept:
    """What is kept at one point: a prefix of the batches."""

    key: Any
    params: dict[str, Tensor]
    maps: list[BatchMap] = field(default_factory=list)
    shapes: list[torch.Size | None] = field(default_factory=list)
    num_bytes: int = 0
    complete: bool = False
    resume: Any = None


class Keeper:
    """Multiplies with every batch of a risk, keeping what pays.

    Args:
        model: The model.
        loss: The loss, or ``None``.
        product: The product of one batch.
        options: The user's choices.
    """

    def __init__(
        self, model: FunctionalModel, loss: Loss | None, product: Product, options: Keeping
    ) -> None:
        self._model, self._loss, self._product, self.options = model, loss, product, options
        self._kept: _Kept | None = None
        self._forms_of: dict[Any, Forms] = {}
        self._forms = self._forms_in(model.modes())
        self._streaming = options.keep == "nothing"
        self._announced = self._products = 0
        self._seconds = 0.0
        self._bytes_per_datum: float | None = None
        self._size: int | None = None
        self._widths = Widths(options.columns)
        self._data_is_held = True

    def prepare(self, num_products: int) -> None:
        """Announce how many columns will be multiplied, so that set-up can pay."""
        if isinstance(num_products, bool) or not isinstance(num_products, int) or num_products < 0:
            raise InputError(f"num_products must be a nonnegative int, got {num_products!r}.")
        self._announced = self._products + num_products

    def release(self) -> None:
        """Free what is kept. The next products build it again."""
        self._kept = None

    def stream(self) -> bool:
        """Keep nothing from now on; tell whether that changes anything."""
        changed = not self._streaming
        self.release()
        self._streaming = True
        return changed

    def group(self, columns: Tensor, rows: int) -> int:
        """Return how many of the columns ``[K, n]`` the memory budget lets through in one pass.

        Args:
            columns: The columns.
            rows: The length of their products.
        """
        if self.options.memory_budget is None:
            return len(columns)
        each = max(columns.shape[1], rows) * columns.element_size()
        # The result stands twice: as rows, and as the columns that the caller gets.
        left = self._allowed(columns.device) - 2 * len(columns) * each
        return max(1, min(len(columns), left // (2 * _COPIES * each)))

    @property
    def kept_bytes(self) -> int:
        """Bytes of what is kept now."""
        return 0 if self._kept is None else self._kept.num_bytes

    @property
    def form(self) -> str:
        """What is kept now: ``"residuals"``, ``"graph"``, ``"layers"`` or ``"nothing"``."""
        return self._forms.form if self._kept is not None and self._kept.maps else "nothing"

    def run(
        self,
        params: dict[str, Tensor],
        batches: Iterable[Batch],
        num_batches: int,
        data_is_held: bool,
        can_split: bool,
        columns: Tensor,
        ends: Ends,
    ) -> None:
        """Multiply every batch with every column.

        Args:
            params: The current point.
            batches: One pass over the data, ``num_batches`` of them.
            num_batches: How many there are.
            data_is_held: Whether the batches stay in memory whatever is kept.
            can_split: Whether a batch is the sum of its parts, so that a scarce budget may cut it.
            columns: Vectors ``[K, n]``.
            ends: What a batch takes of them, and where its products go.
        """
        start = time.perf_counter()
        constant = True
        self._data_is_held = data_is_held
        if not can_split or self.options.memory_budget is None:
            self._size = 0
        with closing(self._maps(params, batches, num_batches, columns)) as maps:
            for batch, batch_map, shape in maps:
                ends.at(shape)
                self._multiply(batch, batch_map, columns, ends)
                constant = constant and batch_map.is_constant
                del batch_map
        if constant:
            refuse_constant(list(params))
        self._products += len(columns)
        self._seconds = (time.perf_counter() - start) / len(columns)

    # ------------------------------------------------------------------ what is kept

    def _maps(
        self,
        params: dict[str, Tensor],
        batches: Iterable[Batch],
        num_batches: int,
        columns: Tensor,
    ) -> Generator[tuple[Batch, BatchMap, torch.Size | None], None, None]:
        num_columns = len(columns)
        modes = self._model.modes()
        self._forms = self._forms_in(modes)
        tensors = [*params.values(), *self._model.fixed().values()]
        key = None if self._streaming else (modes, state_of(tensors))
        if self._kept is not None and self._kept.key != key:
            self.release()
        keeping = not self._streaming and self._pays_to_keep(num_columns)
        trial = self._pays_to_trace(num_columns)
        if trial:
            self.release()
        kept = self._kept
        if kept is None:
            active = {name: p.detach().requires_grad_() for name, p in params.items()}
            kept = _Kept(key, active)
            self._kept = kept if keeping else None
        stream = self._product.extras()
        if kept.complete:
            stream.resume(kept.resume)
        prefix, budget = len(kept.maps), 0
        try:
            with self._model.at(kept.params) as predict:
                for i, batch in enumerate(self._parts(batches, predict, kept.params)):
                    if i < prefix:
                        yield batch, kept.maps[i], kept.shapes[i]
                        continue
                    storing = keeping and not kept.complete
                    lin = Linearization(predict, self._loss, list(kept.params.values()), batch)
                    if storing and i == 0:
                        kept.resume = stream.state()
                    if i == 0 and (storing or self.options.memory_budget is not None):
                        budget = self._budget(lin, columns)
                    extras = stream(lin)
                    if storing and i == 0 and self._forms.try_layers(lin, extras):
                        self._widths.forget()
                    if trial and i == 0:
                        self._choose(lin, extras, num_batches, budget if keeping else None)
                    batch_map = self._forms.build(lin, extras)
                    shape = self._product.shape(lin)
                    if storing:
                        self._store(kept, batch_map, shape, lin, budget, stream)
                    del lin, extras
                    yield batch, batch_map, shape
                    del batch_map
            kept.complete = True
        finally:
            if not kept.complete:  # interrupted while building
                self.release()

    def _forms_in(self, modes: tuple[bool, ...]) -> Forms:
        """Return the forms of a train or eval mode, with what was traced and measured in it."""
        if modes not in self._forms_of:
            forms = Forms(self._model, self._loss, self._product, self.options)
            self._forms_of[modes] = forms
        return self._forms_of[modes]

    def _parts(
        self,
        batches: Iterable[Batch],
        predict: Callable[[Any], Tensor],
        params: dict[str, Tensor],
    ) -> Iterator[Batch]:
        """Yield the batches, cut so that work on one leaves half of a given budget to the rest.

        How they are cut is decided on the first batch ever seen, so that all products see the same.
        """
        for batch in batches:
            if self._size is None:
                lin = Linearization(predict, self._loss, list(params.values()), batch)
                needed = 2 * _WORKING * self._graph_bytes(lin)
                allowed = self._allowed(lin.params[0].device)
                num_parts = min(batch.size, -(-needed // allowed)) if allowed else 1
                self._size = -(-batch.size // num_parts) if num_parts > 1 else 0
                del lin
            yield from split(batch, self._size) if self._size else (batch,)

    def _pays_to_keep(self, num_columns: int) -> bool:
        """Keep from the second product on, or from the first if more are announced."""
        if self.options.keep in ("graph", "residuals", "layers"):
            return True
        return self._products > 0 or self._announced > num_columns

    def _pays_to_trace(self, num_columns: int) -> bool:
        """Trace once the products to come, announced or as many again, save what it costs."""
        expected = max(self._announced - self._products, self._products, num_columns)
        return self._forms.pays_to_trace(expected, self._seconds)

    def _choose(
        self, lin: Linearization, extras: list[Tensor], num_batches: int, budget: int | None
    ) -> None:
        together = self._bytes_per_datum is not None and (
            8 * self._bytes_per_datum * lin.batch.size <= self._allowed(lin.params[0].device)
        )
        left = max(self._announced, 2 * self._products) - self._products
        self._forms.choose(lin, extras, self._shared(lin), budget, together, num_batches, left)
        self._widths.forget()

    def _store(
        self,
        kept: _Kept,
        batch_map: BatchMap,
        shape: torch.Size | None,
        lin: Linearization,
        budget: int,
        stream: ExtraStream,
    ) -> None:
        """Keep a map if it fits; what is kept is a prefix of the batches."""
        if isinstance(batch_map, (ResidualMap, RankOneMap)):
            size = batch_map.num_bytes(self._shared(lin))
        else:
            assert self._bytes_per_datum is not None
            # The graph of the gradient (or of Jᵀu) ends in one tensor per parameter.
            outputs = sum(p.numel() * p.element_size() for p in lin.params)
            size = int(self._bytes_per_datum * lin.batch.size) + outputs
        if budget == 0 or kept.num_bytes + size > budget:
            kept.complete = True
            return
        kept.maps.append(batch_map)
        kept.shapes.append(shape)
        kept.num_bytes += size
        kept.resume = stream.state()

    def _budget(self, lin: Linearization, columns: Tensor) -> int:
        """Return the bytes that may be kept: the budget less what is needed to multiply.

        That is one batch while it is worked on, once more for each column that goes through
        with others, and the columns themselves. Where it is scarce, fewer go together.
        """
        per_batch = self._graph_bytes(lin)
        self._bytes_per_datum = per_batch / lin.batch.size
        left = self._allowed(columns.device) - _WORKING * per_batch
        left -= _COPIES * columns.numel() * columns.element_size()
        widest = max(1, min(BLOCK, len(columns), left // (2 * max(per_batch, 1))))
        self._widths.widest = widest
        return max(0, left - (widest - 1) * per_batch)

    def _allowed(self, device: torch.device) -> int:
        if self.options.memory_budget is None:
            return available_bytes(device) // 2
        return int(_SLACK * parse_bytes(self.options.memory_budget, "memory_budget"))

    def _graph_bytes(self, lin: Linearization) -> int:
        """Return the bytes that the kept graph of a batch holds, by building one."""
        sizes: dict[int, int] = {}

        def pack(t: Tensor) -> Tensor:
            # The graph holds this function and what it returns, which must not hold the graph.
            if t.layout is torch.strided:
                sizes[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t.detach()

        probe = Linearization(lin.predict, self._loss, lin.params, lin.batch)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            chain = self._product.chain(probe, self._product.extras()(probe))
            chain([torch.zeros_like(t) for t in self._product.example(probe)])
        for t in self._shared(lin):
            sizes.pop(t.untyped_storage().data_ptr(), None)
        return sum(sizes.values())

    def _shared(self, lin: Linearization) -> list[Tensor]:
        """Return the tensors that are held anyway, whatever is kept."""
        data = tensors_of((lin.batch.X, lin.batch.y)) if self._data_is_held else []
        tensors = [*lin.params, *self._model.fixed().values(), *data]
        return [t for t in tensors if t.layout is torch.strided]

    # ------------------------------------------------------------------ columns

    def _multiply(
        self,
        batch: Batch,
        batch_map: BatchMap,
        columns: Tensor,
        ends: Ends,
    ) -> None:
        first = 0
        if isinstance(batch_map, GraphMap) and not batch_map.is_built:
            ends.add(0, 1, batch_map.one(ends.take(columns[0])))
            first = 1
        if first == len(columns):
            return
        width = self._widths.choose(len(columns) - first)
        start = time.perf_counter()
        while first < len(columns):
            chunk = columns[first : first + width]
            if len(chunk) > 1:
                try:
                    ends.add(first, len(chunk), batch_map.many(ends.take(chunk)))
                except (RuntimeError, NotImplementedError) as error:
                    if is_out_of_memory(error):
                        raise
                    self._widths.failed(width)
                    width = 1
                    continue
            else:
                ends.add(first, 1, batch_map.one(ends.take(chunk[0])))
            first += len(chunk)
        if len(columns) > 1:
            synchronize(columns.device)
            self._widths.took(width, (time.perf_counter() - start) / (len(columns) * batch.size))
