"""Which tensors a risk is a function of, and what the model calls them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from curvops.errors import DeviceError, InputError, ShapeError
from curvops.tensors import check_finite, check_real

_STEP = 0.05
"""Beside half its root mean square: how far a parameter is moved."""

Params = nn.Module | str | Mapping[str, Tensor] | Iterable[str | Tensor] | None


def resolve_parameters(model: nn.Module | Callable[..., Any], params: Params) -> dict[str, Tensor]:
    """Return the chosen parameters by name, in the caller's order.

    Args:
        model: A module, or a callable ``(params_dict, X) -> prediction``.
        params: A module (its trainable parameters), tensors, tensors by name, or one or more
            globs over the names of the trainable parameters; all trainable ones by default.
            Tensors need not be the module's own values: what is passed is what is evaluated.

    Raises:
        InputError: If nothing is chosen, something twice, a name is unknown, or a listed
            parameter of the module does not require gradients.
        ShapeError: If a tensor does not have the shape of its namesake.
        DTypeError: If a parameter is not real floating.
        DeviceError: If the parameters live on several devices.
        NonFiniteError: If a parameter holds NaN or infinity.
    """
    if isinstance(model, nn.Module):
        chosen = _of_module(model, params)
    elif isinstance(params, Mapping):
        chosen = dict(params)
    else:
        raise InputError(
            "model is a plain callable (params_dict, X) -> prediction, so params must be a dict "
            f"of tensors by name; got {type(params).__name__}. If the model is a module, pass it "
            "as it is, with forward= where it needs adapting."
        )
    if not chosen:
        raise InputError("params is empty: the risk would not depend on anything.")
    for name, tensor in chosen.items():
        if not isinstance(tensor, Tensor):
            raise InputError(f"parameter {name!r} is {type(tensor).__name__}, not a torch.Tensor.")
        check_real(tensor, f"parameter {name!r}")
        if tensor.is_meta:
            raise DeviceError(f"parameter {name!r} is on the meta device: it has no values yet.")
    _refuse_duplicates(chosen)
    devices = {name: tensor.device for name, tensor in chosen.items()}
    if len(set(devices.values())) > 1:
        raise DeviceError(f"the parameters live on several devices: {devices}. Use one.")
    for name, tensor in chosen.items():
        check_finite(tensor.detach(), f"parameter {name!r}")
    return chosen


def _of_module(model: nn.Module, params: Params) -> dict[str, Tensor]:
    own = dict(model.named_parameters())
    canonical = {id(p): name for name, p in own.items()}
    alias = {name: canonical[id(p)] for name, p in model.named_parameters(remove_duplicate=False)}
    if params is None:
        return _trainable(own)
    if isinstance(params, nn.Module):
        return _listed([p for p in params.parameters() if p.requires_grad], own, canonical)
    if isinstance(params, str):
        params = [params]
    if isinstance(params, Mapping):
        return _named(params, own, alias)
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        raise InputError(
            f"params is a {type(params).__name__}; expected a module, a list of tensors, a dict of "
            "tensors by name, or globs over names."
        )
    items: list[Any] = list(params)
    if items and all(isinstance(item, str) for item in items):
        return _matching(items, own, alias)
    return _listed(items, own, canonical)


def _trainable(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    chosen = {name: p for name, p in own.items() if p.requires_grad}
    if own and not chosen:
        raise InputError(
            "no parameter of the model requires gradients. Call .requires_grad_() on those that "
            "the risk should be a function of."
        )
    return chosen


def _matching(
    globs: list[str], own: Mapping[str, Tensor], alias: Mapping[str, str]
) -> dict[str, Tensor]:
    names: set[str] = set()
    for glob in globs:
        hits = {alias[name] for name in alias if fnmatchcase(name, glob)}
        if not hits:
            raise InputError(f"params={glob!r} matches none of the parameters {list(own)}.")
        trainable = {name for name in hits if own[name].requires_grad}
        if not trainable:
            raise InputError(
                f"params={glob!r} matches only parameters that do not require gradients: "
                f"{sorted(hits)}. Call .requires_grad_() on them."
            )
        names |= trainable
    return {name: p for name, p in own.items() if name in names}


def _named(
    params: Mapping[str, Tensor], own: Mapping[str, Tensor], alias: Mapping[str, str]
) -> dict[str, Tensor]:
    chosen: dict[str, Tensor] = {}
    for name, tensor in params.items():
        if name not in alias:
            raise InputError(f"the model has no parameter {name!r}; it has {list(own)}.")
        target = alias[name]
        if target in chosen:
            raise InputError(f"params names the tied parameter {target!r} twice, also as {name!r}.")
        if isinstance(tensor, Tensor):
            _check_fits(target, tensor, own[target])
        chosen[target] = tensor
    return chosen


def _listed(
    items: list[Any], own: Mapping[str, Tensor], canonical: Mapping[int, str]
) -> dict[str, Tensor]:
    for i, item in enumerate(items):
        if not isinstance(item, Tensor):
            raise InputError(f"params entry {i} is {type(item).__name__}, not a torch.Tensor.")
    if len({id(t) for t in items}) < len(items):
        seen = [canonical.get(id(t), f"entry {i}") for i, t in enumerate(items)]
        twice = sorted({name for name in seen if seen.count(name) > 1}) or "a tensor"
        raise InputError(f"params lists {twice} more than once. List every tensor once.")
    foreign = [i for i, t in enumerate(items) if id(t) not in canonical]
    if not foreign:
        chosen = {canonical[id(t)]: t for t in items}
        for name, tensor in chosen.items():
            _check_fits(name, tensor, own[name])
        return chosen
    trainable = {name: p for name, p in own.items() if p.requires_grad}
    for names in (trainable, own):
        if len(foreign) == len(items) == len(names) and all(
            t.shape == p.shape for t, p in zip(items, names.values(), strict=True)
        ):
            return dict(zip(names, items, strict=True))
    raise InputError(
        f"params entry {foreign[0]} is not a parameter of the model, and the list does not fit "
        f"all of its parameters {[(n, list(p.shape)) for n, p in trainable.items()]} one by one. "
        "Pass a dict of tensors by parameter name."
    )


def _check_fits(name: str, tensor: Tensor, own: Tensor) -> None:
    if tensor.shape != own.shape:
        raise ShapeError(
            f"parameter {name!r} has shape {list(tensor.shape)}, the model's {list(own.shape)}."
        )
    if tensor is own and not own.requires_grad:
        raise InputError(
            f"parameter {name!r} has requires_grad=False. Call .requires_grad_() on it, or leave "
            "it out of params."
        )


def _refuse_duplicates(chosen: Mapping[str, Tensor]) -> None:
    seen: dict[int, str] = {}
    for name, tensor in chosen.items():
        if id(tensor) in seen:
            raise InputError(f"params holds the same tensor as {seen[id(tensor)]!r} and {name!r}.")
        seen[id(tensor)] = name


@torch.no_grad()
def moved(params: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Return parameters some way off, none of them zero: a zero hides what is behind it."""
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.randn(p.shape, generator=generator).to(p) for p in params]
    return [
        p + (p.square().mean().sqrt() / 2 + _STEP) * n for p, n in zip(params, noise, strict=True)
    ]


def common_dtype(params: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype of flat vectors over ``params``: the widest of theirs."""
    dtypes = [p.dtype for p in params]
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest
