"""Sums, multiples, products and transposes of operators.

:func:`add`, :func:`scale`, :func:`compose` and :func:`shift` stand behind the arithmetic of
:class:`~curvops.operators.linear.LinearOperator`. They check that the operands fit, simplify
what stays a diagonal or an identity, flatten nested sums and products, and carry the tags:

=====================  ============================  =====================================
result                 ``SELF_ADJOINT`` if           ``POSITIVE_SEMIDEFINITE`` if
=====================  ============================  =====================================
``A + B``              both are                      both are
``c A``                ``A`` is                      ``A`` is and ``c >= 0``
``A @ B``              never (not known)             never (not known)
``A.T``                ``A`` is                      ``A`` is
=====================  ============================  =====================================
"""

from __future__ import annotations

from math import isfinite
from numbers import Complex, Real

import numpy as np
import torch
from torch import Tensor

from curvops.errors import DeviceError, DTypeError, NonFiniteError, ShapeError
from curvops.operators.diagonal import DiagonalLinearOperator
from curvops.operators.identity import IdentityLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.tensors import Space


class SumLinearOperator(LinearOperator):
    """The sum ``A_1 + ... + A_n``; build it with ``+``."""

    def __init__(
        self, terms: tuple[LinearOperator, ...], in_space: Space, out_space: Space
    ) -> None:
        super().__init__(in_space, out_space, terms[0].dtype, terms[0].device)
        self.terms = terms
        self.SELF_ADJOINT = in_space == out_space and all(t.SELF_ADJOINT for t in terms)
        self.POSITIVE_SEMIDEFINITE = all(t.POSITIVE_SEMIDEFINITE for t in terms)

    def _matmat(self, X: Tensor) -> Tensor:
        total = self.terms[0]._matmat(X)
        for term in self.terms[1:]:
            total += term._matmat(X)
        return total

    def _adjoint(self) -> LinearOperator:
        return SumLinearOperator(
            tuple(term.adjoint() for term in self.terms), self.out_space, self.in_space
        )


class ScaledLinearOperator(LinearOperator):
    """The multiple ``c A``; build it with ``*``."""

    def __init__(self, factor: float, op: LinearOperator) -> None:
        super().__init__(op.in_space, op.out_space, op.dtype, op.device)
        self.factor = factor
        self.op = op
        self.SELF_ADJOINT = op.SELF_ADJOINT
        self.POSITIVE_SEMIDEFINITE = op.POSITIVE_SEMIDEFINITE and factor >= 0.0

    def _matmat(self, X: Tensor) -> Tensor:
        return self.op._matmat(X).mul_(self.factor)

    def _adjoint(self) -> LinearOperator:
        return ScaledLinearOperator(self.factor, self.op.adjoint())


class ProductLinearOperator(LinearOperator):
    """The composition ``A_1 A_2 ... A_n``, rightmost first; build it with ``@``.

    It claims neither symmetry nor definiteness, since ``A B`` has neither in general.
    """

    def __init__(self, factors: tuple[LinearOperator, ...]) -> None:
        first, last = factors[0], factors[-1]
        super().__init__(last.in_space, first.out_space, first.dtype, first.device)
        self.factors = factors

    def _matmat(self, X: Tensor) -> Tensor:
        for factor in reversed(self.factors):
            X = factor._matmat(X)
        return X

    def _adjoint(self) -> LinearOperator:
        return ProductLinearOperator(tuple(f.adjoint() for f in reversed(self.factors)))


class AdjointLinearOperator(LinearOperator):
    """The transpose of an operator that implements ``_rmatmat``; build it with ``.T``."""

    def __init__(self, op: LinearOperator) -> None:
        super().__init__(op.out_space, op.in_space, op.dtype, op.device)
        self.op = op
        self.SELF_ADJOINT = op.SELF_ADJOINT
        self.POSITIVE_SEMIDEFINITE = op.POSITIVE_SEMIDEFINITE

    def _matmat(self, X: Tensor) -> Tensor:
        return self.op._rmatmat(X)

    def _rmatmat(self, X: Tensor) -> Tensor:
        return self.op._matmat(X)

    def _adjoint(self) -> LinearOperator:
        return self.op


def add(a: LinearOperator, b: LinearOperator) -> LinearOperator:
    """Return ``a + b``.

    Raises:
        ShapeError: If the spaces differ.
        DTypeError: If the dtypes differ.
        DeviceError: If the devices differ.

    Example:
        >>> import torch
        >>> from curvops.operators import DiagonalLinearOperator
        >>> add(DiagonalLinearOperator(torch.ones(2)), DiagonalLinearOperator(torch.ones(2)))
        <2x2 DiagonalLinearOperator: torch.float32 on cpu, self-adjoint, positive semidefinite>
    """
    _check_numbers(a, b, "+")
    in_space = _common_space(a.in_space, b.in_space)
    out_space = _common_space(a.out_space, b.out_space)
    if in_space is None or out_space is None:
        raise ShapeError(f"Cannot add operators on different spaces: {_both(a, b)}.")
    others: list[LinearOperator] = []
    diagonal: DiagonalLinearOperator | None = None
    for term in (*_terms(a), *_terms(b)):
        if not isinstance(term, DiagonalLinearOperator):
            others.append(term)
        else:
            diagonal = term if diagonal is None else diagonal.plus(term)
    if diagonal is None:
        return SumLinearOperator(tuple(others), in_space, out_space)
    if others:
        return SumLinearOperator((*others, diagonal), in_space, out_space)
    return diagonal.relabelled(in_space)


def scale(factor: float, a: LinearOperator) -> LinearOperator:
    """Return ``factor * a`` for a number that :func:`as_scalar` has checked.

    Example:
        >>> from curvops.operators import IdentityLinearOperator
        >>> scale(3.0, IdentityLinearOperator(2)).diagonal
        tensor([3., 3.])
    """
    if factor == 1.0:
        return a
    if isinstance(a, DiagonalLinearOperator):
        return a.scaled(factor)
    if isinstance(a, ScaledLinearOperator):
        merged = factor * a.factor
        # Two factors whose product over- or underflows in the operator's dtype must stay apart.
        limits = torch.finfo(a.dtype)
        if 0.0 in (factor, a.factor) or limits.tiny <= abs(merged) <= limits.max:
            return scale(merged, a.op)
    return ScaledLinearOperator(factor, a)


def compose(a: LinearOperator, b: LinearOperator) -> LinearOperator:
    """Return ``a @ b``.

    Raises:
        ShapeError: If ``a`` does not act on the space that ``b`` maps to.
        DTypeError: If the dtypes differ.
        DeviceError: If the devices differ.

    Example:
        >>> import torch
        >>> from curvops.operators import DiagonalLinearOperator
        >>> D = DiagonalLinearOperator(torch.tensor([2.0, 3.0]))
        >>> compose(D, D.inverse()).diagonal
        tensor([1., 1.])
    """
    _check_numbers(a, b, "@")
    between = _common_space(a.in_space, b.out_space)
    if between is None:
        raise ShapeError(
            f"Cannot compose: {a!r} acts on {_describe(a.in_space)}, "
            f"but {b!r} maps to {_describe(b.out_space)}."
        )
    if isinstance(a, DiagonalLinearOperator):
        a = a.relabelled(between)
    if isinstance(b, DiagonalLinearOperator):
        b = b.relabelled(between)
    if isinstance(a, DiagonalLinearOperator) and isinstance(b, DiagonalLinearOperator):
        return a.times(b)
    if isinstance(a, IdentityLinearOperator) and a.out_space == b.out_space:
        return b
    if isinstance(b, IdentityLinearOperator) and a.in_space == b.in_space:
        return a
    return ProductLinearOperator((*_factors(a), *_factors(b)))


def shift(a: LinearOperator, delta: object) -> LinearOperator:
    """Return ``a + delta I``.

    Raises:
        ShapeError: If ``a`` does not map a space to itself.

    Example:
        >>> from curvops.operators import IdentityLinearOperator
        >>> shift(IdentityLinearOperator(2), -1.0).diagonal
        tensor([0., 0.])
    """
    number = as_scalar(delta, a)
    if a.in_space != a.out_space:
        raise ShapeError(
            f"Only an operator that maps a space to itself can be shifted; {a!r} maps "
            f"{_describe(a.in_space)} to {_describe(a.out_space)}."
        )
    if number == 0.0:
        return a
    return add(a, scale(number, IdentityLinearOperator(a.in_space, a.dtype, a.device)))


def as_scalar(value: object, op: LinearOperator) -> float:
    """Return a Python, NumPy or 0-dimensional torch number as a float.

    Args:
        value: The number.
        op: The operator it is meant for; the number must be finite in its dtype.

    Raises:
        TypeError: If ``value`` is not a number.
        DTypeError: If it is complex.
        NonFiniteError: If it is NaN, infinite or beyond the range of the operator's dtype.

    Example:
        >>> import torch
        >>> from curvops.operators import IdentityLinearOperator
        >>> as_scalar(torch.tensor(2), IdentityLinearOperator(3))
        2.0
    """
    number = value
    if isinstance(number, Tensor | np.ndarray) and number.ndim == 0:
        number = number.item()
    if isinstance(number, Complex) and not isinstance(number, Real):
        raise DTypeError(f"Operators are real; cannot combine {op!r} with the complex {value!r}.")
    if not isinstance(number, Real):
        what = type(value).__name__
        if isinstance(value, Tensor | np.ndarray):
            what += f" of shape {list(value.shape)}"
        raise TypeError(
            f"Expected a real number next to {op!r}, got {what}. "
            "To multiply vectors, columns or operators, use @."
        )
    try:
        result = float(number)
    except OverflowError:
        result = float("inf")
    if not isfinite(result) or abs(result) > torch.finfo(op.dtype).max:
        raise NonFiniteError(f"The number {value!r} is not finite in {op.dtype}, next to {op!r}.")
    return result


def _terms(op: LinearOperator) -> tuple[LinearOperator, ...]:
    return op.terms if isinstance(op, SumLinearOperator) else (op,)


def _factors(op: LinearOperator) -> tuple[LinearOperator, ...]:
    return op.factors if isinstance(op, ProductLinearOperator) else (op,)


def _check_numbers(a: LinearOperator, b: LinearOperator, sign: str) -> None:
    """Refuse to mix dtypes or devices: a silent cast would hide which precision is computed in."""
    if a.dtype != b.dtype:
        raise DTypeError(
            f"Operands of {sign} must share one dtype: {a!r} {sign} {b!r}. "
            "Build both from parameters of the same dtype."
        )
    if a.device != b.device:
        raise DeviceError(f"Operands of {sign} must share one device: {a!r} {sign} {b!r}.")


def _common_space(a: Space, b: Space) -> Space | None:
    """Return the space that both stand for, or None.

    A space without real names fits a named one: flat ``R^P`` fits any space of that dimension,
    and blocks that are only numbered fit blocks of the same shapes. This mirrors the flat and
    the list format of vectors.
    """
    if a == b:
        return a
    for unnamed, other in ((a, b), (b, a)):
        if unnamed == Space.flat(other.dim):
            return other
        numbered = tuple(str(i) for i in range(len(unnamed.names)))
        if unnamed.names == numbered and unnamed.shapes == other.shapes:
            return other
    return None


def _describe(space: Space) -> str:
    """Return a short account of a space for error messages."""
    blocks = [f"{n}{list(s)}" for n, s in zip(space.names, space.shapes, strict=True)]
    shown = ", ".join(blocks[:4]) + (f", ... ({len(blocks)} blocks)" if len(blocks) > 4 else "")
    return f"R^{space.dim} ({shown})"


def _both(a: LinearOperator, b: LinearOperator) -> str:
    return " and ".join(
        f"{op!r} maps {_describe(op.in_space)} to {_describe(op.out_space)}" for op in (a, b)
    )
