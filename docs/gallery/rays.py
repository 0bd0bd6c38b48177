"""Rays, roughness and grit of a 784-128-128-10 ReLU network on MNIST or Fashion-MNIST.

Trains the network, scans the loss along named directions on the subspaces fc1, weight and bias in
float64, and again in float32, where the roughness at small distances is the rounding's own; then
the plane of two filter-normalised random directions. Writes pictures and results::

    python docs/gallery/rays.py --data mnist --root ~/data

Needs the original idx files of MNIST or Fashion-MNIST (Debian: dataset-fashion-mnist) and a few
minutes on two cores.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, landscape, plotting
from curvops.datasets import DEBIAN_FASHION_MNIST, batches, fashion_mnist, mnist

SUBSPACES = ("fc1", "weight", "bias")
HERE = Path(__file__).parent


READERS = {"mnist": ("MNIST", mnist), "fashion-mnist": ("Fashion-MNIST", fashion_mnist)}


def network(seed: int) -> nn.Sequential:
    """Return the network with torch's initialisation from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential()
        model.add_module("flat", nn.Flatten())
        model.add_module("fc1", nn.Linear(784, 128))
        model.add_module("relu1", nn.ReLU())
        model.add_module("fc2", nn.Linear(128, 128))
        model.add_module("relu2", nn.ReLU())
        model.add_module("fc3", nn.Linear(128, 10))
    return model


def train(model: nn.Module, X: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    """Train with Adam on shuffled mini-batches."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(X), generator=generator).split(128):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X[part]), y[part])
            torch.autograd.backward(loss)
            optimizer.step()


def draw_rays(scan: landscape.Rays, single: landscape.Rays, title: str, path: Path) -> None:
    """Draw loss, roughness and grit in float64, and roughness in float32: a column a subspace."""
    with plotting.theme("light"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 12), layout="constrained")
        grid = figure.subplots(4, len(SUBSPACES), sharex=True)
        rows = ((scan, "rise"), (scan, "roughness"), (scan, "grit"), (single, "roughness"))
        for axes, (result, quantity) in zip(grid, rows, strict=True):
            dtype = str(result.dtype).removeprefix("torch.")
            for ax, subspace in zip(axes, SUBSPACES, strict=True):
                plotting.rays(result, quantity, only=f"* on {subspace}", ax=ax)
                ax.set_title(f"{subspace}, {dtype}")
            lows, highs = zip(*(ax.get_ylim() for ax in axes), strict=True)
            for ax in axes:
                ax.set_ylim(min(lows), max(highs))
                ax.label_outer()
            for ax in axes[1:]:
                ax.get_legend().remove()
        figure.suptitle(title)
        figure.savefig(path, dpi=90)


def draw_plane(scan: landscape.Plane, title: str, path: Path) -> None:
    """Draw the plane as contours and as a surface."""
    with plotting.theme("light"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.4), layout="constrained")
        plotting.plane(scan, ax=figure.add_subplot(1, 2, 1))
        plotting.surface(scan, ax=figure.add_subplot(1, 2, 2, projection="3d"))
        figure.suptitle(title)
        figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, scan, draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(READERS), default="fashion-mnist")
    parser.add_argument("--root", type=Path, default=DEBIAN_FASHION_MNIST, help="its folder")
    parser.add_argument("--images", type=int, default=10_000, help="how many the scans use")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--distances", type=int, default=24)
    parser.add_argument("--resolution", type=int, default=31)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE.parent / "assets" / "gallery")
    options = parser.parse_args(arguments)
    start = perf_counter()

    name, read = READERS[options.data]
    X, y = read(options.root)
    model = network(options.seed)
    train(model, X, y, options.epochs, options.seed)
    data = batches(X[: options.images], y[: options.images], 1000)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)

    choices = {
        "subspaces": SUBSPACES,
        "base": 1e-6,
        "num": options.distances,
        "num_random": 4,
        "seed": options.seed,
    }
    wanted = ["descent", "random", landscape.eigenvector(0), "radial_out"]
    progress = sys.stderr.isatty()
    scan = landscape.rays(
        risk, wanted, dtype=torch.float64, metrics=["accuracy"], progress=progress, **choices
    )
    single = landscape.rays(risk, wanted, progress=progress, **choices)
    plane = landscape.plane(
        risk,
        "random",
        "random",
        normalization="filter",
        extent=1.0,
        resolution=options.resolution,
        seed=options.seed,
        progress=progress,
    )

    options.out.mkdir(parents=True, exist_ok=True)
    about = f"784-128-128-10 ReLU on {min(options.images, len(X))} images of {name}"
    accuracy = scan.point_metrics["accuracy"]
    title = f"{about}: loss {scan.loss:.3g}, accuracy {accuracy:.1%}"
    draw_rays(scan, single, title, options.out / "rays.png")
    draw_plane(plane, f"{about}: filter-normalised random plane", options.out / "plane.png")
    sys.stdout.write(f"{title}\n{scan}\n{plane}\n{perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main()
