r"""How many probes: a count, or until the error bar is small enough.

The stochastic estimators here are means of samples that are each unbiased (or nearly so, where
every one leaves out its own probe). With n samples :math:`t_i` of mean :math:`\bar t`,

.. math:: se^2 = \frac{\sum_i (t_i - \bar t)^2}{n (n - 1)}, \qquad
    \bar t \pm \tau\, se

where :math:`\tau` is Student's 97.5 % quantile: with few samples the scatter itself is uncertain,
and the normal quantile 1.96 would promise too much. Samples that come from one sketch are not
independent; :mod:`curvops.linalg.leave_out` says what their error is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from scipy.special import stdtrit
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.matrix import Products

DEFAULT_MATVECS = 100
"""Products where neither a count nor a tolerance is given."""

DEFAULT_LIMIT = 10_000
"""Products after which an adaptive estimate gives up."""

FIRST_SKETCH = 8
"""Columns of the first sketch of an adaptive estimate; it is doubled from there."""

FIRST_SAMPLES = 16
"""Samples of an adaptive estimate without leave-one-out before it looks at its error bar."""

GROWTH = 1.25
"""Samples are added in batches of a quarter of what is there."""


SKEWED = 7.0
"""By how much the degrees of freedom of fresh samples are divided. The scatter of n samples of
kurtosis κ has 2n/(κ - 1) degrees of freedom (Satterthwaite 1946). Samples are quadratic forms, in
the worst case (a remainder of rank one) chi-squared of one with κ = 15: n/7. The quantile of
n - 1 would cover 81 to 90 % there up to 25 samples; this one covers at least 95 %."""


class Moments:
    """Mean and error of samples ``[M]``: those of a sketch, and fresh ones in blocks.

    Args:
        mean: Mean of the samples of the sketch ``[M]``.
        scatter: Their summed squared deviations ``[M]``.
        variance: Variance of their mean ``[M]``; they are not independent.
        count: Their number ``k``, 0 if there are none.
        samples: They themselves ``[k]`` if they are scalars.

    Example:
        >>> m = Moments()
        >>> m.add(torch.tensor([[1.0], [3.0]]))
        >>> m.add(torch.tensor([[5.0]]))
        >>> m.count, m.mean.tolist(), round(m.stderr.item(), 4)
        (3, [3.0], 1.1547)
    """

    def __init__(
        self,
        mean: Tensor | float = 0.0,
        scatter: Tensor | float = 0.0,
        variance: Tensor | float = 0.0,
        count: int = 0,
        samples: Tensor | None = None,
    ) -> None:
        self._sketch = mean, scatter, variance, count
        self._mean, self._scatter = torch.zeros(1).double(), torch.zeros(1).double()
        self._fresh = 0
        self._seen = [] if samples is None else [samples.cpu()]

    def add(self, block: Tensor) -> None:
        """Add fresh samples ``[n, M]``; means and scatters are merged, not computed anew."""
        n = block.shape[0]
        mean = block.mean(0)
        scatter = (block - mean).square().sum(0)
        if block.shape[1] == 1:
            self._seen.append(block[:, 0].cpu())
        total = self._fresh + n
        delta = mean - self._mean.to(mean.device)
        self._mean = mean - delta * (self._fresh / total)
        self._scatter = self._scatter.to(mean.device) + scatter
        self._scatter += delta.square() * (self._fresh * n / total)
        self._fresh = total

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._sketch[3] + self._fresh

    @property
    def mean(self) -> Tensor:
        """The mean ``[M]``."""
        known = self._sketch[3] / self.count
        return known * self._sketch[0] + (1 - known) * self._mean if self._fresh else self._known(0)

    @property
    def stderr(self) -> Tensor:
        """The standard error of the mean ``[M]``; infinite for a single sample.

        Fresh samples are uncorrelated with those of the sketch, given which they are unbiased.
        """
        _, scatter, variance, k = self._sketch
        if self.count < 2:
            return torch.full_like(self.mean, math.inf)
        if not self._fresh:
            return self._known(2).sqrt()
        freedom = max(k - 1, 0) + self._fresh - 1
        if freedom < 1:
            return torch.full_like(self.mean, math.inf)
        each = (scatter + self._scatter) / freedom
        return (k**2 * variance + self._fresh * each).sqrt() / self.count

    @property
    def half_width(self) -> Tensor:
        """Half the width of the 95 % interval ``[M]``."""
        k, n = self._sketch[3], self._fresh
        return student(k - 1 + n / SKEWED if k else (n - 1) / SKEWED) * self.stderr

    @property
    def samples(self) -> Tensor:
        """The samples of a scalar ``[n]``; vectors are not kept."""
        return torch.cat(self._seen) if self._seen else torch.empty(0, dtype=torch.float64)

    def _known(self, index: int) -> Tensor:
        value = self._sketch[index]
        assert isinstance(value, Tensor)
        return value


def of_sketch(samples: Tensor, variance: Tensor) -> Moments:
    """Return the moments of the scalar samples ``[k]`` of a sketch, given their mean's variance."""
    mean = samples.mean()
    scatter = (samples - mean).square().sum()
    return Moments(mean.reshape(1), scatter.reshape(1), variance.reshape(1), len(samples), samples)


def student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's distribution; infinite without any freedom."""
    return float(stdtrit(freedom, 0.975)) if freedom > 0 else math.inf


@dataclass(frozen=True)
class Budget:
    """What an estimate may cost, and when it is good enough.

    Attributes:
        limit: Products that may be made.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        adaptive: Whether to stop as soon as the tolerance is met.
    """

    limit: int
    rtol: float
    atol: float
    adaptive: bool

    @classmethod
    def of(
        cls,
        num_matvecs: int | None,
        rtol: float | None,
        atol: float | None,
        max_matvecs: int | None,
    ) -> Budget:
        """Check the arguments that every estimator shares.

        Args:
            num_matvecs: A count, or ``None``.
            rtol: A relative tolerance in place of the count, or ``None``.
            atol: An absolute tolerance, or ``None``.
            max_matvecs: The limit for tolerances, or ``None``.

        Raises:
            InputError: If one is impossible, or a count comes with a tolerance.
        """
        adaptive = rtol is not None or atol is not None
        if num_matvecs is not None:
            check_count("num_matvecs", num_matvecs)
        if max_matvecs is not None:
            check_count("max_matvecs", max_matvecs)
        rtol, atol = check_tolerance("rtol", rtol), check_tolerance("atol", atol)
        if adaptive and num_matvecs is not None:
            raise InputError(
                f"num_matvecs={num_matvecs} and a tolerance exclude each other: give either; "
                "max_matvecs limits the cost of a tolerance."
            )
        if max_matvecs is not None and not adaptive:
            raise InputError("max_matvecs limits rtol= or atol=; without them use num_matvecs.")
        count = max_matvecs or DEFAULT_LIMIT if adaptive else num_matvecs or DEFAULT_MATVECS
        return cls(count, rtol, atol, adaptive)

    def is_exact(self, dim: int) -> bool:
        """Whether all ``dim`` unit vectors cost no more than an estimate."""
        return dim <= (min(self.limit, 4 * FIRST_SKETCH) if self.adaptive else self.limit)

    def require(self, least: int, method: str) -> None:
        """Refuse a budget from which the method cannot get an error bar."""
        if self.limit < least:
            name = "max_matvecs" if self.adaptive else "num_matvecs"
            raise InputError(
                f"{name}={self.limit}, but {method} needs at least {least} products for an "
                "estimate with an error bar."
            )

    def accepts(self, half_width: float, size: float) -> bool:
        """Whether an error is as small as asked; without a tolerance, whether there is one."""
        if not self.adaptive:
            return math.isfinite(half_width)
        return half_width <= self.tolerance(size)

    def remedy(self) -> str:
        """Return what to do about an estimate that has not converged."""
        if not self.adaptive:
            return "One sample has no error bar. Raise num_matvecs."
        asked = f"rtol={self.rtol:g}, atol={self.atol:g}"
        return f"Raise max_matvecs={self.limit} or ask for less than {asked}."

    def tolerance(self, size: float) -> float:
        """Return the error that is allowed for a value of this size."""
        return max(self.atol, self.rtol * size)


class Sampler(Protocol):
    """Samples of a quantity, after a sketch of the matrix has taken the bulk of it away."""

    def columns(self, limit: int) -> int:
        """Return how many columns the sketch gets out of ``limit`` products."""

    def grow(self, columns: int) -> None:
        """Enlarge the sketch to that many columns."""

    def left_out(self) -> Moments:
        """Return the samples of the columns, each from the sketch without it."""

    def sample(self, count: int) -> Iterator[Tensor]:
        """Yield further samples at one product each, in blocks ``[n, M]``."""


def estimate(
    sampler: Sampler,
    products: Products,
    budget: Budget,
    max_rank: int,
    measure: Callable[[Moments], tuple[float, float]],
) -> Moments | None:
    """Spend a budget: a sketch first, further samples of what it leaves next.

    Args:
        sampler: What draws.
        products: What counts.
        budget: The count or the tolerance.
        max_rank: The most columns of a sketch.
        measure: Returns the half width of the interval and the size of the value.

    Returns:
        The samples; or ``None`` where a tolerance is so small that all unit vectors are cheaper.
    """
    if not budget.adaptive:
        products.prepare(budget.limit)
        sampler.grow(min(max_rank, sampler.columns(budget.limit)))
        return _draw(sampler, sampler.left_out(), budget.limit - products.num_matvecs)

    def accepted() -> bool:
        return moments.count >= FIRST_SKETCH and budget.accepts(*measure(moments))

    products.prepare(2 * FIRST_SKETCH)
    most = min(max_rank, sampler.columns(min(budget.limit, products.dim)))
    columns = min(FIRST_SKETCH, most)
    sampler.grow(columns)
    moments = sampler.left_out()
    if not moments.count:  # every probe leaves the sketch as it is: there is nothing to watch
        columns = most = min(4 * FIRST_SKETCH, most)
        sampler.grow(columns)
    while not accepted() and columns < most:
        columns = min(2 * columns, most)
        sampler.grow(columns)
        moments = sampler.left_out()
    while not accepted() and products.num_matvecs < budget.limit:
        more = max(FIRST_SAMPLES - moments.count, math.ceil((GROWTH - 1) * moments.count))
        if moments.count >= FIRST_SAMPLES:
            half_width, size = measure(moments)
            tolerance = budget.tolerance(size)
            wanted = moments.count * (half_width / tolerance) ** 2 if tolerance else math.inf
            affordable = products.dim <= budget.limit - products.num_matvecs
            if affordable and wanted - moments.count > products.dim:
                return None
        _draw(sampler, moments, min(more, budget.limit - products.num_matvecs))
    return moments


def _draw(sampler: Sampler, moments: Moments, count: int) -> Moments:
    for block in sampler.sample(count):
        moments.add(block)
    return moments


def unit_products(products: Products, chunk_size: int) -> Iterator[tuple[int, Tensor]]:
    """Yield ``A e_j`` for all unit vectors, as the first ``j`` and a block ``[M, n]``."""
    products.prepare(products.dim)
    for start in range(0, products.dim, chunk_size):
        count = min(chunk_size, products.dim - start)
        units = torch.zeros(products.dim, count, dtype=torch.float64, device=products.device)
        units[start : start + count].fill_diagonal_(1.0)
        yield start, products(units)


def check_count(name: str, value: object) -> int:
    """Return ``value`` if it is a positive integer; otherwise raise :class:`InputError`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}.")
    return value


def check_tolerance(name: str, value: float | None) -> float:
    """Return a tolerance, 0 for ``None``; raise :class:`InputError` if it is impossible."""
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0.0:
        raise InputError(f"{name} must be a nonnegative number, got {value!r}.")
    return float(value)
