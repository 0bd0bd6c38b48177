"""A point in parameter space: tensor lists, flat vectors, matrices of columns.

A :class:`Space` is an ordered list of named shapes. Its elements come in three formats,
each with an optional trailing axis of ``K`` columns:

* *flat*: one tensor ``[P]`` or ``[P, K]``;
* *list*: tensors ``[*shape]`` or ``[*shape, K]`` in the order of the space;
* *dict*: the same by name.

Inside the library everything is a flat matrix ``[P, K]``; :meth:`Space.read` converts at the
door and returns the :class:`Format` that converts the answer back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from curvops.errors import DeviceError, DTypeError, InputError, NonFiniteError, ShapeError

Vector = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""A vector or a matrix of columns, in any of the three formats."""


@dataclass(frozen=True)
class Format:
    """How the caller wrote a vector: its layout and whether it had a column axis."""

    layout: str
    is_vector: bool


@dataclass(frozen=True)
class Space:
    """An ordered product of named tensor spaces.

    Args:
        names: One name per block, unique.
        shapes: One shape per block.

    Example:
        >>> import torch
        >>> space = Space(("weight", "bias"), (torch.Size([2, 3]), torch.Size([2])))
        >>> space.dim
        8
        >>> [tuple(block.shape) for block in space.unflatten(torch.zeros(8))]
        [(2, 3), (2,)]
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def flat(cls, dim: int, name: str = "0") -> Space:
        """Return the space ``R^dim`` as one block."""
        return cls((name,), (torch.Size([dim]),))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Space:
        """Return the space that named tensors live in."""
        return cls(tuple(tensors), tuple(t.shape for t in tensors.values()))

    @cached_property
    def numels(self) -> tuple[int, ...]:
        """Number of elements of each block."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def dim(self) -> int:
        """Total number of elements ``P``."""
        return sum(self.numels)

    def slices(self) -> Iterator[tuple[str, slice]]:
        """Yield each block's name and its range within the flat vector."""
        start = 0
        for name, numel in zip(self.names, self.numels, strict=True):
            yield name, slice(start, start + numel)
            start += numel

    def flatten(self, blocks: Sequence[Tensor]) -> Tensor:
        """Concatenate blocks ``[*shape]`` (or ``[*shape, K]``) into ``[P]`` (or ``[P, K]``)."""
        columns = blocks[0].shape[len(self.shapes[0]) :]
        return torch.cat([b.reshape(n, *columns) for b, n in zip(blocks, self.numels, strict=True)])

    def unflatten(self, flat: Tensor) -> list[Tensor]:
        """Split ``[P]`` (or ``[P, K]``) into views ``[*shape]`` (or ``[*shape, K]``)."""
        columns = flat.shape[1:]
        return [
            block.reshape([*shape, *columns])
            for block, shape in zip(flat.split(self.numels), self.shapes, strict=True)
        ]

    def views_of(self, rows: Tensor) -> list[Tensor]:
        """Split ``[P]`` into views ``[*shape]``, or rows ``[c, P]`` into ``[c, *shape]``."""
        leading = rows.shape[:-1]
        parts = rows.split(self.numels, dim=-1)
        return [part.view([*leading, *s]) for part, s in zip(parts, self.shapes, strict=True)]

    def read(
        self, x: Vector, dtype: torch.dtype, device: torch.device, what: str = "vector"
    ) -> tuple[Tensor, Format]:
        """Validate ``x`` and convert it to a flat matrix of columns.

        Args:
            x: A vector or matrix in flat, list or dict format.
            dtype: The real floating dtype to cast to.
            device: The device ``x`` must live on.
            what: How error messages call ``x``.

        Returns:
            The matrix ``[P, K]`` (``K = 1`` for a vector) and the format to
            :meth:`write` answers in.

        Raises:
            ShapeError: If a shape does not fit the space.
            DTypeError: If ``x`` is integer, boolean or complex.
            DeviceError: If ``x`` lives on another device.
            NonFiniteError: If ``x`` holds NaN or infinity.
            InputError: If ``x`` is none of the three formats, or names are wrong.
        """
        if isinstance(x, Tensor):
            self._check_flat(x, what)
            _check_placed(x, device, what)
            flat, layout, is_vector = x, "flat", x.ndim == 1
        else:
            blocks, layout = self._as_blocks(x, what)
            is_vector = self._check_blocks(blocks, what)
            for name, block in zip(self.names, blocks, strict=True):
                check_real(block, f"{what} block {name!r}")
                _check_placed(block, device, f"{what} block {name!r}")
            flat = self.flatten(blocks)
        check_real(flat, what)
        # autograd cannot save tensors that were made in inference mode
        flat = (flat.clone() if flat.is_inference() else flat.detach()).to(dtype)
        check_finite(flat, what)
        return (flat.unsqueeze(1) if is_vector else flat), Format(layout, is_vector)

    def write(self, flat: Tensor, fmt: Format) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """Convert a matrix ``[P, K]`` to the caller's format."""
        if fmt.is_vector:
            flat = flat.squeeze(1)
        if fmt.layout == "flat":
            return flat
        blocks = self.unflatten(flat)
        return blocks if fmt.layout == "list" else dict(zip(self.names, blocks, strict=True))

    def _check_flat(self, x: Tensor, what: str) -> None:
        if x.ndim not in (1, 2) or x.shape[0] != self.dim:
            raise ShapeError(
                f"{what} has shape {list(x.shape)}; expected [{self.dim}] or [{self.dim}, K]."
            )

    def _as_blocks(self, x: object, what: str) -> tuple[list[Tensor], str]:
        if isinstance(x, Mapping):
            missing = [n for n in self.names if n not in x]
            extra = [n for n in x if n not in self.names]
            if missing or extra:
                raise InputError(
                    f"{what} has the wrong names: missing {missing}, unexpected {extra}."
                )
            blocks, layout = [x[n] for n in self.names], "dict"
        elif isinstance(x, Sequence) and not isinstance(x, str):
            blocks, layout = list(x), "list"
        else:
            raise InputError(
                f"{what} must be a tensor, a list of tensors or a dict of tensors by name; "
                f"got {type(x).__name__}."
            )
        for i, block in enumerate(blocks):
            if not isinstance(block, Tensor):
                raise InputError(f"{what} entry {i} is {type(block).__name__}, not a torch.Tensor.")
        if len(blocks) != len(self.shapes):
            raise ShapeError(
                f"{what} has {len(blocks)} tensors; expected {len(self.shapes)} "
                f"with shapes {[list(s) for s in self.shapes]}."
            )
        return blocks, layout

    def _check_blocks(self, blocks: list[Tensor], what: str) -> bool:
        """Check the shapes of blocks and tell whether they form a vector."""
        if all(b.shape == s for b, s in zip(blocks, self.shapes, strict=True)):
            return True
        columns = {b.shape[-1] for b in blocks if b.ndim}
        for name, block, shape in zip(self.names, blocks, self.shapes, strict=True):
            if block.ndim != len(shape) + 1 or block.shape[:-1] != shape or len(columns) != 1:
                raise ShapeError(
                    f"{what} block {name!r} has shape {list(block.shape)}; expected "
                    f"{list(shape)} for a vector or {[*shape, 'K']} for K columns "
                    "(the same K in every block)."
                )
        return False


def check_real(x: Tensor, what: str) -> None:
    """Raise :class:`DTypeError` unless ``x`` has a real floating dtype."""
    if not x.dtype.is_floating_point:
        raise DTypeError(
            f"{what} has dtype {x.dtype}; curvature products need a real floating dtype. "
            "Convert it explicitly, for example with .float()."
        )


def check_finite(x: Tensor, what: str) -> None:
    """Raise :class:`NonFiniteError` if ``x`` holds NaN or infinity."""
    # A finite sum of finite numbers may overflow, so only a non-finite one is looked into.
    if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        bad = x.numel() - int(torch.isfinite(x).sum())
        raise NonFiniteError(f"{what} holds {bad} non-finite values (NaN or infinity).")


def _check_placed(x: Tensor, device: torch.device, what: str) -> None:
    if x.layout is not torch.strided:
        raise InputError(f"{what} is sparse ({x.layout}). Convert it with .to_dense().")
    if x.device != device:
        raise DeviceError(
            f"{what} lives on {x.device}, the operator on {device}. "
            f"Move it with .to({str(device)!r})."
        )


class CompensatedSum:
    """A running sum of tensors whose rounding error does not grow with the number of terms.

    Kahan's summation, elementwise: the error of the sum stays below two units in the last
    place of the sum of magnitudes. Half precision is summed in float32.

    Example:
        >>> import torch
        >>> total = CompensatedSum(torch.zeros(()))
        >>> for _ in range(10000):
        ...     total.add(torch.tensor(0.1))
        >>> round(total.value.item(), 3)
        1000.0
    """

    def __init__(self, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._dtype = like.dtype
        self._sum = torch.zeros_like(like, dtype=dtype, requires_grad=False)
        self._error: Tensor | None = None
        self._empty = True

    def add(self, term: Tensor) -> None:
        """Add one term of the sum's shape."""
        if self._empty:
            self._sum.copy_(term)
            self._empty = False
            return
        if self._error is None:
            self._error = torch.zeros_like(self._sum)
        corrected = term - self._error
        total = self._sum + corrected
        torch.sub(total, self._sum, out=self._error)
        self._error -= corrected
        self._sum = total

    @property
    def value(self) -> Tensor:
        """The sum so far, in the dtype of the terms."""
        return self._sum.to(self._dtype)


class StackedSum:
    """A :class:`CompensatedSum` of many numbers each of which may be infinite or NaN.

    Compensation would turn a sum that is infinite into NaN; here each number is what adding its
    terms one by one gives.
    """

    def __init__(self, like: Tensor) -> None:
        self._sum = CompensatedSum(like)
        self._plain = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))

    def add(self, terms: Tensor) -> None:
        """Add one term of the sum's shape."""
        self._sum.add(terms)
        self._plain += terms

    @property
    def value(self) -> Tensor:
        """The sums so far, in the dtype of the terms."""
        total = self._sum.value
        return torch.where(self._plain.isfinite(), total, self._plain.to(total.dtype))


class BlockSum:
    """A compensated sum of columns that arrive as one tensor per block, without copies.

    Terms are added in place to a buffer; every few terms the buffer goes into a
    :class:`CompensatedSum`, so the error does not grow with the number of terms.

    Args:
        space: The space that the columns live in.
        like: Columns ``[K, P]``, for shape, dtype and device.
    """

    _GROUP = 8

    def __init__(self, space: Space, like: Tensor) -> None:
        self._space = space
        self._dtype = like.dtype
        self._total: CompensatedSum | None = None
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._buffer = torch.empty_like(like, dtype=dtype)
        self._views: dict[tuple[int, int], list[Tensor]] = {}
        self._terms = 0

    def add(self, first: int, count: int, blocks: Sequence[Tensor]) -> None:
        """Add a term to columns ``first`` to ``first + count``; each term starts at column 0.

        Args:
            first: The first column.
            count: Number of columns.
            blocks: Tensors ``[*shape]`` for one column, ``[count, *shape]`` for several.
        """
        if first == 0:
            if self._terms == self._GROUP:
                self._flush()
            self._terms += 1
        if (first, count) not in self._views:
            part = self._buffer[first] if count == 1 else self._buffer[first : first + count]
            self._views[first, count] = self._space.views_of(part)
        if self._terms == 1:
            torch._foreach_copy_(self._views[first, count], list(blocks))
        else:
            torch._foreach_add_(self._views[first, count], list(blocks))

    @property
    def value(self) -> Tensor:
        """The sums so far, ``[K, P]``; nothing can be added afterwards."""
        if self._total is None:
            return (self._buffer if self._terms else self._buffer.zero_()).to(self._dtype)
        self._flush()
        return self._total.value.to(self._dtype)

    def _flush(self) -> None:
        if self._total is None:
            self._total = CompensatedSum(self._buffer)
        if self._terms:
            self._total.add(self._buffer)
            self._terms = 0
