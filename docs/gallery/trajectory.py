"""The components of a training trajectory beside a random walk's, and the plane below it.

Trains a 784-128-128-10 ReLU network on MNIST or Fashion-MNIST, records its parameters on disk,
and draws what their principal components explain, where the training goes along the first two, and
the loss on the plane below it. Writes a picture, and the results where a folder is named for them::

    python docs/gallery/trajectory.py --data mnist --root ~/data

Needs the original idx files of MNIST or Fashion-MNIST (Debian: dataset-fashion-mnist) and a few
minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, landscape, plotting
from curvops.datasets import DEBIAN_FASHION_MNIST, batches, fashion_mnist, mnist

HERE = Path(__file__).parent
READERS = {"mnist": ("MNIST", mnist), "fashion-mnist": ("Fashion-MNIST", fashion_mnist)}


def network(seed: int) -> nn.Sequential:
    """Return the network with torch's initialisation from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )


def train(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    epochs: int,
    seed: int,
    trajectory: landscape.Trajectory,
) -> None:
    """Train with momentum on shuffled mini-batches, recording every so many steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    trajectory.record(model)
    for _ in range(epochs):
        for part in torch.randperm(len(X), generator=generator).split(128):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X[part]), y[part])
            torch.autograd.backward(loss)
            optimizer.step()
            trajectory.record(model)


def draw(below: landscape.TrajectoryPlane, path: Path) -> None:
    """Draw shares, the trajectory, the plane and the losses above it."""
    with plotting.theme("light"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 8.5), layout="constrained")
        (shares, points), (plane, losses) = figure.subplots(2, 2)
        plotting.explained_variance(below.pca, ax=shares)
        plotting.trajectory(below.pca, ax=points)
        plotting.plane(below.plane, below.overlay, ax=plane)
        plotting.overlay(below.overlay, ax=losses)
        figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, decompose, draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(READERS), default="fashion-mnist")
    parser.add_argument("--root", type=Path, default=DEBIAN_FASHION_MNIST, help="its folder")
    parser.add_argument("--images", type=int, default=10_000, help="how many are used")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--every", type=int, default=20, help="steps between snapshots")
    parser.add_argument("--resolution", type=int, default=31)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE.parent / "assets" / "gallery")
    parser.add_argument("--results", type=Path, help="a folder for the results")
    options = parser.parse_args(arguments)
    start = perf_counter()

    name, read = READERS[options.data]
    X, y = (part[: options.images] for part in read(options.root))
    model = network(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        with landscape.Trajectory(folder, every=options.every) as trajectory:
            train(model, X, y, options.epochs, options.seed, trajectory)
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, batches(X, y, 1000))
        below = landscape.trajectory_plane(risk, trajectory, resolution=options.resolution)
    options.out.mkdir(parents=True, exist_ok=True)
    draw(below, options.out / "trajectory.png")
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        below.save(options.results / "trajectory.npz")
    lines = [
        f"{name}, {len(X)} images, {risk.space.dim} parameters",
        str(below.pca),
        str(below),
        f"{perf_counter() - start:.0f} s",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
