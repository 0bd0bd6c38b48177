r"""The log-determinant of a matrix of low rank plus a multiple of the identity, exactly.

.. math:: \log\det(VV^T + \delta I_P) = (P - r)\log\delta + \log\det(V^T V + \delta I_r)

for ``V`` of shape ``[P, r]``. Whichever of the two Gram matrices is smaller is formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.linalg.logdet_dense import Spectrum
from curvops.linalg.matrix import Matrix, Products

MEMORY = 1 << 30
"""Bytes of columns of V that are alive at a time."""

_CHECKED = 1e-3
"""Largest disagreement of V's columns with its products: far above any rounding."""


def gram_spectrum(V: Matrix, constant: float, dim: int, memory: int = MEMORY) -> Spectrum:
    """Return the spectrum of ``V Vᵀ + constant I``.

    Args:
        V: The factor ``[P, r]``: a dense tensor, or anything with ``@`` and ``T``. One that has
            ``column_blocks()``, an iterator over its columns ``[P, c]``, is read once if it fits
            into memory, and otherwise as often as it takes.
        constant: What is added to every eigenvalue.
        dim: P, which the factor must have.
        memory: Bytes of columns that are alive at a time.

    Raises:
        ShapeError: If the factor does not fit.
        InputError: If its columns are not what it multiplies with.
        NonFiniteError: If it holds NaN or infinity.
    """
    rows, rank = (int(n) for n in V.shape)
    if rows != dim:
        raise ShapeError(f"factor has shape {[rows, rank]}; expected [{dim}, r], as A is P x P.")
    if rank <= dim:
        gram = _inner(V, rank, memory)
    else:
        gram = _outer(V, dim)
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteError("the factor of A holds NaN or infinity, or overflows.")
    if hasattr(V, "column_blocks"):
        _verify(V, gram, inner=rank <= dim)
    values = torch.linalg.eigvalsh(0.5 * (gram + gram.T)) if len(gram) else gram.new_zeros(0)
    values = values.clamp(min=0.0)
    largest = float(values.max()) if len(values) else 0.0
    # V is rounded to its dtype, which moves its singular values by so much of the largest.
    each = torch.finfo(V.dtype).eps * (values * largest).sqrt()
    noise = 2.0 * (each + len(values) ** 0.5 * torch.finfo(torch.float64).eps * largest)
    return Spectrum(values + constant, noise, max(dim - rank, 0), constant)


def check_factor(products: Products, V: Any, constant: float) -> None:
    """Compare a factor that a caller supplied with one product of the matrix.

    Raises:
        InputError: If ``A`` is not ``V Vᵀ + constant I``, or the factor is no matrix.
        ShapeError: If the factor does not fit.
    """
    if not hasattr(V, "shape") or not hasattr(V, "T") or not hasattr(V, "__matmul__"):
        raise InputError(
            f"factor is {type(V).__name__}; it needs shape, dtype, device, @ and T: a tensor "
            "[P, r] or an operator, or a pair of one and a number."
        )
    if len(V.shape) != 2 or int(V.shape[0]) != products.dim:
        raise ShapeError(
            f"factor has shape {list(V.shape)}; expected [{products.dim}, r], as A is P x P."
        )
    x = _test_vector(products.dim)
    narrow = x.to(V.device, V.dtype)
    expected = (V @ (V.T @ narrow)).double().cpu() + constant * x
    error = float((products(x) - expected).norm())
    if error > _CHECKED * float(expected.norm()) + 1e-30:
        raise InputError(
            f"factor is no factor of A: A x and V Vᵀ x + c x differ by {error:.3g} for a vector "
            f"whose product has norm {float(expected.norm()):.3g}. Is A scaled, or damped?"
        )


def _test_vector(dim: int) -> Tensor:
    return torch.linspace(-1.0, 1.0, dim, dtype=torch.float64) + 0.1


def _blocks(V: Any, width: int) -> Iterator[Tensor]:
    """Yield the columns of V in order."""
    if isinstance(V, Tensor):
        yield from V.split(width, dim=1)
    elif hasattr(V, "column_blocks"):
        yield from V.column_blocks()
    else:
        rank = int(V.shape[1])
        for start in range(0, rank, width):
            yield V @ _units(rank, start, min(width, rank - start), V)


def _units(dim: int, start: int, count: int, like: Any) -> Tensor:
    units = torch.zeros(dim, count, dtype=like.dtype, device=like.device)
    units[start : start + count].fill_diagonal_(1.0)
    return units


def _inner(V: Any, rank: int, memory: int) -> Tensor:
    """Return VᵀV ``[r, r]``: panels of columns that fit into memory, against all that follow."""
    gram = torch.zeros(rank, rank, dtype=torch.float64)
    width = max(1, min(rank, memory // max(8 * int(V.shape[0]), 1)))
    start = 0
    for panel in _panels(V, width):
        stop = start + panel.shape[1]
        gram[start:stop, start:stop] = (panel.T @ panel).cpu()
        first = 0
        for block in _blocks(V, width) if stop < rank else ():
            last = first + block.shape[1]
            if last > stop:
                new = block[:, max(stop - first, 0) :].double()
                gram[start:stop, last - new.shape[1] : last] = (panel.T @ new).cpu()
            first = last
        start = stop
    return gram.triu() + gram.triu(1).T


def _panels(V: Any, width: int) -> Iterator[Tensor]:
    """Yield the columns of V in order, in float64, about ``width`` at a time."""
    waiting: list[Tensor] = []
    for block in _blocks(V, width):
        if waiting and sum(b.shape[1] for b in waiting) + block.shape[1] > width:
            yield torch.cat(waiting, 1)
            waiting = []
        waiting.append(block.double())
    if waiting:
        yield torch.cat(waiting, 1)


def _outer(V: Any, dim: int) -> Tensor:
    """Return VVᵀ ``[P, P]``: a sum over the columns."""
    gram = torch.zeros(dim, dim, dtype=torch.float64, device=V.device)
    for block in _blocks(V, 256):
        wide = block.double()
        gram += wide @ wide.T
    return gram.cpu()


def _verify(V: Any, gram: Tensor, inner: bool) -> None:
    """Compare the Gram matrix with one product, which is made in another way."""
    x = _test_vector(len(gram))
    vector = x.to(V.device, V.dtype)
    product = V.T @ (V @ vector) if inner else V @ (V.T @ vector)
    expected = gram @ x
    error = float((product.double().cpu() - expected).norm())
    if error > _CHECKED * float(expected.norm()):
        raise InputError(
            "the individual gradients do not add up to the operator's product: the model mixes "
            'data of a batch (batch normalisation in training mode?). Use method="krylov".'
        )
