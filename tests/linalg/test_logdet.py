"""Log-determinants: closed forms, dense truth, brackets, and the errors of what has none."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from curvops.errors import DTypeError, IndefiniteError, InputError, NonFiniteError, ShapeError
from curvops.linalg.estimate import Estimate, UnconvergedWarning
from curvops.linalg.logdet import logdet
from curvops.linalg.spectral_measures import Samples, standard_error
from tests.cases import randn
from tests.linalg.test_lanczos import orthogonal, with_spectrum

F = torch.float64


class Diagonal:
    """A diagonal matrix that only multiplies, and remembers the widest product."""

    def __init__(self, eigenvalues: Tensor) -> None:
        self.eigenvalues, self.widest = eigenvalues, 0
        self.shape = (len(eigenvalues),) * 2
        self.dtype, self.device = eigenvalues.dtype, eigenvalues.device

    def __matmul__(self, x: Tensor) -> Tensor:
        self.widest = max(self.widest, x.shape[1])
        return self.eigenvalues.unsqueeze(1) * x


def exact(eigenvalues: Tensor, shift: float = 0.0) -> float:
    return math.fsum((eigenvalues.double() + shift).log().tolist())


def quietly(*args: object, **options: object) -> Estimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        return logdet(*args, **options)


def holds(estimate: Estimate, truth: float) -> bool:
    return estimate.lower <= truth <= estimate.upper


# ---------------------------------------------------------------------------------- known answers


@pytest.mark.parametrize(
    ("method", "half_width"), [("dense", 1e-9), ("krylov", 12.0), ("slq", 25.0), ("auto", 1e-9)]
)
def test_product_of_bidiagonals(method, half_width):
    n = 512
    B = 2.0 * torch.eye(n, dtype=F) + torch.diag(torch.ones(n - 1, dtype=F), 1)
    truth = 2 * n * math.log(2)
    assert truth == pytest.approx(709.782713, abs=1e-6)
    # singular values of B are at least 2 - 1
    estimate = quietly(B.T @ B, method=method, lower_bound=1.0, num_matvecs=512)
    assert holds(estimate, truth)
    assert estimate.value == pytest.approx(truth, abs=half_width)
    assert estimate.upper - estimate.lower <= 2 * half_width


@pytest.fixture(scope="module")
def hopeless():
    """P = 1000, eigenvalues from 1e-12 to 1: what 80 steps cannot resolve."""
    eigenvalues = torch.logspace(-12, 0, 1000, dtype=F)
    options = {"num_probes": 100, "num_steps": 80, "distribution": "gaussian", "method": "slq"}
    with pytest.warns(UnconvergedWarning, match="Gauss and Gauss-Radau disagree") as caught:
        known = logdet(Diagonal(eigenvalues), lower_bound=1e-12, **options)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    return exact(eigenvalues), known


def test_what_80_steps_cannot_resolve_is_exposed(hopeless):
    truth, estimate = hopeless
    assert truth == pytest.approx(-13815.51, abs=0.01)
    assert not estimate.converged
    assert holds(estimate, truth)
    # The two rules are 9628 and 19230 on average; plain SLQ says the first ± 35.
    assert estimate.upper == pytest.approx(-9628 + 3 * 35, abs=150)
    assert estimate.lower == pytest.approx(-19230, abs=400)
    assert estimate.value == pytest.approx(-(9628 + 19230) / 2, abs=200)
    assert 10 < estimate.stderr < 150
    assert "not converged" in str(estimate)


def test_without_a_lower_bound_nothing_is_promised():
    eigenvalues = torch.logspace(-12, 0, 1000, dtype=F)
    with pytest.warns(UnconvergedWarning, match="Pass lower_bound="):
        estimate = logdet(Diagonal(eigenvalues), method="slq", num_probes=10, num_steps=20)
    assert estimate.lower == -math.inf
    assert not estimate.converged
    assert holds(estimate, exact(eigenvalues))


def test_the_error_of_samples_that_help_each_other():
    """Var t̄ = s²/N + Cov, with Cov from the pair that leaves each other out."""

    def column(*values: float) -> Tensor:
        return torch.tensor(values, dtype=F).unsqueeze(1)

    t, crossed = column(1.0, 3.0, 5.0), column(0.0, 1.0)
    nodes = torch.ones(1, 1, dtype=F)
    apart = Samples(nodes, t).variance(torch.exp)
    assert apart == pytest.approx(math.e**2 * 4 / 3)
    together = Samples(nodes, t, crossed).variance(torch.exp)
    assert together == pytest.approx(math.e**2 * (4 / 3 + (1 - 0) * (3 - 1)))
    opposed = Samples(nodes, t, column(0.0, 5.0)).variance(torch.exp)
    assert opposed == pytest.approx(apart)
    assert standard_error([Samples(nodes, t)] * 4, torch.exp) == pytest.approx(math.sqrt(apart / 4))


# ------------------------------------------------------------------------------ sampled methods


DECAY = torch.arange(1.0, 401.0, dtype=F) ** -2


@pytest.mark.parametrize("method", ["krylov", "slq"])
@pytest.mark.parametrize("seed", range(5))
def test_brackets_hold_and_mean_what_they_say(method, seed):
    shifts = [1e-3, 1e-2, 1.0]
    estimates = quietly(
        Diagonal(DECAY), shifts, method=method, num_matvecs=150, lower_bound=0.0, seed=seed
    )
    for estimate, shift in zip(estimates, shifts, strict=True):
        truth = exact(DECAY, shift)
        assert holds(estimate, truth)
        assert abs(estimate.value - truth) < 4.5 * estimate.stderr + 1e-9
        assert estimate.num_matvecs <= 150
        assert estimate.method == method
        assert len(estimate.samples) >= 4


def test_krylov_beats_slq_at_equal_products():
    errors = {}
    for method in ("krylov", "slq"):
        found = [
            quietly(Diagonal(DECAY), 1e-3, method=method, num_matvecs=150, lower_bound=0.0, seed=s)
            for s in range(10)
        ]
        errors[method] = sorted(abs(e.value - exact(DECAY, 1e-3)) for e in found)[5]
    assert 5 * errors["krylov"] < errors["slq"]


@pytest.mark.parametrize("method", ["krylov", "slq", "dense"])
def test_many_shifts_are_one_run_and_equal_single_runs(method):
    A = with_spectrum(torch.linspace(0.1, 2, 80, dtype=F))
    options = {"method": method, "seed": 3, "lower_bound": 0.0}
    if method != "dense":
        options["num_matvecs"] = 40
    many = quietly(A, torch.tensor([0.1, 0.5, 2.0], dtype=F), **options)
    assert isinstance(many, list)
    for estimate, shift in zip(many, (0.1, 0.5, 2.0), strict=True):
        single = quietly(A, shift, **options)
        assert single.value == estimate.value
        assert (single.lower, single.upper) == (estimate.lower, estimate.upper)
        assert single.num_matvecs == estimate.num_matvecs
    assert logdet(A, [], **options) == []


@pytest.mark.parametrize("method", ["krylov", "slq"])
def test_same_seed_same_bits_and_no_global_generator(method, global_rng_untouched):
    A = Diagonal(DECAY)
    first, again, other = (
        quietly(A, 1e-2, method=method, num_matvecs=80, lower_bound=0.0, seed=seed)
        for seed in (7, 7, 8)
    )
    assert (first.value, first.lower, first.upper) == (again.value, again.lower, again.upper)
    assert torch.equal(first.samples, again.samples)
    assert first.value != other.value
    generator = torch.Generator().manual_seed(0)
    quietly(A, 1e-2, method=method, num_matvecs=80, lower_bound=0.0, seed=generator)


@pytest.mark.parametrize("method", ["krylov", "slq"])
def test_tolerance(method):
    A = Diagonal(DECAY)
    truth = exact(DECAY, 1e-2)
    loose = logdet(A, 1e-2, method=method, rtol=2e-2, max_matvecs=20000, lower_bound=0.0)
    assert loose.converged
    assert loose.upper - loose.lower <= 2 * 2e-2 * abs(loose.value) * (1 + 1e-9)
    assert holds(loose, truth)
    atol = {"krylov": 0.01, "slq": 10.0}[method]
    tight = logdet(A, 1e-2, method=method, atol=atol, max_matvecs=20000, lower_bound=0.0)
    assert tight.converged
    assert tight.num_matvecs > loose.num_matvecs
    assert abs(tight.value - truth) < atol
    with pytest.warns(UnconvergedWarning, match=r"Raise max_matvecs"):
        short = logdet(A, 1e-2, method=method, atol=1e-6, max_matvecs=60, lower_bound=0.0)
    assert short.num_matvecs <= 60
    assert not short.converged


def test_an_adaptive_krylov_space_ends_up_exact():
    estimate = logdet(Diagonal(DECAY), 1e-2, method="krylov", rtol=1e-10, lower_bound=0.0)
    assert estimate.value == pytest.approx(exact(DECAY, 1e-2), rel=1e-10)
    assert estimate.stderr == 0
    assert estimate.converged


def test_slq_gets_deeper_where_steps_are_missing():
    eigenvalues = torch.logspace(-4, 0, 400, dtype=F)
    estimate = quietly(
        Diagonal(eigenvalues), method="slq", rtol=0.05, lower_bound=1e-4, max_matvecs=6000
    )
    assert holds(estimate, exact(eigenvalues))
    assert estimate.converged


@pytest.mark.parametrize("method", ["krylov", "slq"])
def test_memory_does_not_grow_with_the_products(method):
    few, many = Diagonal(DECAY), Diagonal(DECAY)
    options = {"method": method, "lower_bound": 0.0, "memory": 400 * 8 * 40}
    if method == "slq":
        options["num_steps"] = 10
    short = quietly(few, 1e-2, num_matvecs=120, **options)
    long = quietly(many, 1e-2, num_matvecs=1200, **options)
    assert many.widest == few.widest <= 10
    assert long.num_matvecs == 10 * short.num_matvecs
    assert len(long.samples) >= 10 * len(short.samples)
    assert long.stderr < 0.6 * short.stderr
    assert holds(long, exact(DECAY, 1e-2))


def test_prescribed_probes_and_steps():
    for method in ("krylov", "slq"):
        estimate = quietly(Diagonal(DECAY), 1e-2, method=method, num_probes=5, num_steps=7)
        assert estimate.num_matvecs == 35
        assert len(estimate.samples) == 5
    for few in (1, 2, 3):
        for method in ("krylov", "slq"):
            estimate = quietly(Diagonal(DECAY), 1e-2, method=method, num_matvecs=few)
            assert estimate.num_matvecs <= few
            assert math.isfinite(estimate.value)
    one = quietly(Diagonal(DECAY), 1e-2, method="slq", num_probes=1, num_steps=7)
    assert (one.lower, one.upper) == (-math.inf, math.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["krylov", "slq", "dense"])
def test_precision_of_products(method, dtype):
    """In float32 the bracket also holds what rounding does."""
    A = with_spectrum(DECAY).to(dtype)
    truths = [
        float(torch.linalg.slogdet(A.double() + d * torch.eye(400, dtype=F)).logabsdet)
        for d in (1e-3, 1e-1)
    ]
    options = {} if method == "dense" else {"num_matvecs": 150}
    estimate = quietly(A, [1e-3, 1e-1], method=method, lower_bound=-1e-6, **options)
    for e, truth in zip(estimate, truths, strict=True):
        assert holds(e, truth)


# ------------------------------------------------------------------------------------- small ones


@pytest.mark.parametrize("method", ["auto", "dense", "krylov", "slq"])
@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_tiny(method, dim):
    eigenvalues = torch.arange(1.0, dim + 1, dtype=F)
    estimate = quietly(torch.diag(eigenvalues), 0.5, method=method, lower_bound=0.5)
    truth = exact(eigenvalues, 0.5)
    assert holds(estimate, truth) or abs(estimate.value - truth) < 1e-12
    assert estimate.value == pytest.approx(truth, abs=1e-12 if method != "slq" else 0.5)


@pytest.mark.parametrize("method", ["krylov", "slq"])
def test_multiples_of_the_identity_and_low_rank_are_exact(method):
    estimate = logdet(3.0 * torch.eye(60, dtype=F), 1.0, method=method, num_matvecs=60)
    assert estimate.value == pytest.approx(60 * math.log(4), rel=1e-12)
    V = randn(200, 3, seed=1)
    low_rank = quietly(V @ V.T, 1e-2, method="krylov", lower_bound=0.0, num_matvecs=60)
    truth = float(torch.linalg.slogdet(V @ V.T + 1e-2 * torch.eye(200, dtype=F)).logabsdet)
    assert low_rank.value == pytest.approx(truth, rel=1e-11)


def test_enough_products_are_exact():
    A = with_spectrum(torch.linspace(-0.5, 2, 40, dtype=F))
    estimate = logdet(A, 1.0, method="krylov", num_matvecs=100)
    assert estimate.value == pytest.approx(exact(torch.linspace(-0.5, 2, 40, dtype=F), 1.0))
    assert estimate.upper - estimate.lower < 1e-9
    assert estimate.num_matvecs == 40


# ------------------------------------------------------------------------------------ indefinite


@pytest.mark.parametrize("method", ["dense", "krylov", "slq"])
def test_indefinite_names_the_ritz_value_and_a_shift_that_works(method):
    A = with_spectrum(torch.linspace(-0.3, 1, 120, dtype=F))
    options = {"method": method} | ({} if method == "dense" else {"num_matvecs": 100})
    with pytest.raises(IndefiniteError, match=r"most negative Ritz value of A is -0\.") as caught:
        logdet(A, 0.1, **options)
    error = caught.value
    assert -0.3 - 1e-9 <= error.smallest < -0.2
    assert error.sufficient_shift >= 0.3 - 1e-9
    assert error.sufficient_shift < 0.5
    assert error.shift == 0.1
    assert error.num_bad >= 1
    assert math.isfinite(quietly(A, 1.001 * error.sufficient_shift, **options).value)


def test_singular_up_to_rounding():
    for method in ("dense", "krylov"):
        with pytest.raises(IndefiniteError, match="singular up to rounding"):
            logdet(torch.diag(torch.tensor([1.0, 1.0, 0.0])), method=method)


@pytest.mark.parametrize("on_negative", ["abs", "clip"])
@pytest.mark.parametrize("method", ["dense", "krylov", "slq"])
def test_on_negative(method, on_negative):
    eigenvalues = torch.linspace(-0.3, 1, 120, dtype=F)
    taken = eigenvalues.abs() if on_negative == "abs" else eigenvalues.clamp(min=0)
    options = {"method": method} | ({} if method == "dense" else {"num_matvecs": 90})
    estimate = quietly(with_spectrum(eigenvalues), 0.05, on_negative=on_negative, **options)
    truth = exact(taken, 0.05)
    assert holds(estimate, truth)
    assert estimate.method == method + {"abs": " of |A|", "clip": " of A clipped at 0"}[on_negative]
    if method == "dense":
        assert estimate.value == pytest.approx(truth, rel=1e-12)


def test_on_negative_changes_nothing_where_nothing_is_negative():
    plain = quietly(Diagonal(DECAY), 1e-2, method="krylov", lower_bound=0.0, num_matvecs=80)
    taken = quietly(
        Diagonal(DECAY), 1e-2, method="krylov", lower_bound=1e-9, num_matvecs=80, on_negative="abs"
    )
    assert taken.value == pytest.approx(plain.value, rel=1e-6)
    assert math.isfinite(taken.lower)


# ---------------------------------------------------------------------------------------- factors


@pytest.mark.parametrize("rank", [0, 1, 7, 60, 90])
def test_gram_of_a_given_factor(rank):
    V = randn(60, rank, seed=1) if rank else torch.zeros(60, 0, dtype=F)
    A = V @ V.T + 0.2 * torch.eye(60, dtype=F)
    estimate = logdet(A, [0.0, 1e-3], factor=(V, 0.2))
    for e, shift in zip(estimate, (0.0, 1e-3), strict=True):
        truth = float(torch.linalg.slogdet(A + shift * torch.eye(60, dtype=F)).logabsdet)
        assert e.value == pytest.approx(truth, rel=1e-12)
        assert holds(e, truth)
        assert e.method == "gram"
        assert e.stderr == 0
        assert e.converged


def test_a_factor_that_only_multiplies():
    V = randn(60, 9, seed=1)

    class Factor:
        def __init__(self, matrix):
            self.matrix, self.shape = matrix, matrix.shape
            self.dtype, self.device = matrix.dtype, matrix.device

        @property
        def T(self):
            return Factor(self.matrix.T)

        def __matmul__(self, x):
            return self.matrix @ x

    truth = float(torch.linalg.slogdet(V @ V.T + 0.1 * torch.eye(60, dtype=F)).logabsdet)
    assert logdet(V @ V.T, 0.1, factor=Factor(V)).value == pytest.approx(truth, rel=1e-12)


def test_factor_in_panels_of_little_memory():
    V = randn(60, 25, seed=1)
    whole = logdet(V @ V.T, 0.1, factor=V)
    for columns in (1, 4, 24):
        parts = logdet(V @ V.T, 0.1, factor=V, memory=8 * 60 * columns)
        assert parts.value == pytest.approx(whole.value, rel=1e-12)


def test_factors_that_do_not_fit():
    V = randn(60, 5, seed=1)
    A = V @ V.T
    with pytest.raises(InputError, match="factor is no factor of A"):
        logdet(2.0 * A, 0.1, factor=V)
    with pytest.raises(InputError, match="factor is no factor of A"):
        logdet(A, 0.1, factor=(V, 0.1))
    with pytest.raises(ShapeError, match=r"factor has shape \[5, 60\]; expected \[60, r\]"):
        logdet(A, 0.1, factor=V.T)
    with pytest.raises(InputError, match="factor is str"):
        logdet(A, 0.1, factor="V")
    with pytest.raises(InputError, match='factor= is for method="gram"'):
        logdet(A, 0.1, factor=V, method="slq")
    with pytest.raises(InputError, match='method="gram" needs a factor'):
        logdet(A, 0.1, method="gram")
    with pytest.raises(IndefiniteError, match="singular up to rounding"):
        logdet(A, 0.0, factor=V)


# --------------------------------------------------------------------------------- preconditioner


class Known:
    """M = Q diag(m) Qᵀ."""

    def __init__(self, Q, m):
        self.Q, self.m = Q, m

    def logdet(self):
        return float(self.m.log().sum())

    def inverse_sqrt(self):
        return (self.Q * self.m.rsqrt()) @ self.Q.T


def test_preconditioner():
    Q, eigenvalues = orthogonal(150), torch.logspace(-5, 0, 150, dtype=F)
    A = (Q * eigenvalues) @ Q.T
    A = 0.5 * (A + A.T)
    truth = exact(eigenvalues, 1e-5)
    nearly = Known(Q, (eigenvalues + 1e-5) * (1 + 0.3 * torch.rand(150, generator=_rng()).double()))
    options = {"method": "slq", "num_matvecs": 60, "num_steps": 10}
    plain = quietly(A, 1e-5, lower_bound=0.0, **options)
    better = quietly(A, 1e-5, preconditioner=nearly, **options)
    assert holds(better, truth)
    assert better.converged
    assert not plain.converged
    assert better.stderr < 0.05 * plain.stderr
    perfect = logdet(A, 1e-5, preconditioner=Known(Q, eigenvalues + 1e-5), **options)
    assert perfect.value == pytest.approx(truth, abs=1e-6)
    with pytest.raises(InputError, match="takes a single shift"):
        logdet(A, [0.1, 0.2], preconditioner=nearly)
    with pytest.raises(InputError, match=r"which has no logdet and no inverse_sqrt"):
        logdet(A, 0.1, preconditioner=object())
    with pytest.raises(ShapeError, match=r"inverse_sqrt\(\) has shape \[3, 3\]"):
        logdet(A, 0.1, preconditioner=Known(torch.eye(3).double(), torch.ones(3).double()))


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# -------------------------------------------------------------------------------------- the choice


def test_auto():
    A = with_spectrum(torch.linspace(0.5, 1, 80, dtype=F))
    assert logdet(A).method == "dense"
    assert quietly(A, num_matvecs=40).method == "krylov"
    assert logdet(Diagonal(torch.linspace(0.5, 1, 1100).double())).method == "krylov"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "lu"}, InputError, 'method must be one of "auto", "dense"'),
        ({"shift": math.nan}, InputError, "shift must be finite"),
        ({"shift": [0.1, math.inf]}, InputError, "shift must be finite"),
        ({"shift": "much"}, InputError, "shift must be"),
        ({"on_negative": "ignore"}, InputError, 'on_negative must be one of "raise"'),
        ({"on_negative": "abs", "shift": 0.0}, InputError, "needs positive shifts, got 0"),
        ({"num_matvecs": 0}, InputError, "num_matvecs must be a positive integer"),
        ({"num_probes": 2.5}, InputError, "num_probes must be a positive integer"),
        ({"num_steps": -1}, InputError, "num_steps must be a positive integer"),
        ({"memory": 0}, InputError, "memory must be a positive integer"),
        ({"rtol": -1.0}, InputError, "rtol must be a nonnegative number"),
        ({"num_matvecs": 9, "atol": 1.0}, InputError, "exclude each other"),
        ({"lower_bound": math.nan}, InputError, "lower_bound must be finite"),
        ({"lower_bound": 5.0, "method": "slq"}, InputError, "lower_bound=5 is above"),
        ({"lower_bound": 5.0, "method": "krylov"}, InputError, "lower_bound=5 is above"),
        ({"seed": -1}, InputError, "seed must be"),
        ({"distribution": "uniform", "method": "slq"}, InputError, "distribution must be"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        logdet(
            torch.diag(torch.linspace(1, 2, 30)),
            **{"num_matvecs": 20, **options} if not {"rtol"} & set(options) else options,
        )


@pytest.mark.parametrize("method", ["dense", "krylov", "slq"])
def test_bad_matrices(method):
    with pytest.raises(ShapeError, match=r"A has shape \[3, 2\]"):
        logdet(torch.ones(3, 2), method=method)
    with pytest.raises(DTypeError, match=r"torch\.int64"):
        logdet(torch.ones(3, 3, dtype=torch.int64), method=method)
    with pytest.raises(InputError, match="A is list"):
        logdet([[1.0]], method=method)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        logdet(torch.full((3, 3), torch.nan), method=method)
    skew = torch.eye(9) + torch.triu(torch.ones(9, 9), 1)
    with pytest.raises(InputError, match="A is not symmetric"):
        logdet(skew, method=method)


def test_fresh_probes_of_the_trace_are_worth_more_than_depth():
    """At equal products the root mean square error is less than half of what depth alone gives."""
    eigenvalues = (torch.arange(2000, dtype=F) + 1) ** -1.2
    truth, errors = exact(eigenvalues, 0.1), {}
    for way, options in {"with": {}, "without": {"num_probes": 20, "num_steps": 5}}.items():
        found = [
            quietly(
                Diagonal(eigenvalues), 0.1, method="krylov", num_matvecs=100, lower_bound=0.0,
                seed=seed, **options,
            )
            for seed in range(20)
        ]  # fmt: skip
        assert all(estimate.num_matvecs <= 100 for estimate in found)
        assert sum(holds(estimate, truth) for estimate in found) >= 19
        errors[way] = sum((estimate.value - truth) ** 2 for estimate in found) ** 0.5
    assert errors["with"] < 0.5 * errors["without"]


@pytest.mark.parametrize("memory", [None, 2000 * 8 * 60])
def test_a_tolerance_that_is_out_of_reach_spends_all_products(memory):
    eigenvalues = (torch.arange(2000, dtype=F) + 1) ** -1.2
    estimate = quietly(
        Diagonal(eigenvalues), 0.1, method="krylov", rtol=1e-12, max_matvecs=200,
        lower_bound=0.0, memory=memory,
    )  # fmt: skip
    assert estimate.num_matvecs == 200
    assert not estimate.converged
    assert holds(estimate, exact(eigenvalues, 0.1))
