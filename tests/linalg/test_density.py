"""Spectral densities against the eigenvalues themselves."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import GGNLinearOperator
from curvops.errors import DTypeError, InputError, NonFiniteError, ShapeError
from curvops.linalg.density import spectral_density
from curvops.linalg.density_result import SpectralDensity
from curvops.linalg.eigsh import eigsh

BULK = torch.linspace(-1, 2, 120, dtype=torch.float64) ** 3
SPECTRA = {
    "smooth": BULK,
    "outliers": torch.cat([BULK / 8, torch.tensor([3.0, 5.0, 9.0]).double()]),
    "two lumps": torch.cat([torch.full((60,), -1.0), torch.full((40,), 2.0)]).double(),
    "decay": 0.8 ** torch.arange(150, dtype=torch.float64),
    "zero": torch.zeros(50, dtype=torch.float64),
}


def rotated(values: Tensor) -> Tensor:
    g = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64)).Q
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def wasserstein(density: SpectralDensity, values: Tensor) -> float:
    """∫ |F - G| over the line, from the definition."""
    nodes = torch.cat([density.nodes.flatten(), density.outliers])
    share = (density.dim - len(density.outliers)) / density.dim / max(len(density.nodes), 1)
    masses = torch.cat(
        [density.weights.flatten() * share, torch.full_like(density.outliers, 1 / density.dim)]
    )
    x = torch.cat([nodes, values]).sort().values
    F = (values.sort().values.unsqueeze(0) <= x.unsqueeze(1)).double().mean(1)
    G = ((nodes.unsqueeze(0) <= x.unsqueeze(1)) * masses).sum(1)
    return float(((F - G).abs()[:-1] * x.diff()).sum())


@pytest.mark.parametrize("deflate", [0, 3])
@pytest.mark.parametrize("name", list(SPECTRA))
def test_the_wasserstein_bound_holds(name: str, deflate: int, global_rng_untouched: None) -> None:
    values = SPECTRA[name]
    A = rotated(values)
    held = []
    for seed in range(20):
        density = spectral_density(A, 4, 12, seed, deflate=deflate)
        assert density.wasserstein == pytest.approx(
            density.wasserstein_sampling + density.wasserstein_quadrature
        )
        held.append(wasserstein(density, values) <= density.wasserstein + 1e-12)
    assert sum(held) >= 19


def test_the_bound_is_that_of_the_theorem() -> None:
    values = SPECTRA["smooth"]
    density = spectral_density(rotated(values), 7, 30)
    spread = float(values.max() - values.min())
    expected = spread * math.sqrt(math.log(2 * 120 / 0.05) / (7 * 122))
    assert expected <= density.wasserstein_sampling <= 1.05 * expected
    assert density.wasserstein_quadrature <= 1.05 * spread * 12 / 59
    more = spectral_density(rotated(values), 7, 60)
    assert more.wasserstein_quadrature < density.wasserstein_quadrature
    assert spectral_density(rotated(values), 1, 120).wasserstein_quadrature < 0.1 * spread


def test_quadrature_alone_is_within_its_bound() -> None:
    # The true measure of each probe is known: squared components in the eigenbasis.
    values = SPECTRA["smooth"]
    for steps in (2, 5, 15):
        density = spectral_density(torch.diag(values), 1, steps, seed=3)
        from curvops.linalg.probes import Probes

        z = Probes(len(values), "sphere", 3).take(1)[:, 0]
        mass = z**2 / (z @ z)
        x = torch.cat([density.nodes[0], values]).sort().values
        F = ((values.unsqueeze(0) <= x.unsqueeze(1)) * mass).sum(1)
        G = ((density.nodes[0].unsqueeze(0) <= x.unsqueeze(1)) * density.weights[0]).sum(1)
        distance = float(((F - G).abs()[:-1] * x.diff()).sum())
        assert distance <= density.wasserstein_quadrature
        assert distance > 0.02 * density.wasserstein_quadrature


def test_the_bound_of_the_quadrature_written_out() -> None:
    # Two distinct eigenvalues: the rule is exact, and the bound the larger weight times their gap.
    density = spectral_density(rotated(SPECTRA["two lumps"]), 5, 2)
    assert density.wasserstein_quadrature == pytest.approx(
        3 * float(density.weights.amax(1).mean()), rel=1e-6
    )


@pytest.mark.parametrize("deflate", [0, 3])
@pytest.mark.parametrize("name", ["smooth", "outliers", "decay"])
def test_moments(name: str, deflate: int) -> None:
    values = SPECTRA[name]
    A = rotated(values)
    held = 0
    for seed in range(40):
        moments = spectral_density(A, 6, 4, seed, deflate=deflate).moments(5)
        assert float(moments[0]) == pytest.approx(1.0)
        assert moments[0].stderr < 1e-12
        truth = [float((values**q).mean()) for q in range(6)]
        held += sum(m.lower <= t <= m.upper for m, t in zip(moments[1:], truth[1:], strict=True))
    assert held >= 0.9 * 40 * 5


def test_moments_are_exact_for_each_probe() -> None:
    values = SPECTRA["smooth"]
    density = spectral_density(torch.diag(values), 2, 5, seed=1)
    from curvops.linalg.probes import Probes

    Z = Probes(len(values), "sphere", 1).take(2)
    for q, moment in enumerate(density.moments(9)):
        exact = (Z**2 * values.unsqueeze(1) ** q).sum(0) / (Z**2).sum(0)
        torch.testing.assert_close(moment.samples, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", list(SPECTRA))
def test_cdf(name: str) -> None:
    values = SPECTRA[name]
    density = spectral_density(rotated(values), 12, 40, deflate=3)
    x = torch.linspace(-2, 10, 41, dtype=torch.float64) + 0.013
    curve = density.cdf(x)
    assert bool((curve.lower <= curve.values).all())
    assert bool((curve.values <= curve.upper).all())
    assert bool((curve.values.diff() >= -1e-12).all())
    assert bool(((curve.lower >= 0) & (curve.upper <= 1)).all())
    truth = (values.unsqueeze(0) <= x.unsqueeze(1)).double().mean(1)
    assert float((curve.values - truth).abs().max()) < 0.05
    assert float(density.cdf(torch.tensor([-50.0, 50.0])).values.diff()) == pytest.approx(1.0)


def test_pdf_is_the_smoothed_histogram() -> None:
    values = SPECTRA["outliers"]
    A = rotated(values)
    density = spectral_density(A, 30, 60, deflate=3)
    x = torch.linspace(-3, 12, 3001, dtype=torch.float64)
    curve = density.pdf(x, bandwidth=0.2)
    truth = torch.exp(-(((x.unsqueeze(1) - values) / 0.2) ** 2) / 2).mean(1)
    truth /= 0.2 * math.sqrt(2 * math.pi)
    assert float((curve.values - truth).abs().max()) < 0.05 * float(truth.max())
    assert float(torch.trapezoid(curve.values, x)) == pytest.approx(1.0, abs=1e-6)
    rest = density.pdf(x, bandwidth=0.2, outliers=False)
    assert float(torch.trapezoid(rest.values, x)) == pytest.approx(120 / 123, abs=1e-6)
    assert bool((curve.lower <= curve.values).all())
    assert density.pdf(x).values.shape == x.shape


def test_outliers_are_named() -> None:
    values = SPECTRA["outliers"]
    A = rotated(values)
    density = spectral_density(A, 5, 20, deflate=3)
    torch.testing.assert_close(density.outliers, values[-3:], atol=1e-9, rtol=0)
    assert density.outlier_weight == 3 / 123
    assert float(density.nodes.max()) < 1.1
    pairs = eigsh(A, 3)
    given = spectral_density(A, 5, 20, deflate=pairs)
    assert given.num_matvecs == 5 * 20
    assert density.num_matvecs == 100 + pairs.num_matvecs
    torch.testing.assert_close(given.nodes, density.nodes, atol=1e-6, rtol=0)
    low = spectral_density(A, 5, 20, deflate=2, which="SA")
    assert float(low.outliers.max()) == pytest.approx(float(values.sort().values[1]))


def test_deflation_sharpens_the_bulk() -> None:
    values = torch.cat([0.01 * BULK, torch.tensor([50.0, 80.0, 90.0]).double()])
    A = rotated(values)
    plain, deflated = (spectral_density(A, 4, 8, deflate=k) for k in (0, 3))
    assert wasserstein(deflated, values) < 0.1 * wasserstein(plain, values)


def test_nothing_of_the_outliers_is_left() -> None:
    values = torch.cat([torch.full((20,), 1.0), torch.arange(5.0, 25.0)]).double()
    density = spectral_density(rotated(values), 4, 6, deflate=20)
    seen = density.weights > 1e-12
    torch.testing.assert_close(density.nodes[seen], torch.ones(int(seen.sum())).double())


def test_everything_deflated() -> None:
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    density = spectral_density(torch.diag(values), 3, 5, deflate=3)
    torch.testing.assert_close(density.outliers, values)
    assert density.wasserstein == 0.0
    assert float(density.cdf(torch.tensor([2.5])).values) == pytest.approx(2 / 3)
    assert float(density.moments(0)[0]) == 1.0
    assert density.bulk == density.interval == (1.0, 4.0)


def test_small_matrices() -> None:
    one = spectral_density(torch.full((1, 1), 3.0), 2, 5)
    assert one.interval == pytest.approx((3.0, 3.0))
    density = spectral_density(torch.diag(torch.tensor([1.0, 2.0]).double()), 200, 50)
    assert float(density.cdf(torch.tensor([1.5])).values) == pytest.approx(0.5, abs=0.1)
    assert math.isinf(float(spectral_density(torch.eye(5), 1, 2).cdf(torch.ones(1)).upper)) is False


def test_how_probes_are_grouped_changes_nothing() -> None:
    A = rotated(SPECTRA["smooth"])
    together = spectral_density(A, 6, 10, seed=4)
    apart = spectral_density(A, 6, 10, seed=4, memory=1)
    torch.testing.assert_close(together.nodes, apart.nodes)
    torch.testing.assert_close(together.weights, apart.weights, atol=1e-12, rtol=1e-6)
    again = spectral_density(A, 6, 10, seed=4)
    assert torch.equal(together.nodes, again.nodes)
    assert not torch.equal(together.nodes, spectral_density(A, 6, 10, seed=5).nodes)
    fewer = spectral_density(A, 3, 10, seed=4)
    torch.testing.assert_close(together.nodes[:3], fewer.nodes)


def test_memory_does_not_grow_with_the_number_of_probes() -> None:
    widest = []

    class Watched:
        shape, dtype, device = (400, 400), torch.float32, torch.device("cpu")

        def __matmul__(self, x: Tensor) -> Tensor:
            widest.append(x.shape[1])
            return torch.linspace(0, 1, 400)[:, None] * x

    for probes in (8, 64):
        widest.clear()
        spectral_density(Watched(), probes, 10, memory=4 * 400 * 10 * 4)
        assert max(widest) <= 4
        assert sum(widest) == 10 * probes


def test_of_an_operator_in_float32() -> None:
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(60, 8, generator=g), torch.randint(3, (60,), generator=g)
    model = nn.Linear(8, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    operator = GGNLinearOperator(model, nn.CrossEntropyLoss(), model, [(X, y)])
    truth = torch.linalg.eigvalsh(operator.to_dense().double())
    density = spectral_density(operator, 40, 20, deflate=4)
    torch.testing.assert_close(density.outliers, truth[-4:], atol=1e-5, rtol=0)
    assert wasserstein(density, truth) <= density.wasserstein
    assert density.nodes.dtype == torch.float64


def test_result_prints_and_converts() -> None:
    density = spectral_density(rotated(SPECTRA["outliers"]), 3, 10, deflate=2)
    text = str(density)
    assert text.startswith("121 eigenvalues in [")
    assert "2 outliers from 5 to 9" in text
    assert "3 probes, 10 steps" in text
    plain = json.loads(json.dumps(density.to_dict()))
    assert len(plain["nodes"]) == 3
    assert plain["outliers"] == pytest.approx([5.0, 9.0])
    assert set(density.cdf(torch.zeros(1)).to_dict()) == {"x", "values", "lower", "upper"}
    assert "outliers" not in str(spectral_density(torch.eye(9), 2, 2))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_probes": 0}, "num_probes"),
        ({"num_steps": 0}, "num_steps"),
        ({"num_steps": 2.0}, "2.0"),
        ({"deflate": -1}, "deflate"),
        ({"deflate": 121}, "from 0 to 120"),
        ({"deflate": "all"}, "'all'"),
        ({"deflate": 1, "which": "XX"}, "XX"),
        ({"seed": -3}, "seed"),
    ],
)
def test_bad_input(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        spectral_density(torch.diag(BULK), **arguments)


def test_bad_matrices_and_points() -> None:
    with pytest.raises(ShapeError, match="square"):
        spectral_density(torch.ones(2, 3))
    with pytest.raises(DTypeError, match="int64"):
        spectral_density(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(InputError, match="empty"):
        spectral_density(torch.ones(0, 0))
    with pytest.raises(NonFiniteError, match="NaN"):
        spectral_density(torch.full((4, 4), float("nan")))
    A = torch.diag(BULK)
    with pytest.raises(InputError, match="return_eigenvectors"):
        spectral_density(A, deflate=eigsh(A, 2, return_eigenvectors=False))
    with pytest.raises(InputError, match="9 entries"):
        spectral_density(A, deflate=eigsh(torch.eye(9), 2))
    density = spectral_density(A, 2, 4)
    with pytest.raises(InputError, match="bandwidth"):
        density.pdf(BULK, bandwidth=0.0)
    with pytest.raises(NonFiniteError, match="x holds"):
        density.cdf(torch.tensor([float("inf")]))
    with pytest.raises(InputError, match=r"\[2, 2\]"):
        density.pdf(torch.ones(2, 2))
    with pytest.raises(InputError, match="0 to 7"):
        density.moments(8)
