r"""Stochastic Lanczos quadrature: every probe a Gauss and a Gauss–Radau rule.

.. math:: \operatorname{tr} f(A) = \mathbb{E}\, z^T f(A) z, \qquad
    z^T f(A) z \approx \|z\|^2 \sum_k w_k f(\theta_k)
"""

from __future__ import annotations

import torch
from torch import Tensor

from curvops.linalg.lanczos import MEMORY, Tridiagonals, lanczos
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Distribution, Probes
from curvops.linalg.quadrature import gauss, gauss_radau
from curvops.linalg.smallest_eigenvalue import below_tridiagonals
from curvops.linalg.spectral_measures import Measures, Samples, node_below

STEPS = 30
"""Lanczos steps a probe, where neither steps nor probes are prescribed."""

LEAST_PROBES = 8
"""Probes for which steps make room where products are few."""

FIRST_PROBES = 8
"""Probes of an adaptive run before it looks at its error bar."""


class SLQ:
    """Plain stochastic Lanczos quadrature, growing by probes or by steps.

    Args:
        products: The matrix ``A``, symmetric ``[P, P]``.
        floor: A number known to be below the spectrum, or ``None`` to find one.
        limit: Products that may be made.
        num_probes: Probes, where prescribed.
        num_steps: Steps a probe, where prescribed.
        distribution: Of the probes.
        seed: Of the probes.
        memory: Bytes for the Lanczos vectors that are alive at a time.
    """

    def __init__(
        self,
        products: Products,
        floor: float | None,
        limit: int,
        *,
        num_probes: int | None = None,
        num_steps: int | None = None,
        distribution: Distribution = "sphere",
        seed: int = 0,
        memory: int = MEMORY,
    ) -> None:
        self._products, self._floor, self._limit = products, floor, limit
        steps = min(STEPS, max(limit // LEAST_PROBES, 1))
        if num_steps or num_probes:
            steps = num_steps or max(limit // (num_probes or 1), 1)
        self._steps = min(steps, products.dim, limit)
        self._probes = num_probes
        self._steps_fixed = num_steps is not None
        self._memory = memory
        self._stream = Probes(products.dim, distribution, seed, device=products.device)
        self._parts: list[Tridiagonals] = []

    def spend(self) -> None:
        """Make all the products there are."""
        self._draw(self._probes or max(self._left // self._steps, 1))

    def begin(self) -> None:
        """Make a first, small run."""
        self._draw(min(self._probes or FIRST_PROBES, max(self._left // self._steps, 1)))

    def grow(self, sampling: float, quadrature: float) -> bool:
        """Make more products where they help more; return whether there were any left.

        Args:
            sampling: The part of the error that more probes shrink.
            quadrature: The part that more steps shrink.
        """
        deeper = min(2 * self._steps, self._products.dim)
        if quadrature > 0.5 * sampling and not self._steps_fixed and deeper > self._steps:
            count = min(len(self._norms), self._left // deeper)
            if count >= 2:
                self._steps, self._parts = deeper, []
                self._draw(count)
                return True
        count = min(len(self._norms), self._left // self._steps)
        if self._probes is not None:
            count = min(count, self._probes - len(self._norms))
        if count < 1:
            return False
        self._draw(count)
        return True

    def measures(self, coarse: bool) -> Measures:
        """Return the samples so far."""
        T = Tridiagonals(
            torch.cat([part.alpha for part in self._parts]),
            torch.cat([part.beta for part in self._parts]),
            self._norms,
            torch.cat([part.steps for part in self._parts]),
        )
        nodes, weights = gauss(T)
        smallest, largest = float(nodes.min()), float(nodes.abs().max())
        rounding = 2.0 * self._products.eps * largest
        floor = below_tridiagonals(T) if self._floor is None else self._floor
        floor = node_below(floor, smallest, rounding)
        mass = T.norms.square().unsqueeze(1)
        under = None
        if floor > -float("inf"):
            lower_nodes, lower_weights = gauss_radau(T, floor)
            under = [Samples(lower_nodes, mass * lower_weights)]
        half = None
        if coarse:
            half_nodes, half_weights = gauss(T.head((T.alpha.shape[1] + 1) // 2))
            half = [Samples(half_nodes, mass * half_weights)]
        over = [Samples(nodes, mass * weights)]
        return Measures(over, under, half, smallest, largest, floor)

    @property
    def _left(self) -> int:
        return self._limit - self._products.num_matvecs

    @property
    def _norms(self) -> Tensor:
        return torch.cat([part.norms for part in self._parts])

    def _draw(self, count: int) -> None:
        bytes_each = self._products.dim * self._steps * 8
        at_a_time = max(1, min(count, self._memory // max(bytes_each, 1)))
        while count > 0:
            z = self._stream.take(min(at_a_time, count))
            self._parts.append(lanczos(self._products, z, self._steps, memory=self._memory))
            count -= z.shape[1]
