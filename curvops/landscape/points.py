"""Points of a parameter space that nobody has named yet: vectors in any format, or modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Union

import torch
from torch import Tensor, nn

from curvops.errors import DeviceError, InputError, ShapeError
from curvops.tensors import Format, Space, Vector

Point = Union[Vector, nn.Module]
"""A vector in any format, or a module, which stands for its trainable parameters."""


def trainable(module: nn.Module, what: str) -> dict[str, Tensor]:
    """Return the trainable parameters of a module by name.

    Raises:
        InputError: If it has none.
    """
    params = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    if not params:
        raise InputError(f"{what} is a {type(module).__name__} without trainable parameters.")
    return params


def read_points(points: Sequence[Point], names: Sequence[str]) -> tuple[Tensor, Space, str, Format]:
    """Return points as rows, the space they live in, and how they were written.

    Args:
        points: At least one.
        names: What error messages call each.

    Returns:
        Rows ``[n, P]``; the space; whether the points say most of it as ``"flat"`` vectors, a
        ``"list"`` of shapes or a ``"dict"`` of names; and the format of the first.

    Raises:
        InputError: If one is empty, or no vector at all.
        ShapeError: If they do not have the same shapes, or one is a matrix.
        DTypeError: If one is not real floating.
        DeviceError: If they live on several devices.
        NonFiniteError: If one holds NaN or infinity.
    """
    vectors = [
        trainable(point, name) if isinstance(point, nn.Module) else point
        for point, name in zip(points, names, strict=True)
    ]
    space, layout = _space(vectors, names)
    tensors = [_first(vector, name) for vector, name in zip(vectors, names, strict=True)]
    dtype = tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    device = tensors[0].device
    rows, formats = [], []
    for vector, name in zip(vectors, names, strict=True):
        columns, fmt = space.read(vector, dtype, device, name)
        if not fmt.is_vector:
            raise ShapeError(f"{name} has {columns.shape[1]} columns; expected one point.")
        rows.append(columns[:, 0])
        formats.append(fmt)
    return torch.stack(rows), space, layout, formats[0]


def _space(vectors: Sequence[Vector], names: Sequence[str]) -> tuple[Space, str]:
    """Return the space that says most: names before shapes before a mere length."""
    for vector in vectors:
        if isinstance(vector, Mapping):
            named = {name: _tensor(t, f"block {name!r}") for name, t in vector.items()}
            return Space.of(named), "dict"
    for vector in vectors:
        if not isinstance(vector, Tensor) and isinstance(vector, Sequence):
            listed = {str(i): _tensor(t, f"block {i}") for i, t in enumerate(vector)}
            return Space.of(listed), "list"
    first = _tensor(vectors[0], names[0])
    if first.ndim != 1 or not len(first):
        raise ShapeError(f"{names[0]} has shape {list(first.shape)}; expected a flat [P], P > 0.")
    return Space.flat(len(first)), "flat"


def _first(vector: Vector, name: str) -> Tensor:
    """Return a tensor of a vector, for its dtype and device."""
    if isinstance(vector, Tensor):
        return vector
    blocks = list(vector.values() if isinstance(vector, Mapping) else vector)
    if not blocks:
        raise InputError(f"{name} is empty: it has no parameters.")
    for block in blocks:
        _tensor(block, f"a block of {name}")
    devices = {block.device for block in blocks}
    if len(devices) > 1:
        raise DeviceError(f"{name} lives on several devices: {devices}. Use one.")
    first: Tensor = blocks[0]
    for block in blocks[1:]:
        first = first.new_empty(0, dtype=torch.promote_types(first.dtype, block.dtype))
    return first


def _tensor(value: object, what: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise InputError(
            f"{what} is {type(value).__name__}; expected a tensor, a list or dict of tensors, or "
            "a module."
        )
    return value
