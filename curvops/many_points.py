"""The risk and its gradient at the current point, and at many points in one pass.

    L(θ_k) = (1/Z) Σ_b Σ_{n∈b} ℓ(f(θ_k, x_n), y_n) + (λ/2) ‖θ_k‖²,    k = 1 … K

The module is not touched: parameters are substituted, several points at a time where that is
faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from curvops.autodiff.affine import Affine
from curvops.autodiff.keeping import Columns, Keeping
from curvops.autodiff.points import Form, Points
from curvops.data import parse_bytes
from curvops.errors import InputError
from curvops.losses.metrics import Average, Metric
from curvops.passes import Passes
from curvops.tensors import Format, Vector

_BUDGET = "256MiB"
_SUMS = 4
"""Times the gradients that their sums over batches take."""
_ONE_BY_ONE = Keeping(columns="loop", memory_budget=_BUDGET)


class ManyPoints(Passes):
    """What can be asked of a risk at any point.

    Attributes:
        weight_decay: λ.
    """

    weight_decay: float

    @property
    def theta(self) -> Tensor:
        """A copy of the current point, flat ``[P]``."""
        return self.space.flatten([p.detach().to(self.dtype) for p in self.params.values()])

    def loss(self) -> Tensor:
        """Return L(θ), a 0-dim tensor."""
        return self._losses_at(self._here(), _ONE_BY_ONE)[0]

    @torch.inference_mode(False)
    def gradient(self) -> Tensor:
        """Return ∇L(θ), flat ``[P]``, in the order of ``params``."""
        return self._gradients_at(self._here(), _ONE_BY_ONE)[1][0]

    def losses(
        self,
        thetas: Vector | Affine,
        *,
        columns: Columns = "auto",
        memory_budget: int | str = _BUDGET,
    ) -> Tensor:
        """Return L at many points, reading the data once; the module is not touched.

        A loss that is NaN or infinite is returned as it is.

        Args:
            thetas: Points as the columns of a matrix: ``[P, K]``, a list of ``[*shape, K]`` or
                a dict of them. One point without a column axis is legal. Or as an
                :class:`~curvops.autodiff.affine.Affine`, where they lie on a ray or in a plane:
                layers that see the data then share their products among all points. Points in
                columns that do so to rounding are recognised.
            columns: How many points go through the model together: a number, ``"loop"`` for one
                after another, ``"vmap"`` for all that memory allows, or ``"auto"`` to measure
                what is fastest on the first batch and remember it. Models that vmap cannot
                vectorise are evaluated one point after another in any case. Each way rounds in
                its own way: give a number where the last bits must be the same in every process.
            memory_budget: What the evaluation may take beside points and answer, in bytes or as
                ``"1GiB"``. Batches are cut where one of them alone takes more, unless their
                data depend on one another.

        Returns:
            Losses ``[K]`` (``[1]`` for one point).

        Example:
            >>> import torch
            >>> from curvops.risk import EmpiricalRisk
            >>> model = torch.nn.Linear(2, 1, bias=False)
            >>> data = [(torch.eye(2), torch.zeros(2, 1))]
            >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
            >>> risk.losses(torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 2.0]]))
            tensor([0.0000, 0.5000, 2.5000])
        """
        options = _options(columns, memory_budget)
        return self._losses_at(self._points(thetas, options)[0], options)

    def gradients(
        self,
        thetas: Vector | Affine,
        *,
        columns: Columns = "auto",
        memory_budget: int | str = _BUDGET,
    ) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """Return ∇L at many points (see :meth:`losses`), in the format of ``thetas``."""
        return self.losses_and_gradients(thetas, columns=columns, memory_budget=memory_budget)[1]

    @torch.inference_mode(False)
    def losses_and_gradients(
        self,
        thetas: Vector | Affine,
        *,
        columns: Columns = "auto",
        memory_budget: int | str = _BUDGET,
    ) -> tuple[Tensor, Tensor | list[Tensor] | dict[str, Tensor]]:
        """Return L and ∇L at many points, in one pass over the data.

        Where the gradients of all points are large beside ``memory_budget``, points go in groups,
        with a pass for each.

        Args:
            thetas: Points as columns (see :meth:`losses`).
            columns: How many points go through the model together (see :meth:`losses`).
            memory_budget: What that may take (see :meth:`losses`).

        Returns:
            Losses ``[K]``, and gradients in the format of ``thetas``.

        Raises:
            DifferentiationError: If no prediction depends on the parameters.
        """
        options = _options(columns, memory_budget)
        points, fmt = self._points(thetas, options)
        losses, gradients = self._gradients_at(points, options)
        return losses, self.space.write(gradients.T, fmt)

    def metrics(
        self,
        thetas: Vector | Affine,
        metric: Metric,
        *,
        columns: Columns = "auto",
        memory_budget: int | str = _BUDGET,
    ) -> Tensor:
        """Return the average over the data of something else than the loss, at many points.

        Args:
            thetas: Points as columns (see :meth:`losses`).
            metric: ``"accuracy"``, the share of targets (class indices, or binary ones where
                predictions are logits) that are predicted; targets that the loss ignores do not
                count. Or ``fn(prediction, y)``, returning a number for each datum, ``[N, *]``;
                the average is over all numbers it returns, unweighted.
            columns: How many points go through the model together (see :meth:`losses`).
            memory_budget: What that may take (see :meth:`losses`).

        Returns:
            Averages ``[K]``; without normaliser, class weights or weight decay.

        Raises:
            InputError: If there is no such metric, or the targets are no labels.
            ShapeError: If the metric does not return a number for each datum.
        """
        options = _options(columns, memory_budget)
        (average,) = self._averages([metric])
        points, _ = self._points(thetas, options)
        if not len(points):
            return points.like.new_zeros(0)
        sums = self.sum_values(average.key, average, points, options)
        return sums[:, 0] / sums[:, 1]

    def losses_and_metrics(
        self,
        thetas: Vector | Affine,
        metrics: Mapping[str, Metric],
        *,
        columns: Columns = "auto",
        memory_budget: int | str = _BUDGET,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return L at many points and averages of other things, from the same predictions.

        Args:
            thetas: Points as columns (see :meth:`losses`).
            metrics: What to average, by name (see :meth:`metrics`).
            columns: How many points go through the model together (see :meth:`losses`).
            memory_budget: What that may take (see :meth:`losses`).

        Returns:
            Losses ``[K]``, and averages ``[K]`` by name.

        Raises:
            InputError: If there is no such metric, or the targets are no labels.
            ShapeError: If a metric does not return a number for each datum.
        """
        options, loss = _options(columns, memory_budget), self.loss_func
        averages = self._averages(metrics.values())
        points, _ = self._points(thetas, options)

        def everything(prediction: Tensor, y: Any) -> Tensor:
            total = loss.total(prediction, y).to(self.dtype).reshape(1)
            return torch.cat([total, *(average(prediction, y) for average in averages)])

        if len(points):
            name = (loss, *(average.key for average in averages))
            sums = self.sum_values(name, everything, points, options)
        else:
            sums = points.like.new_zeros(0, 1 + 2 * len(averages))
        losses = sums[:, 0] / self.normalizer
        if self.weight_decay and len(points):
            losses = losses + self._decay(points)
        pairs = zip(metrics, sums[:, 1::2].T, sums[:, 2::2].T, strict=True)
        return losses, {name: total / count for name, total, count in pairs}

    def _averages(self, metrics: Iterable[Metric]) -> list[Average]:
        """Read metrics at the door: each must fit the first batch."""
        averages = [Average(metric, self._loss, self.dtype) for metric in metrics]
        if averages:
            batch = next(iter(self._data))
            prediction = self._predict(batch)
            for average in averages:
                average.check(prediction, batch.y, batch.size)
        return averages

    def _here(self) -> Points:
        return Points(self.params, self.theta.unsqueeze(0))

    def _points(self, thetas: Vector | Affine, options: Keeping) -> tuple[Points, Format]:
        """Read points at the door, in columns or as what makes them."""
        where = (self.dtype, self.device, "thetas")
        if not isinstance(thetas, Affine):
            columns, fmt = self.space.read(thetas, *where)
            # autograd cannot start from tensors that were made in inference mode
            columns = columns.clone() if columns.is_inference() else columns
            return Points(self.params, columns.T, budget=_bytes(options) // 2), fmt
        form = Form(*thetas.read(self.space, *where))
        return Points(self.params, None, form, _bytes(options) // 2), thetas.format

    def _losses_at(self, points: Points, options: Keeping) -> Tensor:
        loss = self.loss_func
        if not len(points):
            return points.like.new_zeros(0)
        losses = self.sum_values(loss, loss.total, points, options) / self.normalizer
        return losses + self._decay(points) if self.weight_decay else losses

    def _gradients_at(self, points: Points, options: Keeping) -> tuple[Tensor, Tensor]:
        loss = self.loss_func
        if not len(points):
            return points.like.new_zeros(0), points.like.new_zeros(0, self.space.dim)
        # Sums and what makes them exact are several times the answer, so not for all at once.
        together = max(1, _bytes(options) // (_SUMS * points.num_bytes))
        if together < len(points):
            losses = points.like.new_empty(len(points))
            gradients = points.like.new_empty(len(points), self.space.dim)
            for i in range(0, len(points), together):
                group = Points(self.params, points.rows(i, i + together))
                where = slice(i, i + together)
                losses[where], gradients[where] = self._gradients_at(group, options)
            return losses, gradients
        losses, gradients = self.sum_gradients(loss, loss.total, points, options)
        losses, gradients = losses / self.normalizer, gradients.div_(self.normalizer)
        if self.weight_decay:
            losses = losses + self._decay(points)
            for k, gradient in enumerate(gradients):
                gradient.add_(points.rows(k, k + 1)[0], alpha=self.weight_decay)
        return losses, gradients

    def _decay(self, points: Points) -> Tensor:
        return 0.5 * self.weight_decay * points.squares()


def _bytes(options: Keeping) -> int:
    return parse_bytes(options.memory_budget or 0, "memory_budget")


def _options(columns: Columns, memory_budget: int | str) -> Keeping:
    if memory_budget is None:
        raise InputError('memory_budget must be bytes or text such as "1GiB", got None.')
    return Keeping(columns=columns, memory_budget=memory_budget)
