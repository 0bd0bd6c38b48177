"""The bridge benchmark at a small size: runs, what they agree on, the table and the picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import bridge, pictures
from benchmarks.results import Result
from curvops import EmpiricalRisk
from curvops.volume import Cost, bridge_volume


@pytest.fixture(scope="module")
def ellipse() -> bridge.BridgeVolume:
    data = [(torch.diag(torch.tensor([1.0, 10.0])), torch.zeros(2, 1))]
    model = torch.nn.Linear(2, 1, bias=False)
    loss = torch.nn.MSELoss(reduction="sum")
    cost = Cost(EmpiricalRisk(model, loss, [torch.zeros(1, 2)], data))
    return bridge_volume(
        cost, threshold=0.01, prior_std=1.0, start="prior", num_runs=2, num_chains=32
    )


def test_where_runs_agree_to_the_end_the_last_temperature_is_named(
    ellipse: bridge.BridgeVolume,
) -> None:
    found = bridge.described(ellipse)
    assert found["agree"]["beta"] == pytest.approx(ellipse.beta)
    assert len(found["ladders"]) == len(found["samples"]) == 2
    assert found["log_volume"] == ellipse.log_volume


def test_runs_that_part_agree_before(ellipse: bridge.BridgeVolume) -> None:
    first, second = ellipse.ladders
    parted = [
        replace(step, log_z=step.log_z + (9.0 if step.beta > 10.0 else 0.0)) for step in second
    ]
    last = bridge.agreeing(replace(ellipse, ladders=(first, tuple(parted))))
    assert last is not None
    assert 0.0 < last[0] <= 10.0


def test_the_table_and_the_picture(ellipse: bridge.BridgeVolume, tmp_path: Path) -> None:
    rows = [
        bridge._row("star domain, dense", 0.01, 1.0, bridge._numbers(ellipse)),
        bridge._row("bridge", 0.01, 2.0, bridge.described(ellipse)),
        bridge._row("Chernoff", 0.01, None, bridge._numbers(ellipse.chernoff)),
    ]
    text = bridge.table(rows).text()
    assert "(lower bound)" in text
    assert "(upper bound)" in text
    assert f"{ellipse.log_volume:.1f}" in text
    path = tmp_path / "bridge.png"
    assert pictures.draw(Result("bridge", {}, {}, rows), path)
    assert path.stat().st_size > 5000
