"""Random vectors z with E[z zᵀ] = I, drawn one after the other from a private generator."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.rng import as_seed

Distribution = Literal["rademacher", "gaussian", "sphere"]


class Probes:
    """A stream of probes.

    How many are taken at a time changes nothing: the i-th is the same. They are drawn on the
    CPU, so that a seed means the same on every device.

    Args:
        dim: P.
        distribution: ``"rademacher"`` (±1), ``"gaussian"``, or ``"sphere"`` (uniform, norm √P).
        seed: An integer, or a generator from which one is drawn.
        dtype: Of the vectors.
        device: Of the vectors.

    Raises:
        InputError: If the distribution or the seed is none of these.

    Example:
        >>> stream = Probes(4, "rademacher", seed=0)
        >>> stream.take(3).shape, float(stream.take(1).abs().min())
        (torch.Size([4, 3]), 1.0)
    """

    def __init__(
        self,
        dim: int,
        distribution: Distribution = "rademacher",
        seed: int | torch.Generator = 0,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        if distribution not in ("rademacher", "gaussian", "sphere"):
            raise InputError(
                f'distribution must be "rademacher", "gaussian" or "sphere", got {distribution!r}.'
            )
        self._dim, self._distribution = dim, distribution
        self._dtype, self._device = dtype, device
        self._generator = torch.Generator().manual_seed(as_seed(seed))

    def take(self, count: int) -> Tensor:
        """Return the next probes as columns ``[P, count]``."""
        columns = [self._draw() for _ in range(count)]
        if not columns:
            return torch.empty(self._dim, 0, dtype=self._dtype, device=self._device)
        return torch.stack(columns, 1).to(self._device, self._dtype)

    def _draw(self) -> Tensor:
        if self._distribution == "rademacher":
            bits = torch.randint(2, (self._dim,), generator=self._generator)
            return bits.double().mul_(2).sub_(1)
        z = torch.randn(self._dim, generator=self._generator, dtype=torch.float64)
        if self._distribution == "sphere" and self._dim:
            z *= self._dim**0.5 / z.norm()
        return z
