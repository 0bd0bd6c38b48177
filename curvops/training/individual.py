"""What a mini-batch says datum by datum, without a gradient of every datum ever being kept.

Everything that is asked of the gradients g_n of individual data are numbers per datum (‖g_n‖²,
⟨g_n, d⟩) and sums over data (Σ g_n, Σ g_n²), so that they can be computed from something smaller
than a matrix ``[B, P]``: from the inputs and output gradients of the layers
(:mod:`curvops.training.backpack`), or chunk by chunk (:mod:`curvops.training.functional`).

One optimizer step may use several mini-batches (gradient accumulation); :class:`Batch` joins them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.losses import Loss
from curvops.losses.custom import CustomLoss
from curvops.nesting import map_tensors, tensors_of

Blocks = Sequence[Tensor]
"""One tensor per parameter, of the parameters' shapes."""

Rows = Sequence["Tensor | None"]
"""For each parameter the rows (of its first axis) that are looked at; ``None`` for all."""


@dataclass(frozen=True)
class Request:
    """What is wanted of the gradients g_n of individual data.

    Attributes:
        directions: d, to get ⟨g_n, d⟩.
        noise: Whether ‖g_n‖² and ⟨g_n, Σ_m g_m⟩ are wanted.
        moments: Rows of the parameters for which Σ g_n and Σ g_n² are wanted.
    """

    directions: tuple[Blocks, ...] = ()
    noise: bool = False
    moments: Rows | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is wanted at all."""
        return bool(self.directions) or self.noise or self.moments is not None


@dataclass(frozen=True)
class Statistics:
    """What was asked, in float64 where it is a number per datum.

    Attributes:
        projections: ⟨g_n, d⟩ of each direction, ``[B]``.
        squared_norms: ‖g_n‖² ``[B]``.
        inner: ⟨g_n, Σ_m g_m⟩ ``[B]``.
        sums: Σ g_n of each parameter, at the rows asked for.
        squares: Σ g_n² of each parameter, at the rows asked for.
    """

    projections: tuple[Tensor, ...] = ()
    squared_norms: Tensor | None = None
    inner: Tensor | None = None
    sums: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)


class Individual(ABC):
    """The data of one mini-batch, one by one, un-normalised: the loss is their sum over Z.

    Attributes:
        totals: The weighted loss of each datum ``[B]``, float64.
        normalizer: Z_b of the mini-batch, 1 for a loss that sums.
    """

    totals: Tensor
    normalizer: float

    @property
    def size(self) -> int:
        """The number of data B."""
        return len(self.totals)

    @abstractmethod
    def measure(self, request: Request) -> Statistics:
        """Return what is asked, un-normalised."""

    @abstractmethod
    def sums(self) -> Blocks:
        """Return Σ g_n, un-normalised."""

    @abstractmethod
    def project(self, direction: Blocks) -> Tensor:
        """Return ⟨g_n, d⟩ of every datum ``[B]``, un-normalised, float64."""

    @abstractmethod
    def at(self, params: Mapping[str, Tensor]) -> Individual:
        """Return the same data at other parameters."""


class Overwritten(Exception):  # noqa: N818 - not an error of the user's program
    """Raised where the data of a mini-batch have been written to since its backward pass."""

    def __init__(self) -> None:
        super().__init__("the mini-batch was written to before it was measured; pass a copy.")


def versions_of(nest: Any) -> list[int]:
    """Return the counters of the tensors of a mini-batch, which move when one is written to."""
    return [t._version for t in tensors_of(nest)]


@dataclass(frozen=True)
class Batch:
    """All data of one optimizer step, scaled so that losses and gradients average to the whole.

    Attributes:
        parts: The mini-batches whose gradients were accumulated.
        notes: What a reader of numbers from this batch should know.
    """

    parts: tuple[Individual, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The number of data B."""
        return sum(part.size for part in self.parts)

    @property
    def scale(self) -> float:
        """B/Z: what un-normalised values are multiplied by so that their mean is the risk's."""
        normalizer = sum(part.normalizer for part in self.parts)
        return self.size / normalizer if normalizer > 0 else 0.0

    @property
    def losses(self) -> Tensor:
        """ℓ_n of every datum ``[B]``; their mean is the loss."""
        return torch.cat([part.totals for part in self.parts]) * self.scale

    def project(self, direction: Blocks) -> Tensor:
        """Return ⟨g_n, d⟩ of every datum ``[B]``."""
        return torch.cat([part.project(direction) for part in self.parts]) * self.scale

    def at(self, params: Mapping[str, Tensor]) -> Batch:
        """Return the same data at other parameters."""
        return Batch(tuple(part.at(params) for part in self.parts), self.notes)

    def measure(self, request: Request) -> Statistics:
        """Return what is asked; ``inner`` is with the sum over the whole batch."""
        found = [part.measure(request) for part in self.parts]
        s = self.scale
        sums, squares = _added([f.sums for f in found], s), _added([f.squares for f in found], s**2)
        norms = [f.squared_norms for f in found if f.squared_norms is not None]
        inner = [f.inner for f in found if f.inner is not None]
        if len(self.parts) > 1 and request.noise:
            # What a mini-batch knows is its own sum; that of all is a direction like any other.
            total = _added([p.sums() for p in self.parts], 1.0)
            inner = [part.project(total) for part in self.parts]
        return Statistics(
            projections=tuple(torch.cat(p) * s for p in zip(*(f.projections for f in found))),
            squared_norms=torch.cat(norms) * s**2 if norms else None,
            inner=torch.cat(inner) * s**2 if inner else None,
            sums=sums,
            squares=squares,
        )


def _added(parts: Sequence[Blocks], scale: float) -> list[Tensor]:
    """Return the sum of what the parts say of each parameter, times a number."""
    return [scale * sum(rest, first) for first, *rest in zip(*parts, strict=True)]


def sampled_rows(shapes: Sequence[torch.Size], count: int | None, seed: int) -> Rows:
    """Choose whole rows of every parameter, about ``count`` numbers in all, at random.

    Args:
        shapes: The parameters' shapes.
        count: How many numbers to look at; ``None`` for all.
        seed: Seeds the choice.

    Returns:
        Sorted indices per parameter, or ``None`` where all rows are taken. Small parameters are
        taken whole; every parameter gives a row at least.
    """
    generator = torch.Generator().manual_seed(seed)
    total = sum(shape.numel() for shape in shapes)
    if count is None or total <= count:
        return [None] * len(shapes)
    chosen: list[Tensor | None] = []
    for shape in shapes:
        rows = shape[0] if len(shape) else 1
        wanted = max(8, round(rows * count / total))
        if wanted >= rows:
            chosen.append(None)
            continue
        chosen.append(torch.randperm(rows, generator=generator)[:wanted].sort().values)
    return chosen


def losses_of_data(loss: Loss, prediction: Tensor, y: Any) -> Tensor:
    """Return the weighted loss of each datum ``[B]``, detached, in float64.

    Raises:
        InputError: If the loss is not a sum of one term per datum.
    """
    f = prediction.detach()
    with torch.no_grad():
        values = _vectorised(loss, f, y)
        if values is None:
            values = loss.per_datum(f, y)
    return values.detach().double()


def losses_and_slopes(loss: Loss, prediction: Tensor, y: Any) -> tuple[Tensor, Tensor]:
    """Return the losses of :func:`losses_of_data`, and their gradient by the prediction."""
    if isinstance(loss, CustomLoss):
        return losses_of_data(loss, prediction, y), loss.gradient(prediction, y)
    f = prediction.detach().requires_grad_()
    with torch.enable_grad():
        values = loss.per_datum(f, y)
        (slopes,) = torch.autograd.grad(values.sum(), f, materialize_grads=True)
    return values.detach().double(), slopes


def _vectorised(loss: Loss, f: Tensor, y: Any) -> Tensor | None:
    """Return the losses of a custom callable by vmap, where it can be; else ``None``."""
    if not isinstance(loss, CustomLoss) or not isinstance(y, Tensor) or not y.ndim:
        return None
    if y.shape[0] != f.shape[0]:
        return None

    def of_datum(prediction: Tensor, target: Tensor) -> Tensor:
        return loss.total(prediction.unsqueeze(0), target.unsqueeze(0))

    try:
        values: Tensor = torch.func.vmap(of_datum)(f, y)
    except (RuntimeError, ValueError, TypeError):
        return None
    return values


def check_loss(loss: Loss, prediction: Tensor, y: Any, size: int) -> None:
    """Raise a typed error if the loss does not fit, or is no sum over data."""
    f = prediction.detach()
    loss.check(f, y, size)
    loss.check_target(y, size, "the mini-batch")
    if f.ndim == 0 or f.shape[0] != size:
        raise InputError(
            f"the model predicts {list(f.shape)} for a batch of {size} data; individual losses "
            f"need one prediction per datum, [{size}, ...]."
        )
    few = min(size, 4)
    with torch.no_grad():
        loss.check_separable(f[:few], slice_data(y, 0, few, size))


def shares(found: Statistics, requests: Sequence[Request]) -> list[Statistics]:
    """Return what each of several requests gets of the answer to all of them."""
    projections = iter(found.projections)
    return [
        replace(found, projections=tuple(next(projections) for _ in request.directions))
        for request in requests
    ]


def slice_data(nest: Any, start: int, stop: int, size: int) -> Any:
    """Return some data of a batch; tensors of another leading size are shared."""
    return map_tensors(lambda t: t[start:stop] if t.ndim and t.shape[0] == size else t, nest)


def joined(requests: Sequence[Request]) -> Request:
    """Return what answers all requests: rows of all parameters where anyone wants all."""
    moments = [r.moments for r in requests if r.moments is not None]
    # Rows that were chosen are fewer than all; a quantity picks its own out of all.
    widest = max(moments, key=lambda rows: sum(r is None for r in rows), default=None)
    return Request(
        directions=tuple(d for r in requests for d in r.directions),
        noise=any(r.noise for r in requests),
        moments=widest,
    )
