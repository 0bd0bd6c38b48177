r"""Random samples of tr f(A) for every f at once: discrete measures on the spectrum.

Each sample is a set of nodes and weights, of total mass P, whose expectation is the spectral
measure: :math:`E \sum_k w_k f(x_k) \approx \sum_i f(\lambda_i)`. Those from Gauss rules
over-estimate log, those from Gauss–Radau rules under-estimate it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
"""A function of the eigenvalues, elementwise."""


@dataclass(frozen=True)
class Samples:
    """Discrete measures, one a sample.

    Attributes:
        nodes: ``[N, m]``, or ``[1, m]`` where all share them.
        weights: ``[N, m]``; they need not be positive.
    """

    nodes: Tensor
    weights: Tensor

    def integrate(self, f: Function) -> Tensor:
        """Return what each sample says of tr f(A), ``[N]``; weightless nodes count nothing."""
        values = f(self.nodes).expand_as(self.weights)
        return torch.where(self.weights != 0, self.weights * values, 0.0).sum(1)


@dataclass(frozen=True)
class Measures:
    """What one run of Lanczos knows about the spectrum.

    Attributes:
        over: Samples that over-estimate log, for matrices that are positive definite.
        under: Samples that under-estimate it; they have a node at ``floor``. ``None`` where
            there is no floor.
        coarse: The over-estimates from half as many steps, where they were asked for.
        smallest: The smallest Ritz value.
        largest: The largest Ritz value in magnitude.
        floor: The number below the spectrum that ``under`` was made with.
        is_exact: Whether this is the spectral measure itself.
    """

    over: list[Samples]
    under: list[Samples] | None
    coarse: list[Samples] | None
    smallest: float
    largest: float
    floor: float
    is_exact: bool = False


def integrate(samples: list[Samples], f: Function) -> Tensor:
    """Return what all samples say of tr f(A), ``[N]``."""
    return torch.cat([part.integrate(f) for part in samples])
