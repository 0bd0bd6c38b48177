"""Full-batch gradient descent drives the sharpness up to 2/η, where it hovers; the example runs."""

from __future__ import annotations

import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "docs" / "gallery" / "edge_of_stability.py"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    pytest.importorskip("sklearn")
    return runpy.run_path(str(SCRIPT))


def test_the_sharpness_rises_to_its_bound_and_stays(script: dict[str, Any]) -> None:
    eta = 3.0
    run = script["train"](lambda params: torch.optim.SGD(params, eta), steps=1000, every=40)
    steps, ratios = run.series("sharpness", "ratio")
    _, largest = run.series("sharpness", "sharpness")
    _, losses = run.series("step", "loss")
    assert ratios == pytest.approx([value * eta / 2 for value in largest])
    assert ratios[0] < 0.85  # it has somewhere to rise to
    tail = ratios[-len(ratios) // 3 :]
    assert all(0.9 < ratio < 1.1 for ratio in tail), (min(tail), max(tail))
    # The loss is not monotone any more, but falls overall.
    start = next(i for i, ratio in zip(steps, ratios, strict=True) if ratio > 1.0)
    after = losses[start:]
    assert any(b > a for a, b in pairwise(after))
    assert losses[-1] < 0.5 * losses[start] < 0.5 * losses[0]


def test_the_example_writes_its_picture_and_journal(
    script: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    global_rng_untouched: None,
) -> None:
    log = tmp_path / "run.jsonl"
    script["main"](
        [
            "--steps",
            "30",
            "--every",
            "10",
            "--images",
            "50",
            "--out",
            str(tmp_path),
            "--log",
            str(log),
        ]
    )
    assert (tmp_path / "edge_of_stability.png").read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.splitlines()) == len(script["OPTIMIZERS"]) + 1
    assert log.read_text().count("curvops_training") == len(script["OPTIMIZERS"])
