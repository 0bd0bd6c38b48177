"""The empirical risk: one loss, summed over a whole data set, at one point or at many.

    L(θ) = (1/Z) Σ_b Σ_{n∈b} ℓ(f_θ(x_n), y_n) + (λ/2) ‖θ‖²

Z is the normaliser of the *whole* data set under ``reduction="mean"`` and 1 under ``"sum"``,
so every cut of the data into batches gives the same L, gradient and curvature. Sums over
batches are made here and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from curvops.autodiff import (
    Forward,
    FunctionalModel,
    Params,
    resolve_parameters,
    unwrap,
)
from curvops.autodiff.determinism import check_model, merge_limit
from curvops.autodiff.ensemble import Ensemble
from curvops.data import Batch, BatchStream, CastStream, parse_bytes
from curvops.errors import DataError, DTypeError, InputError
from curvops.losses import Normalizer, as_loss
from curvops.many_points import ManyPoints
from curvops.rng import preserved_rng
from curvops.tensors import Vector


class EmpiricalRisk(ManyPoints):
    """The empirical risk of a model on a data set, a function of chosen parameters.

    Args:
        model: An ``nn.Module``, or a callable ``(params_dict, X) -> prediction``. Wrappers of
            ``torch.compile`` and ``DistributedDataParallel`` are taken off.
        loss: ``(prediction, y) -> scalar``. torch's losses, as modules or functions, are
            recognised with their weights, masks and smoothing; ``None`` for Jacobians alone.
        params: What varies: a module (its trainable parameters), a list of tensors, a dict of
            tensors by name, or globs over names such as ``"blocks.*.attn.*"``. What is passed
            is what is evaluated, also where it differs from the module's own values.
        data: A re-iterable of batches ``(X, y)``, tensors or any nesting of them.
        reduction: ``"mean"`` or ``"sum"``, for losses that have no such attribute.
        normalizer: ``fn(prediction, y) -> Z_b`` for losses that average over something else
            than the data.
        forward: ``(model, X) -> prediction`` where ``model(X)`` does not fit.
        weight_decay: λ ≥ 0, adds (λ/2)‖θ‖² to the risk and λI to its curvature.
        cache_data: Device memory for keeping the data, in bytes or as ``"1GiB"``. Data beyond
            it are read again for every pass and checked against fingerprints.
        merge_batches: Re-cut the data to batches of equal size: at most this many data each,
            ``"auto"`` for a size that is fast, or ``False``. Batches whose predictions depend
            on one another are never re-cut.
        check_deterministic: Refuse models that answer differently the second time, and data
            that change. Costs at most the forward passes of two batches (and hashing of what
            is re-read).
        check_finite: Refuse NaN and infinity in the data.
        autocast: A dtype such as ``torch.bfloat16`` to run the forward pass in.
        num_data: The number of data you expect; another number found is an error.
        batch_size_fn: Number of data of a batch from its X; the leading axis by default.
        progressbar: Show a bar over the batches of each pass.

    Raises:
        InputError: If an argument is impossible; subclasses say how.
        DataError: If the data are one-shot, empty or malformed.
        DeterminismError: If the model or the data change between evaluations.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Linear(3, 1, bias=False)
        >>> X, y = torch.eye(3), torch.zeros(3, 1)
        >>> risk = EmpiricalRisk(model, nn.MSELoss(), model, [(X[:1], y[:1]), (X[1:], y[1:])])
        >>> risk.num_data, risk.normalizer
        (3, 3.0)
        >>> bool(torch.isclose(risk.loss(), (model.weight**2).mean()))
        True
    """

    def __init__(
        self,
        model: nn.Module | Callable[..., Any],
        loss: Callable[..., Any] | None,
        params: Params,
        data: Iterable[Any],
        *,
        reduction: str | None = None,
        normalizer: Normalizer | None = None,
        forward: Forward | None = None,
        weight_decay: float = 0.0,
        cache_data: int | str = "1GiB",
        merge_batches: str | int | bool = "auto",
        check_deterministic: bool = True,
        check_finite: bool = True,
        autocast: torch.dtype | None = None,
        num_data: int | None = None,
        batch_size_fn: Callable[[Any], int] | None = None,
        progressbar: bool = False,
    ) -> None:
        if not callable(model):
            raise InputError(f"model must be a module or a callable, got {type(model).__name__}.")
        model = unwrap(model)
        self._loss = None if loss is None else as_loss(loss, reduction, normalizer)
        self.weight_decay = _nonnegative("weight_decay", weight_decay)
        self.params = resolve_parameters(model, params)
        self.progressbar = progressbar
        self.check_deterministic = check_deterministic
        self._model = FunctionalModel(model, tuple(self.params), forward, autocast)
        # What has been checked not to write to its buffers needs no clones of them.
        self._model.clone_buffers = not check_deterministic
        self._ensemble = Ensemble(self._model)
        limit = _merge_limit(merge_batches)
        self._normalizer = 0.0 if self.reduction == "mean" else 1.0
        self._data = BatchStream(
            data,
            self.device,
            parse_bytes(cache_data, "cache_data"),
            batch_size_fn,
            check_finite,
            verify=check_deterministic,
            inspect=self._inspect,
        )
        if num_data is not None and num_data != self.num_data:
            raise DataError(f"num_data={num_data}, but the data hold {self.num_data}.")
        if limit != 0:
            size = merge_limit(self._model, self._loss, self.params, self._data, limit)
            if size:
                self._data.recut(size)
        if self.normalizer <= 0.0:
            raise DataError(
                "no batch has a valid target, so there is nothing to average over (Z = 0)."
            )

    def _inspect(self, batch: Batch) -> None:
        """Check a batch when it is first read, and count it into the normaliser."""
        if batch.index == 0 and self.check_deterministic:
            check_model(self._model, self.params, batch)
        if self._loss is None:
            return
        if batch.index == 0:
            self._loss.check(self._predict(batch), batch.y, batch.size)
        self._loss.check_target(batch.y, batch.size, f"batch {batch.index}")
        if self.reduction == "mean":
            assert self._normalizer is not None
            self._normalizer += self._count(batch)

    # ------------------------------------------------------------------ what it is

    @property
    def model(self) -> nn.Module | None:
        """The module, or ``None`` where the model is a plain callable."""
        return self._model.module

    def at(self, theta: Vector) -> EmpiricalRisk:
        """Return the same risk, on the same data, at another point.

        Args:
            theta: A vector in flat, list or dict format. It is copied.

        Returns:
            A risk that shares data and model with this one; the module is not touched.
        """
        columns, _ = self.space.read(theta, self.dtype, self.device, "theta")
        if columns.shape[1] != 1:
            raise InputError(f"at() takes one point, got {columns.shape[1]} columns.")
        other = copy.copy(self)
        other.params = self._named(columns[:, 0].clone())
        other._normalizer = None
        return other

    @torch.inference_mode(False)
    def to(self, dtype: torch.dtype, *, cache_data: int | str = "1GiB") -> EmpiricalRisk:
        """Return the same risk computed in another dtype, through the whole net.

        Parameters, frozen ones and buffers too, are those of a copy of the module; the module
        itself is not touched. Autocast is off.

        Args:
            dtype: A real floating dtype, such as ``torch.float64``.
            cache_data: Memory for keeping the data in that dtype, if this risk keeps them; beyond
                it they are converted again in every pass.

        Returns:
            A risk at the same point. It does not follow later changes of parameters.

        Raises:
            DTypeError: If ``dtype`` is not real floating.
            InputError: If the module cannot be copied.

        Example:
            >>> import torch
            >>> model = torch.nn.Linear(2, 1, bias=False)
            >>> data = [(torch.eye(2), torch.zeros(2, 1))]
            >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
            >>> risk.to(torch.float64).loss().dtype, model.weight.dtype
            (torch.float64, torch.float32)
        """
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise DTypeError(f"dtype must be a real floating torch.dtype, got {dtype!r}.")
        other, budget = copy.copy(self), parse_bytes(cache_data, "cache_data")
        other._data = cast(BatchStream, CastStream(self._data, dtype, budget))
        other._model = self._model.to(dtype)
        other._ensemble = (self._ensemble or Ensemble(self._model)).of(other._model)
        other.params = {n: p.detach().to(dtype, copy=True) for n, p in self.params.items()}
        return other

    # ------------------------------------------------------------------ values

    def require_separable(self) -> None:
        """Raise an error unless the loss is a sum of one term per datum, on the first batch."""
        batch = next(iter(self._data))
        with torch.no_grad():
            self.loss_func.check_separable(self._predict(batch), batch.y)

    def per_sample_losses(self) -> Tensor:
        """Return the weighted loss of each datum, ``[N]``; L = Σ/Z without weight decay."""
        losses = [self.loss_func.per_datum(f, y).detach() for f, y in self.predictions()]
        return torch.cat(losses).to(self.dtype)

    @torch.inference_mode(False)
    def per_sample_gradients(self) -> Iterator[Tensor]:
        """Yield the gradients of :meth:`per_sample_losses`, in blocks ``[B, P]``."""
        for batch in self._data:
            with preserved_rng():
                blocks = list(self._individual_gradients(self.loss_func.total, batch, batch.y))
            yield from blocks

    def __repr__(self) -> str:
        """Describe the risk in one line."""
        model = type(self.model).__name__ if self.model is not None else "callable"
        loss = "no loss" if self._loss is None else self._loss.name
        return (
            f"EmpiricalRisk({model}, {loss}, P={self.space.dim}, N={self.num_data}, "
            f"reduction={self.reduction!r}, dtype={self.dtype}, device={str(self.device)!r})"
        )


def _nonnegative(name: str, value: float) -> float:
    number = float(value)
    if not 0.0 <= number < float("inf"):
        raise InputError(f"{name} must be finite and nonnegative, got {value!r}.")
    return number


def _merge_limit(merge_batches: str | int | bool) -> int | None:
    """Return the asked size of merged batches, 0 for no merging, ``None`` for automatic."""
    if merge_batches == "auto" or merge_batches is True:
        return None
    if merge_batches is False:
        return 0
    if not isinstance(merge_batches, int) or merge_batches < 0:
        raise InputError(
            f'merge_batches must be "auto", False or a number of data, got {merge_batches!r}.'
        )
    return merge_batches
