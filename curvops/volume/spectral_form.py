r"""A symmetric matrix by its spectrum, and every function of it.

.. math:: A = V \operatorname{diag}(\lambda) V^T + \rho \, (I - V V^T)

Dense (all P eigenvectors), diagonal (the coordinate axes), low-rank (some eigenvectors and one
number for the rest), or a multiple of the identity (no eigenvectors at all).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""An elementwise function of eigenvalues, float64."""


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class SpectralForm:
    """A symmetric positive semidefinite matrix by its spectrum.

    Attributes:
        dim: ``P``.
        eigenvalues: ``λ`` ``[R]``, float64.
        eigenvectors: ``V`` ``[P, R]``, orthonormal columns; ``None`` for the coordinate axes
            (then ``R = P``), or if there are none (``R = 0``).
        rest: ``ρ``, the eigenvalue of everything orthogonal to ``V``.

    Example:
        >>> import torch
        >>> form = SpectralForm(3, torch.tensor([4.0, 9.0, 16.0], dtype=torch.float64), None)
        >>> root = form.root(torch.sqrt)
        >>> root.forward(torch.ones(3, 1)).squeeze(1)
        tensor([2., 3., 4.])
        >>> round(form.total(torch.log), 6)  # log det
        6.356108
    """

    dim: int
    eigenvalues: Tensor
    eigenvectors: Tensor | None
    rest: float = 0.0

    @property
    def num_rest(self) -> int:
        """How many eigenvalues are ``ρ``."""
        return self.dim - len(self.eigenvalues)

    def total(self, f: Function) -> float:
        """Return tr f(A), summed in float64."""
        value = float(f(self.eigenvalues).sum())
        if self.num_rest:
            value += self.num_rest * self._of_rest(f)
        return value

    def smallest(self) -> float:
        """Return the smallest eigenvalue."""
        ends = [float(self.eigenvalues.min())] if len(self.eigenvalues) else []
        return min([*ends, self.rest] if self.num_rest else ends)

    def largest(self) -> float:
        """Return the largest eigenvalue."""
        ends = [float(self.eigenvalues.max())] if len(self.eigenvalues) else []
        return max([*ends, self.rest] if self.num_rest else ends)

    def root(self, f: Function) -> Root:
        """Return a square matrix ``S`` with ``S Sᵀ = f(A)²``."""
        return Root(self, f(self.eigenvalues), self._of_rest(f) if self.num_rest else 0.0)

    def _of_rest(self, f: Function) -> float:
        return float(f(self.eigenvalues.new_tensor([self.rest])))


@dataclass(frozen=True, eq=False)
class Root:
    r"""A matrix ``S`` with ``S Sᵀ = f(A)²``, for isotropic vectors to be scaled with.

    With all eigenvectors ``S = V diag(f)``, one product cheaper than the symmetric
    ``V diag(f) Vᵀ``, from which it differs by a rotation *before* it. Never ``diag(f) Vᵀ``, which
    leaves the scales on the wrong axes.

    Attributes:
        form: Whose eigenvectors.
        values: ``f(λ)`` ``[R]``.
        rest: ``f(ρ)``.
    """

    form: SpectralForm
    values: Tensor
    rest: float

    def forward(self, Z: Tensor) -> Tensor:
        """Return ``S Z``, ``[P, K]``."""
        V, values = self.form.eigenvectors, self._values(Z)
        if V is None:
            return values * Z if len(values) else self.rest * Z
        if self.form.num_rest:
            return self.rest * Z + V @ ((values - self.rest) * (V.T @ Z))
        return V @ (values * Z)

    def symmetric(self, Z: Tensor) -> Tensor:
        """Return ``f(A) Z``, ``[P, K]``, which is ``S Z`` after a rotation.

        It does not depend on how eigenvectors are chosen: their signs, and what they are within the
        space of a multiple eigenvalue, hang on rounding.
        """
        V = self.form.eigenvectors
        if V is None or self.form.num_rest:
            return self.forward(Z)
        return V @ (self._values(Z) * (V.T @ Z))

    def adjoint(self, G: Tensor) -> Tensor:
        """Return ``Sᵀ G``, ``[P, K]``: gradients by ``Z`` from gradients by ``S Z``."""
        V = self.form.eigenvectors
        if V is None or self.form.num_rest:
            return self.forward(G)
        return self._values(G) * (V.T @ G)

    def inverse(self, X: Tensor) -> Tensor:
        """Return ``S⁻¹ X``, ``[P, K]``; where ``f`` is positive."""
        reciprocal = Root(self.form, 1 / self.values, 1 / self.rest if self.rest else 0.0)
        # S⁻ᵀ = V diag(1/f) is the root of 1/f, so S⁻¹ is its adjoint.
        return reciprocal.adjoint(X)

    def logabsdet(self) -> float:
        """Return log |det S|, in nats."""
        value = float(self.values.abs().log().sum())
        if self.form.num_rest:
            value += self.form.num_rest * float(torch.tensor(abs(self.rest)).double().log())
        return value

    def scaled(self, factor: float) -> Root:
        """Return ``factor S``."""
        return Root(self.form, factor * self.values, factor * self.rest)

    def _values(self, like: Tensor) -> Tensor:
        return self.values.to(like).unsqueeze(1)
