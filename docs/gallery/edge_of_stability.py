"""The edge of stability: the sharpness of a tanh network under gradient descent rises to 2/η.

Trains a 64-20-20-10 tanh network on 200 of scikit-learn's digits, by full-batch gradient descent
with three step sizes and by RMSprop, and measures the largest eigenvalue of the Hessian (for
RMSprop, preconditioned) beside the bound above which the iteration on a quadratic diverges.
Writes a picture and journals::

    python docs/gallery/edge_of_stability.py

Needs scikit-learn and a quarter of a minute.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from curvops import plotting
from curvops.datasets import digits
from curvops.training import Monitor, Run, Sharpness

HERE = Path(__file__).parent

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "gradient descent, η = 1.5": lambda params: torch.optim.SGD(params, 1.5),
    "gradient descent, η = 2": lambda params: torch.optim.SGD(params, 2.0),
    "gradient descent, η = 4": lambda params: torch.optim.SGD(params, 4.0),
    "RMSprop, η = 0.0002": lambda params: torch.optim.RMSprop(params, 2e-4),
}


def network(seed: int) -> nn.Sequential:
    """Return the network with torch's initialisation from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(64, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 10)
        )


def data(count: int) -> tuple[Tensor, Tensor]:
    """Return centred digits and their labels as unit vectors."""
    images, labels = digits(torch.float32)
    X = images.flatten(1)[:count]
    return X - X.mean(0), nn.functional.one_hot(labels[:count], 10).float()


def train(
    make: Callable[[Any], torch.optim.Optimizer],
    steps: int,
    every: int,
    count: int = 200,
    seed: int = 0,
    log: Path | None = None,
) -> Run:
    """Train with the full batch, and return what was measured."""
    model, (X, y) = network(seed), data(count)
    optimizer, loss = make(model.parameters()), nn.MSELoss()
    with Monitor(model, loss, optimizer, [Sharpness(every)], log, data=[(X, y)]) as monitor:
        for _ in range(steps):
            monitor.backward(X, y)
            optimizer.step()
            optimizer.zero_grad()
    return monitor.run


def draw(runs: dict[str, Run], path: Path) -> None:
    """Draw loss, sharpness with its bounds, and their ratio."""
    with plotting.theme("light") as colours:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.9), layout="constrained")
        losses, values, ratios = figure.subplots(1, 3)
        palette = (colours.primary, colours.accent, colours.third, colours.fourth)
        for (name, run), color in zip(runs.items(), palette, strict=True):
            losses.plot(*run.series("step", "loss"), color=color, linewidth=1.2)
            ratios.plot(*run.series("sharpness", "ratio"), color=color, label=name)
            if name.startswith("gradient"):
                values.plot(*run.series("sharpness", "sharpness"), color=color, label=name)
                bound = run.series("sharpness", "threshold")[1][-1]
                values.axhline(bound, color=color, linestyle=(0, (4, 2.5)), linewidth=1.2)
        losses.set_yscale("log")
        ratios.axhspan(0.9, 1.1, color=colours.grid, zorder=0)
        ratios.set_ylim(0.0, 1.5)
        for ax, label in (
            (losses, "loss"),
            (values, "λ_max, and 2/η dashed"),
            (ratios, "λ_max over its bound, ± 10 % shaded"),
        ):
            ax.set_xlabel("step")
            ax.set_title(label, loc="left")
        figure.legend(
            *ratios.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
        )
        figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=20, help="steps between measurements")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="a file that all values are written to")
    parser.add_argument("--out", type=Path, default=HERE.parent / "assets" / "gallery")
    options = parser.parse_args(arguments)
    start, runs = perf_counter(), {}
    for name, make in OPTIMIZERS.items():
        runs[name] = train(
            make, options.steps, options.every, options.images, options.seed, options.log
        )
        ratios = runs[name].series("sharpness", "ratio")[1]
        tail = ratios[-len(ratios) // 3 :]
        losses = runs[name].series("step", "loss")[1]
        sys.stdout.write(
            f"{name}: loss {losses[0]:.3g} to {losses[-1]:.3g}, λ_max over its bound in the last "
            f"third {min(tail):.3f} to {max(tail):.3f}\n"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    draw(runs, options.out / "edge_of_stability.png")
    sys.stdout.write(f"{perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main()
