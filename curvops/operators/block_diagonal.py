"""The block-diagonal part of an operator, one block per layer or any grouping of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.operators.linear import LinearOperator, check_positive
from curvops.operators.selection import Selection, match_names
from curvops.operators.submatrix import SubmatrixLinearOperator
from curvops.tensors import Space

Groups: TypeAlias = str | Sequence[str | Sequence[str]]
"""``"layer"``, ``"parameter"``, or groups of parameter names and globs."""

_MOST_BYTES = 2**28
_MOST_COLUMNS = 64


class BlockDiagonalLinearOperator(LinearOperator):
    r"""The block-diagonal part ``sum_g P_g A P_g`` of an operator ``A``.

    ``P_g`` keeps the parameters of group ``g`` and zeroes the rest. A product with ``K`` columns
    costs ``G K`` columns of ``A`` for ``G`` groups: the columns masked to each group are
    multiplied side by side. It is self-adjoint (positive semidefinite) if ``A`` is.

    Args:
        op: An operator that maps a space of named parameters to itself.
        groups: ``"layer"`` groups parameters whose names agree before the last dot (so
            ``net.0.weight`` with ``net.0.bias``); ``"parameter"`` makes each its own group;
            otherwise a list of groups, each a name, a glob or a list of them. Together they must
            hold every parameter exactly once.
        max_columns: How many columns are multiplied with ``A`` at once, which bounds the memory;
            by default what fits 256 MiB, at most 64.

    Attributes:
        groups: The names in each group, in the order of the space.
        blocks: The diagonal blocks ``A[g, g]`` as operators on the parameters of group ``g``.

    Raises:
        ShapeError: If ``op`` does not map a space to itself.
        InputError: If groups overlap, miss a parameter, are empty or match nothing; if
            parameters without names are to be grouped by layer; or if ``max_columns`` is not a
            positive integer.

    Example:
        >>> import torch
        >>> from curvops.operators import DiagonalLinearOperator
        >>> D = DiagonalLinearOperator(
        ...     {"0.w": torch.ones(2), "0.b": torch.ones(1), "1.w": -torch.ones(1)}
        ... )
        >>> B = BlockDiagonalLinearOperator(D)
        >>> B.groups
        (('0.w', '0.b'), ('1.w',))
        >>> B @ torch.ones(4)
        tensor([ 1.,  1.,  1., -1.])
    """

    def __init__(
        self, op: LinearOperator, groups: Groups = "layer", *, max_columns: int | None = None
    ) -> None:
        if op.in_space != op.out_space:
            raise ShapeError(f"Only an operator on one space has diagonal blocks, not {op!r}.")
        super().__init__(op.in_space, op.out_space, op.dtype, op.device)
        self.op = op
        self.groups = _resolve(op.in_space, groups)
        self.max_columns = (
            _affordable_columns(op)
            if max_columns is None
            else check_positive(max_columns, "max_columns")
        )
        self.SELF_ADJOINT = op.SELF_ADJOINT
        self.POSITIVE_SEMIDEFINITE = op.POSITIVE_SEMIDEFINITE
        self._selections = [Selection.of(op.in_space, names, "group") for names in self.groups]
        self._indices = [s.index.to(self.device) for s in self._selections]

    @property
    def blocks(self) -> tuple[SubmatrixLinearOperator, ...]:
        """The diagonal blocks ``A[g, g]``."""
        return tuple(SubmatrixLinearOperator(self.op, s, s) for s in self._selections)

    def _matmat(self, X: Tensor) -> Tensor:
        num_columns = X.shape[1]
        product = X.new_zeros(X.shape)
        # Column j of the wide problem is column j % K of X, masked to group j // K.
        total = len(self._indices) * num_columns
        for start in range(0, total, self.max_columns):
            stop = min(start + self.max_columns, total)
            masked = X.new_zeros(X.shape[0], stop - start)
            pieces = list(self._pieces(start, stop, num_columns))
            for index, wide, narrow in pieces:
                masked[index, wide] = X[index, narrow]
            result = self.op._matmat(masked)
            for index, wide, narrow in pieces:
                product[index, narrow] = result[index, wide]
        return product

    def _pieces(self, start: int, stop: int, num_columns: int) -> list[tuple[Tensor, slice, slice]]:
        """Return (rows of a group, columns of the chunk, columns of ``X``) for a chunk."""
        pieces = []
        for group in range(start // num_columns, -(-stop // num_columns)):
            first = group * num_columns
            begin, end = max(start, first), min(stop, first + num_columns)
            wide, narrow = slice(begin - start, end - start), slice(begin - first, end - first)
            pieces.append((self._indices[group], wide, narrow))
        return pieces

    def _adjoint(self) -> LinearOperator:
        return BlockDiagonalLinearOperator(
            self.op.adjoint(), self.groups, max_columns=self.max_columns
        )


def _affordable_columns(op: LinearOperator) -> int:
    """Return how many columns of the operator's input fit the memory budget."""
    column_bytes = max(1, op.shape[1] * op.dtype.itemsize)
    return max(1, min(_MOST_COLUMNS, _MOST_BYTES // column_bytes))


def _resolve(space: Space, groups: Groups) -> tuple[tuple[str, ...], ...]:
    """Return the names in each group, after checking that they partition the parameters."""
    if groups == "layer":
        return _by_layer(space)
    if groups == "parameter":
        return tuple((name,) for name in space.names)
    if isinstance(groups, str) or not isinstance(groups, Sequence):
        raise InputError(
            'groups must be "layer", "parameter" or a list of groups of parameter names and '
            f"globs, not {groups!r}."
        )
    resolved = []
    owner: dict[str, int] = {}
    for number, group in enumerate(groups):
        patterns = [group] if isinstance(group, str) else group
        _check_group(patterns, number)
        names = match_names(space, patterns, f"groups[{number}]")
        if not names:
            raise InputError(f"groups[{number}] is empty.")
        for name in names:
            if name in owner:
                raise InputError(
                    f"Parameter {name!r} is in groups[{owner[name]}] and in groups[{number}]; "
                    "groups must be disjoint."
                )
            owner[name] = number
        resolved.append(names)
    missing = [name for name in space.names if name not in owner]
    if missing:
        raise InputError(f"No group holds the parameters {missing}; groups must cover them all.")
    return tuple(resolved)


def _check_group(patterns: object, number: int) -> None:
    if not isinstance(patterns, Sequence):
        raise InputError(
            f"groups[{number}] must be a list of parameter names and globs, not {patterns!r}."
        )


def _by_layer(space: Space) -> tuple[tuple[str, ...], ...]:
    if len(space.names) > 1 and all(name.isdecimal() for name in space.names):
        raise InputError(
            "Parameters without names cannot be grouped by layer. Build the operator from a "
            'module or a dict of parameters, or use groups="parameter".'
        )
    layers: dict[str, list[str]] = {}
    for name in space.names:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    return tuple(tuple(names) for names in layers.values())
