"""Diagonal operators, which stay diagonal when scaled, summed, multiplied or inverted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from curvops.errors import DTypeError, InputError, ShapeError
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space, Vector, check_finite


class DiagonalLinearOperator(LinearOperator):
    """The operator ``diag(d)``.

    Sums, differences, multiples, shifts and products of diagonals and identities are diagonals
    again. A subclass whose entries change (with the parameters of a model, say) defines
    ``_entries`` as a property; what is built from it follows.

    Args:
        diagonal: The entries ``d``: a flat tensor ``[P]``, a list of tensors, or a dict of
            tensors by name. They are copied.
        space: The space to act on; by default the one ``diagonal`` is written in.

    Raises:
        InputError: If ``diagonal`` is not a vector in one of the three formats, or empty.
        ShapeError: If it does not fit ``space`` or has more than one column.
        DTypeError: If it is not real floating, or its tensors have different dtypes.
        NonFiniteError: If it holds NaN or infinity.

    Example:
        >>> import torch
        >>> D = DiagonalLinearOperator({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([4.0])})
        >>> D @ {"w": torch.ones(1, 2), "b": torch.ones(1)}
        {'w': tensor([[1., 2.]]), 'b': tensor([4.])}
        >>> (2 * D + D.inverse()).diagonal
        tensor([3.0000, 4.5000, 8.2500])
    """

    SELF_ADJOINT = True

    def __init__(self, diagonal: Vector, *, space: Space | None = None) -> None:
        blocks = _blocks(diagonal)
        if space is None:
            space = _space_of(diagonal)
        flat, fmt = space.read(diagonal, blocks[0].dtype, blocks[0].device, "diagonal")
        if not fmt.is_vector:
            raise ShapeError(f"diagonal must be one vector, not {flat.shape[1]} columns.")
        self._set_entries(flat.squeeze(1).clone(), space)

    def _set_entries(self, entries: Tensor, space: Space) -> None:
        """Set up the operator from entries ``[P]``, or ``[1]`` for a multiple of the identity."""
        super().__init__(space, space, entries.dtype, entries.device)
        check_finite(entries, "diagonal")
        self._entries = entries
        self.POSITIVE_SEMIDEFINITE = bool((entries >= 0).all())

    @property
    def diagonal(self) -> Tensor:
        """The entries ``d`` as a flat tensor ``[P]``; not to be written to."""
        return self._entries.expand(self.in_space.dim)

    def _matmat(self, X: Tensor) -> Tensor:
        return self._entries.unsqueeze(1) * X

    def inverse(self) -> DiagonalLinearOperator:
        """Return ``diag(1 / d)``.

        Raises:
            InputError: If an entry is zero.
            NonFiniteError: If an entry is so small that its inverse overflows.
        """
        zeros = int((self.diagonal == 0).sum())
        if zeros:
            raise InputError(
                f"{zeros} of {self.in_space.dim} diagonal entries are zero: {self!r} has no "
                "inverse. Shift it first: op.shift(delta).inverse()."
            )
        return _derive(Tensor.reciprocal, self)

    def scaled(self, factor: float) -> DiagonalLinearOperator:
        """Return ``diag(factor d)``; the same as ``factor * op``."""
        return _derive(lambda d: d * factor, self, keeps_sign=factor >= 0.0)

    def plus(self, other: DiagonalLinearOperator) -> DiagonalLinearOperator:
        """Return ``diag(d + d')``; ``op + other`` without its checks."""
        return _derive(torch.add, self, other)

    def times(self, other: DiagonalLinearOperator) -> DiagonalLinearOperator:
        """Return ``diag(d d')``; ``op @ other`` without its checks."""
        return _derive(torch.mul, self, other)

    def relabelled(self, space: Space) -> DiagonalLinearOperator:
        """Return the same diagonal on another space of the same dimension."""
        return self if space == self.in_space else _derive(lambda d: d, self, space=space)


class _FollowingDiagonal(DiagonalLinearOperator):
    """A diagonal computed from others at every use, because theirs may change.

    The diagonal of a curvature follows the parameters of the model; so must its multiples.
    """

    def __init__(
        self,
        rule: Callable[..., Tensor],
        parents: tuple[DiagonalLinearOperator, ...],
        space: Space,
        positive: bool,
    ) -> None:
        LinearOperator.__init__(self, space, space, parents[0].dtype, parents[0].device)
        self._rule = rule
        self._parents = parents
        self.POSITIVE_SEMIDEFINITE = positive

    @property
    def _entries(self) -> Tensor:  # type: ignore[override]
        entries = self._rule(*(parent._entries for parent in self._parents))
        check_finite(entries, "diagonal")
        return entries


def _derive(
    rule: Callable[..., Tensor],
    *parents: DiagonalLinearOperator,
    space: Space | None = None,
    keeps_sign: bool = True,
) -> DiagonalLinearOperator:
    """Return the diagonal ``rule(d, ...)`` of the parents' entries, each ``[P]`` or ``[1]``.

    Args:
        rule: An elementwise function.
        parents: The diagonals it is applied to.
        space: The space of the result; by default that of the first parent.
        keeps_sign: Whether the rule maps nonnegative entries to nonnegative ones.
    """
    space = space or parents[0].in_space
    # A subclass whose entries change defines them as a property, not on the instance.
    if all("_entries" in vars(parent) for parent in parents):
        op = DiagonalLinearOperator.__new__(DiagonalLinearOperator)
        op._set_entries(rule(*(parent._entries for parent in parents)), space)
        return op
    positive = keeps_sign and all(parent.POSITIVE_SEMIDEFINITE for parent in parents)
    return _FollowingDiagonal(rule, parents, space, positive)


def _blocks(diagonal: object) -> list[Tensor]:
    """Return the tensors of ``diagonal``, of one dtype."""
    parts: list[object] = []
    if isinstance(diagonal, Tensor):
        parts = [diagonal]
    elif isinstance(diagonal, Mapping):
        parts = list(diagonal.values())
    elif isinstance(diagonal, Sequence):
        parts = list(diagonal)
    blocks = [part for part in parts if isinstance(part, Tensor)]
    if not blocks or len(blocks) < len(parts):
        raise InputError(
            "diagonal must be a tensor [P], a list of tensors or a dict of tensors by name "
            f"(at least one); got {type(diagonal).__name__}."
        )
    dtypes = list(dict.fromkeys(block.dtype for block in blocks))
    if len(dtypes) > 1:
        raise DTypeError(f"diagonal mixes the dtypes {dtypes}; convert it to one of them.")
    return blocks


def _space_of(diagonal: Vector) -> Space:
    if isinstance(diagonal, Tensor):
        if diagonal.ndim != 1:
            raise ShapeError(f"A flat diagonal has shape [P], not {list(diagonal.shape)}.")
        return Space.flat(diagonal.shape[0])
    if isinstance(diagonal, Mapping):
        return Space.of(diagonal)
    return Space(tuple(str(i) for i in range(len(diagonal))), tuple(d.shape for d in diagonal))
