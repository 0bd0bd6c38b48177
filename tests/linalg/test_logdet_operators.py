"""Log-determinants of curvatures: exact from factors, and other libraries' operators."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError
from curvops.linalg.logdet import logdet
from curvops.operators import EFLinearOperator, GGNLinearOperator, HessianLinearOperator
from tests import cases
from tests.cases import NAMES, REDUCTIONS, UNMERGED, make, randn
from tests.linalg.test_lanczos import with_spectrum

SHIFTS = [1e-3, 0.5]


def slogdets(A: Tensor) -> list[float]:
    eye = torch.eye(len(A), dtype=torch.float64)
    return [float(torch.linalg.slogdet(A + shift * eye).logabsdet) for shift in SHIFTS]


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_ggn_from_its_factor_is_exact(name, reduction):
    """Weights, masks, smoothing, ragged batches, sequences: against torch's own derivatives."""
    case = make(name, reduction)
    truths = slogdets(case.truth.ggn())
    for options in (UNMERGED, {}):
        estimates = logdet(GGNLinearOperator(*case.args, **options), SHIFTS, method="gram")
        for estimate, truth in zip(estimates, truths, strict=True):
            assert estimate.value == pytest.approx(truth, rel=1e-8)
            assert estimate.upper - estimate.lower < 1e-5


@pytest.mark.parametrize("per", ["position", "datum"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["ce-weight-mask", "ce-sequence", "mse-sequence"])
def test_ef_from_its_factor_is_exact(name, reduction, per):
    operator = EFLinearOperator(*make(name, reduction).args, per=per, **UNMERGED)
    truths = slogdets(operator.to_dense())
    for estimate, truth in zip(logdet(operator, SHIFTS, method="gram"), truths, strict=True):
        assert estimate.value == pytest.approx(truth, rel=1e-8)


@pytest.mark.parametrize("cls", [GGNLinearOperator, EFLinearOperator])
def test_weight_decay_is_a_shift(cls):
    case = make("ce")
    plain, decayed = cls(*case.args), cls(*case.args, weight_decay=0.3)
    expected = logdet(plain, 0.4, method="gram").value
    assert logdet(decayed, 0.1, method="gram").value == pytest.approx(expected, rel=1e-12)
    assert logdet(decayed, 0.1, method="dense").value == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("cls", [GGNLinearOperator, EFLinearOperator])
@pytest.mark.parametrize("name", ["ce-sequence", "ce-weight-mask", "mse"])
def test_the_factor_multiplies_as_it_lists_its_columns(name, cls):
    operator = cls(*make(name).args, **UNMERGED)
    V, constant = operator.gram_factor()
    assert constant == 0.0
    columns = torch.cat(list(V.column_blocks()), 1)
    assert columns.shape == V.shape
    dense = V.to_dense()
    cases.assert_matches(columns, dense)
    cases.assert_matches(V.T.to_dense(), dense.T)
    cases.assert_matches(dense @ dense.T, operator.to_dense())


def test_ef_of_few_data_has_few_columns():
    V, _ = EFLinearOperator(*make("ce").args).gram_factor()
    assert V.shape == (31, 8)
    assert logdet(EFLinearOperator(*make("ce").args), 0.1, method="gram").num_matvecs == 8


@pytest.mark.parametrize("dtype", [torch.float32])
def test_gram_in_float32_is_closer_than_dense(dtype):
    case = make("ce-conv", dtype=dtype)
    truth = slogdets(case.truth.ggn())[0]
    operator = GGNLinearOperator(*case.args)
    gram, dense = (logdet(operator, 1e-3, method=m) for m in ("gram", "dense"))
    assert gram.value == pytest.approx(truth, rel=2e-6)
    assert gram.lower <= truth <= gram.upper
    assert dense.value == pytest.approx(truth, rel=1e-4)


class NegativeCurvature(nn.Module):
    """ℓ = −log(1 + f²): concave near its peak."""

    reduction = "mean"

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        return -torch.log1p(f.square()).sum(1).mean()


def test_negative_curvature_is_refused():
    case = make("mse")
    operator = GGNLinearOperator(case.model, NegativeCurvature(), case.params, case.batches)
    with pytest.raises(InputError, match="negative curvature in its prediction"):
        logdet(operator, 10.0, method="gram")


class Centred(nn.Module):
    """Predictions less their mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        with cases.seeded(0):
            self.inner = nn.Linear(3, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        f = self.inner(x)
        return f - f.mean(0)


def test_models_that_mix_data_have_no_factor_of_individual_gradients():
    model = Centred()
    data = cases.cut(randn(8, 3, seed=1), randn(8, 2, seed=2), (4, 4))
    operator = GGNLinearOperator(model, nn.MSELoss(), model, data)
    with pytest.raises(InputError, match="mixes data of a batch"):
        logdet(operator, 0.1, method="gram")


def test_auto_takes_the_factor_of_a_large_network_on_few_data():
    with cases.seeded(0):
        model = nn.Sequential(nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2)).double()
    data = [(randn(5, 40, seed=1), randn(5, 2, seed=2))]
    operator = GGNLinearOperator(model, nn.MSELoss(), model, data)
    assert operator.shape[0] > 1000
    estimate = logdet(operator, 1e-2)
    assert estimate.method == "gram"
    assert estimate.num_matvecs == 10
    krylov = logdet(operator, 1e-2, method="krylov", num_matvecs=60)
    assert krylov.lower <= estimate.value <= krylov.upper
    assert krylov.value == pytest.approx(estimate.value, rel=1e-9)


@pytest.mark.parametrize("method", ["dense", "krylov"])
def test_hessian(method):
    case = make("ce")
    H = case.truth.hessian()
    shift = 0.1 - float(torch.linalg.eigvalsh(H)[0])
    truth = float(torch.linalg.slogdet(H + shift * torch.eye(len(H))).logabsdet)
    estimate = logdet(HessianLinearOperator(*case.args), shift, method=method)
    assert estimate.value == pytest.approx(truth, rel=1e-7)


# --------------------------------------------------------------------- other libraries' operators


def test_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    case = make("ce")
    model = case.model
    model.load_state_dict(case.params)
    data = cases.cut(randn(8, 3, seed=1), cases.randint(3, 8, seed=2), (4, 4))
    params = list(model.parameters())
    theirs = curvlinops.GGNLinearOperator(model, nn.CrossEntropyLoss(), params, data)
    ours = GGNLinearOperator(model, nn.CrossEntropyLoss(), params, data)
    for method in ("dense", "krylov"):
        expected = logdet(ours, 0.1, method=method, num_matvecs=None)
        found = logdet(theirs, 0.1, method=method, lower_bound=0.0)
        assert found.value == pytest.approx(expected.value, rel=1e-8)


@pytest.mark.parametrize("method", ["dense", "krylov", "slq"])
def test_linear_operator(method):
    linear_operator = pytest.importorskip("linear_operator")
    A = with_spectrum(torch.linspace(1, 3, 90, dtype=torch.float64))
    operator = linear_operator.to_linear_operator(A).add_diagonal(torch.tensor(0.5).double())
    truth = math.fsum((torch.linspace(1, 3, 90, dtype=torch.float64) + 0.5).log().tolist())
    estimate = logdet(operator, method=method)
    assert estimate.lower - 1e-9 <= truth <= estimate.upper + 1e-9
