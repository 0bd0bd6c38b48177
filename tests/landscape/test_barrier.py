"""Barriers: closed forms, between grid points, and where nothing can be said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk
from curvops.errors import InputError
from curvops.landscape import Barrier, PolyChain, Segment, barrier
from tests.landscape import nets


def risk_of(function: Any) -> EmpiricalRisk:
    """A risk whose loss is a positive function of one parameter."""
    params = {"w": torch.tensor([0.0], dtype=torch.float64)}
    one = torch.ones(1, dtype=torch.float64)
    return EmpiricalRisk(lambda p, x: x * function(p["w"]), nn.L1Loss(), params, [(one, 0 * one)])


def straight() -> Segment:
    return Segment(torch.tensor([0.0]).double(), torch.tensor([1.0]).double())


def test_closed_form() -> None:
    # L(w) = 1 + w + 8 w² (1 − w): the line from 1 to 2, and a bump of 32/27 at 2/3
    risk = risk_of(lambda w: 1 + w + 8 * w**2 * (1 - w))
    found = barrier(risk, straight())
    assert float(found) == pytest.approx(32 / 27, rel=1e-4)
    assert found.height <= 32 / 27 + 1e-12
    assert abs(found.time - 2 / 3) <= found.spacing
    assert found.spacing < 0.01
    assert found.scan.times.diff().min() > 0
    assert len(found.scan.losses) == found.num_losses
    coarse = barrier(risk, straight(), 4, refinements=0)
    assert coarse.num_losses == 4
    assert coarse.spacing == pytest.approx(1 / 3)


def test_a_convex_loss_has_none() -> None:
    found = barrier(risk_of(lambda w: (w - 0.3) ** 2), straight())
    assert found.height == 0
    assert found.time in (0.0, 1.0)


def test_bends_are_looked_at() -> None:
    risk = risk_of(lambda w: w.abs())
    corner = torch.tensor([[0.0], [0.0], [5.0], [0.0]]).double()
    found = barrier(risk, PolyChain(*corner), 2, refinements=0)
    assert found.height == 5.0
    assert found.time == pytest.approx(2 / 3)


def test_nan_is_not_a_barrier() -> None:
    found = barrier(risk_of(lambda w: torch.sqrt(0.5 - w)), straight())
    assert found.height != found.height
    assert found.num_losses == 25


def test_saves_and_prints(tmp_path: Any) -> None:
    found = barrier(risk_of(lambda w: w * (1 - w)), straight())
    found.save(tmp_path / "b.npz")
    assert Barrier.load(tmp_path / "b.npz").height == found.height
    assert str(found).startswith("barrier 0.25 at t = 0.5")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"num": 1}, "ts is 1"), ({"refinements": -1}, "refinements"), ({"refinements": 0.5}, "0.5")],
)
def test_bad_input(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        barrier(risk_of(lambda w: w), straight(), **arguments)


def test_independent_nets_have_a_barrier_between_them() -> None:
    risk, a, b = nets.pair("cnn")
    found = barrier(risk, Segment(a, b))
    assert found.height > 10 * max(found.scan.ends)
