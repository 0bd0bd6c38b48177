r"""Renumbering hidden units: which axes of which tensors are permuted together.

The units of a hidden layer can be permuted without changing what a network computes, if the rows
that produce them and the columns that consume them are permuted alike:

.. math:: W_2 \, \sigma(W_1 x + b_1) = (W_2 Q^T) \, \sigma(Q W_1 x + Q b_1)

A *group* is a set of units that are renumbered together: every axis of every tensor that they run
along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError


class Axis(NamedTuple):
    """An axis of a tensor along which units run.

    Attributes:
        tensor: The name of the parameter or buffer.
        axis: Which of its axes.
        block: How many consecutive entries belong to one unit; more than one where a convolution
            is flattened into a linear layer.
    """

    tensor: str
    axis: int
    block: int = 1


Groups = Mapping[str, Sequence[Sequence[Any]]]
"""Axes ``(tensor, axis)`` or ``(tensor, axis, block)`` that are permuted together, by name."""


def read_groups(groups: Groups, tensors: Mapping[str, Tensor]) -> dict[str, tuple[Axis, ...]]:
    """Return groups as :class:`Axis` tuples, after checking that they fit the tensors.

    Args:
        groups: The axes of each group, by its name.
        tensors: Parameters and buffers by name.

    Raises:
        InputError: If there are none, or a tensor or axis does not exist or is in two groups.
        ShapeError: If the axes of a group have different numbers of units.
    """
    if not groups:
        raise InputError("groups is empty: there is nothing to permute.")
    read: dict[str, tuple[Axis, ...]] = {}
    owner: dict[tuple[str, int], str] = {}
    for name, axes in groups.items():
        if not axes:
            raise InputError(f"group {name!r} has no axes.")
        read[name] = tuple(_axis(name, entry, tensors) for entry in axes)
        for axis in read[name]:
            key = (axis.tensor, axis.axis)
            if key in owner:
                raise InputError(
                    f"axis {axis.axis} of {axis.tensor!r} is in group {owner[key]!r} and again in "
                    f"{name!r}; every axis belongs to one group."
                )
            owner[key] = name
        sizes = {f"{a.tensor}[{a.axis}]": group_size([a], tensors) for a in read[name]}
        if len(set(sizes.values())) > 1:
            raise ShapeError(f"the axes of group {name!r} have different numbers of units: {sizes}")
    return read


def _axis(group: str, entry: Sequence[Any], tensors: Mapping[str, Tensor]) -> Axis:
    if isinstance(entry, str) or len(entry) not in (2, 3):
        raise InputError(
            f"group {group!r} holds {entry!r}; expected (tensor, axis) or (tensor, axis, block)."
        )
    axis = Axis(*entry)
    if axis.tensor not in tensors:
        raise InputError(f"group {group!r} names {axis.tensor!r}; there are {list(tensors)}.")
    shape = list(tensors[axis.tensor].shape)
    if not 0 <= axis.axis < len(shape):
        raise InputError(
            f"group {group!r} names axis {axis.axis} of {axis.tensor!r}, whose shape is {shape}."
        )
    if axis.block < 1 or shape[axis.axis] % axis.block:
        raise ShapeError(
            f"group {group!r}: axis {axis.axis} of {axis.tensor!r} has {shape[axis.axis]} entries, "
            f"which is no number of blocks of {axis.block}."
        )
    return axis


def group_size(axes: Sequence[Axis], tensors: Mapping[str, Tensor]) -> int:
    """Return the number of units of a group."""
    tensor, axis, block = axes[0]
    return tensors[tensor].shape[axis] // block


def permute(
    tensors: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[Axis]],
    permutations: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return tensors whose unit ``i`` is the old unit ``permutation[i]``, in every group.

    Args:
        tensors: Parameters and buffers by name, with any trailing axes. They are left alone.
        groups: The axes of each group; those of tensors that are not given are passed over.
        permutations: Indices ``[n]`` for each group.

    Example:
        >>> groups = {"hidden": (Axis("in", 0), Axis("out", 1))}
        >>> net = {"in": torch.tensor([[1.0], [2.0]]), "out": torch.tensor([[3.0, 4.0]])}
        >>> swapped = permute(net, groups, {"hidden": torch.tensor([1, 0])})
        >>> swapped["in"].tolist(), swapped["out"].tolist()
        ([[2.0], [1.0]], [[4.0, 3.0]])
        >>> bool(swapped["out"] @ swapped["in"] == net["out"] @ net["in"])
        True
    """
    result = dict(tensors)
    for name, axes in groups.items():
        for axis in axes:
            if axis.tensor in result:
                result[axis.tensor] = take(result[axis.tensor], axis, permutations[name])
    return result


def take(tensor: Tensor, axis: Axis, index: Tensor) -> Tensor:
    """Return a tensor with the units along one of its axes in another order."""
    if axis.block > 1:
        index = (index[:, None] * axis.block + torch.arange(axis.block)).reshape(-1)
    return tensor.index_select(axis.axis, index.to(tensor.device))


def units(tensor: Tensor, axis: Axis) -> Tensor:
    """Return what belongs to each unit of an axis as rows ``[n, m]``."""
    first = tensor.movedim(axis.axis, 0)
    return first.reshape(first.shape[0] // axis.block, -1)
