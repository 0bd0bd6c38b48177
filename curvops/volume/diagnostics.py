r"""How well chains have mixed, and how far their average may be off.

All functions take the draws of one number, ``[C, N]``: ``C`` chains of ``N`` draws each, and work
in float64. Chains are split in half first, so that one that still drifts disagrees with itself.

With :math:`W` the variance within the halves, :math:`B` the variance of their means times their
length :math:`n`, and :math:`\hat\rho_t` the autocorrelation at lag :math:`t`,

.. math::
    V = \tfrac{n-1}{n} W + \tfrac{1}{n} B, \qquad
    \hat R = \sqrt{V / W}, \qquad
    \mathrm{ESS} = \frac{C N}{1 + 2 \sum_{t \ge 1} \hat\rho_t}, \qquad
    \hat\rho_t = 1 - \frac{W - \hat c_t}{V}

where :math:`\hat c_t` is the mean autocovariance of the halves; the sum stops where pairs of
neighbouring lags turn negative, and is made monotone (Geyer 1992).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from curvops.errors import ShapeError
from curvops.tensors import check_finite

_LEAST_DRAWS = 4


def rhat(draws: Tensor) -> float:
    r"""Return the rank-normalised split :math:`\hat R`; 1 where chains agree.

    The larger of two: of the draws' normal scores, which sees chains that differ in place and
    cannot be fooled by heavy tails, and of the scores of ``|x - median|``, which sees chains that
    differ in spread.

    Args:
        draws: ``[C, N]``, one chain a row; one chain is legal, its halves are compared.

    Returns:
        The number; 1 if all draws are equal, infinite if each half stays at a value of its own.

    Raises:
        ShapeError: If there are fewer than 4 draws a chain.
        NonFiniteError: If a draw is NaN or infinite.

    Source:
        Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Rank-normalization, folding, and
        localization: an improved R-hat, equations 3.1 to 3.4 and section 4.

    Example:
        >>> import torch
        >>> x = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
        >>> stuck = x + torch.tensor([[0.0], [0.0], [0.0], [1.0]])
        >>> round(rhat(x), 2), rhat(stuck) > 1.05
        (1.0, True)
    """
    halves = _halves(draws)
    folded = (halves - float(np.median(halves.numpy()))).abs()
    return max(_split_rhat(_normal_scores(halves)), _split_rhat(_normal_scores(folded)))


def effective_sample_size(draws: Tensor) -> float:
    """Return how many independent draws would give the mean as precisely.

    Chains that disagree have few, however long they are: the variance between them counts.

    Args:
        draws: ``[C, N]``, one chain a row.

    Returns:
        The number, at most ``C N log10(C N)`` (draws may be better than independent); ``C N`` if
        all draws are equal.

    Raises:
        ShapeError: If there are fewer than 4 draws a chain.
        NonFiniteError: If a draw is NaN or infinite.

    Source:
        Vehtari et al. 2021, section 3.2; Geyer 1992, Practical Markov chain Monte Carlo, section
        3.3, for where the sum over lags stops; Stan's reference manual for its last term.

    Example:
        Every draw repeated five times says no more than once.

        >>> import torch
        >>> x = torch.randn(4, 2000, generator=torch.Generator().manual_seed(0))
        >>> 7000 < effective_sample_size(x.repeat_interleave(5, dim=1)) < 9000
        True
    """
    halves = _halves(draws)
    chains, length = halves.shape
    total = chains * length
    within, variance = _variances(halves)
    if variance == 0.0:
        return float(total)
    autocovariance = _autocovariance(halves).mean(0)
    rho = 1 - (within - autocovariance) / variance
    rho[0] = 1.0
    pairs = rho[: length - length % 2].reshape(-1, 2).sum(1)
    negative = (pairs < 0).nonzero()
    # The last lags are averages over next to nothing.
    stop = min(int(negative[0]) if len(negative) else len(pairs), max((length - 4) // 2, 1))
    kept = pairs[:stop].cummin(0).values
    # Half of the pair that turned negative may be positive; it makes up for what was cut off.
    rest = float(rho[2 * stop].clamp(min=0.0)) if 2 * stop < length else 0.0
    time = max(-1.0 + 2.0 * float(kept.sum()) + rest, 1 / math.log10(max(total, 10)))
    return total / time


def standard_error(draws: Tensor, *, shared_noise: bool = False) -> float:
    r"""Return the Monte-Carlo standard error of the mean of all draws.

    The largest of what several views say, so that it is not too small when one is blind:

    * :math:`\sqrt{V / \mathrm{ESS}}`, from the autocorrelation and the variance between halves;
    * the standard deviation of the chains' means over :math:`\sqrt C`, which needs no
      autocorrelation but several chains;
    * with ``shared_noise``, the first view of the one series of averages over chains, which also
      sees what all chains have in common, such as mini-batches.

    Args:
        draws: ``[C, N]``, one chain a row.
        shared_noise: Whether chains share a source of randomness.

    Raises:
        ShapeError: If there are fewer than 4 draws a chain.
        NonFiniteError: If a draw is NaN or infinite.

    Example:
        >>> import torch
        >>> x = torch.randn(8, 1000, generator=torch.Generator().manual_seed(0))
        >>> round(standard_error(x) * 8000**0.5, 1)
        1.0
    """
    views = [_from_autocorrelation(draws)]
    values = draws.detach().to("cpu", torch.float64)
    if len(values) > 1:
        views.append(float(values.mean(1).std()) / math.sqrt(len(values)))
    if shared_noise:
        views.append(_from_autocorrelation(values.mean(0, keepdim=True)))
    return max(views)


def interval(mean: float, stderr: float, ess: float) -> tuple[float, float]:
    """Return the 95 % interval of a mean: Student's, with one degree of freedom less than draws.

    Args:
        mean: The average.
        stderr: Its standard error.
        ess: The effective sample size that the error rests on.

    Example:
        >>> low, high = interval(1.0, 0.1, 1e6)
        >>> round(low, 3), round(high, 3)
        (0.804, 1.196)
    """
    reach = float(stats.t.ppf(0.975, max(ess - 1, 1.0))) * stderr
    return mean - reach, mean + reach


def _from_autocorrelation(draws: Tensor) -> float:
    _, variance = _variances(_halves(draws))
    return math.sqrt(variance / effective_sample_size(draws))


def _halves(draws: Tensor) -> Tensor:
    """Return ``[2C, N // 2]``: the halves of the chains, without the middle draw if N is odd."""
    if draws.ndim != 2 or draws.shape[0] == 0 or draws.shape[1] < _LEAST_DRAWS:
        raise ShapeError(
            f"draws has shape {list(draws.shape)}; expected [C, N] with at least one chain and "
            f"{_LEAST_DRAWS} draws each."
        )
    values = draws.detach().to("cpu", torch.float64)
    check_finite(values, "draws")
    half = values.shape[1] // 2
    return torch.cat([values[:, :half], values[:, -half:]])


def _variances(halves: Tensor) -> tuple[float, float]:
    """Return W and V."""
    length = halves.shape[1]
    within = float(halves.var(1).mean())
    between = float(halves.mean(1).var()) if len(halves) > 1 else 0.0
    return within, within * (length - 1) / length + between


def _split_rhat(halves: Tensor) -> float:
    within, variance = _variances(halves)
    if variance == 0.0:
        return 1.0
    return math.sqrt(variance / within) if within > 0.0 else math.inf


def _normal_scores(values: Tensor) -> Tensor:
    """Return normal quantiles of the draws' ranks, ties sharing their average."""
    ranks = stats.rankdata(values.numpy().ravel()).reshape(tuple(values.shape))
    return torch.from_numpy(stats.norm.ppf((ranks - 0.375) / (values.numel() + 0.25)))


def _autocovariance(halves: Tensor) -> Tensor:
    """Return the biased autocovariances at all lags ``[2C, n]``, by Fourier transform."""
    length = halves.shape[1]
    centred = halves - halves.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * length)
    products: Tensor = torch.fft.irfft(spectrum.abs().square(), n=2 * length)
    return products[:, :length] / length
