r"""Conjugate gradients on many right-hand sides, until the *true* residual is small.

Every column has coefficients of its own; columns share the products, and leave when they are
done. True block CG shares the Krylov spaces too and needs fewer steps where columns are many and
the spectrum has outliers, but breaks down when columns become dependent, which those of a
curvature matrix soon do, and makes the answer for one column depend on the others.

The residual of the recurrence goes on falling after the true one has met the rounding of the
products. So when it says that a column is done, the true residual is computed, and where it
disagrees the iteration starts afresh from there, as long as that helps.

Source: Hestenes & Stiefel 1952; Greenbaum 1997, Iterative Methods for Solving Linear Systems,
section 7.3, on the attainable residual.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.indefinite import indefinite
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.probes import Probes
from curvops.linalg.sampling import check_count, check_tolerance

MAX_ITER = 1000
"""Steps, by default at most."""

NEGATIVE = 8.0
"""A curvature is negative if it is so by more than this many roundings of ``‖A‖ ‖d‖²``."""

NOTHING = 1.0
"""And none if it is positive by less than this many: the column goes no further."""

PROGRESS = 0.5
"""A fresh start must shrink the true residual to this, or the products' rounding is met."""


@dataclass
class Answer:
    """What conjugate gradients found, per column.

    Attributes:
        x: Solutions ``[P, K]`` in float64.
        residuals: Norms of the true residuals ``[K]``.
        sizes: Norms of the right-hand sides ``[K]``.
        converged: Whether each residual is as small as asked ``[K]``.
        stagnated: Whether rounding ended each ``[K]``.
        iterations: Steps of each ``[K]``.
    """

    x: Tensor
    residuals: Tensor
    sizes: Tensor
    converged: Tensor
    stagnated: Tensor
    iterations: Tensor

    def complaint(self, dtype: torch.dtype) -> str | None:
        """Return what is wrong with the columns that have not converged, and the remedy."""
        bad = ~self.converged
        if not bool(bad.any()):
            return None
        worst = float((self.residuals / self.sizes.clamp(min=1e-300))[bad].max())
        text = (
            f"{int(bad.sum())} of {len(bad)} columns have not converged: relative residual "
            f"{worst:.2g} after {int(self.iterations[bad].max())} steps. "
        )
        if bool((bad & self.stagnated).any()):
            return text + (
                f"Rounding of the products in {dtype} bounds it: raise shift or rtol, or compute "
                "in float64."
            )
        return text + "Raise max_iter or the shift, or pass a preconditioner."


@dataclass(frozen=True)
class ConjugateGradients:
    """The solver of ``(A + shift I) X = B``, with its options checked.

    Args:
        shift: Added to the diagonal of ``A``.
        rtol: Residual to reach, relative to ``‖b‖``; ``None`` for the root of the rounding of
            the products.
        atol: Or absolute; the larger counts.
        max_iter: Most steps a column; ``None`` for 10 P, at most 1000.
        preconditioner: A matrix close to the inverse, positive definite; or ``None``.

    Raises:
        InputError: If an argument is impossible.
    """

    shift: float = 0.0
    rtol: float | None = None
    atol: float = 0.0
    max_iter: int | None = None
    preconditioner: Matrix | None = None
    _M: Products | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Check the options."""
        shift = self.shift
        number = isinstance(shift, (int, float)) and not isinstance(shift, bool)
        if not number or not abs(shift) < float("inf"):
            raise InputError(f"shift must be a finite number, got {shift!r}.")
        check_tolerance("rtol", self.rtol)
        check_tolerance("atol", self.atol)
        if self.max_iter is not None:
            check_count("max_iter", self.max_iter)
        if self.preconditioner is not None:
            object.__setattr__(self, "_M", Products(self.preconditioner, "preconditioner"))

    def check(self, products: Products) -> None:
        """Refuse a matrix that is not symmetric, or a preconditioner of another size."""
        if self._M is not None and self._M.dim != products.dim:
            raise InputError(
                f"preconditioner has shape [{self._M.dim}, {self._M.dim}], "
                f"A [{products.dim}, {products.dim}]."
            )
        require_symmetric(products, "conjugate gradients need")

    def __call__(self, products: Products, B: Tensor, X: Tensor | None = None) -> Answer:
        """Solve for right-hand sides ``[P, K]``, from a start ``X`` ``[P, K]`` or zero.

        Raises:
            IndefiniteError: If a direction of negative curvature is met.
            InputError: If the preconditioner is not positive definite.
            NonFiniteError: If a product holds NaN or infinity.
        """
        B = B.to(torch.float64)
        sizes = B.norm(dim=0)
        rtol = products.eps**0.5 if self.rtol is None else self.rtol
        limit = self.max_iter or min(10 * products.dim, MAX_ITER)
        products.prepare(B.shape[1] * min(limit, products.dim, 20))
        target = (rtol * sizes).clamp(min=self.atol)
        if X is None:
            X, R = torch.zeros_like(B), B.clone()
        else:
            X = X.to(torch.float64)
            R = B - self._multiply(products, X)
        residuals = R.norm(dim=0)
        iterations = torch.zeros_like(sizes, dtype=torch.long)
        stagnated = torch.zeros_like(sizes, dtype=torch.bool)
        scale = torch.zeros_like(sizes.sum())
        while True:
            left = (residuals > target) & ~stagnated & (iterations < limit)
            columns = torch.nonzero(left).flatten()
            if not len(columns):
                break
            step, made = self._cycle(
                products, R[:, columns], target[columns], limit - iterations[columns], scale
            )
            iterations[columns] += made
            before, step = residuals[columns], X[:, columns] + step
            left_over = B[:, columns] - self._multiply(products, step)
            after = left_over.norm(dim=0)
            # A column that ran out of steps is told from one that rounding has stopped.
            met = (after > PROGRESS * before) & (iterations[columns] < limit)
            stagnated[columns] = met & (after > target[columns])
            better = columns[after < before]
            X[:, better], R[:, better] = step[:, after < before], left_over[:, after < before]
            residuals[better] = after[after < before]
        converged = residuals <= target
        return Answer(X, residuals, sizes, converged, stagnated, iterations)

    def _cycle(
        self, products: Products, R: Tensor, target: Tensor, limit: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the steps ``[P, K]`` from zero until the recurrence is content, and how many.

        Residuals need not fall from step to step, and where ``A`` is singular they explode in
        the end: what is returned is where they were least. ``scale`` is the largest
        ``‖A d‖ / ‖d‖`` that was seen, and is kept up to date.
        """
        X, made = torch.zeros_like(R), torch.zeros_like(limit)
        best, least = torch.zeros_like(R), R.norm(dim=0)
        active = torch.arange(R.shape[1], device=R.device)
        Z = self._precondition(R)
        D = Z.clone()
        rz = (R * Z).sum(0)
        while len(active):
            AD = self._multiply(products, D)
            curvature = (D * AD).sum(0)
            lengths = D.norm(dim=0)
            torch.maximum(scale, (AD.norm(dim=0) / lengths).max(), out=scale)
            noise = products.eps * scale * lengths.square()
            if bool((curvature < -NEGATIVE * noise).any()):
                worst = D[:, int(torch.argmin(curvature + NEGATIVE * noise))]
                raise indefinite(products, worst, self.shift, "solve")
            goes = curvature > NOTHING * noise
            alpha = torch.where(goes, rz / torch.where(goes, curvature, 1.0), 0.0)
            X[:, active] += alpha * D
            made[active] += 1
            R = R - alpha * AD
            norms = R.norm(dim=0)
            better = active[norms < least[active]]
            best[:, better], least[better] = X[:, better], norms[norms < least[active]]
            goes &= (norms > target[active]) & (made[active] < limit[active])
            active, R, D, before = active[goes], R[:, goes], D[:, goes], rz[goes]
            Z = self._precondition(R)
            rz = (R * Z).sum(0)
            D = Z + (rz / before) * D
        return best, made

    def _multiply(self, products: Products, X: Tensor) -> Tensor:
        return products(X) + self.shift * X if self.shift else products(X)

    def _precondition(self, R: Tensor) -> Tensor:
        if self._M is None or not R.shape[1]:
            return R
        Z = self._M(R)
        quotient = (R * Z).sum(0)
        if bool((quotient <= 0).any()):
            raise InputError(
                "preconditioner is not positive definite: the residual r of a column has "
                f"rᵀMr = {float(quotient.min()):.3g}."
            )
        return Z


def require_symmetric(products: Products, who: str) -> None:
    """Raise :class:`InputError` unless ``A`` says that it is symmetric, or two products show it.

    Args:
        products: The matrix ``A`` ``[P, P]``.
        who: What needs symmetry, with its verb.
    """
    if products.is_self_adjoint or not products.dim:
        return
    U = Probes(products.dim, "gaussian", 0, device=products.device).take(2)
    Y = products(U)
    difference = float(U[:, 0] @ Y[:, 1] - U[:, 1] @ Y[:, 0])
    if abs(difference) > products.eps**0.5 * float(Y.norm(dim=0).sum()):
        raise InputError(
            f"A is not symmetric, which {who}. For least squares use A.T @ A, or SciPy's lsmr on "
            "A.to_scipy()."
        )
