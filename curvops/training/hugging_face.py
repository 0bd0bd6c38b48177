"""A callback for the ``Trainer`` of Hugging Face's transformers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from curvops.adapters.hugging_face import huggingface, huggingface_batches
from curvops.errors import MissingDependencyError
from curvops.training.attached import Attached
from curvops.training.quantity import Quantity
from curvops.training.update import innermost


def hugging_face_callback(
    quantities: Iterable[Quantity],
    loss_func: Callable[..., Any] | None = None,
    *,
    labels: str = "labels",
    causal: bool = False,
    report: bool = True,
    **options: Any,
) -> Any:
    """Return a callback that monitors the training of transformers' ``Trainer``.

    The Trainer does not show its mini-batches to callbacks; they are read where the model is
    called. Individual gradients come from the data again, for transformers have layers that
    BackPACK does not know. The callback's ``monitor`` is there from the start of training on.

    Args:
        quantities: What to measure.
        loss_func: The loss on logits and labels; cross entropy by default.
        labels: The key of the labels among the model's inputs.
        causal: For causal language models: the label of a position is the next token.
        report: Whether the latest values are added to the Trainer's log history, and to what the
            callbacks after this one log, as ``curvops/alpha`` and so on.
        options: Further arguments of :class:`~curvops.training.Monitor`, such as ``log=``.

    Returns:
        An instance of ``transformers.TrainerCallback``.

    Raises:
        MissingDependencyError: If transformers is not installed.

    Example:
        Run it with ``Trainer(..., callbacks=[hugging_face_callback([Alpha(every=10)])])``.
    """
    try:
        base = importlib.import_module("transformers").TrainerCallback
    except ImportError as error:
        raise MissingDependencyError(
            "hugging_face_callback() needs transformers, which is not installed: "
            "pip install transformers."
        ) from error
    made = type("CurvatureCallback", (HuggingFaceEvents, base), {})
    loss = nn.CrossEntropyLoss() if loss_func is None else loss_func
    return made(quantities, loss, labels, causal, report, **options)


class HuggingFaceEvents(Attached):
    """The events of the Trainer's loop."""

    def __init__(
        self,
        quantities: Iterable[Quantity],
        loss_func: Callable[..., Any],
        labels: str = "labels",
        causal: bool = False,
        report: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(quantities, loss_func, **({"forward": huggingface} | options))
        self._labels, self._causal, self._report = labels, causal, report
        self._hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **passed: Any) -> None:
        """Begin to monitor."""
        model, optimizer = passed["model"], passed.get("optimizer")
        inner = innermost(optimizer)
        if isinstance(inner, torch.optim.Optimizer):
            # Before the monitor's own hook: the block of the last mini-batch is closed there.
            self._hooks.append(inner.register_step_pre_hook(lambda *_: self.leave()))
        self.start(model, optimizer)
        self._hooks.append(model.register_forward_pre_hook(self._see_inputs, with_kwargs=True))

    def _see_inputs(self, model: nn.Module, positional: Any, inputs: Mapping[str, Any]) -> None:
        """Open the block of a mini-batch when the model is called on it for training."""
        if not (model.training and torch.is_grad_enabled()) or inputs.get(self._labels) is None:
            return
        self.leave()
        [(X, y)] = huggingface_batches([dict(inputs)], self._labels, self._causal)
        self.open({key: value for key, value in X.items() if isinstance(value, torch.Tensor)}, y)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the block of a mini-batch whose gradient is accumulated."""
        self.leave()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the block of the last mini-batch before a step."""
        self.leave()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close what is still open."""
        self.leave()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Add the latest values to what the Trainer logs, and has written into its history."""
        if not self._report or logs is None or "loss" not in logs:
            return
        logs.update(self.latest())
        history = getattr(state, "log_history", None)
        if history:
            history[-1].update(self.latest())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End monitoring, and take the hooks off."""
        self.leave()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.stop()
