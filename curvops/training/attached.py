"""A monitor inside of another library's training loop: opened and closed by its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from curvops.errors import InputError
from curvops.training.monitor import Monitor
from curvops.training.quantity import Quantity
from curvops.training.run import STEP, column

_MAIN: dict[str, tuple[str, ...]] = {
    "alpha": ("alpha",),
    "exact_alpha": ("alpha",),
    "gradient_noise": ("noise_scale", "norm_test", "signal_to_noise"),
    "sharpness": ("sharpness", "ratio"),
    "hessian_trace": ("total",),
    "tic": ("diagonal",),
    "subspace_overlap": ("overlap", "gradient_fraction"),
    "early_stopping": ("evidence",),
}


class Attached:
    """What the callbacks of all libraries share.

    Args:
        quantities: What to measure.
        loss_func: The loss.
        options: Further arguments of :class:`~curvops.training.Monitor`.

    Attributes:
        monitor: The monitor, from the start of training on.
    """

    def __init__(
        self, quantities: Iterable[Quantity], loss_func: Callable[..., Any], **options: Any
    ) -> None:
        self._quantities, self._loss_func, self._options = tuple(quantities), loss_func, options
        self.monitor: Monitor | None = None
        self._block: Any = None

    def start(self, model: nn.Module, optimizer: Any) -> None:
        """Begin to monitor; what an earlier training has left open ends."""
        self.stop()
        self.monitor = Monitor(model, self._loss_func, optimizer, self._quantities, **self._options)

    def open(self, X: Any, y: Any) -> None:
        """Open the block of a mini-batch; one that was left open had no backward pass."""
        self.leave(failed=True)
        if self.monitor is None:
            return
        block = self.monitor.step(X, y)
        block.__enter__()
        self._block = block

    def leave(self, failed: bool = False) -> None:
        """Close the block, if one is open."""
        block, self._block = self._block, None
        if block is not None:
            error = InputError("no backward pass") if failed else None
            block.__exit__(None if error is None else type(error), error, None)

    def stop(self) -> None:
        """End monitoring."""
        self.leave(failed=True)
        if self.monitor is not None:
            self.monitor.close()

    def latest(self, prefix: str = "curvops/") -> dict[str, float]:
        """Return the latest of the main numbers, by the names of a table's columns."""
        found: dict[str, float] = {}
        if self.monitor is None:
            return found
        for quantity, names in _MAIN.items():
            record = self.monitor.latest(quantity)
            for name in names if record is not None and quantity != STEP else ():
                value = record.values.get(name) if record is not None else None
                if isinstance(value, (int, float)):
                    found[prefix + column(quantity, name)] = float(value)
        return found
