"""The cost of moving away, against autograd in float64; the module and others are untouched."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from curvops.errors import InputError, NonFiniteError
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.volume.cost import Cost
from curvops.volume.scope import restrict
from tests import cases


def problem(dtype: torch.dtype = torch.float64, **options: object) -> EmpiricalRisk:
    case = cases.make("ce-weight-mask", dtype=dtype)
    return EmpiricalRisk(*case.args, **options)  # type: ignore[arg-type]


def points(risk: EmpiricalRisk, scale: float, num: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    steps = torch.randn(risk.space.dim, num, generator=generator, dtype=torch.float64)
    return risk.theta.unsqueeze(1) + scale * steps.to(risk.dtype)


def divergence(risk: EmpiricalRisk, theta: Tensor) -> Tensor:
    """The definition, in float64 and without the library's passes."""
    model = cases.make("ce-weight-mask").model
    total, count = torch.zeros(()).double(), 0
    blocks = risk.space.unflatten(theta.double())
    here = dict(zip(risk.params, blocks, strict=True))
    there = {name: p.detach().double() for name, p in risk.params.items()}
    for X, y in cases.make("ce-weight-mask").batches:
        log_p = functional_call(model, here, X).log_softmax(1)
        log_q = functional_call(model, there, X).log_softmax(1)
        valid = y != -100
        total = total + (valid.unsqueeze(1) * log_q.exp() * (log_q - log_p)).sum()
        count += int(valid.sum())
    return total / count


def test_kl_is_the_mean_divergence_over_the_valid_data() -> None:
    risk = problem()
    cost = Cost(risk, "kl")
    X = points(risk, 0.5)
    expected = torch.stack([divergence(risk, x) for x in X.T])
    assert torch.allclose(cost(X), expected, rtol=1e-12)
    values, gradients = cost.with_gradient(X)
    assert torch.allclose(values, expected, rtol=1e-12)
    leaf = X.clone().requires_grad_()
    (truth,) = torch.autograd.grad(sum(divergence(risk, x) for x in leaf.T), leaf)  # type: ignore[arg-type]
    assert torch.allclose(gradients, truth, atol=1e-12)
    assert (cost.num_evaluations, cost.num_gradients) == (10, 5)


def test_kl_in_float32_is_not_drowned_by_the_loss() -> None:
    risk = problem(torch.float32)
    cost = Cost(risk, "kl")
    assert float(cost(risk.theta.unsqueeze(1)).abs()) < 1e-9
    for scale in (1e-3, 1e-2, 1e-1):
        X = points(risk, scale)
        expected = torch.stack([divergence(risk, x) for x in X.T])
        assert torch.allclose(cost(X), expected, rtol=2e-2)
    assert bool((cost(points(risk, 1e-6, 50)) > -1e-6).all())


def test_kl_has_the_fisher_matrix_as_both_curvatures() -> None:
    cost = Cost(problem(weight_decay=0.3), "kl")
    ggn = GGNLinearOperator.from_risk(cost.risk).to_dense()
    hessian = HessianLinearOperator.from_risk(cost.risk).to_dense()
    assert torch.allclose(ggn, hessian, atol=1e-12)
    step = 1e-4 * points(cost.risk, 1.0) - 1e-4 * cost.theta.unsqueeze(1)
    quadratic = 0.5 * (step * (ggn @ step)).sum(0)
    assert torch.allclose(cost(cost.theta.unsqueeze(1) + step), quadratic, rtol=1e-2)


def test_loss_increase_with_weight_decay() -> None:
    risk = problem(weight_decay=0.3)
    cost = Cost(risk)
    X = points(risk, 0.5)
    assert torch.allclose(cost(X), risk.losses(X) - risk.loss(), rtol=1e-12)
    assert cost.anchor == float(risk.loss())
    bare = problem()
    decay = 0.15 * (X.square().sum(0) - risk.theta.square().sum())
    assert torch.allclose(cost(X), bare.losses(X) - bare.loss() + decay, rtol=1e-10)


@pytest.mark.parametrize("kind", ["loss", "kl"])
def test_scope_holds_the_others_at_the_risks_own_values(kind: str) -> None:
    risk = problem()  # its parameters are not the module's own
    names = [name for name in risk.params if name.endswith("bias")]
    cost = Cost(risk, kind, scope="*bias")  # type: ignore[arg-type]
    assert list(cost.source.params) == names
    assert cost.dim == sum(risk.params[name].numel() for name in names)
    step = torch.linspace(-0.5, 0.5, cost.dim, dtype=torch.float64)
    moved = {name: p.detach().clone() for name, p in risk.params.items()}
    for name, block in zip(names, cost.source.space.unflatten(step), strict=True):
        moved[name] += block
    whole = Cost(risk, kind)(risk.space.flatten(list(moved.values())).unsqueeze(1))  # type: ignore[arg-type]
    X = (cost.theta + step).unsqueeze(1)
    assert torch.allclose(cost(X), whole, rtol=1e-12)
    # Gradients and curvature are the blocks of the whole ones.
    gradient = risk.at(list(moved.values())).gradient()
    rows = torch.cat([torch.arange(s.start, s.stop) for n, s in risk.space.slices() if n in names])
    if kind == "loss":
        assert torch.allclose(cost.with_gradient(X)[1][:, 0], gradient[rows], atol=1e-12)
    part = HessianLinearOperator.from_risk(restrict(risk, names)).to_dense()
    dense = HessianLinearOperator.from_risk(risk).to_dense()
    assert torch.allclose(part, dense[rows][:, rows], atol=1e-12)


def test_scope_of_a_callable_model() -> None:
    def model(params: dict[str, Tensor], X: Tensor) -> Tensor:
        return X @ params["w"] + params["b"]

    params = {"w": torch.ones(2, 1), "b": torch.full((1,), 3.0)}
    risk = EmpiricalRisk(model, nn.MSELoss(), params, [(torch.ones(3, 2), torch.zeros(3, 1))])
    cost = Cost(risk, scope="w")
    assert cost(torch.zeros(2, 1)).tolist() == [9.0 - 25.0]


def test_sequences_ignore_padding() -> None:
    case = cases.make("ce-sequence")
    risk = EmpiricalRisk(*case.args)
    cost = Cost(risk, "kl")
    valid = sum(int((y != 1).sum()) for _, y in case.batches)
    assert cost.risk.normalizer == valid


def test_data_that_are_read_again_each_pass() -> None:
    case = cases.make("ce")
    kept, read = (EmpiricalRisk(*case.args, cache_data=size) for size in ("1GiB", 0))
    X = points(kept, 0.5)
    assert torch.allclose(Cost(kept, "kl")(X), Cost(read, "kl")(X), rtol=1e-12)


def test_nothing_is_touched(global_rng_untouched: None) -> None:
    risk = problem()
    assert risk.model is not None
    before = copy.deepcopy(risk.model.state_dict())
    theta, loss = risk.theta, risk.loss()
    cost = Cost(risk, "kl", scope="*weight")
    cost(cost.theta.unsqueeze(1) + 1.0)
    assert torch.equal(risk.theta, theta)
    assert torch.equal(risk.loss(), loss)
    assert all(torch.equal(v, before[k]) for k, v in risk.model.state_dict().items())
    assert all(p.grad is None for p in risk.model.parameters())


def test_errors() -> None:
    case = cases.make("mse")
    with pytest.raises(InputError, match=r'MSELoss. Use cost="loss"'):
        Cost(EmpiricalRisk(*case.args), "kl")
    with pytest.raises(InputError, match="'nats'"):
        Cost(problem(), "nats")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nowhere"):
        Cost(problem(), scope="nowhere.*")
    with pytest.raises(InputError, match="scope"):
        restrict(problem(), [])


def test_a_loss_that_is_not_finite_at_home() -> None:
    model = nn.Linear(1, 1)
    loss = nn.PoissonNLLLoss(log_input=False, eps=0.0)
    params = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    risk = EmpiricalRisk(model, loss, params, [(torch.ones(2, 1), torch.ones(2, 1))])
    assert not math.isfinite(float(risk.loss()))
    with pytest.raises(NonFiniteError, match="at θ"):
        Cost(risk)
