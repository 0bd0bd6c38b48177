"""What directions are worked out from at one point: its gradient, its eigenvectors, a generator.

Each is computed at its first use and shared by all directions that need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvops.errors import InputError, NonFiniteError
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.linalg.matrix import Matrix
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.rng import as_seed
from curvops.tensors import Vector

Requests = Sequence[tuple[int, "EighResult | Matrix | None"]]


class Situation:
    """A point of a risk, and what is known there.

    Args:
        risk: The risk; its current point is meant.
        seed: Of the random vectors and the eigensolver.
        requests: Which eigenvectors will be asked for (index and matrix, ``None`` for the
            Hessian), so that they are computed together.

    Attributes:
        num_gradients: Gradients so far.
        num_matvecs: Products so far.
    """

    def __init__(
        self, risk: EmpiricalRisk, seed: int | torch.Generator = 0, requests: Requests = ()
    ) -> None:
        self.risk = risk
        self.num_gradients = 0
        self.num_matvecs = 0
        self._seed = as_seed(seed)
        self._generator = torch.Generator().manual_seed(self._seed)
        self._requests = tuple(requests)
        for index, _ in self._requests:
            if not -risk.space.dim <= index < risk.space.dim:
                raise InputError(
                    f"eigenvector {index} is wanted, but there are {risk.space.dim} parameters."
                )
        self._pairs: dict[tuple[int, bool], EighResult] = {}

    @cached_property
    def gradient(self) -> Tensor:
        """The gradient of all the data ``[P]``.

        Raises:
            NonFiniteError: If it holds NaN or infinity.
        """
        self.num_gradients += 1
        gradient = self.risk.gradient()
        if not bool(torch.isfinite(gradient).all()):
            raise NonFiniteError(
                "the gradient holds NaN or infinity at this point, so there is no direction of "
                "ascent or descent. Leave them out, or move the point."
            )
        return gradient

    def normal(self, num: int) -> Tensor:
        """Return random vectors ``[P, num]`` with independent normal entries.

        They are drawn one after another in float64 on the CPU: neither how many follow nor the
        dtype nor the device changes a vector.
        """
        dim = self.risk.space.dim
        drawn = [
            torch.randn(dim, generator=self._generator, dtype=torch.float64).to(
                self.risk.device, self.risk.dtype
            )
            for _ in range(num)
        ]
        return torch.stack(drawn, dim=1)

    def eigenvector(self, index: int, of: EighResult | Matrix | None) -> Tensor:
        """Return a unit eigenvector ``[P]``: 0 of the largest eigenvalue, −1 of the smallest."""
        pairs = of if isinstance(of, EighResult) else self._eigenpairs(index >= 0, of)
        assert pairs.eigenvectors is not None
        # Eigenvalues ascend, so the largest is the last.
        vector = pairs.eigenvectors[:, -1 - index]
        # The solver's sign means nothing; this one is the same on every machine.
        return vector * vector[vector.abs().argmax()].sign()

    def _eigenpairs(self, is_top: bool, of: Matrix | None) -> EighResult:
        """Return all pairs of a matrix that will be asked for at one end, computed once."""
        key = (id(of), is_top)
        if key not in self._pairs:
            indices = [i for i, other in self._requests if other is of and (i >= 0) == is_top]
            k = max(i + 1 if is_top else -i for i in indices)
            matrix = HessianLinearOperator.from_risk(self.risk) if of is None else of
            found = eigsh(matrix, k, "LA" if is_top else "SA", seed=self._seed)
            self.num_matvecs += found.num_matvecs
            self._pairs[key] = found
        return self._pairs[key]

    def read(self, vector: Vector, what: str) -> Tensor:
        """Return vectors in any format as columns ``[P, K]``."""
        risk = self.risk
        return risk.space.read(vector, risk.dtype, risk.device, what)[0]

    def point(self, other: Vector | nn.Module | EmpiricalRisk, what: str) -> Tensor:
        """Return another point of the same space, ``[P]``.

        Raises:
            InputError: If parameters are missing in it.
            ShapeError: If it does not fit the space.
        """
        return read_point(self.risk, other, what)


def read_point(risk: EmpiricalRisk, other: Any, what: str) -> Tensor:
    """Return a point of the space of a risk, flat ``[P]``.

    Args:
        risk: The risk whose space and dtype it takes.
        other: A vector in any format; a dict of tensors, which may hold more names than needed (a
            ``state_dict``); a module; or a risk with the same parameters.
        what: How error messages call it.

    Raises:
        InputError: If parameters are missing in it, or it is more than one point.
        ShapeError: If it does not fit the space.
        DTypeError: If it is not real floating.
        NonFiniteError: If it holds NaN or infinity.
    """
    if isinstance(other, EmpiricalRisk):
        other = other.params
    elif isinstance(other, nn.Module):
        other = dict(other.named_parameters(remove_duplicate=False))
    if isinstance(other, Mapping):
        missing = [name for name in risk.space.names if name not in other]
        if missing:
            raise InputError(f"{what} lacks the parameters {missing}; it has {list(other)[:20]}.")
        other = {name: other[name] for name in risk.space.names}
    columns, _ = risk.space.read(other, risk.dtype, risk.device, what)
    if columns.shape[1] != 1:
        raise InputError(f"{what} is {columns.shape[1]} points; pass one.")
    return columns[:, 0]
