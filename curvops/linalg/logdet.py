"""The log-determinant of a shifted symmetric matrix, with a bracket that holds the truth."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal, Protocol, overload

import numpy as np
import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.estimate import Estimate
from curvops.linalg.logdet_bracket import Answer, from_measures, from_spectrum
from curvops.linalg.logdet_dense import dense_spectrum
from curvops.linalg.logdet_function import LABELS, OnNegative
from curvops.linalg.logdet_gram import MEMORY as GRAM_MEMORY
from curvops.linalg.logdet_gram import check_factor, gram_spectrum
from curvops.linalg.logdet_krylov import KrylovAware
from curvops.linalg.logdet_preconditioned import Preconditioned, Preconditioner
from curvops.linalg.logdet_slq import SLQ
from curvops.linalg.matrix import Matrix, Products
from curvops.linalg.probes import Distribution
from curvops.linalg.sampling import Budget, check_count
from curvops.linalg.spectral_measures import Measures, not_symmetric
from curvops.rng import as_seed

Method = Literal["auto", "dense", "gram", "krylov", "slq"]

METHODS = ("auto", "dense", "gram", "krylov", "slq")

MATVECS = 300
"""Products where neither a number nor a tolerance is given."""

RTOL = 1e-2
"""What quadrature may be off, relative to the value, where no tolerance is given."""

DENSE_DIM = 1000
"""Matrices up to this size are formed by ``"auto"``."""

GRAM_RANK = 2000
"""Factors up to this many columns are used by ``"auto"``."""


@overload
def logdet(A: Matrix, shift: Sequence[float] | Tensor, **options: Any) -> list[Estimate]: ...
@overload
def logdet(A: Matrix, shift: float = 0.0, **options: Any) -> Estimate: ...
def logdet(  # type: ignore[misc]  # the overloads leave out what the options are
    A: Matrix,
    shift: float | Sequence[float] | Tensor = 0.0,
    *,
    method: Method = "auto",
    rtol: float | None = None,
    atol: float | None = None,
    num_matvecs: int | None = None,
    max_matvecs: int | None = None,
    num_probes: int | None = None,
    num_steps: int | None = None,
    distribution: Distribution = "sphere",
    on_negative: OnNegative = "raise",
    lower_bound: float | None = None,
    factor: Any = None,
    preconditioner: Preconditioner | None = None,
    memory: int | None = None,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> Estimate | list[Estimate]:
    r"""Estimate log det(A + δI) of a symmetric matrix, for one shift δ or for many at one price.

    .. math:: \log\det(A + \delta I) = \operatorname{tr} \log(A + \delta I)
        = \sum_i \log(\lambda_i + \delta)

    ============  ==========================================================================
    method
    ============  ==========================================================================
    ``"dense"``   all eigenvalues, from P products
    ``"gram"``    exact for ``A = VVᵀ + cI`` with a factor ``V`` ``[P, r]``: either ``factor=``,
                  or what ``A.gram_factor()`` returns (GGN, empirical Fisher)
    ``"krylov"``  a block Krylov space deflates the probes that it was started with; tr A, which
                  fresh probes know from one product each, is a control variate
    ``"slq"``     plain stochastic Lanczos quadrature, the baseline
    ``"auto"``    ``"dense"`` up to P = 1000, where the products for it are allowed;
                  ``"gram"`` where there is a factor of at most 2000 columns and P / 2;
                  otherwise ``"krylov"``
    ============  ==========================================================================

    **The bracket.** Gauss quadrature over-estimates every probe's part of tr log, and
    Gauss–Radau quadrature with a node below the spectrum under-estimates it. ``lower`` and
    ``upper`` are their means over probes, less and plus three standard errors (Student's
    equivalent for few probes) and what rounding may do; ``value`` is in the middle of the two
    means. The node is 0 if ``A`` says that it is positive semidefinite, else ``lower_bound``,
    else what Lanczos finds at a confidence of 99.99 %
    (:mod:`curvops.linalg.smallest_eigenvalue`). If the shift does not lift it above zero,
    ``lower`` is −∞: nothing seen excludes an eigenvalue at −δ.

    Args:
        A: A symmetric matrix ``[P, P]``: an operator, or a dense tensor.
        shift: δ, or several.
        method: See above.
        rtol: Stop once the bracket is within ``rtol |value|`` of the value.
        atol: Or within ``atol`` nats.
        num_matvecs: Instead: products to make; 300 if no tolerance is given either. The result
            counts as converged if the two rules differ by no more than the probes scatter, or
            than 1 % of the value.
        max_matvecs: Where a tolerance gives up; by default after 17 P / 16 products, at least 300.
        num_probes: Probes, or width of the block, where the choice is not left to the method.
        num_steps: Lanczos steps, or depth of the space, likewise.
        distribution: Of the probes of ``"slq"``. Those of ``"krylov"`` are Gaussian, and what
            is left of them scaled to its average radius.
        on_negative: What a spectrum does that the shift leaves negative: ``"raise"``;
            ``"abs"``: sum log(|λ| + δ); ``"clip"``: sum log(max(λ, 0) + δ). For the last two,
            and unless the spectrum is known to be positive, no quadrature rule is a bound: the
            bracket then is what the value changed by since half the steps, and three standard
            errors.
        lower_bound: A number below all eigenvalues of ``A``, where one is known.
        factor: V with ``A = VVᵀ``, a tensor or anything with ``@`` and ``T``; or ``(V, c)`` with
            ``A = VVᵀ + cI``.
        preconditioner: An approximation M of A + δI with ``logdet()`` and ``inverse_sqrt()``;
            then log det M + tr log M^(-1/2) (A + δI) M^(-1/2) is estimated, for a single shift.
            ``lower_bound`` is that of the preconditioned matrix.
        memory: Bytes for Lanczos vectors (2 GiB for ``"krylov"``, 256 MiB for ``"slq"``) or
            columns of a factor. ``"krylov"`` averages independent runs of that size.
        seed: An integer, or a generator. The global generator is not used.
        progress: Show a bar over the products.

    Returns:
        The estimate in nats, or a list of them, one a shift. ``samples`` is what each probe says.

    Raises:
        ShapeError: If ``A`` is not square, or a factor does not fit.
        DTypeError: If it is not real floating.
        InputError: If an argument is impossible, or ``A`` is seen not to be symmetric.
        IndefiniteError: If a Ritz value shows that A + δI is not positive definite.
        NonFiniteError: If a product holds NaN or infinity.

    Source:
        Ubaru, Chen & Saad 2017 (quadrature). Golub & Meurant 2010 (both bounds). Chen & Hallman
        2023 (deflation by the Krylov space). Epperly, Tropp & Webber 2024 (leaving probes out).

    Example:
        >>> import torch
        >>> eigenvalues = torch.arange(1.0, 2001.0, dtype=torch.float64) ** -2
        >>> e, f = logdet(torch.diag(eigenvalues), [1e-3, 1e-2], method="krylov", lower_bound=0.0)
        >>> e.lower <= float((eigenvalues + 1e-3).log().sum()) <= e.upper
        True
        >>> logdet(2.0 * torch.eye(3), shift=[0.0, 2.0])[1].value  # 3 log 4
        4.15888...
    """
    start = time.perf_counter()
    shifts, known = _shifts(shift), 0.0
    _check(on_negative, shifts, lower_bound)
    if preconditioner is not None:
        A, shifts, known = _relative(A, shifts, preconditioner, method, on_negative)
    products = Products(A)
    if isinstance(A, Tensor):
        _check_symmetric(A)
    options = _options(num_probes, num_steps, memory, seed)
    budget = Budget.of(num_matvecs, rtol, atol, max_matvecs)
    way, V = _choose(A, products, method, factor, num_matvecs)
    with products.progress(progress, f"logdet ({way})"):
        if V is not None:
            spectrum = gram_spectrum(*V, products.dim, memory or GRAM_MEMORY)
            answers = [from_spectrum(spectrum, d, on_negative) for d in shifts]
        elif way == "dense":
            spectrum = dense_spectrum(products)
            answers = [from_spectrum(spectrum, d, on_negative) for d in shifts]
        else:
            limit = _limit(budget, num_matvecs, max_matvecs, num_probes, num_steps, products.dim)
            floor = max(0.0, lower_bound or 0.0) if products.is_psd else lower_bound
            sampler: Sampler = (
                SLQ(products, floor, limit, distribution=distribution, **options)
                if way == "slq"
                else KrylovAware(products, floor, limit, **options)
            )
            answers = _sampled(sampler, products, shifts, on_negative, budget, limit)
    answers = [answer.plus(known) for answer in answers]
    estimates = [
        Estimate(
            value=answer.value,
            stderr=answer.stderr,
            lower=answer.lower,
            upper=answer.upper,
            num_matvecs=products.num_matvecs if V is None else int(V[0].shape[1]),
            converged=_accepts(budget, answer),
            samples=answer.samples,
            method=way + LABELS[on_negative],
            seconds=time.perf_counter() - start,
        )
        for answer in answers
    ]
    doubtful = [i for i, e in enumerate(estimates) if not e.converged]
    if doubtful:
        worst = max(doubtful, key=lambda i: answers[i].half_width)
        estimates[worst].vouched(_remedy(answers[worst], shifts[worst], len(doubtful), budget))
    return estimates if _is_many(shift) else estimates[0]


class Sampler(Protocol):
    """What the stochastic methods have in common: they spend products, and say what they saw."""

    def begin(self) -> None:
        """Make a first, small run."""

    def spend(self) -> None:
        """Make all the products there are."""

    def grow(self, sampling: float, quadrature: float) -> bool:
        """Make more products where they help most; return whether there were any left."""

    def measures(self, coarse: bool) -> Measures:
        """Return the samples so far."""


def _sampled(
    sampler: Sampler,
    products: Products,
    shifts: list[float],
    on_negative: OnNegative,
    budget: Budget,
    limit: int,
) -> list[Answer]:
    """Spend the budget, or as much of it as the tolerance takes."""

    def answers() -> list[Answer]:
        measures = sampler.measures(coarse=on_negative != "raise")
        return [from_measures(measures, d, on_negative, products.eps) for d in shifts]

    if not budget.adaptive:
        products.prepare(limit)
        sampler.spend()
        return answers()
    products.prepare(min(limit, MATVECS))
    sampler.begin()
    while True:
        found = answers()
        doubtful = [answer for answer in found if not _accepts(budget, answer)]
        if not doubtful:
            return found
        worst = max(doubtful, key=lambda answer: answer.half_width)
        if not sampler.grow(worst.sampling, worst.quadrature):
            return found


def _relative(
    A: Matrix,
    shifts: list[float],
    preconditioner: Preconditioner,
    method: Method,
    on_negative: OnNegative,
) -> tuple[Matrix, list[float], float]:
    """Return the preconditioned matrix, its shift 0, and the log-determinant that is known."""
    if len(shifts) != 1 or on_negative != "raise" or method == "gram":
        raise InputError(
            'preconditioner= takes a single shift, on_negative="raise", and no method="gram": a '
            f"preconditioner belongs to its shift. Got {len(shifts)} shifts, "
            f"on_negative={on_negative!r}, method={method!r}."
        )
    relative = Preconditioned(A, shifts[0], preconditioner)
    return relative, [0.0], float(preconditioner.logdet())


def _choose(
    A: Any, products: Products, method: Method, factor: Any, num_matvecs: int | None
) -> tuple[str, tuple[Any, float] | None]:
    """Return the method, and a factor where it takes one."""
    if method not in METHODS:
        names = ", ".join(f'"{name}"' for name in METHODS)
        raise InputError(f"method must be one of {names}; got {method!r}.")
    if factor is not None and method not in ("auto", "gram"):
        raise InputError(f'factor= is for method="gram"; got method={method!r}.')
    if factor is not None:
        V, constant = factor if isinstance(factor, tuple) else (factor, 0.0)
        check_factor(products, V, constant)
        return "gram", (V, constant)
    offers = callable(getattr(A, "gram_factor", None))
    if method == "gram":
        if not offers:
            raise InputError(
                f'method="gram" needs a factor V with A = VVᵀ + cI, and {type(A).__name__} has '
                'no gram_factor(). Pass factor=V or factor=(V, c), or use method="krylov".'
            )
        return "gram", A.gram_factor()
    if method != "auto":
        return method if products.dim else "dense", None
    if products.dim <= DENSE_DIM and products.dim <= (num_matvecs or DENSE_DIM):
        return "dense", None
    if offers:
        pair = _small_factor(A, most=min(GRAM_RANK, products.dim // 2))
        if pair is not None:
            return "gram", pair
    return "krylov", None


def _small_factor(A: Any, most: int) -> tuple[Any, float] | None:
    """Return the factor of an operator if it has one, of so few columns."""
    try:
        V, constant = A.gram_factor()
    except InputError:  # negative curvature of the loss, or data that do not separate
        return None
    return (V, constant) if int(V.shape[1]) <= most else None


def _limit(
    budget: Budget,
    num_matvecs: int | None,
    max_matvecs: int | None,
    num_probes: int | None,
    num_steps: int | None,
    dim: int,
) -> int:
    """Return how many products may be made."""
    if budget.adaptive:
        return max_matvecs or max(dim + dim // 16, MATVECS)
    if num_matvecs is not None:
        return num_matvecs
    if num_probes is not None and num_steps is not None:
        return num_probes * num_steps
    return MATVECS


def _accepts(budget: Budget, answer: Answer) -> bool:
    """Whether the bracket is as narrow as asked; where nothing was asked, whether steps suffice."""
    if budget.adaptive:
        return answer.half_width <= budget.tolerance(abs(answer.value))
    enough = max(answer.sampling, RTOL * abs(answer.value))
    return math.isfinite(answer.half_width) and answer.quadrature <= enough


def _remedy(answer: Answer, shift: float, num_doubtful: int, budget: Budget) -> str:
    """Return what to do about the worst of the estimates that have not converged."""
    asked = f" (asked: rtol={budget.rtol:g}, atol={budget.atol:g})" if budget.adaptive else ""
    limit = "max_matvecs" if budget.adaptive else "num_matvecs"
    if math.isinf(answer.quadrature):
        remedy = (
            "nothing seen excludes eigenvalues of A at minus the shift. Pass lower_bound= (0 for "
            f"a positive semidefinite matrix), a larger shift, or a larger {limit}."
        )
    elif answer.quadrature > answer.sampling:
        remedy = (
            f"Gauss and Gauss-Radau disagree{asked}. Raise {limit}, or num_steps with "
            "fewer num_probes, or the shift."
        )
    else:
        remedy = f"the probes scatter{asked}. Raise {limit}."
    others = f" {num_doubtful} shifts have not converged." if num_doubtful > 1 else ""
    return f"At shift {shift:g} {remedy}{others}"


def _is_many(shift: object) -> bool:
    if isinstance(shift, (Tensor, np.ndarray)):
        return shift.ndim > 0
    return isinstance(shift, Sequence)


def _shifts(shift: Any) -> list[float]:
    """Return the shifts as floats."""
    try:
        many = list(shift) if _is_many(shift) else [shift]
        values = [float(d) for d in many]
    except (TypeError, ValueError) as error:
        raise InputError(f"shift must be a number or several, got {shift!r}.") from error
    if any(not math.isfinite(d) for d in values) or isinstance(shift, (str, bool)):
        raise InputError(f"shift must be finite, got {shift!r}.")
    return values


def _check(on_negative: str, shifts: list[float], lower_bound: float | None) -> None:
    if on_negative not in LABELS:
        names = ", ".join(f'"{name}"' for name in LABELS)
        raise InputError(f"on_negative must be one of {names}; got {on_negative!r}.")
    if on_negative != "raise" and any(d <= 0 for d in shifts):
        raise InputError(
            f'on_negative="{on_negative}" needs positive shifts, got {min(shifts):g}: without '
            "one, log has no value at eigenvalues that are zero."
        )
    if lower_bound is not None and not math.isfinite(lower_bound):
        raise InputError(f"lower_bound must be finite, got {lower_bound!r}.")


def _check_symmetric(A: Tensor) -> None:
    asymmetry = float((A - A.mT).abs().max()) if A.numel() else 0.0
    size = float(A.abs().max()) if A.numel() else 0.0
    if asymmetry > torch.finfo(A.dtype).eps ** 0.5 * size:
        raise not_symmetric(asymmetry, size)


def _options(
    num_probes: int | None,
    num_steps: int | None,
    memory: int | None,
    seed: int | torch.Generator,
) -> dict[str, Any]:
    """Return what both stochastic methods take."""
    given = {"num_probes": num_probes, "num_steps": num_steps, "memory": memory}
    options = {name: check_count(name, n) for name, n in given.items() if n is not None}
    return options | {"seed": as_seed(seed)}
