"""Estimates as numbers of the report; products that are counted and stop at the budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from curvops.linalg.estimate import Estimate, UnconvergedWarning
from curvops.operators.linear import LinearOperator
from curvops.report.blocks import Cost, Number
from curvops.report.context import Context, Task


class Watched:
    """An operator whose products are booked on a task and stop when the budget is spent.

    Everything but the product is the operator's own, so that algorithms choose as they would
    without it.

    Args:
        operator: The operator.
        context: Told of every product.
        task: What the products are booked on.
    """

    def __init__(self, operator: LinearOperator, context: Context, task: Task) -> None:
        self._operator, self._context, self._task = operator, context, task

    def __getattr__(self, name: str) -> Any:
        """Return the operator's own attribute."""
        return getattr(self._operator, name)

    def __matmul__(self, x: Any) -> Any:
        """Return the product, and book it."""
        product = self._operator @ x
        self._task.products += 1 if x.ndim == 1 else x.shape[1]
        self._context.tick(self._task.products, None, "products")
        return product


@contextmanager
def quietly() -> Iterator[None]:
    """Leave it to the report to say what has not converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        yield


def reach(estimate: Estimate) -> float | None:
    """Return how far the bracket reaches from the value; nothing if it is open."""
    far = max(estimate.upper - estimate.value, estimate.value - estimate.lower)
    return far if math.isfinite(far) else None


def bracket(estimate: Estimate) -> str:
    """Return the bracket, to the digits that its width leaves.

    Example:
        >>> import torch
        >>> bracket(Estimate(-1.234, 0.1, -1.5, -1.0, 9, True, torch.empty(0), "slq", 0.1))
        '[-1.500, -1.000]'
    """
    width = estimate.upper - estimate.lower
    if math.isfinite(width) and width > 0:
        decimals = min(max(1 - math.floor(math.log10(width)), 0) + 1, 12)
        return f"[{estimate.lower:.{decimals}f}, {estimate.upper:.{decimals}f}]"
    return f"[{_end(estimate.lower)}, {_end(estimate.upper)}]"


def numbers_of(
    name: str,
    estimate: Estimate,
    label: str,
    call: str,
    *,
    unit: str = "",
    headline: bool = False,
) -> dict[str, Number]:
    """Return an estimate and its bracket as numbers of the report.

    Args:
        name: The key of the value; that of the bracket has ``_bracket`` behind it.
        estimate: The estimate.
        label: What a person calls it.
        call: A Python expression of the estimate.
        unit: Of value and bracket.
        headline: Whether the value belongs into the summary.

    Returns:
        The value, whose error is how far the bracket reaches, and the bracket.
    """
    cost = Cost(estimate.num_matvecs, estimate.seconds)
    doubt = "" if estimate.converged else "; has not converged"
    note = f"{estimate.method}, standard error {estimate.stderr:.2g}{doubt}"
    value = Number(
        estimate.value, label, reach(estimate), unit, cost, f"{call}.value", note, headline
    )
    ends = [end if math.isfinite(end) else None for end in (estimate.lower, estimate.upper)]
    is_open = None in ends
    either = Number(
        ends,
        f"bracket of {label}",
        unit=unit,
        cost=cost,
        call="" if is_open else f"[{call}.lower, {call}.upper]",
        note="An end that is None is infinite: nothing seen bounds it." if is_open else "",
    )
    return {name: value, f"{name}_bracket": either}


def _end(value: float) -> str:
    return f"{value:.8g}" if math.isfinite(value) else ("∞" if value > 0 else "−∞")
