"""Gradients of individual data, vectorised where the model allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vmap

from curvops.autodiff.model import FunctionalModel
from curvops.data import Batch
from curvops.nesting import map_tensors, slice_datum, tensors_of

_CHUNK_NUMEL = 2**25
"""Individual gradients alive at a time: 128 MiB in float32."""

Scalar = Callable[[Tensor, Any], Tensor]
"""``(prediction, extra) -> 0-dim tensor`` of a batch of one datum."""


def individual_gradients(
    model: FunctionalModel, scalar: Scalar, params: dict[str, Tensor], batch: Batch, extra: Any
) -> Iterator[Tensor]:
    """Yield the gradients ∇_θ scalar(f(θ, x_n), e_n) in chunks ``[n, P]``.

    By ``vmap(grad)``; a model that torch cannot vectorise (recurrent kernels, Python control
    flow) is differentiated datum by datum, with the same result.

    Args:
        model: The model.
        scalar: What to differentiate, on batches of one datum.
        params: Detached tensors by name.
        batch: The mini-batch.
        extra: What goes with each datum (its target, or a cotangent); sliced like X.
    """
    dim = sum(p.numel() for p in params.values())
    chunk = max(1, min(batch.size, _CHUNK_NUMEL // max(dim, 1)))
    for start in range(0, batch.size, chunk):
        stop = min(start + chunk, batch.size)
        part = map_tensors(
            lambda t: t[start:stop] if t.ndim and t.shape[0] == batch.size else t,  # noqa: B023
            (batch.X, extra),
        )
        yield _chunk_gradients(model, scalar, params, part, stop - start)


def _chunk_gradients(
    model: FunctionalModel, scalar: Scalar, params: dict[str, Tensor], part: Any, size: int
) -> Tensor:
    try:
        grads = _vectorised(model, scalar, params, part, size)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError, ValueError):
        single = [
            _one_by_one(model, scalar, params, slice_datum(part, n, size)) for n in range(size)
        ]
        grads = {name: torch.stack([g[name] for g in single]) for name in params}
    return torch.cat([grads[name].reshape(size, -1) for name in params], dim=1).detach()


def _vectorised(
    model: FunctionalModel, scalar: Scalar, params: dict[str, Tensor], part: Any, size: int
) -> dict[str, Tensor]:
    tensors = tensors_of(part)
    axes = [0 if t.ndim and t.shape[0] == size else None for t in tensors]
    # Left open until the backward pass is done: checkpointed modules run their forward in it.
    substitution = ExitStack()

    def of_datum(p: dict[str, Tensor], *data: Tensor) -> Tensor:
        batch_of_one = iter(
            t if axis is None else t.unsqueeze(0) for t, axis in zip(data, axes, strict=True)
        )
        X, extra = map_tensors(lambda _: next(batch_of_one), part)
        predict = substitution.enter_context(model.at(p))
        return scalar(predict(X), extra)

    with substitution:
        result: dict[str, Tensor] = vmap(grad(of_datum), in_dims=(None, *axes))(params, *tensors)
    return result


def _one_by_one(
    model: FunctionalModel, scalar: Scalar, params: dict[str, Tensor], datum: Any
) -> dict[str, Tensor]:
    X, extra = datum
    active = {name: p.detach().requires_grad_() for name, p in params.items()}
    with model.at(active) as predict:
        with torch.enable_grad():
            value = scalar(predict(X), extra)
        grads = torch.autograd.grad(value, list(active.values()), materialize_grads=True)
    return dict(zip(active, grads, strict=True))
