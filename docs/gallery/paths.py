"""Two convolutional networks joined by a segment, a polychain and a Bézier curve.

Trains two small CNNs with batch normalisation from different starts on MNIST or Fashion-MNIST,
evaluates the loss and the accuracy on the segment between them, trains the bend of a polychain and
of a Bézier curve, and does the same after the second net's channels are renumbered like the first
one's. Writes a picture, and the results where a folder is named for them::

    python docs/gallery/paths.py --data mnist --root ~/data

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

HERE = Path(__file__).parent
READERS = {"mnist": ("MNIST", mnist), "fashion-mnist": ("Fashion-MNIST", fashion_mnist)}


def network(seed: int) -> nn.Sequential:
    """Return the network with torch's initialisation from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )


def train(model: nn.Module, X: Tensor, y: Tensor, epochs: int, seed: int) -> None:
    """Train with Adam on shuffled mini-batches, and leave the model in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for part in torch.randperm(len(X), generator=generator).split(128):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(X[part]), y[part])
            torch.autograd.backward(loss)
            optimizer.step()
    model.eval()


def draw(plain: list[landscape.PathScan], aligned: list[landscape.PathScan], path: Path) -> None:
    """Draw loss and accuracy along the paths, before and after alignment."""
    with plotting.theme("light"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 7), layout="constrained")
        grid = figure.subplots(2, 2, sharey="row")
        for ax, scans, title in zip(grid[0], (plain, aligned), ("as trained", "aligned")):
            plotting.path(scans, scale="log", ax=ax)
            ax.set_title(title)
        for ax, scans in zip(grid[1], (plain, aligned)):
            plotting.path(scans, metric="accuracy", x="distance", ax=ax)
        figure.savefig(path, dpi=90)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, join, draw and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=list(READERS), default="fashion-mnist")
    parser.add_argument("--root", type=Path, default=DEBIAN_FASHION_MNIST, help="its folder")
    parser.add_argument("--images", type=int, default=10_000, help="how many are used")
    parser.add_argument("--epochs", type=int, default=12, help="of each net")
    parser.add_argument("--path-epochs", type=int, default=12, help="of each path")
    parser.add_argument("--points", type=int, default=31, help="on each path")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE.parent / "assets" / "gallery")
    parser.add_argument("--results", type=Path, help="a folder for the results")
    options = parser.parse_args(arguments)
    start = perf_counter()

    name, read = READERS[options.data]
    X, y = (part[: options.images] for part in read(options.root))
    nets = [network(options.seed + i) for i in range(2)]
    for i, net in enumerate(nets):
        train(net, X, y, options.epochs, options.seed + i)
    a, b = nets
    risk = EmpiricalRisk(a, nn.CrossEntropyLoss(), a, batches(X, y, 1000))

    results = {}
    for aligned in (False, True):
        for kind in ("polychain", "bezier"):
            results[kind, aligned] = landscape.connect(
                risk,
                a,
                b,
                kind,
                aligned=aligned,
                epochs=options.path_epochs,
                ts=options.points,
                metrics="accuracy",
                seed=options.seed,
            )
    options.out.mkdir(parents=True, exist_ok=True)
    scans = {}
    for aligned in (False, True):
        chain, curve = (results[kind, aligned] for kind in ("polychain", "bezier"))
        scans[aligned] = [chain.segment, chain.fitted, curve.fitted]
    draw(scans[False], scans[True], options.out / "paths.png")
    if options.results is not None:
        options.results.mkdir(parents=True, exist_ok=True)
        for (kind, aligned), result in results.items():
            result.save(options.results / f"{kind}{'-aligned' if aligned else ''}.npz")
    lines = [
        f"{name}, {len(X)} images, {risk.space.dim} parameters",
        *(f"{'aligned: ' if a else ''}{scan}" for a in scans for scan in scans[a]),
        str(results["polychain", True].alignment),
        f"{perf_counter() - start:.0f} s",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
