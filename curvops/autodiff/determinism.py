"""Checks that a model is a deterministic function of its parameters, datum by datum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from curvops.autodiff.model import FunctionalModel
from curvops.data import Batch, BatchStream
from curvops.errors import DeterminismError
from curvops.losses import Loss
from curvops.nesting import can_concatenate, concatenate, map_tensors, tensors_of
from curvops.rng import PrivateRNG

_MERGED_DATA = 512
_MERGED_BYTES = 32 * 2**20
"""Merging pays while a batch is small; beyond this much saved activation it costs memory."""


def check_model(model: FunctionalModel, params: Mapping[str, Tensor], batch: Batch) -> None:
    """Refuse models that are random, or whose data influence one another.

    Modules that are known to be are named without being run; then one batch is evaluated
    twice. Buffers that the model writes to are shielded by clones.

    Raises:
        DeterminismError: Naming the module and the fix.
    """
    if model.module is not None:
        for name, module in model.module.named_modules():
            reason = _reason(module)
            if reason:
                raise DeterminismError(
                    f"{type(module).__name__} {name or 'itself'!r} {reason}. Call model.eval() "
                    "first, or pass check_deterministic=False if you mean it."
                )
    rng = PrivateRNG(seed=0)
    # A second generator position: a model that draws random numbers draws other ones.
    model.clone_buffers = True
    try:
        with torch.inference_mode(False):  # a model that writes to its input writes to a copy
            X = map_tensors(torch.clone, batch.X)
        versions = [t._version for t in tensors_of(X)]
        first = _predict(model, params, X, rng)
        if [t._version for t in tensors_of(X)] != versions:
            raise DeterminismError(
                "the model writes to its input X in place, so the next pass would see other "
                "data. Let it work on a copy, for example X.clone()."
            )
        changed = _changed_buffers(model, params, X, rng)
        second = _predict(model, params, X, rng)
    finally:
        model.clone_buffers = False
    if changed:
        raise DeterminismError(
            f"the model changes its buffers {changed} in the forward pass. Call model.eval()."
        )
    if first.shape != second.shape or not torch.equal(
        torch.nan_to_num(first), torch.nan_to_num(second)
    ):
        raise DeterminismError(
            "the model gave two different predictions for the same batch"
            f"{_training(model.module)}. Call model.eval(), or pass check_deterministic=False if "
            "the differences are rounding that you accept."
        )


def merge_limit(
    model: FunctionalModel,
    loss: Loss | None,
    params: Mapping[str, Tensor],
    data: BatchStream,
    limit: int | None,
) -> int:
    """Return how many data merged batches may hold; 0 where merging would change the result.

    Whether predictions are independent of their batch is measured, on the first two batches.
    """
    batches = iter(data)
    first, second = next(batches), next(batches, None)
    if second is None:
        return 0
    pair, sizes = (first, second), (first.size, second.size)
    if not can_concatenate([(b.X, b.y) for b in pair], sizes):
        return 0
    rng = PrivateRNG(seed=0)
    if limit is None:
        saved = saved_bytes(model, params, first.X, rng)
        limit = min(_MERGED_DATA, int(_MERGED_BYTES // max(saved / first.size, 1.0)))
    if limit < sum(sizes):
        return 0
    parts = [_predict(model, params, b.X, rng) for b in pair]
    whole = _predict(model, params, concatenate([b.X for b in pair]), rng)
    if any(p.ndim == 0 or p.shape[0] != b.size for p, b in zip(parts, pair, strict=True)):
        return 0
    if not _close(whole, torch.cat(parts)):
        return 0
    if loss is not None:
        y = concatenate([b.y for b in pair])
        with torch.no_grad():
            apart = sum(loss.total(p, b.y) for p, b in zip(parts, pair, strict=True))
            if not _close(loss.total(whole, y), torch.as_tensor(apart)):
                return 0
    return limit


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = 1e3 * torch.finfo(a.dtype).eps
    scale = b.abs().max().clamp(min=torch.finfo(a.dtype).tiny) if b.numel() else 1.0
    return bool(((a - b).abs() <= tolerance * scale).all())


def _predict(
    model: FunctionalModel, params: Mapping[str, Tensor], X: Any, rng: PrivateRNG
) -> Tensor:
    detached = {name: p.detach() for name, p in params.items()}
    with torch.no_grad(), rng.active(), model.at(detached) as predict:
        return predict(X)


def _changed_buffers(
    model: FunctionalModel, params: Mapping[str, Tensor], X: Any, rng: PrivateRNG
) -> list[str]:
    if model.module is None or not any(True for _ in model.module.buffers()):
        return []
    detached = {name: p.detach() for name, p in params.items()}
    with torch.no_grad(), rng.active(), model.at(detached) as predict:
        before = {name: (b, b._version) for name, b in model.module.named_buffers()}
        predict(X)
        after = dict(model.module.named_buffers())
        return [
            name
            for name, (buffer, version) in before.items()
            if name not in after or after[name] is not buffer or buffer._version != version
        ]


def saved_bytes(
    model: FunctionalModel, params: Mapping[str, Tensor], X: Any, rng: PrivateRNG
) -> int:
    """Return the bytes of activations that a backward pass through the model would need.

    Data are not counted: they are there anyway, and often views of one tensor that holds them all.
    """
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        # The graph holds this function and what it returns, which must not hold the graph.
        if t.layout is torch.strided:
            storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t.detach()

    active = {name: p.detach().requires_grad_() for name, p in params.items()}
    given = (t for t in (*active.values(), *tensors_of(X)) if t.layout is torch.strided)
    own = {t.untyped_storage().data_ptr() for t in given}
    with (
        torch.enable_grad(),
        rng.active(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        model.at(active) as predict,
    ):
        predict(X)
    return sum(size for pointer, size in storages.items() if pointer not in own)


def _reason(module: nn.Module) -> str:
    if isinstance(module, _BatchNorm):
        if module.training:
            return "is in train mode: it mixes the data of a batch and changes its statistics"
        if module.running_mean is None:
            return "has no running statistics: it mixes the data of a batch even in eval mode"
    if not module.training:
        return ""
    if isinstance(module, _DropoutNd) and module.p > 0:
        return "is in train mode: it is random"
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.dropout > 0:
        return "is in train mode with dropout: it is random"
    return ""


def _training(module: nn.Module | None) -> str:
    if module is None:
        return ""
    names = [name or type(m).__name__ for name, m in module.named_modules() if m.training]
    return f"; modules in train mode: {names[:5]}" if names else ""
