"""What the algorithms share: estimates, probes, products, budgets."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from curvops.errors import DTypeError, InputError, NonFiniteError, ShapeError
from curvops.linalg.estimate import Estimate, UnconvergedWarning, VectorEstimate
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.sampling import Budget, Moments, of_sketch, student
from tests.operators.dense import MatrixOperator, general, random, rectangular

# --------------------------------------------------------------------- estimates


def made(**changes: Any) -> Estimate:
    fields: dict[str, Any] = {
        "value": -410.21,
        "stderr": 0.14,
        "lower": -410.9,
        "upper": -409.6,
        "num_matvecs": 310,
        "converged": True,
        "samples": torch.tensor([1.0, 2.0]),
        "method": "slq",
        "seconds": 0.5,
    }
    return Estimate(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "-410.21 ± 0.14 [-410.9, -409.6] (310 matvecs)"),
        ({"converged": False}, "-410.21 ± 0.14 [-410.9, -409.6] (310 matvecs, not converged)"),
        (
            {"value": 506.0, "stderr": 0.0, "lower": 506.0, "upper": 506.0, "num_matvecs": 2},
            "506 [506, 506] (2 matvecs)",
        ),
        (
            {"stderr": math.inf, "lower": -math.inf, "upper": math.inf},
            "-410.21 ± inf [-inf, inf] (310 matvecs)",
        ),
        (
            {"value": 123456.0, "stderr": 700.0, "lower": 122000.0, "upper": 125000.0},
            "123456 ± 7e+02 [122000, 125000] (310 matvecs)",
        ),
    ],
)
def test_an_estimate_prints_to_the_digits_of_its_error(changes: Any, text: str) -> None:
    assert str(made(**changes)) == text


def test_an_estimate_is_a_number_and_plain_python() -> None:
    estimate = made()
    assert float(estimate) == -410.21
    plain = estimate.to_dict()
    assert plain["samples"] == [1.0, 2.0]
    assert json.loads(json.dumps(plain)) == plain
    with pytest.raises(AttributeError):
        estimate.value = 0.0  # type: ignore[misc]


def test_an_estimate_that_cannot_vouch_for_itself_warns_once() -> None:
    sound = made()
    assert sound.vouched("Do this.") is sound
    assert sound != made()  # compares by identity: samples have no single truth value
    with pytest.warns(UnconvergedWarning, match=r"slq: .* has not converged\. Do this\.") as seen:
        made(converged=False).vouched("Do this.")
    assert len(seen) == 1


def test_a_vector_of_estimates() -> None:
    value = torch.tensor([3.0, 4.0], dtype=torch.float64)
    estimate = VectorEstimate(value, value / 10, 0.8 * value, 1.2 * value, 9, True, "xdiag", 0.1)
    assert estimate.relative_error == pytest.approx(0.1)
    assert str(estimate) == "2 entries from 3 to 4, ± 10% in norm (9 matvecs)"
    plain = estimate.to_dict()
    assert plain["value"] == [3.0, 4.0]
    assert json.loads(json.dumps(plain)) == plain
    exact = VectorEstimate(value, 0 * value, value, value, 2, True, "exact", 0.1)
    assert str(exact) == "2 entries from 3 to 4 (2 matvecs)"
    nothing = VectorEstimate(0 * value, value, -value, value, 2, False, "xdiag", 0.1)
    assert nothing.relative_error == math.inf
    with pytest.warns(UnconvergedWarning, match="xdiag: .*, not converged.* Do this"):
        nothing.vouched("Do this.")


# --------------------------------------------------------------------- probes


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_probes_do_not_depend_on_how_they_are_taken(distribution: Any) -> None:
    whole = Probes(7, distribution, seed=3).take(5)
    stream = Probes(7, distribution, seed=3)
    assert torch.equal(torch.cat([stream.take(n) for n in (1, 0, 3, 1)], 1), whole)
    assert not torch.equal(Probes(7, distribution, seed=4).take(5), whole)
    assert stream.take(0).shape == (7, 0)
    assert Probes(0, distribution).take(2).shape == (0, 2)
    assert Probes(7, distribution, seed=3, dtype=torch.float32).take(2).dtype == torch.float32


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian", "sphere"])
def test_probes_are_isotropic(distribution: Any) -> None:
    Z = Probes(6, distribution, seed=1).take(20_000)
    covariance = Z @ Z.T / Z.shape[1]
    assert (covariance - torch.eye(6)).abs().max() < 0.05
    if distribution == "rademacher":
        assert torch.equal(Z.abs(), torch.ones_like(Z))
    if distribution == "sphere":
        torch.testing.assert_close(Z.square().sum(0), torch.full((20_000,), 6.0).double())


def test_probes_check_their_arguments() -> None:
    with pytest.raises(InputError, match="'normal'"):
        Probes(3, "normal")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed must be"):
        Probes(3, seed=1.5)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    first, second = (Probes(3, "gaussian", generator).take(1) for _ in range(2))
    assert not torch.equal(first, second)


# --------------------------------------------------------------------- products


def test_products_multiply_cast_and_count() -> None:
    op = MatrixOperator(random(4, 4).float(), self_adjoint=True)
    products = Products(op)
    x = random(4, 3)
    answer = products(x)
    assert answer.dtype == torch.float64
    torch.testing.assert_close(answer, (op.matrix @ x.float()).double())
    assert products(x[:, 0]).shape == (4,)
    assert products.num_matvecs == 4
    assert products.seconds > 0
    assert products.is_self_adjoint
    assert not products.is_psd
    assert products.eps == torch.finfo(torch.float32).eps


def test_products_know_the_transpose_and_rectangles() -> None:
    A = rectangular()
    products = Products(A, square=False)
    assert (products.rows, products.dim) == (7, 11)
    y = random(7)
    torch.testing.assert_close(products.adjoint()(y), A.matrix.T @ y)
    B = random(4, 3)
    torch.testing.assert_close(Products(B, square=False).adjoint()(random(4)), B.T @ random(4))
    with pytest.raises(ShapeError, match=r"A has shape \[7, 11\]; expected a square"):
        Products(A)


def test_products_of_a_tensor_that_requires_grad_are_detached() -> None:
    A = random(3, 3).requires_grad_()
    assert not Products(A)(random(3)).requires_grad


def test_products_show_one_bar(capsys: pytest.CaptureFixture[str]) -> None:
    products = Products(random(3, 3))
    with products.progress(False, "nothing"):
        products(random(3, 2))
    assert capsys.readouterr().err == ""
    with products.progress(True, "multiplying", total=4):
        products(random(3, 4))
    shown = capsys.readouterr().err
    assert "multiplying" in shown
    assert "4/4" in shown or "0/4" in shown
    products(random(3, 1))
    assert capsys.readouterr().err == ""


def test_products_are_announced_only_where_that_means_something() -> None:
    class Announced(MatrixOperator):
        count = 0

        def prepare(self, num_products: int) -> None:
            self.count += num_products

    op = Announced(random(3, 3))
    Products(op).prepare(5)
    assert op.count == 5
    Products(general()).prepare(5)
    Products(random(3, 3)).prepare(5)


def test_products_refuse_what_is_no_matrix() -> None:
    with pytest.raises(InputError, match="list"):
        Products([1.0])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="ndarray"):
        Products(random(2, 2).numpy())
    with pytest.raises(DTypeError, match="complex"):
        Products(torch.eye(2, dtype=torch.complex64))
    with pytest.raises(NonFiniteError, match=r"overflows in torch\.float32"):
        Products(torch.full((2, 2), 1e38))(torch.full((2,), 1e5))


# --------------------------------------------------------------------- samples and budgets


def test_blocks_of_samples_merge() -> None:
    X = random(50, 3)
    moments = Moments()
    for block in X.split([1, 7, 30, 12]):
        moments.add(block)
    torch.testing.assert_close(moments.mean, X.mean(0))
    torch.testing.assert_close(moments.stderr, X.std(0) / 50**0.5)
    assert moments.count == 50
    assert not moments.samples.numel()


def test_samples_of_a_sketch_and_fresh_ones_are_weighed_by_number() -> None:
    sketch, fresh = random(4, seed=1), random(6, 1, seed=2)
    variance = torch.tensor(0.3, dtype=torch.float64)
    moments = of_sketch(sketch, variance)
    torch.testing.assert_close(moments.mean, sketch.mean().reshape(1))
    torch.testing.assert_close(moments.stderr, variance.sqrt().reshape(1))
    moments.add(fresh)
    together = torch.cat([sketch, fresh[:, 0]])
    torch.testing.assert_close(moments.mean, together.mean().reshape(1))
    assert torch.equal(moments.samples, together)
    pooled = (3 * sketch.var() + 5 * fresh.var()) / 8
    expected = (0.4**2 * variance + 0.6**2 * pooled / 6).sqrt()
    torch.testing.assert_close(moments.stderr, expected.reshape(1))


def test_a_single_sample_has_no_error() -> None:
    moments = Moments()
    moments.add(torch.ones(1, 1))
    assert math.isinf(moments.stderr)
    assert math.isinf(moments.half_width)
    assert student(0) == math.inf
    assert student(10) == pytest.approx(2.2281, abs=1e-4)
    assert student(1e9) == pytest.approx(1.95996, abs=1e-4)


def test_half_widths_use_few_degrees_of_freedom() -> None:
    moments = Moments()
    moments.add(random(15, 1))
    width = moments.half_width / moments.stderr
    assert float(width) == pytest.approx(4.3027, abs=1e-4)  # Student with 14/7 = 2


def test_budgets() -> None:
    assert Budget.of(None, None, None, None).limit == 100
    assert Budget.of(30, None, None, None).is_exact(30)
    assert not Budget.of(30, None, None, None).is_exact(31)
    adaptive = Budget.of(None, 0.1, None, None)
    assert adaptive.limit == 10_000
    assert adaptive.is_exact(32)
    assert not adaptive.is_exact(33)
    assert adaptive.accepts(0.1, 1.0)
    assert not adaptive.accepts(0.11, 1.0)
    either = Budget.of(None, 0.1, 2.0, None)
    assert either.accepts(2.0, 1.0)
    assert Budget.of(5, None, None, None).accepts(1e9, 0.0)
    assert not Budget.of(5, None, None, None).accepts(math.inf, 0.0)


@pytest.mark.parametrize(
    "arguments",
    [(0, None, None, None), (True, None, None, None), (5, 0.1, None, None), (5, None, None, 5)],
)
def test_budgets_that_make_no_sense(arguments: Any) -> None:
    with pytest.raises(InputError):
        Budget.of(*arguments)


def test_a_tensor_is_a_matrix() -> None:
    A: Tensor = random(3, 3)
    assert torch.equal(Products(A)(random(3)), A @ random(3))
