"""A callback for Lightning's ``Trainer``."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from curvops.errors import InputError, MissingDependencyError
from curvops.training.attached import Attached
from curvops.training.quantity import Quantity


def lightning_callback(
    quantities: Iterable[Quantity],
    loss_func: Callable[..., Any],
    *,
    model: Callable[[Any], nn.Module] | None = None,
    batch: Callable[[Any], tuple[Any, Any]] | None = None,
    report: bool = True,
    **options: Any,
) -> Any:
    """Return a callback that monitors the training of a ``LightningModule``.

    Mini-batches may be accumulated, gradients clipped, precision mixed. The callback's
    ``monitor`` is there from the start of training on.

    Args:
        quantities: What to measure.
        loss_func: The loss that ``training_step`` returns.
        model: ``pl_module -> module``: what ``training_step`` calls on the inputs; by default the
            LightningModule itself, as in ``self(X)``.
        batch: ``batch -> (X, y)``, for batches that are no pairs.
        report: Whether the latest values are logged as ``curvops/alpha`` and so on, too.
        options: Further arguments of :class:`~curvops.training.Monitor`, such as ``log=``.

    Returns:
        An instance of ``lightning.pytorch.Callback``.

    Raises:
        MissingDependencyError: If Lightning is not installed.
        InputError: When training starts, if there is more than one optimizer.

    Example:
        Run it with ``Trainer(callbacks=[lightning_callback([Alpha()], nn.CrossEntropyLoss())])``.
    """
    base = _callback_class()
    made = type("CurvatureCallback", (LightningEvents, base), {})
    return made(quantities, loss_func, model, batch, report, **options)


class LightningEvents(Attached):
    """The events of Lightning's loop."""

    def __init__(
        self,
        quantities: Iterable[Quantity],
        loss_func: Callable[..., Any],
        model: Callable[[Any], nn.Module] | None = None,
        batch: Callable[[Any], tuple[Any, Any]] | None = None,
        report: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(quantities, loss_func, **options)
        self._model, self._batch, self._report = model, batch, report

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to monitor."""
        if len(trainer.optimizers) != 1:
            raise InputError(
                f"the callback watches one optimizer, and there are {len(trainer.optimizers)}; "
                "use a Monitor in your training_step."
            )
        model = pl_module if self._model is None else self._model(pl_module)
        self.start(model, trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Open the block of a mini-batch."""
        if self._batch is None and not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise InputError(
                f"the batch is {type(batch).__name__}, not a pair (X, y); pass batch=lambda b: ..."
            )
        X, y = batch if self._batch is None else self._batch(batch)
        self.open(X, y)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Close it."""
        self.leave()

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the latest values; a block without a backward pass is dropped."""
        self.leave(failed=True)
        if self._report:
            pl_module.log_dict(self.latest())

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End monitoring."""
        self.stop()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """End monitoring."""
        self.stop()


def _callback_class() -> Any:
    found = [n for n in ("lightning", "pytorch_lightning") if importlib.util.find_spec(n)]
    if not found:
        raise MissingDependencyError(
            "lightning_callback() needs Lightning, which is not installed: pip install lightning."
        )
    # ``lightning`` holds a copy of the other; a Trainer takes callbacks of its own package.
    name = "lightning.pytorch" if found[0] == "lightning" else found[0]
    return importlib.import_module(name).Callback
