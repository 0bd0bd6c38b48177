"""A distribution of eigenvalues, with the scatter of what it was estimated from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvops.errors import InputError, NonFiniteError
from curvops.linalg.estimate import Estimate
from curvops.linalg.sampling import SKEWED, student


@dataclass(frozen=True)
class Curve:
    """A function with a band of 95 % from the scatter of the probes, point by point.

    The band leaves out the quadrature: a rule has its weight at nodes, so between two of them it
    can miss the true function by the weight of one. :attr:`SpectralDensity.wasserstein` has both.

    Attributes:
        x: Where ``[M]``.
        values: The mean over the probes ``[M]``.
        lower: Lower edge of the band ``[M]``; minus infinity from a single probe.
        upper: Upper edge.
    """

    x: Tensor
    values: Tensor
    lower: Tensor
    upper: Tensor

    def to_dict(self) -> dict[str, list[float]]:
        """Return the columns as plain Python."""
        return {name: getattr(self, name).tolist() for name in ("x", "values", "lower", "upper")}


@dataclass(frozen=True)
class SpectralDensity:
    r"""The distribution of P eigenvalues: outliers that are known, and the rest as sampled.

    .. math:: \phi = \frac1P \sum_i \delta_{\lambda_i}
        + \frac{P - k}{P} \frac1n \sum_p \sum_j w_{pj}\, \delta_{\theta_{pj}}

    Attributes:
        nodes: θ ``[n, m]``, ascending for each of n probes.
        weights: w ``[n, m]``; they sum to one for each probe.
        outliers: λ ``[k]``, ascending: eigenvalues that were deflated, each of weight 1/P.
        dim: P.
        wasserstein_sampling: What the probes add to the Wasserstein distance from the truth, at
            most, with a probability of 95 %.
        wasserstein_quadrature: What the number of steps adds, at most.
        num_matvecs: Products that it took, those for the outliers included.
        seconds: How long it took.
    """

    nodes: Tensor
    weights: Tensor
    outliers: Tensor
    dim: int
    wasserstein_sampling: float
    wasserstein_quadrature: float
    num_matvecs: int
    seconds: float

    @property
    def wasserstein(self) -> float:
        r"""An upper bound of :math:`\int |F - \hat F|\, dx`, in units of the eigenvalues.

        It holds with a probability of 95 %, where the outermost Ritz values with their
        residuals span the spectrum.
        """
        return self.wasserstein_sampling + self.wasserstein_quadrature

    @property
    def outlier_weight(self) -> float:
        """The share k/P of the eigenvalues that are outliers."""
        return len(self.outliers) / self.dim

    @property
    def interval(self) -> tuple[float, float]:
        """The smallest and the largest of nodes and outliers."""
        points = torch.cat([self.nodes.flatten(), self.outliers])
        return float(points.min()), float(points.max())

    @property
    def bulk(self) -> tuple[float, float]:
        """The smallest and the largest node; those of the outliers if nothing else is left."""
        if not self.nodes.numel():
            return self.interval
        return float(self.nodes.min()), float(self.nodes.max())

    @property
    def bandwidth(self) -> float:
        """What :meth:`pdf` smooths with by default: the spread of the bulk over the steps."""
        low, high = self.bulk
        scale = max(abs(low), abs(high)) or 1.0
        return max((high - low) / max(self.nodes.shape[1], 1), 1e-6 * scale)

    def pdf(self, x: Tensor, bandwidth: float | None = None, *, outliers: bool = True) -> Curve:
        r"""Return the density smoothed by a Gaussian.

        .. math:: (\phi * g_h)(x), \qquad g_h(x) = e^{-x^2 / 2h^2} / (h \sqrt{2\pi})

        Args:
            x: Where ``[M]``.
            bandwidth: h, in units of the eigenvalues; by default :attr:`bandwidth`.
            outliers: Whether to count them; without, the integral is 1 − k/P.

        Raises:
            InputError: If ``bandwidth`` is not positive, or ``x`` not one-dimensional.
            NonFiniteError: If ``x`` holds NaN or infinity.
        """
        h = self.bandwidth if bandwidth is None else bandwidth
        if not (h > 0 and math.isfinite(h)):
            raise InputError(f"bandwidth must be positive and finite, got {bandwidth!r}.")

        def kernel(distance: Tensor) -> Tensor:
            return torch.exp(-((distance / h) ** 2) / 2) / (h * math.sqrt(2 * math.pi))

        return self._curve(x, kernel, outliers)

    def cdf(self, x: Tensor) -> Curve:
        """Return the share of the eigenvalues that are at most x.

        Args:
            x: Where ``[M]``.

        Raises:
            InputError: If ``x`` is not one-dimensional.
            NonFiniteError: If it holds NaN or infinity.
        """
        curve = self._curve(x, lambda distance: (distance >= 0).double(), True)
        return Curve(curve.x, *(y.clamp(0, 1) for y in (curve.values, curve.lower, curve.upper)))

    def moments(self, order: int) -> list[Estimate]:
        r"""Return the first moments :math:`\int x^q \phi\,dx = \operatorname{tr}(A^q)/P`.

        Args:
            order: The largest q. Gauss rules of m nodes are exact up to 2m − 1, so that up to
                there nothing but the scatter of the probes is in the error.

        Returns:
            One estimate for each q from 0 to ``order``, with the interval for the mean of
            quadratic forms, whose scatter is skewed.

        Raises:
            InputError: If ``order`` is not from 0 to 2m − 1.
        """
        largest = 2 * self.nodes.shape[1] - 1
        if not isinstance(order, int) or isinstance(order, bool) or not 0 <= order <= largest:
            raise InputError(
                f"order must be an integer from 0 to {largest} (2 m - 1), got {order!r}; take "
                "more steps for higher moments."
            )
        return [self._moment(q) for q in range(order + 1)]

    def to_dict(self) -> dict[str, Any]:
        """Return nodes, weights, outliers, bounds and cost as plain Python."""
        return {
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
            "outliers": self.outliers.tolist(),
            "dim": self.dim,
            "wasserstein": self.wasserstein,
            "wasserstein_sampling": self.wasserstein_sampling,
            "wasserstein_quadrature": self.wasserstein_quadrature,
            "num_matvecs": self.num_matvecs,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        """Return where the bulk is, where the outliers are, and how far off it may be."""
        low, high = self.bulk
        text = f"{self.dim - len(self.outliers)} eigenvalues in [{low:.4g}, {high:.4g}]"
        if len(self.outliers):
            first, last = float(self.outliers[0]), float(self.outliers[-1])
            text += f" and {len(self.outliers)} outliers from {first:.4g} to {last:.4g}"
        probes, steps = self.nodes.shape
        return (
            f"{text}: {probes} probes, {steps} steps, Wasserstein distance at most "
            f"{self.wasserstein:.2g} ({self.num_matvecs} matvecs)"
        )

    def _moment(self, q: int) -> Estimate:
        share = 1 - self.outlier_weight
        known = float(self.outliers.pow(q).sum()) / self.dim
        samples = known + share * (self.weights * self.nodes.pow(q)).sum(1)
        value = float(samples.mean()) if len(samples) else known
        stderr, _ = _error(samples.unsqueeze(1))
        reach = student((len(samples) - 1) / SKEWED) * stderr if len(samples) else stderr
        return Estimate(
            value=value,
            stderr=float(stderr),
            lower=value - float(reach),
            upper=value + float(reach),
            num_matvecs=self.num_matvecs,
            converged=math.isfinite(float(reach)),
            samples=samples,
            method=f"moment {q}",
            seconds=self.seconds,
        )

    def _curve(self, x: Tensor, kernel: Any, outliers: bool) -> Curve:
        points = torch.as_tensor(x, dtype=torch.float64, device="cpu")
        if points.ndim != 1:
            raise InputError(f"x has shape {list(points.shape)}; expected [M].")
        if not bool(torch.isfinite(points).all()):
            raise NonFiniteError("x holds NaN or infinity.")
        known = torch.zeros_like(points)
        if outliers:
            known = kernel(points.unsqueeze(1) - self.outliers).sum(1) / self.dim
        share = 1 - self.outlier_weight
        samples = [
            known + share * (kernel(points.unsqueeze(1) - nodes) @ weights)
            for nodes, weights in zip(self.nodes, self.weights, strict=True)
        ]
        stacked = torch.stack(samples) if samples else known.unsqueeze(0)[:0]
        values = stacked.mean(0) if samples else known
        reach = _error(stacked)[1]
        return Curve(points, values, values - reach, values + reach)


def _error(samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return standard error and half-width of the 95 % interval of means over rows."""
    n = len(samples)
    if n == 0:
        return samples.new_zeros(samples.shape[1:]), samples.new_zeros(samples.shape[1:])
    if n == 1:
        unknown = samples.new_full(samples.shape[1:], math.inf)
        return unknown, unknown
    stderr = samples.std(0) / math.sqrt(n)
    return stderr, student(n - 1) * stderr
