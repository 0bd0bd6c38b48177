"""Frames learned from gradients: the structure they learn, and the maps they are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvops.volume import whitening
from curvops.volume.whitening import Whitening
from tests.volume.problems import rotation

DOUBLE = torch.float64
SHAPES = [torch.Size([5, 3]), torch.Size([5]), torch.Size([2, 3, 2]), torch.Size([])]
DIM = 15 + 5 + 12 + 1


def gradients(number: int, shapes: list[torch.Size], seed: int = 0) -> Tensor:
    """Rows of a matrix share one covariance over its columns; the others have axes of their own."""
    rng = torch.Generator().manual_seed(seed)
    parts = []
    for k, shape in enumerate(shapes):
        g = torch.randn(number, *shape, generator=rng, dtype=DOUBLE)
        if len(shape) >= 2:
            g = g.reshape(number, shape[0], -1)
            g = g @ mixing(g.shape[2], k)
        parts.append(g.reshape(number, -1) * (k + 1))
    return torch.cat(parts, dim=1)


def mixing(size: int, seed: int) -> Tensor:
    scales = torch.logspace(-1, 1, size, dtype=DOUBLE)
    return rotation(size, seed) @ torch.diag(scales) @ rotation(size, seed + 50)


def uniform(number: int) -> Tensor:
    return torch.full((number,), 1 / number, dtype=DOUBLE)


def matrix(frame: Whitening, dim: int) -> Tensor:
    return frame.forward(torch.eye(dim, dtype=DOUBLE)).T


def test_adjoint_is_the_transpose() -> None:
    frame = Whitening.learn(gradients(50, SHAPES), uniform(50), SHAPES)
    F = matrix(frame, DIM)
    torch.testing.assert_close(frame.adjoint(torch.eye(DIM, dtype=DOUBLE)).T, F.T)


def test_whitens_what_has_its_structure() -> None:
    g = gradients(20000, SHAPES)
    F = matrix(Whitening.learn(g, uniform(len(g)), SHAPES), DIM)
    second = F.T @ (g.T @ g / len(g)) @ F
    eigenvalues = torch.linalg.eigvalsh(g.T @ g / len(g))
    assert float(eigenvalues[-1] / eigenvalues[0]) > 100
    torch.testing.assert_close(second, torch.eye(DIM, dtype=DOUBLE), atol=0.08, rtol=0)


def test_rows_in_another_order_learn_the_same() -> None:
    g = gradients(40, SHAPES[:1])
    swapped = g.reshape(-1, 5, 3)[:, [3, 0, 4, 1, 2]].reshape(-1, 15)
    one, other = (Whitening.learn(h, uniform(40), SHAPES[:1]) for h in (g, swapped))
    torch.testing.assert_close(one.blocks[0].scale, other.blocks[0].scale)


def test_without_shapes_the_diagonal() -> None:
    g = gradients(30, SHAPES)
    F = matrix(Whitening.learn(g, uniform(30)), DIM)
    torch.testing.assert_close(F, torch.diag(g.square().mean(0).rsqrt()))


def test_weights_count() -> None:
    g = torch.tensor([[1.0, 1.0], [3.0, 5.0]], dtype=DOUBLE)
    weights = torch.tensor([0.25, 0.75], dtype=DOUBLE)
    F = matrix(Whitening.learn(g, weights), 2)
    expected = torch.tensor([0.25 + 0.75 * 9, 0.25 + 0.75 * 25], dtype=DOUBLE).rsqrt()
    torch.testing.assert_close(F.diagonal(), expected)


def test_floor_and_directions_without_a_gradient() -> None:
    g = torch.zeros(10, 15, dtype=DOUBLE)
    g[:, 0] = 100.0
    F = matrix(Whitening.learn(g, uniform(10), SHAPES[:1], floor=4.0), 15)
    assert float(torch.linalg.svdvals(F).max()) == pytest.approx(0.5)
    wide = matrix(Whitening.learn(g, uniform(10)), 15)
    assert bool(wide.isfinite().all())


def test_long_sides_are_scaled_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whitening, "_LARGEST", 2)
    g = gradients(4000, SHAPES[:1])
    F = matrix(Whitening.learn(g, uniform(len(g)), SHAPES[:1]), 15)
    assert torch.equal(F, torch.diag(F.diagonal()))
    moments = g.square().mean(0).reshape(5, 3).mean(0)
    torch.testing.assert_close(F.diagonal().reshape(5, 3)[0], moments.rsqrt())
