"""Losses: what each contributes to the risk, and its calculus in the space of predictions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from curvops.errors import InputError
from curvops.losses.base import Draw, Loss, OutputMap, Target
from curvops.losses.categorical import CategoricalLoss
from curvops.losses.custom import CustomLoss, Normalizer
from curvops.losses.elementwise import (
    BernoulliLoss,
    ElementwiseLoss,
    Evaluate,
    GaussianLoss,
    LogisticLoss,
    SquaredError,
)

__all__ = ["Draw", "Loss", "Normalizer", "OutputMap", "Target", "as_loss"]

_MODULE_OF_FUNCTION: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.gaussian_nll_loss: nn.GaussianNLLLoss,
    F.kl_div: nn.KLDivLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
}


def _plain(function: Callable[..., Any], *options: str) -> Callable[[Any], Evaluate]:
    """Return a factory of evaluators that read ``options`` off the module at hand."""

    def factory(module: Any) -> Evaluate:
        def evaluate(f: Any, y: Any, reduction: str) -> Any:
            values = {name: getattr(module, name) for name in options}
            return function(f, y, reduction=reduction, **values)

        return evaluate

    return factory


_ELEMENTWISE: dict[type[nn.Module], Callable[[Any], Evaluate]] = {
    nn.L1Loss: _plain(F.l1_loss),
    nn.SmoothL1Loss: _plain(F.smooth_l1_loss, "beta"),
    nn.HuberLoss: _plain(F.huber_loss, "delta"),
    nn.PoissonNLLLoss: _plain(F.poisson_nll_loss, "log_input", "full", "eps"),
    nn.KLDivLoss: _plain(F.kl_div, "log_target"),
    nn.SoftMarginLoss: _plain(F.soft_margin_loss),
}
_SPECIAL: dict[type[nn.Module], Callable[[Any], Loss]] = {
    nn.CrossEntropyLoss: CategoricalLoss,
    nn.NLLLoss: CategoricalLoss,
    nn.MSELoss: lambda module: SquaredError(module, _plain(F.mse_loss)(module)),
    nn.BCEWithLogitsLoss: LogisticLoss,
    nn.BCELoss: BernoulliLoss,
    nn.GaussianNLLLoss: GaussianLoss,
}


def as_loss(
    loss: Callable[..., Any], reduction: str | None = None, normalizer: Normalizer | None = None
) -> Loss:
    """Interpret what the user passed as a loss.

    torch's own losses, as modules, functions or :func:`functools.partial` of functions, are
    recognised and have exact normalisers; a subclass that overrides ``forward`` and any other
    callable is a :class:`CustomLoss`.

    Args:
        loss: A module or a callable ``(prediction, target) -> scalar``.
        reduction: ``"mean"`` or ``"sum"``; needed where ``loss`` has no such attribute.
        normalizer: ``fn(prediction, target) -> Z_b`` for callables that average.

    Raises:
        InputError: If the reduction is unknown, missing or contradictory.
    """
    if not callable(loss):
        raise InputError(f"loss must be callable, got {type(loss).__name__}.")
    if normalizer is not None:
        return CustomLoss(loss, _reduction(loss, reduction or "mean"), normalizer)
    module = _as_module(loss, reduction)
    if module is not None:
        for cls, build in _SPECIAL.items():
            if _is(module, cls):
                _reduction(module, reduction)
                return build(module)
        for cls, factory in _ELEMENTWISE.items():
            if _is(module, cls):
                _reduction(module, reduction)
                return ElementwiseLoss(module, factory(module))
    return CustomLoss(loss, _reduction(loss, reduction), None)


def _as_module(loss: Callable[..., Any], reduction: str | None) -> nn.Module | None:
    """Return the torch module that a loss is, or that computes the same as a function."""
    if isinstance(loss, nn.Module):
        return loss
    function, options = loss, dict[str, Any]()
    if isinstance(loss, partial) and not loss.args:
        function, options = loss.func, dict(loss.keywords)
    try:
        cls = _MODULE_OF_FUNCTION.get(function)
    except TypeError:  # an unhashable callable
        return None
    if cls is None:
        return None
    if reduction is not None:
        options.setdefault("reduction", reduction)
    try:
        return cls(**options)
    except TypeError:  # options that only the function has
        return None


def _is(module: nn.Module, cls: type[nn.Module]) -> bool:
    return isinstance(module, cls) and type(module).forward is cls.forward


def _reduction(loss: Any, given: str | None) -> str:
    own = getattr(loss, "reduction", None)
    if isinstance(loss, partial):
        own = loss.keywords.get("reduction", own)
    name = getattr(loss, "__name__", type(loss).__name__)
    if own is not None and given is not None and own != given:
        raise InputError(
            f"{name} has reduction={own!r}, but reduction={given!r} was passed. Leave out the "
            "argument, or change the loss."
        )
    reduction = own if given is None else given
    if reduction == "none":
        raise InputError(
            f'{name} has reduction="none", which is not a risk. Pass reduction="mean" or "sum" '
            "to the loss."
        )
    if reduction is None:
        raise InputError(
            f"{name} does not say whether it averages or sums over the batch. Pass "
            'reduction="mean" (and normalizer= if it averages over anything but the data) or '
            'reduction="sum".'
        )
    if reduction not in ("mean", "sum", "batchmean"):
        raise InputError(f'reduction must be "mean" or "sum", got {reduction!r} for {name}.')
    return str(reduction)
