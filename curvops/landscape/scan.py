"""Losses and metrics at many points, a bounded number of them alive at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Union, cast

import torch
from torch import Tensor
from tqdm import tqdm

from curvops.errors import InputError, NonFiniteError
from curvops.losses.metrics import Metric

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

# How many numbers of moved parameters are held at once.
_CHUNK_NUMEL = 1 << 25
_CHUNK_COLUMNS = 256

Metrics = Union[str, Sequence[str], Mapping[str, Metric]]
"""Names such as ``"accuracy"``, or functions ``(prediction, y) -> per datum`` by name."""


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
    num: int,
    points: Callable[[slice], Tensor],
    metrics: Metrics = (),
    *,
    progress: bool = False,
) -> Values:
    """Evaluate a risk at many points.

    Args:
        risk: The risk; its own point does not matter and is left untouched.
        num: Number of points.
        points: From a range of them to their columns ``[P, n]``; asked for a few at a time.
        metrics: What to compute beside the loss.
        progress: Show a bar over the points.

    Returns:
        The values, in order.
    """
    named = check_metrics(metrics)
    size = max(1, min(_CHUNK_COLUMNS, _CHUNK_NUMEL // max(1, risk.space.dim)))
    losses: list[Tensor] = []
    found: dict[str, list[Tensor]] = {name: [] for name in named}
    with tqdm(total=num, unit="point", leave=False, disable=not progress) as bar:
        for start in range(0, num, size):
            part = slice(start, min(start + size, num))
            thetas = points(part)
            losses.append(_plain(risk.losses(thetas)))
            for name, metric in named.items():
                found[name].append(_plain(risk.metrics(thetas, metric)))
            bar.update(part.stop - part.start)
    return Values(_joined(losses), {name: _joined(parts) for name, parts in found.items()})


def along_columns(
    origin: Tensor, columns: Tensor, indices: Tensor, steps: Tensor
) -> Callable[[slice], Tensor]:
    """Return the points ``origin + s d``, one direction each.

    Args:
        origin: ``[P]``.
        columns: Directions ``[P, K]``.
        indices: Which direction, for each point ``[N]``.
        steps: How far, for each point ``[N]``.
    """
    chosen = indices.to(columns.device)
    far = steps.to(columns.device, columns.dtype)
    return lambda part: origin.unsqueeze(1) + columns[:, chosen[part]] * far[part]


def _plain(values: Tensor) -> Tensor:
    return values.detach().to("cpu", torch.float64)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.float64)
