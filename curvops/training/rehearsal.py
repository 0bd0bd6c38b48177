"""Whether individual gradients of a model exist, and whether BackPACK finds them, on a few data.

A weight that is zero hides what lies behind it, so that a model is rehearsed away from where it
stands: at parameters of which none is zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvops.autodiff import FunctionalModel
from curvops.autodiff.parameters import moved
from curvops.nesting import map_tensors, tensors_of
from curvops.rng import preserved_rng
from curvops.training.curvature import evaluation_mode
from curvops.training.individual import Individual, Request


def rehearsal_point(
    module: nn.Module, model: FunctionalModel, params: Mapping[str, Tensor], X: Any
) -> dict[str, Tensor]:
    """Return parameters some way off, or the given ones where the model makes no sense there."""
    away = dict(zip(params, moved(list(params.values())), strict=True))
    with evaluation_mode(module), preserved_rng(), torch.no_grad():
        try:
            with model.at(away) as predict:
                finite = all(bool(t.isfinite().all()) for t in tensors_of(predict(X)))
        except Exception:  # a model may not allow other values, and say so in any way
            finite = False
    return away if finite else dict(params)


def mixes_data(
    module: nn.Module,
    model: FunctionalModel,
    params: Mapping[str, Tensor],
    X: Any,
    size: int,
    holds: Sequence[bool],
) -> bool:
    """Tell whether the first prediction depends on other data, as far as it shows.

    By its derivative, in the mode that the module is in; where there is none, as for indices, by
    leaving out the other data.

    Args:
        module: The module.
        model: The module as a function.
        params: Where to look.
        X: A few inputs.
        size: Their number.
        holds: Which tensors of X hold them; the others are shared among them.
    """
    if size < 2:
        return False
    try:
        with model.attributes_kept():  # a pass in training mode that counts for nothing
            found = _first_depends(model, params, X, holds)
    except Exception:  # what cannot be differentiated by its inputs can still be evaluated
        found = None
    if found is not None:
        return found
    which = iter(holds)
    first = map_tensors(lambda t: t[:1] if next(which) else t, X)
    still = torch.no_grad()
    with evaluation_mode(module), preserved_rng(), still, model.at(dict(params)) as predict:
        together, alone = predict(X), predict(first)
    tolerance = _eps(model, together.dtype) ** 0.5 * together.abs().max()
    return bool(((together[:1] - alone).abs() > tolerance).any())  # NaN in the data says nothing


def _first_depends(
    model: FunctionalModel, params: Mapping[str, Tensor], X: Any, holds: Sequence[bool]
) -> bool | None:
    """Tell whether the first prediction has a derivative by other data; ``None`` if none exists."""
    which = iter(holds)
    leaves: list[Tensor] = []

    def active(t: Tensor) -> Tensor:
        if not next(which) or not t.is_floating_point():
            return t
        leaves.append(t.detach().clone().requires_grad_())
        return leaves[-1].clone()  # which the model may write to

    X_active = map_tensors(active, X)
    if not leaves:
        return None
    with preserved_rng(), torch.enable_grad(), model.at(dict(params)) as predict:
        f = predict(X_active)
        if not f.requires_grad:
            return None
        # Not their plain sum, which may be constant, as that of probabilities is.
        weights = torch.linspace(1, 2, f[0].numel()).to(f).reshape(f[0].shape)
        found = torch.autograd.grad((f[0] * weights).sum(), leaves, allow_unused=True)
    return any(g is not None and bool(g[1:].nan_to_num().any()) for g in found)


def _eps(model: FunctionalModel, dtype: torch.dtype) -> float:
    """Return the relative rounding of what a model computes."""
    return torch.finfo(torch.bfloat16 if model.has_autocast else dtype).eps


def difference(model: FunctionalModel, found: Individual, expected: Individual) -> str | None:
    """Return whether layers and data disagree about the gradients of a few data."""
    request = Request(noise=True)
    ours, theirs = found.measure(request), expected.measure(request)
    assert ours.squared_norms is not None
    assert theirs.squared_norms is not None
    sums = list(zip(found.sums(), expected.sums(), strict=True))  # each parameter for itself
    pairs = [(ours.squared_norms, theirs.squared_norms), (ours.inner, theirs.inner), *sums]
    tolerance = max(1e-2, 16 * max(_eps(model, b.dtype) for _, b in sums))
    for a, b in pairs:
        assert a is not None
        assert b is not None
        if not (a - b).norm() <= tolerance * b.norm() + 1e-6 * theirs.squared_norms.max().sqrt():
            return (
                "the layers' gradients of single data are not the model's: data are mixed "
                "before a layer, or a parameter is used outside of its layer"
            )
    return None
