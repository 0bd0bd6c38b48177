"""The ``with`` block that a loop puts around the passes of a mini-batch."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curvops.training.monitor import Monitor


@dataclass
class Step:
    """A step of the optimizer, as the ``with`` block of a monitor gives it.

    Attributes:
        number: Counted in updates of the optimizer, from 0.
        loss: The loss of the mini-batch, once the block is over, if the model's output was seen.
    """

    number: int
    loss: float | None = None


class Block:
    """The ``with`` block around the passes of one mini-batch."""

    def __init__(self, monitor: Monitor, X: Any, y: Any) -> None:
        self._monitor, self._X, self._y = monitor, X, y

    def __enter__(self) -> Step:
        self._step = self._monitor._enter(self._X, self._y)
        return self._step

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._monitor._leave(self._step, self._X, self._y, failed=kind is not None)
