"""Passes over the data: every sum over mini-batches is made here, and nowhere else.

One batch is alive at a time. Sums are compensated, so their error does not grow with the number
of batches, and are divided by the global normaliser once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.autodiff import (
    Blocks,
    FunctionalModel,
    Keeper,
    Keeping,
    Linearization,
    Product,
    common_dtype,
    individual_gradients,
    is_out_of_memory,
)
from curvops.autodiff.ensemble import Ensemble
from curvops.autodiff.evaluation import Differentiation, Evaluation, Quantity
from curvops.autodiff.points import Points
from curvops.data import Batch, BatchStream
from curvops.ends import (
    Between,
    ParameterSums,
    ParameterVectors,
    PredictionRows,
    PredictionVectors,
)
from curvops.errors import InputError, refuse_constant
from curvops.losses import Loss
from curvops.rng import PrivateRNG, preserved_rng
from curvops.tensors import BlockSum, Space, StackedSum

_MANY_DATA = 1000
"""Data from which on looking for a plane that the points lie in costs less than it saves."""


class Passes:
    """A model, a loss, parameters and data, and the passes one can make over them.

    Attributes:
        params: The current point, tensors by name.
        progressbar: Show a bar over the batches of each pass.
        check_deterministic: Whether model and data have been checked not to change.
    """

    params: dict[str, Tensor]
    progressbar: bool
    check_deterministic: bool
    _model: FunctionalModel
    _loss: Loss | None
    _data: BatchStream
    _normalizer: float | None = None
    _ensemble: Ensemble | None = None

    @property
    def loss_func(self) -> Loss:
        """The interpreted loss.

        Raises:
            InputError: If the risk was built without one.
        """
        if self._loss is None:
            raise InputError("this risk was built with loss=None; it only has Jacobians.")
        return self._loss

    @property
    def reduction(self) -> str:
        """``"mean"`` or ``"sum"``."""
        return "sum" if self._loss is None else self._loss.reduction

    @property
    def space(self) -> Space:
        """The parameter space: names and shapes, in order."""
        return Space.of(self.params)

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return next(iter(self.params.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of flat vectors: the parameters', the widest where they differ."""
        return common_dtype(self.params.values())

    @property
    def num_data(self) -> int:
        """Number of data N."""
        return self._data.num_data

    @property
    def num_batches(self) -> int:
        """Number of batches that a pass visits."""
        return len(self._data)

    @property
    def normalizer(self) -> float:
        """Z, what the sum over the data is divided by; 1 under ``reduction="sum"``."""
        if self._normalizer is None:
            mean = self.reduction == "mean"
            self._normalizer = sum(self._count(batch) for batch in self._data) if mean else 1.0
        return self._normalizer

    def predictions(self) -> Iterator[tuple[Tensor, Any]]:
        """Yield ``(prediction, y)`` of every batch, without gradients."""
        for batch in self._data:
            yield self._predict(batch), batch.y

    def for_each(
        self,
        visit: Callable[[Linearization], None],
        params: Mapping[str, Tensor] | None = None,
        limit: int | None = None,
    ) -> None:
        """Call ``visit`` with the linearization of every batch, in order.

        Args:
            visit: Uses the linearization while it is alive; its graphs are freed afterwards.
            params: The point, the risk's own by default. Updates in place are followed.
            limit: Stop after so many batches.

        Raises:
            DifferentiationError: If no batch depends on any parameter.
        """
        source = self.params if params is None else params
        with torch.inference_mode(False):
            active = {name: p.detach().requires_grad_() for name, p in source.items()}
        start, constant = 0, True
        with torch.inference_mode(False), preserved_rng(), self._model.at(active) as predict:
            for batch in islice(self._progress(), limit):
                with torch.enable_grad():
                    lin = Linearization(predict, self._loss, list(active.values()), batch, start)
                    visit(lin)
                start += lin.num_outputs
                constant = constant and lin.is_constant
                del lin
        if constant and limit is None:
            refuse_constant(list(active))

    @torch.inference_mode(False)
    def sum_values(
        self, name: Hashable, quantity: Quantity, points: Points, options: Keeping
    ) -> Tensor:
        """Return Σ_b q(f_θ(X_b), y_b) at many points θ, in one pass.

        Args:
            name: Names the quantity, for what is remembered about its evaluation.
            quantity: q.
            points: The points.
            options: How many of them at once, and in how much memory.

        Returns:
            The sums ``[K, *]`` for a quantity ``[*]``, not normalised.
        """
        ensemble = self._evaluator()
        work = Evaluation(self._model, name, quantity, points, self._streams(len(points)))
        many = self.num_data >= _MANY_DATA
        if options.columns == "auto" and many and ensemble.may_share(work):
            points.look_for_form()
        sums: StackedSum | None = None
        with preserved_rng():
            for batch in self._batches_for(work, options):
                values = ensemble.run(work, batch, options)
                sums = sums or StackedSum(values.to(self.dtype))
                sums.add(values)
        assert sums is not None  # a risk has at least one batch
        return sums.value

    @torch.inference_mode(False)
    def sum_gradients(
        self, name: Hashable, quantity: Quantity, points: Points, options: Keeping
    ) -> tuple[Tensor, Tensor]:
        """Return the sums ``[K]`` of :meth:`sum_values` and their gradients ``[K, P]``.

        Raises:
            DifferentiationError: If no batch depends on any parameter.
        """
        ensemble = self._evaluator()
        gradients = BlockSum(self.space, points.like.new_empty(len(points), self.space.dim))
        work = Differentiation(
            self._model, name, quantity, points, self._streams(len(points)), add=gradients.add
        )
        sums = StackedSum(points.like.new_zeros(len(points)))
        with preserved_rng():
            for batch in self._batches_for(work, options):
                sums.add(ensemble.run(work, batch, options))
        if work.is_constant:
            refuse_constant(list(self.params))
        return sums.value, gradients.value

    def _batches_for(self, work: Evaluation, options: Keeping) -> Iterator[Batch]:
        for batch in self._progress():
            if self._data.is_recut:
                yield from self._evaluator().parts(work, batch, options)
            else:
                yield batch

    def _evaluator(self) -> Ensemble:
        # Copies of a risk share what was measured, as long as they share the model.
        if self._ensemble is None or self._ensemble.model is not self._model:
            self._ensemble = Ensemble(self._model)
        return self._ensemble

    def _streams(self, count: int) -> list[PrivateRNG] | None:
        """Return a stream of random numbers for each point, all alike, if any may be drawn."""
        return None if self.check_deterministic else [PrivateRNG(seed=0) for _ in range(count)]

    def keeper(self, product: Product, options: Keeping) -> Keeper:
        """Return what multiplies with the batches of this risk, and keeps what pays."""
        return Keeper(self._model, self._loss, product, options)

    def sum_products(self, keeper: Keeper, columns: Tensor) -> Tensor:
        """Return (1/Z) Σ_b A_b X for a curvature A that is a sum over batches.

        Args:
            keeper: Multiplies with the A_b; what it keeps makes later products cheaper.
            columns: X, ``[P, K]``.

        Returns:
            The product ``[P, K]``. Memory beyond a few copies of it does not depend on K.
        """

        def ends(vectors: Tensor) -> Between:
            return Between(self._vectors(), ParameterSums(self.space, vectors))

        return self._multiply(keeper, columns, self.space.dim, ends).div_(self.normalizer)

    def predictions_along(self, keeper: Keeper, columns: Tensor, rows: int) -> Tensor:
        """Return J X ``[N·C, K]``, the derivatives of all predictions along X ``[P, K]``.

        Args:
            keeper: Multiplies with the Jacobian of each batch.
            columns: X, ``[P, K]``.
            rows: N·C.
        """

        def ends(vectors: Tensor) -> Between:
            return Between(self._vectors(), PredictionRows(vectors.new_empty(len(vectors), rows)))

        return self._multiply(keeper, columns, rows, ends)

    def pulled_back(self, keeper: Keeper, columns: Tensor) -> Tensor:
        """Return Jᵀ U ``[P, K]`` for U ``[N·C, K]``.

        Args:
            keeper: Multiplies with the transposed Jacobian of each batch.
            columns: U, ``[N·C, K]``.
        """

        def ends(vectors: Tensor) -> Between:
            return Between(PredictionVectors(), ParameterSums(self.space, vectors))

        return self._multiply(keeper, columns, self.space.dim, ends)

    def _vectors(self) -> ParameterVectors:
        return ParameterVectors(self.space, self.params.values())

    def _multiply(
        self, keeper: Keeper, columns: Tensor, rows: int, ends: Callable[[Tensor], Between]
    ) -> Tensor:
        """Return the product ``[rows, K]`` with columns ``[n, K]``, within the memory there is."""
        vectors = columns.T
        group = keeper.group(vectors, rows)
        if group < len(vectors):
            product = vectors.new_empty(len(vectors), rows)
            for part, result in zip(vectors.split(group), product.split(group), strict=True):
                result.copy_(self._multiply(keeper, part.T, rows, ends).T)
            return product.T
        vectors = vectors.contiguous()
        try:
            return self._pass(keeper, vectors, ends(vectors))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not keeper.stream():
                raise
        warnings.warn(
            "out of memory while keeping what products share; they are streamed from now on. "
            "Pass a smaller memory_budget= to keep a part.",
            stacklevel=2,
        )
        return self._pass(keeper, vectors, ends(vectors))

    def _pass(self, keeper: Keeper, vectors: Tensor, ends: Between) -> Tensor:
        with preserved_rng():
            keeper.run(
                self.params,
                self._progress(),
                self.num_batches,
                self._data.is_cached,
                self._data.is_recut,
                vectors,
                ends,
            )
        return ends.target.value.T

    def squared_pullbacks(
        self, roots: Callable[[Tensor, Any], Iterable[tuple[Tensor, Tensor | None]]]
    ) -> Iterator[Tensor]:
        """Yield terms ``[P]`` of the un-normalised Σ_n Σ_r σ_nr (J_nᵀ s_nr)², to be summed.

        Args:
            roots: ``(prediction, y)`` to the columns s_r, of the prediction's shape, and their
                signs ``[N]`` (``None`` for all positive).
        """
        for batch in self._data:
            for root, signs in roots(self._predict(batch), batch.y):
                weights = torch.ones(batch.size).to(root) if signs is None else signs
                with preserved_rng():
                    term, start = self._zeros(), 0
                    for block in self._individual_gradients(_inner, batch, root):
                        term += weights[start : start + len(block)].to(block) @ block**2
                        start += len(block)
                yield term

    @torch.inference_mode(False)
    def pullbacks(self, roots: Callable[[Tensor, Any], Iterable[Tensor]]) -> Iterator[Tensor]:
        """Yield the individual J_nᵀ s_nr in blocks ``[n, P]``: by batch, then by r, then by datum.

        Args:
            roots: ``(prediction, y)`` to the columns s_r, of the prediction's shape.
        """
        for batch in self._data:
            for root in roots(self._predict(batch), batch.y):
                with preserved_rng():
                    blocks = list(self._individual_gradients(_inner, batch, root))
                yield from blocks

    def flat(self, blocks: Blocks) -> Tensor:
        """Concatenate one tensor per parameter into a flat vector ``[P]``."""
        return torch.cat([block.detach().reshape(-1).to(self.dtype) for block in blocks])

    def blocks(self, flat: Tensor) -> Blocks:
        """Split a flat vector ``[P]`` into one tensor per parameter, in its dtype."""
        pairs = zip(self.space.unflatten(flat), self.params.values(), strict=True)
        return [block.to(p.dtype) for block, p in pairs]

    def _zeros(self) -> Tensor:
        return torch.zeros(self.space.dim, dtype=self.dtype, device=self.device)

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.params, self.blocks(flat), strict=True))

    def _progress(self) -> Iterable[Batch]:
        if not self.progressbar:
            return self._data
        bar: Iterable[Batch] = tqdm(self._data, total=self.num_batches, unit="batch", leave=False)
        return bar

    def _individual_gradients(
        self, scalar: Callable[[Tensor, Any], Tensor], batch: Batch, extra: Any
    ) -> Iterator[Tensor]:
        params = {name: p.detach() for name, p in self.params.items()}
        return individual_gradients(self._model, scalar, params, batch, extra)

    def _predict(self, batch: Batch, params: Mapping[str, Tensor] | None = None) -> Tensor:
        source = self.params if params is None else params
        detached = {name: p.detach() for name, p in source.items()}
        with torch.no_grad(), preserved_rng(), self._model.at(detached) as predict:
            return predict(batch.X)

    def _count(self, batch: Batch) -> float:
        return self.loss_func.normalizer(batch.y, batch.size, lambda: self._predict(batch))


def _inner(prediction: Tensor, root: Tensor) -> Tensor:
    return (prediction * root).sum()
