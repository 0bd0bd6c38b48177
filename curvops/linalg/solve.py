r"""Linear systems with a symmetric positive definite matrix, known by its products."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.errors import ShapeError
from curvops.linalg.conjugate_gradients import ConjugateGradients
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.matrix import Matrix, Products
from curvops.tensors import Space, Vector


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class SolveResult:
    """The solution of a linear system, and how well each column solves it.

    Attributes:
        solution: ``X``, in the format of the right-hand sides and the dtype of the matrix.
        residual_norms: ``‖b - (A + shift I) x‖`` ``[K]``, of the solution as it is returned.
        relative_residuals: The same over ``‖b‖`` ``[K]``; 0 where both are.
        converged: Whether each residual is as small as asked ``[K]``.
        iterations: Steps of each column ``[K]``.
        num_matvecs: Products of the matrix with one vector.
        shift: What was added to its diagonal.
        seconds: How long it took.
    """

    solution: Any
    residual_norms: Tensor
    relative_residuals: Tensor
    converged: Tensor
    iterations: Tensor
    num_matvecs: int
    shift: float
    seconds: float

    @property
    def all_converged(self) -> bool:
        """Whether every column has converged."""
        return bool(self.converged.all())

    def __str__(self) -> str:
        """Return how many columns are solved, to which residual, at which cost."""
        count = len(self.converged)
        worst = float(self.relative_residuals.max()) if count else 0.0
        return (
            f"{int(self.converged.sum())} of {count} columns solved, relative residual at most "
            f"{worst:.2g} ({self.num_matvecs} matvecs)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return {
            "solution": _plain(self.solution),
            "residual_norms": self.residual_norms.tolist(),
            "relative_residuals": self.relative_residuals.tolist(),
            "converged": self.converged.tolist(),
            "iterations": self.iterations.tolist(),
            "num_matvecs": self.num_matvecs,
            "shift": self.shift,
            "seconds": self.seconds,
        }


def solve(
    A: Matrix,
    B: Vector,
    *,
    shift: float = 0.0,
    preconditioner: Matrix | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    max_iter: int | None = None,
    x0: Vector | None = None,
    progress: bool = False,
) -> SolveResult:
    r"""Solve ``(A + shift I) X = B`` by preconditioned conjugate gradients.

    .. math:: \|b - (A + \delta I) x\| \le \max(\text{rtol}\, \|b\|, \text{atol})

    for every column, checked on the true residual. Columns are multiplied together but have
    coefficients of their own (:mod:`~curvops.linalg.conjugate_gradients` says why); vectors and
    recurrences are float64. Equivalent to ``scipy.sparse.linalg.cg`` on each column.

    Args:
        A: A symmetric matrix ``[P, P]``, positive definite after the shift: an operator, or a
            dense tensor. One that does not say that it is symmetric is asked by two products.
        B: Right-hand sides ``[P]`` or ``[P, K]``; for our operators also a list or a dict.
        shift: δ, also called damping.
        preconditioner: A positive definite matrix ``[P, P]`` close to ``(A + shift I)⁻¹``.
        rtol: Relative tolerance; by default the root of the rounding of the products (1.5e-8 in
            float64, 3.5e-4 in float32).
        atol: Absolute tolerance.
        max_iter: Most steps of a column; by default 10 P, at most 1000.
        x0: Where to start, in the format of ``B``; zero by default.
        progress: Show a bar over the products.

    Returns:
        The solution, and for every column its true residual and whether it has converged.

    Raises:
        ShapeError: If ``A`` is not square, or ``B`` or ``x0`` do not fit it.
        DTypeError: If one of them is not real floating.
        NonFiniteError: If ``B``, ``x0`` or a product hold NaN or infinity.
        IndefiniteError: If a direction of negative curvature is met: it names the most negative
            Ritz value, and a shift that is enough.
        InputError: If ``A`` is not symmetric, or the preconditioner not positive definite.

    Warns:
        UnconvergedWarning: If a column has not converged, with the reason and the remedy.

    Source:
        Hestenes & Stiefel 1952, Methods of conjugate gradients for solving linear systems.

    Example:
        >>> import torch
        >>> A = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
        >>> result = solve(A, torch.tensor([1.0, 2.0], dtype=torch.float64))
        >>> result.solution * 11
        tensor([1., 7.], dtype=torch.float64)
        >>> print(result)
        1 of 1 columns solved, relative residual at most ... (5 matvecs)
    """
    start = time.perf_counter()
    cg = ConjugateGradients(shift, rtol, atol, max_iter, preconditioner)
    products = Products(A)
    space: Space = getattr(A, "in_space", Space.flat(products.dim))
    columns, fmt = space.read(B, torch.float64, products.device, "B")
    guess = None
    if x0 is not None:
        guess, _ = space.read(x0, torch.float64, products.device, "x0")
        if guess.shape != columns.shape:
            raise ShapeError(
                f"x0 has shape {list(guess.shape)} as columns, B {list(columns.shape)}."
            )
    with products.progress(progress, "solve"):
        cg.check(products)
        answer = cg(products, columns, guess)
    complaint = answer.complaint(products.dtype)
    if complaint:
        warnings.warn(f"solve: {complaint}", UnconvergedWarning, stacklevel=2)
    relative = answer.residuals / answer.sizes
    return SolveResult(
        solution=space.write(answer.x.to(products.dtype), fmt),
        residual_norms=answer.residuals,
        relative_residuals=torch.where(answer.residuals == 0, answer.residuals, relative),
        converged=answer.converged,
        iterations=answer.iterations,
        num_matvecs=products.num_matvecs,
        shift=float(shift),
        seconds=time.perf_counter() - start,
    )


def _plain(x: Any) -> Any:
    """Return tensors in any nesting as lists."""
    if isinstance(x, Tensor):
        return x.tolist()
    if isinstance(x, Mapping):
        return {name: _plain(block) for name, block in x.items()}
    return [_plain(block) for block in x]
