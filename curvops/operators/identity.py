"""The identity operator."""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.tensors import Space


class IdentityLinearOperator(DiagonalLinearOperator):
    """The identity ``I`` on a space.

    Multiples and sums of identities are diagonals that hold a single number, whatever ``P``.

    Args:
        space: The space to act on, or its dimension ``P``.
        dtype: The real floating dtype; by default torch's default dtype.
        device: The device.

    Raises:
        InputError: If ``space`` is neither a space nor a non-negative integer.
        DTypeError: If ``dtype`` is not real floating.

    Example:
        >>> import torch
        >>> I = IdentityLinearOperator(3)
        >>> I @ torch.arange(3.0)
        tensor([0., 1., 2.])
        >>> (I + 2 * I).diagonal
        tensor([3., 3., 3.])
    """

    def __init__(
        self,
        space: Space | int,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(space, int) and not isinstance(space, bool) and space >= 0:
            space = Space.flat(space)
        if not isinstance(space, Space):
            raise InputError(f"space must be a Space or its dimension, not {space!r}.")
        self._set_entries(torch.ones(1, dtype=dtype, device=device), space)

    def _matmat(self, X: Tensor) -> Tensor:
        return X.clone()

    def inverse(self) -> IdentityLinearOperator:
        """Return the identity itself."""
        return self

    def relabelled(self, space: Space) -> IdentityLinearOperator:
        """Return the identity on another space of the same dimension."""
        return IdentityLinearOperator(space, self.dtype, self.device)

    def times(self, other: DiagonalLinearOperator) -> DiagonalLinearOperator:
        """Return ``other``."""
        return other
