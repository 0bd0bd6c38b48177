"""Batches are tensors or any nesting of mappings, tuples and lists of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from curvops.errors import DataError


def map_tensors(fn: Callable[..., Any], nest: Any, *others: Any) -> Any:
    """Apply ``fn`` to every tensor of ``nest`` (and of ``others``, of the same structure).

    Mappings, tuples (named ones too) and lists keep their types; other leaves are kept.

    Example:
        >>> import torch
        >>> map_tensors(lambda t: t + 1, {"a": (torch.tensor(1), "name")})
        {'a': (tensor(2), 'name')}
    """
    if isinstance(nest, Tensor):
        return fn(nest, *others)
    if isinstance(nest, Mapping):
        items = {k: map_tensors(fn, v, *(o[k] for o in others)) for k, v in nest.items()}
        if type(nest) is dict or not isinstance(nest, MutableMapping):
            return items
        clone = copy.copy(nest)
        for key, value in items.items():
            clone[key] = value
        return clone
    if isinstance(nest, (tuple, list)):
        parts = [map_tensors(fn, *group) for group in zip(nest, *others, strict=True)]
        if isinstance(nest, tuple) and hasattr(nest, "_fields"):
            return type(nest)(*parts)
        return type(nest)(parts)
    return nest


def leaves(nest: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every leaf of a nesting with its path, such as ``"['input_ids']"``."""
    if isinstance(nest, Mapping):
        for key, value in nest.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(nest, (tuple, list)):
        for i, value in enumerate(nest):
            yield from leaves(value, f"{path}[{i}]")
    else:
        yield path, nest


def tensors_of(nest: Any) -> list[Tensor]:
    """Return every tensor of a nesting, depth first."""
    return [leaf for _, leaf in leaves(nest) if isinstance(leaf, Tensor)]


def leading_size(nest: Any) -> int:
    """Return the length of the leading axis of a nesting's first tensor.

    Raises:
        DataError: If there is no tensor with a leading axis.
    """
    for _, leaf in leaves(nest):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return leaf.shape[0]
    raise DataError(
        "cannot tell how many data a batch holds: its inputs have no tensor with a leading "
        "axis. Pass batch_size_fn=, a function of the inputs."
    )


def slice_datum(nest: Any, index: int, size: int) -> Any:
    """Return datum ``index`` as a batch of one; tensors of another leading size are shared."""
    return map_tensors(lambda t: t[index : index + 1] if t.ndim and t.shape[0] == size else t, nest)


def can_concatenate(nests: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Tell whether batches can be joined along the data axis.

    They can if they have the same structure, every leaf is a tensor whose leading axis counts
    the data, and shapes and dtypes agree otherwise.
    """
    flat = [list(leaves(nest)) for nest in nests]
    first = flat[0]
    for entries, size in zip(flat, sizes, strict=True):
        if [path for path, _ in entries] != [path for path, _ in first]:
            return False
        for (_, leaf), (_, reference) in zip(entries, first, strict=True):
            if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != size:
                return False
            if leaf.shape[1:] != reference.shape[1:] or leaf.dtype != reference.dtype:
                return False
    return True


def concatenate(nests: Sequence[Any]) -> Any:
    """Join batches along the data axis (see :func:`can_concatenate`)."""
    return map_tensors(lambda *parts: torch.cat(parts), *nests)
