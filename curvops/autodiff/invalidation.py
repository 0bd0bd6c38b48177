"""Notice that tensors have changed, however they were changed.

Version counters see every update in place except those through ``.data``; checksums see those,
at the price of reading each tensor twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_PERIOD = 251
"""A prime, so that rows and columns of usual sizes get different weights."""
_SMALL = 2**20
"""Elements up to which copying a tensor costs less than a call for it alone."""


def state_of(tensors: Sequence[Tensor]) -> Any:
    """Return what compares unequal after any change of the tensors' values or places.

    Example:
        >>> import torch
        >>> weight = torch.ones(3)
        >>> before = state_of([weight])
        >>> weight.data[0] += 1e-7
        >>> before == state_of([weight])
        False
    """
    versions = [t._version for t in tensors]
    dense = [t.detach() for t in tensors if t.layout is torch.strided]
    runs = _runs(dense)
    bits = torch.stack([_bit_sum(run) for run in runs]).tolist() if runs else []
    values = [_value_sum(run) for run in runs if run.is_floating_point()]
    pointers = [t.data_ptr() for t in dense]
    return versions, pointers, bits, torch.stack(values).tolist() if values else []


def _runs(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Flatten tensors, the small ones of a kind together: a sum then costs a call, not one each."""
    large = [_aligned(t.reshape(-1)) for t in tensors if t.numel() > _SMALL]
    small: dict[Any, list[Tensor]] = {}
    for t in tensors:
        if t.numel() <= _SMALL:
            small.setdefault((t.dtype, t.device), []).append(t.reshape(-1))
    return large + [torch.cat(group) for group in small.values()]


def _aligned(flat: Tensor) -> Tensor:
    flat = flat.contiguous()
    return flat.clone() if flat.data_ptr() % 8 else flat


def _bit_sum(flat: Tensor) -> Tensor:
    """Sum the bits as 64-bit words with weights: exact, it sees the smallest change.

    The sum wraps, so an even number of changes in the top bits (signs) may cancel.
    """
    raw = flat.view(torch.uint8)
    words = raw[: raw.numel() // 8 * 8].view(torch.int64)
    rest = raw[words.numel() * 8 :].sum(dtype=torch.int64)
    return _weighted(words, torch.int64) + rest


def _value_sum(flat: Tensor) -> Tensor:
    """Sum the values with weights: it sees changes of sign and order."""
    accumulate = torch.promote_types(flat.dtype, torch.float32)
    return _weighted(flat, accumulate).double()


def _weighted(flat: Tensor, dtype: torch.dtype) -> Tensor:
    weights = torch.arange(1, _PERIOD + 1, device=flat.device, dtype=dtype)
    body = flat[: flat.numel() // _PERIOD * _PERIOD].reshape(-1, _PERIOD)
    tail = flat[body.numel() :].to(dtype)
    return (body.sum(0, dtype=dtype) * weights).sum() + (tail * weights[: tail.numel()]).sum()
