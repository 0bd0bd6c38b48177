"""The log-determinant from all eigenvalues, for matrices small enough to be formed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.linalg.logdet_function import OnNegative, indefinite, sensitivity, shifted_log
from curvops.linalg.matrix import Products
from curvops.linalg.spectral_measures import not_symmetric

CHUNK = 64
"""Unit vectors that are multiplied at a time."""


@dataclass(frozen=True)
class Spectrum:
    """All eigenvalues of a matrix, and what rounding may have made up of them.

    Attributes:
        values: Eigenvalues, float64, ascending.
        noise: The error that each may have ``[P]``.
        rest: Further eigenvalues, all equal to ``rest_value``.
        rest_value: Their value, exact.
    """

    values: Tensor
    noise: Tensor
    rest: int = 0
    rest_value: float = 0.0

    def logdet(self, shift: float, on_negative: OnNegative) -> tuple[float, float]:
        """Return the sum over the spectrum and a first-order bound of its rounding.

        Raises:
            IndefiniteError: If the shift leaves an eigenvalue at or below zero, up to the noise.
        """
        values, noise = self.values, self.noise
        if self.rest:
            values = torch.cat([values, values.new_full((1,), self.rest_value)])
            noise = torch.cat([noise, noise.new_zeros(1)])
        if not len(values):
            return 0.0, 0.0
        if on_negative == "raise":
            bad = values + shift <= noise
            if bool(bad.any()):
                smallest = int(values.argmin())
                rounding = float(noise[smallest])
                low = float(values[smallest])
                raise indefinite(low, shift, rounding, rounding - low, int(bad.sum()))
        f = shifted_log(shift, on_negative)
        terms = f(self.values).tolist()
        if self.rest:
            terms.append(self.rest * float(f(values[-1])))
        error = (self.noise * sensitivity(shift, on_negative)(self.values).sqrt()).sum()
        size = sum(abs(term) for term in terms)
        return math.fsum(terms), float(error) + torch.finfo(torch.float64).eps * size


def dense_spectrum(products: Products) -> Spectrum:
    """Return all eigenvalues of a matrix, from its products with the unit vectors.

    The asymmetry of what products return is a measure of their rounding, which a bound from the
    dtype alone would put a thousand times too high.

    Raises:
        InputError: If the matrix is not symmetric.
    """
    P = products.dim
    products.prepare(P)
    matrix = torch.empty(P, P, dtype=torch.float64)
    for start in range(0, P, CHUNK):
        count = min(CHUNK, P - start)
        units = torch.zeros(P, count, dtype=torch.float64, device=products.device)
        units[start : start + count].fill_diagonal_(1.0)
        matrix[:, start : start + count] = products(units).cpu()
    if P == 0:
        return Spectrum(torch.zeros(0).double(), torch.zeros(0).double())
    skew = matrix - matrix.T
    values = torch.linalg.eigvalsh(matrix - 0.5 * skew)
    size, asymmetry = float(values.abs().max()), float(skew.norm())
    if asymmetry > products.eps**0.5 * float(matrix.norm()):
        raise not_symmetric(float(skew.abs().max()), float(matrix.abs().max()))
    noise = 2.0 * P**0.5 * torch.finfo(torch.float64).eps * size + asymmetry
    return Spectrum(values, torch.full_like(values, noise))
