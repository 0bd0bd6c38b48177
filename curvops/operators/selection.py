"""Choosing coordinates of a space: by slice, by flat index, by mask, by parameter name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvops.errors import DTypeError, InputError, ShapeError
from curvops.tensors import Space

Choice: TypeAlias = slice | str | Sequence[str] | Sequence[int] | Tensor | NDArray[Any]
"""A slice, flat indices, a boolean mask, or parameter names and globs."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Distinct coordinates of a space, in order, and the space that they form.

    Args:
        index: Flat indices ``[n]`` (int64, on the CPU).
        space: The space ``R^n``: the named blocks if chosen by name, one flat block otherwise.
    """

    index: Tensor
    space: Space

    @classmethod
    def of(cls, space: Space, choice: Choice, what: str) -> Selection:
        """Select coordinates of ``space``.

        Args:
            space: The space to choose from.
            choice: A slice; flat indices (negative ones count from the end); a boolean mask
                ``[P]``; or names and globs, which keep the order of the space.
            what: How error messages call the choice.

        Raises:
            InputError: If an index is out of range or appears twice, if a name or glob matches
                nothing, or if nothing is chosen.
            ShapeError: If indices are not one-dimensional or a mask does not have ``P`` entries.
            DTypeError: If indices are neither integer nor boolean.

        Example:
            >>> import torch
            >>> space = Space(("a.w", "a.b", "c.w"), (torch.Size([2]),) * 3)
            >>> Selection.of(space, "*.w", "rows").index
            tensor([0, 1, 4, 5])
        """
        if isinstance(choice, str):
            choice = [choice]
        if isinstance(choice, Sequence) and any(isinstance(item, str) for item in choice):
            names = match_names(space, choice, what)
            return cls(_index_of_names(space, names), _subspace(space, names))
        index = _flat_index(choice, space.dim, what)
        if index.numel() == 0:
            raise InputError(f"{what} selects nothing.")
        return cls(index, Space.flat(index.numel()))

    def same_as(self, other: Selection) -> bool:
        """Tell whether both choose the same coordinates in the same order and format."""
        return self.space == other.space and torch.equal(self.index, other.index)


def match_names(space: Space, patterns: Iterable[object], what: str) -> tuple[str, ...]:
    """Return the names of the blocks that a list of names and globs covers.

    Args:
        space: The space whose names are matched.
        patterns: Exact names, or globs in the manner of :mod:`fnmatch`; they may overlap.
        what: How error messages call the patterns.

    Returns:
        The names in the order of the space.

    Raises:
        InputError: If a pattern is not a string or matches nothing.

    Example:
        >>> import torch
        >>> space = Space(("a.w", "a.b", "c.w"), (torch.Size([2]),) * 3)
        >>> match_names(space, ["c.*", "a.w"], "rows")
        ('a.w', 'c.w')
    """
    chosen: set[str] = set()
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"{what} mixes names with {pattern!r}; give only names and globs.")
        # An exact name wins, so that a name that contains "[" can be given as it is.
        exact = pattern in space.names
        found = [pattern] if exact else [n for n in space.names if fnmatchcase(n, pattern)]
        if not found:
            raise InputError(f"{what}: {pattern!r} matches none of {_shown(space.names)}.")
        chosen.update(found)
    return tuple(name for name in space.names if name in chosen)


def _index_of_names(space: Space, names: Sequence[str]) -> Tensor:
    ranges = dict(space.slices())
    return torch.cat([torch.arange(ranges[n].start, ranges[n].stop) for n in names])


def _subspace(space: Space, names: Sequence[str]) -> Space:
    shapes = dict(zip(space.names, space.shapes, strict=True))
    return Space(tuple(names), tuple(shapes[name] for name in names))


def _flat_index(choice: object, dim: int, what: str) -> Tensor:
    """Convert a slice, indices or a mask to distinct indices in ``[0, dim)``."""
    if isinstance(choice, slice):
        try:
            return torch.tensor(range(dim)[choice], dtype=torch.int64)
        except (TypeError, ValueError) as error:
            raise InputError(f"{what} is the impossible {choice!r}: {error}.") from error
    if not isinstance(choice, Tensor | np.ndarray | Sequence):
        raise InputError(
            f"{what} must be a slice, a list or tensor of flat indices, a boolean mask, or "
            f"parameter names and globs; got {choice!r}."
        )
    try:
        index = torch.as_tensor(choice).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{what} cannot be read as flat indices: {error}.") from error
    if index.ndim != 1:
        raise ShapeError(f"{what} must be one-dimensional, not of shape {list(index.shape)}.")
    if index.dtype == torch.bool:
        if index.numel() != dim:
            raise ShapeError(f"{what} is a mask of {index.numel()} entries; expected [{dim}].")
        return index.nonzero().squeeze(1)
    if index.numel() == 0:
        return index.to(torch.int64)
    if index.dtype.is_floating_point or index.dtype.is_complex:
        raise DTypeError(f"{what} must hold integers or booleans, not {index.dtype}.")
    return _check_index(index.to(torch.int64), dim, what)


def _check_index(index: Tensor, dim: int, what: str) -> Tensor:
    outside = (index < -dim) | (index >= dim)
    if bool(outside.any()):
        raise InputError(
            f"{what} holds the index {int(index[outside][0])}, out of range for {dim} coordinates."
        )
    index = torch.where(index < 0, index + dim, index)
    ordered = index.sort().values
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if again.numel():
        raise InputError(
            f"{what} holds the index {int(again[0])} more than once; "
            "a submatrix has distinct rows and columns."
        )
    return index


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:8])
    return f"{shown}, ... ({len(names)} names)" if len(names) > 8 else shown
