"""Eigenpairs against dense float64: multiplicity, clusters, noise, every end and kind of matrix."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import linalg as sparse
from torch import Tensor, nn

from curvops import HessianLinearOperator
from curvops.errors import DTypeError, InputError, NonFiniteError, ShapeError
from curvops.linalg import krylov_basis, thick_restart
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.linalg.estimate import UnconvergedWarning
from curvops.linalg.thick_restart import search_length

WHICH = ("LM", "LA", "SA", "BE")


def rotated(values: Tensor, seed: int = 0) -> Tensor:
    """A dense symmetric matrix with these eigenvalues."""
    g = torch.Generator().manual_seed(seed)
    n = len(values)
    Q = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=torch.float64)).Q
    A = (Q * values.double()) @ Q.T
    return (A + A.T) / 2


def expected(values: Tensor, which: str, k: int) -> Tensor:
    """What SciPy's words mean, written out."""
    asc = values.double().sort().values
    n = len(asc)
    if which == "LA":
        return asc[n - k :]
    if which == "SA":
        return asc[:k]
    if which == "LM":
        return torch.tensor(sorted(sorted(asc.tolist(), key=abs)[n - k :]), dtype=torch.float64)
    low = k // 2
    return torch.cat([asc[:low], asc[n - (k - low) :]])


def check(A: Tensor, values: Tensor, found: EighResult, k: int, which: str, atol: float) -> None:
    """Values, order, orthonormality, and that the residuals are the true ones."""
    torch.testing.assert_close(
        found.eigenvalues, expected(values, which, k), atol=atol, rtol=0, check_dtype=False
    )
    assert found.eigenvectors is not None
    X = found.eigenvectors.double()
    eps = torch.finfo(found.eigenvectors.dtype).eps
    assert float((X.T @ X - torch.eye(k)).abs().max()) < 200 * eps
    true = (A.double() @ X - X * found.eigenvalues).norm(dim=0)
    rounding = 20 * eps * float(values.abs().max()) * (1 + found.num_restarts) ** 0.5
    assert bool((true <= 1.05 * found.residuals + rounding).all())
    assert bool((found.residuals <= 1.05 * true + rounding).all())


class Diagonal:
    """A diagonal matrix known by its products, which are counted."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.products = values, 0
        self.shape = (len(values), len(values))
        self.dtype, self.device = values.dtype, values.device

    def __matmul__(self, x: Tensor) -> Tensor:
        self.products += 1 if x.ndim == 1 else x.shape[1]
        return self.values * x if x.ndim == 1 else self.values[:, None] * x


BULK = torch.linspace(-0.97, 1, 300, dtype=torch.float64)
SPECTRA: dict[str, tuple[Tensor, int]] = {
    "smooth": (torch.linspace(0.2, 1, 300, dtype=torch.float64) ** 2, 8),
    "indefinite": (torch.cat([BULK, torch.tensor([-9.0, -5.0, 4.0, 6.0, 7.0])]), 5),
    "multiple": (
        torch.cat([BULK, torch.tensor([10.0] * 9 + [8.0] * 9 + [5.0] * 9 + [-7.0] * 4)]),
        20,
    ),
    "cut through a cluster": (torch.cat([BULK, 5 + 1e-5 * torch.arange(8.0)]), 5),
    "two of one": (torch.cat([BULK, torch.tensor([5.0, 5.0])]), 2),
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", list(SPECTRA))
def test_matches_dense(name: str, which: Any, global_rng_untouched: None) -> None:
    values, k = SPECTRA[name]
    A = rotated(values)
    found = eigsh(A, k, which)
    assert bool(found.converged.all())
    assert found.method == "krylov"
    check(A, values, found, k, which, 1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_no_copy_is_missed_whatever_the_seed(seed: int) -> None:
    values, k = SPECTRA["multiple"]
    found = eigsh(Diagonal(values), k, "LA", seed=seed)
    torch.testing.assert_close(found.eigenvalues, expected(values, "LA", k), atol=1e-8, rtol=0)
    assert found.num_checks > 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("copies", [2, 3])
def test_copies_grow_out_of_the_perturbation(copies: int, seed: int) -> None:
    # Outliers that converge long before the last pairs. Copies that grow from the rounding of
    # float64 would not be there yet.
    bulk = torch.linspace(-1, 1, 2000, dtype=torch.float64)
    values = torch.cat([bulk, torch.tensor([4.0, 3.0, 2.5]).repeat(copies)])
    for tol in (1e-2, 1e-4):
        found = eigsh(Diagonal(values), 12, "LA", seed=seed, tol=tol)
        outliers = 3 * copies
        truth = expected(values, "LA", outliers)
        torch.testing.assert_close(found.eigenvalues[-outliers:], truth, atol=0.1 * tol, rtol=0)


def test_the_perturbation_saves_products(monkeypatch: pytest.MonkeyPatch) -> None:
    bulk = torch.linspace(-1, 1, 300, dtype=torch.float64)
    values = torch.cat([bulk * bulk.abs(), torch.tensor([2.0, 1.8, 1.7]).double().repeat(2)])

    def products() -> int:
        found = [eigsh(Diagonal(values), 7, "LA", seed=seed, tol=1e-3) for seed in range(6)]
        truth = expected(values, "LA", 7)
        assert all(float((f.eigenvalues - truth).abs().max()) < 1e-5 for f in found)
        return sum(f.num_matvecs for f in found)

    used = products()
    monkeypatch.setattr(thick_restart, "PERTURBATION", 1e-12)
    assert used < 0.95 * products()


@pytest.mark.parametrize("which", WHICH)
def test_every_k_up_to_the_dimension(which: Any) -> None:
    values = torch.cat([BULK[::4], torch.tensor([3.0, 3.0, -4.0])])
    A = rotated(values)
    for k in (1, 2, 10, 37, 39, 60, len(values) - 1, len(values)):
        found = eigsh(A, k, which)
        assert bool(found.converged.all())
        check(A, values, found, k, which, 1e-9)


@pytest.mark.parametrize("dim", [1, 2, 3, 65])
def test_small_matrices(dim: int) -> None:
    values = torch.arange(1.0, dim + 1, dtype=torch.float64)
    for k in range(1, min(dim, 4) + 1):
        check(rotated(values), values, eigsh(rotated(values), k), k, "LM", 1e-10)


@pytest.mark.parametrize("rank", [0, 1, 3])
@pytest.mark.parametrize("which", WHICH)
def test_low_rank(rank: int, which: Any) -> None:
    values = torch.zeros(200, dtype=torch.float64)
    values[:rank] = torch.tensor([3.0, -2.0, 1.0])[:rank]
    A = rotated(values)
    found = eigsh(A, 5, which)
    assert bool(found.converged.all())
    check(A, values, found, 5, which, 1e-12)
    assert found.num_matvecs < 30


def test_a_multiple_of_the_identity() -> None:
    values = torch.full((150,), -2.0, dtype=torch.float64)
    found = eigsh(Diagonal(values), 4)
    torch.testing.assert_close(found.eigenvalues, values[:4])
    assert found.num_matvecs < 12


def test_restarts_with_a_small_basis() -> None:
    values, _ = SPECTRA["smooth"]
    A = rotated(values)
    for which in ("LA", "BE", "LM"):
        found = eigsh(A, 4, which, ncv=20, tol=1e-7)  # type: ignore[arg-type]
        assert found.num_restarts > 1
        if which != "BE":
            check(A, values, found, 4, which, 1e-7)
    values, k = SPECTRA["multiple"]
    found = eigsh(rotated(values), k, "LA", ncv=45)
    check(rotated(values), values, found, k, "LA", 1e-7)


def test_float32_products_reach_what_their_rounding_allows() -> None:
    values = torch.cat([torch.logspace(-6, 0, 300, dtype=torch.float64)])
    A = rotated(values).float()
    values = torch.linalg.eigvalsh(A.double())
    found = eigsh(A, 5, "LA", tol=1e-4)
    assert bool(found.converged.all())
    check(A, values, found, 5, "LA", 1e-5)
    with pytest.warns(UnconvergedWarning, match=r"rounding .* float64") as warned:
        found = eigsh(A, 5, "LA", tol=1e-12)
    assert len(warned) == 1
    assert not bool(found.converged.any())
    assert found.num_matvecs < 250
    assert float(found.residuals.max()) < 5e-6
    check(A, values, found, 5, "LA", 1e-5)
    assert bool(eigsh(A, 5, "LA", tol=0.0).converged.all())


def test_asymmetric_rounding_counts() -> None:
    g = torch.Generator().manual_seed(1)
    values, _ = SPECTRA["smooth"]
    A = rotated(values)
    noisy = A + 1e-6 * torch.randn(A.shape, generator=g, dtype=torch.float64)
    with pytest.warns(UnconvergedWarning, match="rounding"):
        found = eigsh(noisy, 4, "LA", tol=1e-10)
    assert found.eigenvectors is not None
    X = found.eigenvectors
    true = (noisy @ X - X * found.eigenvalues).norm(dim=0)
    assert bool((found.residuals > 0.3 * true).all())
    assert bool((found.residuals < 3 * true).all())


def test_fewer_products_than_arpack() -> None:
    g = np.random.default_rng(0)
    bulk = torch.linspace(-1, 1, 4000) ** 3
    values = torch.cat([bulk, 1 + torch.logspace(-2, 0.7, 20)])
    for which in ("LA", "LM"):
        A, ours = Diagonal(values), []
        theirs = []
        for seed in range(3):
            found = eigsh(A, 20, which, tol=1e-4, seed=seed)  # type: ignore[arg-type]
            ours.append(found.num_matvecs)
            torch.testing.assert_close(
                found.eigenvalues, expected(values, which, 20), atol=1e-5, rtol=0
            )
            B = Diagonal(values)

            def multiply(x: np.ndarray, B: Diagonal = B) -> np.ndarray:
                return (B @ torch.from_numpy(x.reshape(-1))).numpy()

            shape = (len(values), len(values))
            operator = sparse.LinearOperator(shape, matvec=multiply, dtype=np.float32)
            start = g.standard_normal(len(values)).astype(np.float32)
            sparse.eigsh(operator, k=20, which=which, tol=1e-4, v0=start)
            theirs.append(B.products)
        assert A.products == sum(ours)
        assert sum(ours) < 0.97 * sum(theirs)


# Starts -------------------------------------------------------------------------------------


def test_an_eigenvector_as_start_hides_nothing() -> None:
    values, _ = SPECTRA["indefinite"]
    for k in (1, 3):
        start = torch.zeros(len(values), dtype=torch.float64)
        start[3] = 1
        found = eigsh(Diagonal(values), k, "LA", v0=start)
        torch.testing.assert_close(found.eigenvalues, expected(values, "LA", k), atol=1e-8, rtol=0)


def test_a_block_with_dependent_columns() -> None:
    values, k = SPECTRA["multiple"]
    A = rotated(values)
    g = torch.Generator().manual_seed(2)
    start = torch.randn(len(values), 3, generator=g, dtype=torch.float64)
    start = torch.cat([start, start @ torch.ones(3, 1, dtype=torch.float64), 0 * start[:, :1]], 1)
    check(A, values, eigsh(A, k, "LA", v0=start), k, "LA", 1e-8)
    check(A, values, eigsh(A, k, "LA", block_size=9), k, "LA", 1e-8)


def test_a_warm_start_saves_products() -> None:
    g = torch.Generator().manual_seed(3)
    bulk = torch.linspace(-1, 1, 800, dtype=torch.float64)
    values = torch.cat([bulk, torch.linspace(1.02, 2, 10, dtype=torch.float64)])
    A = rotated(values)
    E = torch.randn(A.shape, generator=g, dtype=torch.float64)
    E = (E + E.T) / E.norm() * E.shape[0] ** 0.5
    before = eigsh(A, 10, "LA", tol=1e-4)
    used = []
    for change in (0.0, 1e-4, 1e-2):
        B = A + change * E
        cold, warm = eigsh(B, 10, "LA", tol=1e-4), eigsh(B, 10, "LA", tol=1e-4, warm_start=before)
        check(B, torch.linalg.eigvalsh(B), warm, 10, "LA", 1e-4)
        assert bool(warm.converged.all())
        used.append((warm.num_matvecs, cold.num_matvecs))
    assert used[0][0] < 40  # the vectors once, and a search for what they lack
    assert all(1.5 * warm < cold for warm, cold in used)
    tensor = eigsh(A, 10, "LA", tol=1e-4, warm_start=before.eigenvectors)
    assert tensor.num_matvecs < 40


def test_a_warm_start_follows_a_slowly_changing_matrix() -> None:
    g = torch.Generator().manual_seed(4)
    n, k = 1200, 3
    values = torch.cat([torch.linspace(-0.3, 0.3, n - 5), torch.tensor([1.0, 1.4, 2.0, 3.0, 5.0])])
    values = values.double()
    A = torch.diag(values)
    drift = torch.randn(n, 8, generator=g, dtype=torch.float64) / n**0.5
    warm = eigsh(A, k, "LA", tol=1e-2)
    used = []
    for _ in range(6):
        A = A + 0.01 * (drift @ drift.T + torch.outer(A[:, -1], drift[:, 0]))
        A = (A + A.T) / 2
        cold, warm = eigsh(A, k, "LA", tol=1e-2), eigsh(A, k, "LA", tol=1e-2, warm_start=warm)
        truth = torch.linalg.eigvalsh(A)
        torch.testing.assert_close(warm.eigenvalues, truth[-k:], atol=0, rtol=1e-3)
        used.append((warm.num_matvecs, cold.num_matvecs))
    assert 2 * sum(warm for warm, _ in used) < sum(cold for _, cold in used)


@pytest.mark.parametrize("seed", range(8))
def test_a_warm_start_finds_what_has_grown_out_of_nothing(seed: int) -> None:
    values, _ = SPECTRA["indefinite"]
    A = torch.diag(values)
    before = eigsh(A, 3, "LA", tol=1e-2, seed=seed)
    assert before.eigenvectors is not None
    assert before.start is not None
    u = torch.randn(len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    known = torch.linalg.qr(torch.cat([before.eigenvectors, before.start[:, None]], 1)).Q
    u -= known @ (known.T @ u)
    u /= u.norm()
    grown = A + 25 * torch.outer(u, u)
    found = eigsh(grown, 3, "LA", tol=1e-2, warm_start=before, seed=seed)
    truth = torch.linalg.eigvalsh(grown)[-3:]
    torch.testing.assert_close(found.eigenvalues, truth, atol=0, rtol=1e-2)
    small = A + 9 * torch.outer(u, u)
    for _ in range(4):
        before = eigsh(small, 3, "LA", tol=1e-2, warm_start=before, seed=seed)
    truth = torch.linalg.eigvalsh(small)[-3:]
    torch.testing.assert_close(before.eigenvalues, truth, atol=0, rtol=1e-2)


class Grown(Diagonal):
    """A diagonal matrix and one more eigenvector, orthogonal to what was known."""

    def __init__(self, values: Tensor, u: Tensor, size: float) -> None:
        super().__init__(values)
        self.u, self.size = u, size

    def __matmul__(self, x: Tensor) -> Tensor:
        added = self.u * (self.u @ x) if x.ndim == 1 else self.u[:, None] * (self.u @ x)
        return super().__matmul__(x) + self.size * added


def test_a_warm_start_is_not_blind_to_a_larger_eigenvalue() -> None:
    """What was found is an eigenvector still, so that its residual says nothing."""
    bulk = torch.linspace(-0.03, 0.1, 10_000)
    values = torch.cat([bulk, torch.tensor([2.0, 2.5, 3.2, 4.0, 5.0, 6.0])])
    for seed in range(8):
        before = eigsh(Diagonal(values), 1, "LA", tol=1e-2, seed=seed)
        u = torch.randn(len(values), generator=torch.Generator().manual_seed(seed))
        u[-6:] = 0
        grown = Grown(values, u / u.norm(), 13.0)
        found = eigsh(grown, 1, "LA", tol=1e-2, warm_start=before, seed=seed)
        assert float(found.eigenvalues[0]) == pytest.approx(13.0, abs=0.1)


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_a_warm_start_keeps_copies(tol: float) -> None:
    values, k = SPECTRA["multiple"]
    A = rotated(values)
    E = torch.randn(A.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    E = (E + E.T) / E.norm() * len(A) ** 0.5
    before = eigsh(A, k, "LA", tol=tol)
    for change in (0.0, 1e-3, 1e-2, 1e-1):
        B = A + change * E
        warm = eigsh(B, k, "LA", tol=tol, warm_start=before)
        truth = torch.linalg.eigvalsh(B)[-k:]
        torch.testing.assert_close(warm.eigenvalues, truth, atol=0, rtol=max(tol, 1e-8))
        if not change:
            assert 3 * warm.num_matvecs < before.num_matvecs


def test_the_same_seed_gives_the_same_bits(global_rng_untouched: None) -> None:
    values, k = SPECTRA["multiple"]
    A = rotated(values)
    one, two, other = (eigsh(A, k, seed=seed) for seed in (5, 5, 6))
    assert one.eigenvectors is not None
    assert two.eigenvectors is not None
    assert torch.equal(one.eigenvalues, two.eigenvalues)
    assert torch.equal(one.eigenvectors, two.eigenvectors)
    assert not torch.equal(one.eigenvectors, other.eigenvectors)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(9)
    torch.testing.assert_close(eigsh(A, k, seed=g).eigenvalues, one.eigenvalues)


# Costs and results --------------------------------------------------------------------------


def test_products_run_out() -> None:
    values, _ = SPECTRA["smooth"]
    A = Diagonal(values)
    with pytest.warns(UnconvergedWarning, match=r"20 products were not enough.*max_matvecs"):
        found = eigsh(A, 4, "SA", max_matvecs=20)
    assert found.num_matvecs == A.products == 20
    assert not bool(found.converged.all())
    check(torch.diag(values), values, found, 4, "SA", 1.0)
    values, _ = SPECTRA["two of one"]
    needed = eigsh(Diagonal(values), 2, "LA", tol=1e-4).num_matvecs
    with pytest.warns(UnconvergedWarning, match="copies"):
        eigsh(Diagonal(values), 2, "LA", max_matvecs=needed - 3, tol=1e-4)


def test_no_vectors_unless_asked() -> None:
    values, _ = SPECTRA["smooth"]
    found = eigsh(rotated(values), 3, return_eigenvectors=False)
    assert found.eigenvectors is None
    with pytest.raises(InputError, match="return_eigenvectors"):
        eigsh(rotated(values), 3, warm_start=found)


def test_result_prints_and_converts() -> None:
    found = eigsh(rotated(BULK), 3, "LA")
    assert str(found).startswith("3 eigenvalues (LA) in [0.98")
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["num_matvecs"] == found.num_matvecs
    assert len(plain["eigenvalues"]) == 3
    assert "eigenvectors" not in plain


def test_basis_dtype_and_device() -> None:
    values, _ = SPECTRA["smooth"]
    A = rotated(values)
    found = eigsh(A.float(), 3, "LA", tol=1e-4)
    assert found.eigenvectors is not None
    assert found.eigenvectors.dtype == torch.float32
    assert found.eigenvalues.dtype == found.residuals.dtype == torch.float64
    wide = eigsh(A.float(), 3, "LA", tol=1e-4, basis_dtype=torch.float64, basis_device="cpu")
    assert wide.eigenvectors is not None
    assert wide.eigenvectors.dtype == torch.float64
    values = torch.cat([BULK, torch.tensor([5.0, 7.0, 9.0])])
    B = rotated(values).to(torch.bfloat16)
    half = eigsh(B, 3, "LA")
    assert half.eigenvectors is not None
    assert half.eigenvectors.dtype == torch.float32
    exact = torch.linalg.eigvalsh(B.double())[-3:]
    torch.testing.assert_close(half.eigenvalues, exact, atol=0.02, rtol=0)


def test_memory_bounds_the_basis(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.cat([torch.linspace(-1, 1, 500), 1 + torch.arange(1.0, 5.0) / 50]).double()
    module = sys.modules["curvops.linalg.eigsh"]  # the package exports the function by this name
    monkeypatch.setattr(module, "BASIS_BYTES", 30 * len(values) * 8)
    found = eigsh(Diagonal(values), 4, "LA")
    assert found.num_restarts > 0
    torch.testing.assert_close(found.eigenvalues, expected(values, "LA", 4), atol=1e-7, rtol=0)


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    eigsh(rotated(BULK), 3, progress=True)
    assert "eigsh" in capsys.readouterr().err


def test_search_length_grows_with_the_logarithm_of_the_dimension() -> None:
    assert search_length(10**8) - search_length(10**4) == pytest.approx(5, abs=1)
    assert search_length(100, gap=float("inf")) == 0


# Operators ----------------------------------------------------------------------------------


def softmax_regression(classes: int = 4, dim: int = 30, size: int = 60) -> tuple[Any, Tensor]:
    """The Hessian at W = 0, and XᵀX/(nC)."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(size, dim, generator=g, dtype=torch.float64)
    y = torch.randint(classes, (size,), generator=g)
    model = nn.Linear(dim, classes, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    data = [(X[:25], y[:25]), (X[25:], y[25:])]
    operator = HessianLinearOperator(model, nn.CrossEntropyLoss(), model, data)
    return operator, X.T @ X / (size * classes)


@pytest.mark.parametrize(
    ("classes", "dim", "k"), [(4, 30, 2), (4, 30, 3), (4, 60, 9), (4, 60, 10), (10, 30, 20)]
)
def test_softmax_regression_has_every_eigenvalue_c_minus_one_times(
    classes: int, dim: int, k: int
) -> None:
    operator, gram = softmax_regression(classes, dim, 2 * dim)
    truth = torch.linalg.eigvalsh(gram).repeat_interleave(classes - 1)
    for seed in (0, 1):
        found = eigsh(operator, k, "LA", seed=seed, tol=1e-6)
        torch.testing.assert_close(found.eigenvalues, truth[-k:], atol=1e-8, rtol=0)
        assert bool(found.converged.all())


def test_softmax_regression_has_a_zero_for_every_feature() -> None:
    operator, _ = softmax_regression()
    zeros = eigsh(operator, 12, "SA")
    torch.testing.assert_close(zeros.eigenvalues, torch.zeros(12).double(), atol=1e-12, rtol=0)
    assert bool(zeros.converged.all())


def test_announces_its_products() -> None:
    announced = []

    class Announced(Diagonal):
        def prepare(self, num_products: int) -> None:
            announced.append(num_products)

    eigsh(Announced(BULK), 3)
    assert len(announced) == 1
    assert announced[0] >= 20


def test_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops")
    g = torch.Generator().manual_seed(0)
    X = torch.randn(20, 30, generator=g, dtype=torch.float64)
    y = torch.randint(4, (20,), generator=g)
    model = nn.Linear(30, 4, bias=False).double()
    args = (model, nn.CrossEntropyLoss(), list(model.parameters()), [(X, y)])
    theirs = curvlinops.HessianLinearOperator(*args)
    ours = HessianLinearOperator(*args)
    torch.testing.assert_close(
        eigsh(theirs, 4).eigenvalues, eigsh(ours, 4).eigenvalues, atol=1e-9, rtol=0
    )


def test_linear_operator() -> None:
    lazy = pytest.importorskip("linear_operator").operators
    values = torch.linspace(1, 5, 100, dtype=torch.float64)
    found = eigsh(lazy.DiagLinearOperator(values), 3, "LA")
    torch.testing.assert_close(found.eigenvalues, values[-3:], atol=1e-8, rtol=0)
    identity = lazy.IdentityLinearOperator(100, dtype=torch.float64)
    found = eigsh(identity, 3)
    torch.testing.assert_close(found.eigenvalues, torch.ones(3).double())


def test_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    values, k = SPECTRA["multiple"]
    A = rotated(values).cuda()
    found = eigsh(A, k, "LA", basis_device="cpu")
    assert found.eigenvalues.is_cuda
    torch.testing.assert_close(
        found.eigenvalues.cpu(), expected(values, "LA", k), atol=1e-8, rtol=0
    )


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"k": 0}, InputError, "k must be an integer of 1 to 300, got 0"),
        ({"k": 301}, InputError, "got 301"),
        ({"k": 2.0}, InputError, "got 2.0"),
        ({"k": True}, InputError, "got True"),
        ({"which": "SM"}, InputError, "'SM'"),
        ({"tol": -1.0}, InputError, "tol"),
        ({"tol": float("nan")}, InputError, "tol"),
        ({"block_size": 0}, InputError, "block_size"),
        ({"max_matvecs": 2}, InputError, "max_matvecs must be an integer of 6 or more"),
        ({"ncv": 6}, InputError, "ncv must be an integer of 7 to 300"),
        ({"seed": -1}, InputError, "seed"),
        ({"v0": torch.full((300,), float("nan"))}, NonFiniteError, "v0"),
        ({"v0": torch.zeros(300)}, InputError, "v0 is zero"),
        ({"v0": torch.ones(299)}, ShapeError, r"\[299\]"),
        ({"v0": torch.ones(300, dtype=torch.int64)}, DTypeError, "int64"),
        ({"v0": np.ones(300)}, InputError, "ndarray"),
        ({"v0": torch.ones(300), "warm_start": torch.ones(300, 2)}, InputError, "one of them"),
        ({"warm_start": torch.ones(3, 2)}, ShapeError, "warm_start"),
        ({"basis_dtype": torch.int32}, DTypeError, "basis_dtype"),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    A = Diagonal(BULK)
    with pytest.raises(error, match=match):
        eigsh(A, **arguments)
    assert A.products == 0


def test_bad_matrices() -> None:
    with pytest.raises(ShapeError, match="square"):
        eigsh(torch.ones(3, 4), 1)
    with pytest.raises(DTypeError, match="int64"):
        eigsh(torch.ones(3, 3, dtype=torch.int64), 1)
    with pytest.raises(InputError, match="ndarray"):
        eigsh(np.eye(3), 1)  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="NaN"):
        eigsh(torch.full((100, 100), float("nan")), 1)
    with pytest.raises(InputError, match="empty"):
        eigsh(torch.ones(0, 0), 1)


def test_restoring_orthogonality_for_many_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside full orthogonalisation at every step, on rows longer than a chunk."""
    g = torch.Generator().manual_seed(4)
    d = torch.cat([torch.linspace(-3, 3, 5000), torch.tensor([5.0, 8.0, 8.5, 40.0])]).double()
    mix = torch.randn(len(d), 3, generator=g, dtype=torch.float64) / len(d) ** 0.5
    A = Sum(d, mix)
    seen: list[int] = []
    remove = krylov_basis.remove

    def counted(V: Tensor, W: Tensor) -> Tensor:
        seen.append(len(V))
        return remove(V, W)

    monkeypatch.setattr(krylov_basis, "remove", counted)
    lazy = eigsh(A, k=8, which="LA", ncv=40)
    few = len([n for n in seen if n > krylov_basis.LAZY])
    monkeypatch.setattr(krylov_basis, "MOST", 0.0)
    full = eigsh(A, k=8, which="LA", ncv=40)
    many = len([n for n in seen if n > krylov_basis.LAZY]) - few
    assert few < 0.1 * lazy.num_matvecs
    assert many > 0.9 * full.num_matvecs
    assert abs(lazy.num_matvecs - full.num_matvecs) <= 0.05 * full.num_matvecs
    torch.testing.assert_close(lazy.eigenvalues, full.eigenvalues, rtol=1e-10, atol=0)
    assert lazy.eigenvectors is not None
    X = lazy.eigenvectors
    assert float((X.T @ X - torch.eye(8)).abs().max()) < 1e-12
    true = (A @ X - X * lazy.eigenvalues).norm(dim=0)
    torch.testing.assert_close(true, lazy.residuals, rtol=0.05, atol=1e-12)


class Sum:
    """A diagonal matrix and one of rank 3, never formed."""

    def __init__(self, d: Tensor, mix: Tensor) -> None:
        self.d, self.mix = d, mix
        self.shape, self.dtype, self.device = (len(d), len(d)), d.dtype, d.device

    def __matmul__(self, X: Tensor) -> Tensor:
        return self.d[:, None] * X + self.mix @ (self.mix.T @ X)
