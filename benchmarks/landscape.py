"""The loss at 81 points of a plane: copies of the module one by one, ours, and loss-landscapes.

The network has 784-128-128-10 units with ReLU (P = 118282), the data are all 60000 images of
Fashion-MNIST, or random ones of that shape where they are not on the machine. The unit is what a
careful user would do: a copy of the module for every point, made beforehand, evaluated over all
batches without gradients. Copies, points, risks and what the first use measures are not timed.

Peak memory is that of an evaluation in a process of its own, beyond data, points and copies.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.isolated import ProbeError, probe
from benchmarks.options import Options
from benchmarks.results import MEASURED, Row
from benchmarks.tables import Table, number
from benchmarks.timing import interleave
from curvops.autodiff.affine import Affine
from curvops.datasets import DEBIAN_FASHION_MNIST, StrPath, batches, fashion_mnist
from curvops.errors import DataError
from curvops.risk import EmpiricalRisk

SIDE = 9
"""Points on each axis of the plane."""
SIZES = (100, 512, 5000)
"""Data in a batch."""
RADIUS = 2.0
"""How far the plane reaches, on axes of length one; the weights have a norm of about 12."""
QUICK_DATA = 6000
COPIES = "copies"
"""The variant of the unit."""


@dataclass(frozen=True)
class Plane:
    """A network, its data and points.

    Attributes:
        title: Whose data these are.
        model: The network at the origin.
        data: Batches.
        directions: ``[P, 2]``, orthonormal.
    """

    title: str
    model: nn.Module
    data: list[tuple[Tensor, Tensor]]
    directions: Tensor

    @property
    def num_data(self) -> int:
        """The number of data."""
        return sum(len(y) for _, y in self.data)

    @property
    def affine(self) -> Affine:
        """The points of the plane, by what makes them; the second coordinate runs fastest."""
        steps = torch.linspace(-RADIUS, RADIUS, SIDE)
        grid = torch.cartesian_prod(steps, steps).T.contiguous()
        return Affine(self.origin, self.directions, grid)

    @cached_property
    def origin(self) -> Tensor:
        """The parameters of the network."""
        return parameters_to_vector(self.model.parameters()).detach()

    @cached_property
    def columns(self) -> Tensor:
        """The points of the plane, ``[P, 81]``."""
        affine = self.affine
        return self.origin.unsqueeze(1) + self.directions @ affine.coefficients

    @cached_property
    def scattered(self) -> Tensor:
        """As many points around the origin that have nothing in common."""
        g = torch.Generator().manual_seed(3)
        noise = torch.randn(self.columns.shape, generator=g)
        return self.origin.unsqueeze(1) + RADIUS * noise / noise.norm(dim=0)

    def risk(self) -> EmpiricalRisk:
        """Return our risk."""
        return EmpiricalRisk(self.model, nn.CrossEntropyLoss(), self.model, self.data)


def build(size: int, quick: bool = False, root: StrPath | None = None) -> Plane:
    """Return the problem with batches of a size."""
    try:
        images, labels = fashion_mnist(DEBIAN_FASHION_MNIST if root is None else root)
        title = "Fashion-MNIST"
    except DataError:
        g = torch.Generator().manual_seed(1)
        images = torch.rand(60_000, 1, 28, 28, generator=g)
        labels, title = torch.randint(10, (60_000,), generator=g), "random images"
    if quick:
        images, labels = images[:QUICK_DATA], labels[:QUICK_DATA]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for X, y in batches(images[:5120], labels[:5120], 128):
        optimizer.zero_grad()
        cross_entropy(model(X), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    g = torch.Generator().manual_seed(2)
    dim = sum(p.numel() for p in model.parameters())
    directions = torch.linalg.qr(torch.randn(dim, 2, generator=g)).Q
    return Plane(title, model, batches(images, labels, size), directions)


# --------------------------------------------------------------------------------------- the ways

Evaluate = Callable[[], Tensor]
"""Returns the losses, ``[81]``."""


def copies(plane: Plane, points: Tensor | None = None) -> Evaluate:
    """Copy the module for every point, and return what evaluates one after the other."""
    modules = []
    for theta in (plane.columns if points is None else points).T:
        module = copy.deepcopy(plane.model)
        vector_to_parameters(theta.contiguous(), module.parameters())
        modules.append(module)

    def evaluate() -> Tensor:
        losses = []
        with torch.no_grad():
            for module in modules:
                total = 0.0
                for X, y in plane.data:
                    total += float(cross_entropy(module(X), y, reduction="sum"))
                losses.append(total / plane.num_data)
        return torch.tensor(losses)

    return evaluate


def _loss_landscapes(plane: Plane) -> Evaluate:
    """Return ``planar_interpolation`` over the same plane, with a metric that reads batches."""
    library = importlib.import_module("loss_landscapes")
    metric = importlib.import_module("loss_landscapes.metrics.metric").Metric
    affine = plane.affine
    corner = plane.origin + plane.directions @ affine.coefficients[:, 0]

    class Loss(metric):  # type: ignore[misc, valid-type]
        def __call__(self, wrapper: Any) -> float:
            total = 0.0
            with torch.no_grad():
                for X, y in plane.data:
                    total += float(cross_entropy(wrapper.forward(X), y, reduction="sum"))
            return total / plane.num_data

    # Its steps are a SIDE-th of the way to the end points, so these are one step beyond the plane.
    reach = 2 * RADIUS * SIDE / (SIDE - 1)
    ends = []
    for point in (corner, *(corner + reach * d for d in plane.directions.T)):
        module = copy.deepcopy(plane.model)
        vector_to_parameters(point, module.parameters())
        ends.append(module)

    def evaluate() -> Tensor:
        losses = library.planar_interpolation(*ends, Loss(), steps=SIDE, deepcopy_model=True)
        return torch.as_tensor(losses).reshape(-1).float()

    return evaluate


@dataclass(frozen=True)
class Way:
    """A way to the losses.

    Attributes:
        library: Whose.
        variant: Which of its ways.
        make: ``plane -> (() -> losses)``; what it does is not timed.
        package: What must be installed.
        scattered: Whether its points are those that have nothing in common.
    """

    library: str
    variant: str
    make: Callable[[Plane], Evaluate]
    package: str = ""
    scattered: bool = False


def _ours(points: Callable[[Plane], Any], **options: Any) -> Callable[[Plane], Evaluate]:
    def make(plane: Plane) -> Evaluate:
        risk, thetas = plane.risk(), points(plane)
        return lambda: risk.losses(thetas, **options)

    return make


WAYS = (
    Way("curvops", "a plane, as Affine", _ours(lambda plane: plane.affine)),
    Way("curvops", "a plane, in columns", _ours(lambda plane: plane.columns)),
    Way("curvops", "any points", _ours(lambda plane: plane.scattered), scattered=True),
    Way(
        "curvops",
        "any points, one by one",
        _ours(lambda plane: plane.scattered, columns="loop"),
        scattered=True,
    ),
    Way("loss-landscapes", "planar_interpolation", _loss_landscapes, "loss_landscapes"),
)


# ------------------------------------------------------------------------------------ the running


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one batch size after the other."""
    for size in SIZES:
        plane = build(size, options.quick, options.root)
        options.say(f"{plane.title}, batches of {size}: {plane.num_data} images")
        yield measured(options, plane, size, WAYS)


def measured(options: Options, plane: Plane, size: int, ways: tuple[Way, ...]) -> list[Row]:
    """Compare all ways with float64, and time them beside copies of the module."""
    exact = {scattered: _truth(plane, scattered) for scattered in (False, True)}
    unit = copies(plane)
    baseline = Row("landscape", "losses", "torch", COPIES, SIDE**2, "batch", size, value=1.0)
    rows = [replace(baseline, extra={"error": _error(unit(), exact[False])})]
    tasks: dict[str, Evaluate] = {}
    for way in ways:
        row = replace(baseline, library=way.library, variant=way.variant, value=None)
        try:
            if way.package:
                importlib.import_module(way.package)
            task = way.make(plane)
            row = replace(row, extra={"error": _error(task(), exact[way.scattered])})
        except ImportError:
            row = replace(row, status="not installed")
        except Exception as error:
            row = replace(row, status="fails", note=f"{type(error).__name__}: {error}"[:160])
        else:
            task()  # whatever happens only the first time has happened
            tasks[way.variant] = task
        rows.append(row)
    summaries = interleave(unit, tasks, options.rounds())
    rows = [row.timed(summaries[row.variant]) if row.variant in tasks else row for row in rows]
    tasks.clear()
    return [_with_memory(options, row) if row.status == MEASURED else row for row in rows]


def _truth(plane: Plane, scattered: bool) -> Tensor:
    exact = plane.risk().to(torch.float64, cache_data=0)
    return exact.losses((plane.scattered if scattered else plane.columns).double())


def _error(losses: Tensor, exact: Tensor) -> float:
    return float(f"{float(((losses - exact) / exact).abs().max()):.3g}")


def _with_memory(options: Options, row: Row) -> Row:
    order = {
        "variant": row.variant,
        "size": row.size,
        "quick": options.quick,
        "root": None if options.root is None else str(options.root),
        "threads": options.threads,
    }
    try:
        peak = probe("landscape_probe", order)["peak_mb"]
    except ProbeError as error:
        return replace(row, note=f"memory: {error}")
    return replace(row, extra={**row.extra, "peak_mb": peak})


def table(rows: list[Row]) -> Table:
    """Return one line a batch size and way."""
    lines = []
    for row in rows:
        extra = row.extra
        head = [str(row.size), f"{row.library}, {row.variant}"]
        if row.value is None:
            lines.append([*head, row.status, "", "", "", ""])
            continue
        spread = f" [{number(row.low)}, {number(row.high)}]" if row.rounds > 1 else ""
        lines.append(
            [
                *head,
                number(row.value) + spread,
                number(1 / row.value),
                number(extra.get("seconds")),
                f"{extra['error']:.1e}",
                f"{extra['peak_mb']:.0f}" if "peak_mb" in extra else "",
            ]
        )
    headers = ["batch", "way", "time", "times faster", "seconds", "relative error", "peak MB"]
    return Table(headers, lines)
