"""Overlaps of subspaces and shares of gradients, against projections written out."""

from __future__ import annotations

import json
from pathlib import Path as File
from typing import Any

import pytest
import torch
from torch import Tensor

from curvops import eigsh
from curvops.errors import InputError, NonFiniteError, ShapeError
from curvops.landscape import GradientShare, SubspaceOverlap, gradient_share, subspace_overlap
from tests import cases
from tests.landscape import nets


def projection(columns: Tensor) -> Tensor:
    return columns @ torch.linalg.pinv(columns)


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 3), (2, 5), (7, 7)])
def test_trace_of_the_product_of_projections(k: int, m: int) -> None:
    U, V = cases.randn(7, k, seed=1), 1e3 * cases.randn(7, m, seed=2)
    found = subspace_overlap(U, V)
    expected = float((projection(U) @ projection(V)).trace()) / min(k, m)
    assert found.overlap == pytest.approx(expected, rel=1e-10)
    assert found.random == pytest.approx(max(k, m) / 7)
    assert found.dims == (k, m)
    assert float(found.cosines.square().mean()) == pytest.approx(expected)
    assert float(subspace_overlap(V, U)) == pytest.approx(expected)


def test_random_subspaces_are_at_their_level() -> None:
    values = [
        float(subspace_overlap(cases.randn(60, 4, seed=2 * s), cases.randn(60, 4, seed=2 * s + 1)))
        for s in range(300)
    ]
    mean = torch.tensor(values).mean()
    error = torch.tensor(values).std() / 300**0.5
    assert abs(float(mean) - 4 / 60) < 3.5 * float(error)


def test_inside_and_apart() -> None:
    E = torch.eye(6)
    assert float(subspace_overlap(E[:, :2], E[:, :4])) == 1.0
    assert float(subspace_overlap(E[:, :2], E[:, 3:])) == 0.0
    mixed = E[:, :3] @ cases.randn(3, 3, seed=0).float()
    assert float(subspace_overlap(E[:, :3], mixed)) == pytest.approx(1.0, abs=1e-6)


def test_eigenpairs_are_subspaces() -> None:
    A = cases.randn(30, 30, seed=0)
    found = eigsh(A + A.T, 3, "LA")
    assert found.eigenvectors is not None
    assert float(subspace_overlap(found, found.eigenvectors)) == pytest.approx(1.0)
    with pytest.raises(InputError, match="return_eigenvectors"):
        subspace_overlap(eigsh(A + A.T, 3, "LA", return_eigenvectors=False), found)


def test_share_of_a_gradient() -> None:
    g, V = cases.randn(9, seed=1), cases.randn(9, 3, seed=2)
    found = gradient_share(g, V)
    expected = float((projection(V) @ g).square().sum() / g.square().sum())
    assert found.share == pytest.approx(expected, rel=1e-10)
    assert found.random == pytest.approx(3 / 9)
    assert found.norm == pytest.approx(float(g.norm()))
    assert float(gradient_share(1e-30 * g, V)) == pytest.approx(expected)
    risk = nets.risk_of(nets.trained("mlp", 0))
    W = cases.randn(risk.space.dim, 2, seed=3).float()
    assert float(gradient_share(risk, W)) == float(gradient_share(risk.gradient(), W))


def test_prints_and_saves(tmp_path: File) -> None:
    E = torch.eye(4)
    overlap, share = subspace_overlap(E[:, :1], E[:, :2]), gradient_share(E[0], E[:, :1])
    assert str(overlap) == "overlap 1.0000 of 1 and 2 dimensions (random 0.5)"
    assert str(share) == "100.0% of the gradient (random 0.25)"
    overlap.save(tmp_path / "o.npz")
    share.save(tmp_path / "s.npz")
    assert SubspaceOverlap.load(tmp_path / "o.npz").overlap == 1.0
    assert GradientShare.load(tmp_path / "s.npz").share == 1.0
    json.dumps([overlap.to_dict(), share.to_dict()])


@pytest.mark.parametrize(
    ("subspace", "error", "match"),
    [
        (torch.ones(5), ShapeError, "columns"),
        (torch.ones(5, 6), ShapeError, "k ≤ P"),
        (torch.ones(5, 0), ShapeError, "1 ≤ k"),
        (torch.ones(5, 2), InputError, "linearly dependent"),
        (torch.eye(5)[:, :2] * torch.tensor([1.0, 0.0]), InputError, "column 1 of second is zero"),
        (torch.full((5, 1), torch.nan), NonFiniteError, "second holds"),
        (torch.eye(4)[:, :2], ShapeError, "5 dimensions, second in 4"),
        ([1.0], InputError, "list"),
    ],
)
def test_bad_subspaces(subspace: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        subspace_overlap(torch.eye(5)[:, :2], subspace)


def test_bad_gradients() -> None:
    V = torch.eye(5)[:, :2]
    with pytest.raises(InputError, match="gradient is zero"):
        gradient_share(torch.zeros(5), V)
    with pytest.raises(ShapeError, match=r"gradient has shape \[4\]"):
        gradient_share(torch.ones(4), V)
    with pytest.raises(NonFiniteError, match="gradient holds"):
        gradient_share(torch.full((5,), torch.inf), V)
