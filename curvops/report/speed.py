"""How fast this problem is on this machine: one loss, one gradient, products of one and of many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from curvops.report.context import Context

_COLUMNS = 8
_REPEATS = 5
_ENOUGH_SECONDS = 1.0


@dataclass(frozen=True)
class Speed:
    """Median durations in seconds.

    Attributes:
        loss: One loss over the whole data set.
        gradient: One gradient.
        product: One Hessian-vector product.
        column: One more column in a product with many.
    """

    loss: float
    gradient: float
    product: float
    column: float

    def to_dict(self) -> dict[str, float]:
        """Return the fields as plain Python."""
        return {
            "loss": self.loss,
            "gradient": self.gradient,
            "product": self.product,
            "column": self.column,
        }


def speed(context: Context) -> Speed:
    """Return the durations, measured once for all sections."""
    return context.shared("speed", lambda: _measure(context))


def _measure(context: Context) -> Speed:
    risk, hessian = context.risk, context.hessian
    generator = torch.Generator().manual_seed(context.options.seed)
    vectors = torch.randn(context.num_params, _COLUMNS, generator=generator)
    vectors = vectors.to(risk.device, risk.dtype)
    products = 0

    def multiply(columns: int) -> None:
        nonlocal products
        products += columns
        torch.as_tensor(hessian @ vectors[:, :columns])

    with context.measure("timing one loss, gradient and product") as task:
        multiply(1)  # the first of its kind pays for what later ones reuse
        one = _median(lambda: multiply(1), context)
        many = _median(lambda: multiply(_COLUMNS), context)
        result = Speed(
            loss=_median(risk.loss, context),
            gradient=_median(risk.gradient, context),
            product=one,
            column=max(many - one, many / _COLUMNS / 10) / (_COLUMNS - 1),
        )
        task.products = products
    return result


def _median(work: Callable[[], object], context: Context) -> float:
    """Repeat a few times, fewer if it is slow."""
    times: list[float] = []
    while len(times) < _REPEATS and (sum(times) < _ENOUGH_SECONDS or not times):
        start = perf_counter()
        work()
        _wait(context.risk.device)
        times.append(perf_counter() - start)
        context.tick(len(times), None, "timings")
    return median(times)


def _wait(device: torch.device) -> None:
    """Wait until an accelerator has finished: it works in the background."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
