"""The bridge to the digits network's basin: its log-volume, the bound above it, pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.volume_problems import DIGITS_STD, Trained
from curvops import plotting
from curvops.linalg.estimate import UnconvergedWarning
from curvops.volume.bridge import bridge_volume
from curvops.volume.bridge_result import BridgeVolume
from curvops.volume.cost import Cost
from curvops.volume.star_result import StarVolume

GLOBAL: dict[str, Any] = {
    "start": "prior",
    "num_runs": 3,
    "num_chains": 8,
    "num_moves": 4,
    "num_leapfrog": 24,
    "ess": 0.7,
    "acceptance": 0.75,
}
"""About 450 000 gradients of all data at a threshold of 0.01: eight minutes on one idle core."""


def digits_bridge(
    trained: Trained, threshold: float = 1e-2, seed: int = 0, **options: Any
) -> BridgeVolume:
    """Bridge from the prior to where predictions differ by at most a divergence, in float32.

    Args:
        trained: From :func:`benchmarks.volume_problems.digits_net`.
        threshold: Nats a datum.
        seed: Of the chains.
        options: Instead of those in ``GLOBAL``.
    """
    cost = Cost(trained.risk, "kl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)  # the result says so itself
        return bridge_volume(
            cost, threshold=threshold, prior_std=DIGITS_STD, seed=seed, **(GLOBAL | options)
        )


def draw(bridge: BridgeVolume, stars: Mapping[str, StarVolume | float], folder: Path) -> None:
    """Write the ladders and the bracket as pictures.

    Args:
        bridge: The bridge.
        stars: Lower bounds of the same basin, by name.
        folder: Where to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = plotting.bridge(bridge)
    axes[0].figure.savefig(folder / "bridge.png", dpi=150)
    axis = plotting.bracket(bridge, stars, ax=plotting.new_axes())
    axis.figure.savefig(folder / "bracket.png", dpi=150)
