"""What can be measured while training, and when it is asked.

A quantity says at which steps it is due and is asked at three moments of a step:

* :meth:`Quantity.at_point`, before the optimizer moves, for what depends on the point alone;
* :meth:`Quantity.at_batch`, with the data of the step one by one;
* :meth:`Quantity.at_update`, once it is known where the optimizer went.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from curvops.errors import InputError
from curvops.training.individual import Batch, Request, Statistics
from curvops.training.update import Update

if TYPE_CHECKING:
    from curvops.training.curvature import Curvature, Point

Every = int | Callable[[int], bool]
"""Measure at every so many steps, or where a function of the step says so."""


class Result(Protocol):
    """What a quantity returns: a frozen dataclass with plain numbers."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name."""


@dataclass(frozen=True)
class Measured:
    """A result, and the step it belongs to.

    Attributes:
        step: The step.
        result: The result.
    """

    step: int
    result: Result


@dataclass(frozen=True)
class Setting:
    """What a quantity is told when a monitor takes it up.

    Attributes:
        names: Of the parameters.
        shapes: Of the parameters.
        eps: Relative rounding of the parameters' dtype.
        seed: Seeds what is random.
    """

    names: Sequence[str]
    shapes: Sequence[torch.Size]
    eps: float
    seed: int


class Quantity(ABC):
    """Something to measure while training.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ..., or where ``every(step)`` is true;
            a function is asked once a step, so that it need not answer the same twice.

    Attributes:
        name: What the journal calls it.
        looks_at_risk: Whether it needs the risk itself, of all data or of a probe set.

    Raises:
        InputError: If ``every`` is neither a positive integer nor a function.
    """

    name: ClassVar[str]
    looks_at_risk: ClassVar[bool] = False
    _answer: tuple[int, bool] = (-1, False)

    def __init__(self, every: Every = 1) -> None:
        is_count = isinstance(every, int) and not isinstance(every, bool) and every > 0
        if not is_count and not callable(every):
            raise InputError(f"every must be a positive integer or a function, got {every!r}.")
        self.every = every

    def due(self, step: int) -> bool:
        """Tell whether it is to be measured at a step."""
        if not callable(self.every):
            return step % self.every == 0
        if self._answer[0] != step:  # all that a step does must follow from one answer
            self._answer = (step, bool(self.every(step)))
        return self._answer[1]

    def bind(self, setting: Setting) -> None:  # noqa: B027
        """Learn about the parameters, before the first step."""

    def request(self, step: int) -> Request:
        """Return what is needed of the individual gradients of a step."""
        return Request()

    def wants_individual(self, step: int) -> bool:
        """Tell whether the data of a step are needed one by one."""
        return bool(self.request(step))

    def abandon(self, step: int) -> list[int]:
        """Give up what needs the individual gradients of a step, for there are none.

        Returns:
            The steps that have no value for it.
        """
        return [step] if self.wants_individual(step) else []

    def wants_point(self, step: int) -> bool:
        """Tell whether :meth:`at_point` is to be called at a step."""
        return False

    def wants_update(self, step: int) -> bool:
        """Tell whether :meth:`at_update` is to be called for a step."""
        return False

    def at_point(self, point: Point) -> Iterable[Measured]:
        """Measure at the point where a step starts."""
        return ()

    def at_batch(self, step: int, batch: Batch, found: Statistics) -> Iterable[Measured]:
        """Measure from the data of a step, and what was requested of them."""
        return ()

    def at_update(
        self, update: Update, batch: Batch | None, curvature: Curvature
    ) -> Iterable[Measured]:
        """Measure from what a step did, and the data it did it for, where they are individual."""
        return ()


def checked(quantities: Iterable[Quantity]) -> tuple[Quantity, ...]:
    """Return the quantities if they are instances with names of their own."""
    found = tuple(quantities)
    for quantity in found:
        if not isinstance(quantity, Quantity):
            raise InputError(
                f"quantities must be instances such as Alpha(), got {quantity!r}; did you forget "
                "the parentheses?"
            )
        quantity._answer = (-1, False)  # of another monitor
    names = [q.name for q in found]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise InputError(f"quantities holds {twice[0]!r} more than once.")
    return found
