"""Losses and metrics at many points on rays and planes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union, cast

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.autodiff.affine import Affine
from curvops.errors import InputError, NonFiniteError
from curvops.losses.metrics import Metric

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

_POINTS = 256
"""Points that are evaluated in one pass over the data."""

Metrics = Union[str, Sequence[str], Mapping[str, Metric]]
"""Names such as ``"accuracy"``, or functions ``(prediction, y) -> per datum`` by name."""


Bar = Any
"""A bar of tqdm, which has no types."""


@dataclass(frozen=True)
class Values:
    """What was evaluated at ``N`` points, float64 on the CPU.

    Attributes:
        losses: ``[N]``, as they are: NaN and infinity included.
        metrics: ``[N]`` each, by name.
    """

    losses: Tensor
    metrics: dict[str, Tensor]


def check_metrics(metrics: Metrics) -> dict[str, Metric]:
    """Return what to compute by name.

    Raises:
        InputError: If an entry is neither a name nor a function.
    """
    if isinstance(metrics, str):
        metrics = [metrics]
    if isinstance(metrics, Mapping):
        named = dict(metrics)
    else:
        # Whether there is a metric of that name is for the risk to say.
        named = {str(name): cast(Metric, name) for name in metrics}
    for name, metric in named.items():
        if not isinstance(metric, str) and not callable(metric):
            raise InputError(
                f"metrics: {name!r} is {type(metric).__name__}; expected a name such as "
                '"accuracy", or a function (prediction, y) -> values per datum in a dict by name.'
            )
    return named


def in_dtype(risk: EmpiricalRisk, dtype: torch.dtype | None) -> EmpiricalRisk:
    """Return the risk with the whole net in a dtype; itself for ``None`` or where it is.

    Raises:
        InputError: If ``dtype`` is no real floating dtype.
    """
    if dtype is None or all(p.dtype == dtype for p in risk.params.values()):
        return risk
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype!r}; it must be a real floating dtype of torch.")
    return risk.to(dtype)


def check_start(risk: EmpiricalRisk, metrics: Metrics = ()) -> None:
    """Raise an error, before long work, unless the loss at the point of a risk is a number.

    Metrics that cannot be computed there are an error too.

    Raises:
        NonFiniteError: If the loss is NaN or infinite.
        InputError: If there is no such metric, or it does not fit the data.
    """
    loss = float(risk.loss())
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the loss at the current point of the risk is {loss}: there is nothing to compare "
            "other points with. Move the point, or evaluate in a wider dtype."
        )
    for metric in check_metrics(metrics).values():
        risk.metrics(risk.theta, metric)


def evaluate(
    risk: EmpiricalRisk,
    pieces: Sequence[Affine | Tensor],
    metrics: Metrics = (),
    *,
    progress: bool = False,
    bar: Bar | None = None,
) -> Values:
    """Evaluate a risk at many points, piece by piece.

    Args:
        risk: The risk; its own point does not matter and is left untouched.
        pieces: Points on a line or a plane, which share what they can, or columns ``[P, n]``.
        metrics: What to compute beside the loss.
        progress: Show a bar over the points.
        bar: A bar that is there already, and is told how many points are done.

    Returns:
        The values, in order.
    """
    if bar is None:
        num = sum(_size(piece) for piece in pieces)
        with bar_over(num, progress) as own:
            return evaluate(risk, pieces, metrics, bar=own)
    named = check_metrics(metrics)
    losses: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    for piece in pieces:
        for part in _cut(piece):
            values, averages = risk.losses_and_metrics(part, named)
            losses.append(_plain(values))
            for name, average in averages.items():
                found[name].append(_plain(average))
            bar.update(_size(part))
    return Values(_joined(losses), {name: _joined(parts) for name, parts in found.items()})


def bar_over(num: int, progress: bool) -> Bar:
    """Return a bar over so many points, to be used in a ``with`` statement."""
    return tqdm(total=num, unit="point", leave=False, disable=not progress)


def on_rays(origin: Tensor, columns: Tensor, steps: Sequence[Tensor]) -> list[Affine | Tensor]:
    """Return the points ``origin + s d``, a piece for each direction.

    Args:
        origin: ``[P]``.
        columns: Directions ``[P, K]``.
        steps: How far to go along each, ``K`` tensors ``[n]``.
    """
    pairs = zip(columns.T, steps, strict=True)
    return [Affine(origin, d.unsqueeze(1), s) for d, s in pairs if len(s)]


def _size(piece: Affine | Tensor) -> int:
    return int((piece.coefficients if isinstance(piece, Affine) else piece).shape[-1])


def _cut(piece: Affine | Tensor) -> Iterator[Affine | Tensor]:
    """Cut a piece so that the bar moves and no pass holds too many losses."""
    if isinstance(piece, Affine):
        for part in piece.coefficients.split(_POINTS, dim=-1):
            yield replace(piece, coefficients=part)
    else:
        yield from piece.split(_POINTS, dim=1)


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.float64)
