"""The divergence from given predictions against float64 sums and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvops.errors import DataError
from curvops.losses.relative_entropy import RelativeEntropy, log_probabilities


def logits(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def divergence(log_q: Tensor, f: Tensor, weight: Tensor) -> Tensor:
    log_p = f.double().log_softmax(1)
    return (weight * (log_q.double().exp() * (log_q.double() - log_p)).sum(1)).sum()


@pytest.mark.parametrize("shape", [(7, 4), (5, 3, 6)])
def test_value_normaliser_and_derivatives(shape: tuple[int, ...]) -> None:
    loss, f = RelativeEntropy(), logits(0, *shape)
    log_q = log_probabilities(logits(1, *shape))
    weight = torch.rand(f[:, 0].shape, generator=torch.Generator().manual_seed(2)).double()
    target = (log_q, weight)
    loss.check(f, target, shape[0])
    loss.check_target(target, shape[0], "batch 0")
    assert torch.allclose(loss.total(f, target), divergence(log_q, f, weight), rtol=1e-12)
    assert torch.allclose(loss.per_datum(f, target).sum(), loss.total(f, target), rtol=1e-12)
    assert loss.normalizer(target, shape[0], lambda: f) == pytest.approx(float(weight.sum()))
    flat = f.reshape(-1)

    def total(x: Tensor) -> Tensor:
        return divergence(log_q, x.reshape(shape), weight)

    gradient = torch.func.grad(total)(flat).reshape(shape)
    assert torch.allclose(loss.gradient(f, target), gradient, atol=1e-12)
    leaf = f.clone().requires_grad_()
    (own,) = torch.autograd.grad(loss.total(leaf, target), leaf)
    assert torch.allclose(own, gradient, atol=1e-12)
    hessian = torch.func.hessian(total)(flat)
    v = logits(3, *shape)
    product = loss.hessian(f, target)(v).reshape(-1)
    assert torch.allclose(product, hessian @ v.reshape(-1), atol=1e-10)
    roots = [s.reshape(-1) for s, _ in loss.hessian_roots(f, target)]
    columns = torch.stack(roots, 1)  # one vector a datum: outer products of blocks
    blocks = torch.block_diag(*[torch.ones(f[0].numel(), f[0].numel())] * shape[0]).double()
    assert torch.allclose((columns @ columns.T) * blocks, hessian, atol=1e-10)
    # E[s s'] over labels drawn from the model is the Hessian, and here the mean score is p - q.
    scores = loss.scores(f, target)
    expected = weight.sqrt().unsqueeze(1) * (f.softmax(1) - log_q.exp())
    assert torch.allclose(scores, expected, atol=1e-12)


@pytest.mark.parametrize("step", [1e-1, 1e-2, 1e-3, 1e-4])
def test_float32_resolves_divergences_below_its_rounding(step: float) -> None:
    f = logits(0, 64, 10, dtype=torch.float32)
    # Moves of the logits that float32 holds exactly.
    moved = f + step * logits(1, 64, 10).float()
    target = (log_probabilities(f), torch.ones(64))
    exact = divergence(f.double().log_softmax(1), moved, torch.ones(64).double())
    # Quadratic in the step; the rounding of a logit, 1e-7 of 10, is felt from 1e-5 downwards.
    assert float(RelativeEntropy().total(moved, target)) == pytest.approx(float(exact), rel=1e-2)


def test_never_negative_and_zero_at_home() -> None:
    f = logits(0, 256, 10, dtype=torch.float32)
    target = (log_probabilities(f), torch.ones(256))
    each = RelativeEntropy().per_datum(f, target)
    assert float(each.min()) >= -1e-9
    assert float(each.max()) <= 1e-9


def test_impossible_classes_and_certain_ones() -> None:
    f = torch.tensor([[0.0, -torch.inf, 0.0], [200.0, 0.0, -200.0]], requires_grad=True)
    target = (log_probabilities(f), torch.ones(2))
    value = RelativeEntropy().total(f, target)
    (gradient,) = torch.autograd.grad(value, f)
    assert float(value.detach()) == pytest.approx(0.0, abs=1e-6)
    assert bool(torch.isfinite(gradient).all())
    # What was impossible at home becomes likely: KL = log 2, from a term without q.
    q = log_probabilities(torch.tensor([[0.0, -300.0]]))
    moved = torch.zeros(1, 2, requires_grad=True)
    value = RelativeEntropy().total(moved, (q, torch.ones(1)))
    (gradient,) = torch.autograd.grad(value, moved)
    assert float(value.detach()) == pytest.approx(0.6931472, abs=1e-6)
    assert gradient.tolist() == [[-0.5, 0.5]]


def test_targets_that_do_not_fit() -> None:
    loss, f = RelativeEntropy(), logits(0, 4, 3)
    loss.check(f, None, 4)
    with pytest.raises(DataError, match="3 classes"):
        loss.check_target((torch.zeros(4, 2), torch.ones(4)), 4, "batch 0")
    with pytest.raises(DataError, match="weights"):
        loss.check_target((torch.zeros(4, 3), torch.ones(3)), 4, "batch 0")
