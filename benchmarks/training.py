"""A training step with quantities beside the plain step: Alpha and GradientNoise, ours and cockpit.

The step is forward and backward pass, ``optimizer.step()`` and ``zero_grad()`` on the MLP and the
CNN, with mini-batches of 128; the unit is the same step without a monitor. Five steps are timed at
a time, so that what is measured at every fifth step is shared among five.

cockpit imports ``pkg_resources``, which setuptools has dropped; a stand-in lets it run.

Peak memory is that of ten steps in a process of its own, beyond model, optimizer and data.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import BatchGrad
from torch import nn

from benchmarks.isolated import ProbeError, probe
from benchmarks.options import Options
from benchmarks.problems import TITLES, Problem
from benchmarks.results import MEASURED, Row, find
from benchmarks.tables import Table, number
from benchmarks.timing import interleave
from curvops.training import Alpha, GradientNoise, Monitor, Quantity

PROBLEMS = ("mlp", "cnn")
STEPS = 5
"""Steps of one timed task."""

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, lr=1e-2),
    "Adam": lambda params: torch.optim.Adam(params, lr=1e-3),
}

Steps = Callable[[], None]
"""Makes :data:`STEPS` steps of training."""


class Loop:
    """A training loop with nothing in it, over the batches in turn.

    Args:
        problem: Model, loss and data.
        optimizer: A key of :data:`OPTIMIZERS`.
    """

    def __init__(self, problem: Problem, optimizer: str) -> None:
        self.model, self.loss = copy.deepcopy(problem.model), copy.deepcopy(problem.loss)
        self.data = problem.data
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.count = 0
        self.norm_tests: list[float] = []

    def __call__(self) -> None:
        """Make the steps."""
        for _ in range(STEPS):
            X, y = self.data[self.count % len(self.data)]
            self.passes(X, y)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.count += 1

    def passes(self, X: Any, y: Any) -> None:
        """Make the forward and the backward pass."""
        self.loss(self.model(X), y).backward()

    def found(self) -> list[float]:
        """Return the norm tests so far, of the steps that were measured."""
        return self.norm_tests


class Monitored(Loop):
    """With our monitor."""

    def __init__(
        self, problem: Problem, optimizer: str, quantities: list[Quantity], individual: str
    ) -> None:
        super().__init__(problem, optimizer)
        self.monitor = Monitor(
            self.model, self.loss, self.optimizer, quantities, keep=64, individual=individual
        )  # type: ignore[arg-type]

    def passes(self, X: Any, y: Any) -> None:
        """Make them in a block of the monitor."""
        with self.monitor.step(X, y):
            self.loss(self.model(X), y).backward()

    def found(self) -> list[float]:
        """Return the monitor's."""
        return self.monitor.run.series("gradient_noise", "norm_test")[1]


class Kept(Loop):
    """With BackPACK's individual gradients of all parameters, as they come."""

    def __init__(self, problem: Problem, optimizer: str) -> None:
        super().__init__(problem, optimizer)
        extend(self.model)

    def passes(self, X: Any, y: Any) -> None:
        """Make them under BackPACK."""
        with backpack(BatchGrad()):
            self.loss(self.model(X), y).backward()
        G = torch.cat([p.grad_batch.flatten(1) for p in self.model.parameters()], 1) * len(y)
        g = G.mean(0)
        trace = float((G - g).square().sum()) / (len(y) - 1)
        self.norm_tests.append((trace / len(y)) ** 0.5 / float(g.norm()))


class Cockpit(Loop):
    """With cockpit's quantities that are closest to ours."""

    def __init__(self, problem: Problem, optimizer: str) -> None:
        super().__init__(problem, optimizer)
        if importlib.util.find_spec("cockpit") is None:
            raise ImportError("cockpit")
        known_already = "pkg_resources" in sys.modules
        if not known_already and importlib.util.find_spec("pkg_resources") is None:
            stand_in = ModuleType("pkg_resources")
            stand_in.DistributionNotFound = ImportError  # type: ignore[attr-defined]
            stand_in.get_distribution = lambda _: SimpleNamespace(version="")  # type: ignore[attr-defined]
            sys.modules["pkg_resources"] = stand_in
        package = importlib.import_module("cockpit")
        known = importlib.import_module("cockpit.quantities")
        always = importlib.import_module("cockpit.utils.schedules").linear(interval=1)
        extend(self.model)
        extend(self.loss)
        names = ("Alpha", "NormTest", "InnerTest", "OrthoTest", "MeanGSNR")
        self.cockpit = package.Cockpit(
            self.model.parameters(), quantities=[getattr(known, name)(always) for name in names]
        )

    def passes(self, X: Any, y: Any) -> None:
        """Make them in cockpit's context."""
        prediction = self.model(X)
        loss = self.loss(prediction, y)
        told = {
            "batch_size": len(y),
            "individual_losses": nn.functional.cross_entropy(prediction, y, reduction="none"),
            "loss": loss,
            "optimizer": self.optimizer,
        }
        with self.cockpit(self.count, info=told):
            loss.backward(create_graph=self.cockpit.create_graph(self.count))

    def found(self) -> list[float]:
        """Return cockpit's."""
        return [v["NormTest"] for v in self.cockpit.get_output().values() if "NormTest" in v]


@dataclass(frozen=True)
class Way:
    """A way to measure while training.

    Attributes:
        library: Whose.
        variant: What, and how often.
        make: ``(problem, optimizer)`` to the steps.
        every: At which steps it measures.
        slow: Whether one task takes so long that few rounds must do.
    """

    library: str
    variant: str
    make: Callable[[Problem, str], Loop]
    every: int = 1
    slow: bool = False


def _ours(
    every: int = 1, individual: str = "backpack", alpha: bool = True, noise: bool = True
) -> Callable[[Problem, str], Loop]:
    def make(problem: Problem, optimizer: str) -> Loop:
        quantities: list[Quantity] = [Alpha(every)] if alpha else []
        quantities += [GradientNoise(every)] if noise else []
        return Monitored(problem, optimizer, quantities, individual)

    return make


EVERY_STEP, EVERY_FIFTH = "Alpha + GradientNoise", "Alpha + GradientNoise, every 5th step"
WAYS = (
    Way("curvops", EVERY_STEP, _ours()),
    Way("curvops", EVERY_FIFTH, _ours(5), every=5),
    Way("curvops", "Alpha", _ours(noise=False)),
    Way("curvops", "GradientNoise", _ours(alpha=False)),
    Way("curvops", f"{EVERY_STEP}, by vmap", _ours(individual="functional"), slow=True),
    Way("backpack", "BatchGrad, kept", Kept, slow=True),
    Way("cockpit", "Alpha, three tests, MeanGSNR", Cockpit, slow=True),
)


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one problem and optimizer after the other."""
    for name in options.problems:
        problem = options.build(name)
        if problem is None:
            continue
        problem.model.train()
        for optimizer in OPTIMIZERS:
            options.say(f"{problem.name}, {optimizer}")
            yield measured(options, name, problem, optimizer, WAYS)


def measured(
    options: Options, name: str, problem: Problem, optimizer: str, ways: tuple[Way, ...]
) -> list[Row]:
    """Compare the norm tests of all ways, and time them beside the plain step."""
    plain = Loop(problem, optimizer)
    plain()
    exact = _truth(problem, optimizer)
    tasks: dict[str, Loop] = {}
    rows = [Row(name, f"{optimizer} step", "torch", "plain", value=1.0)]
    for way in ways:
        row = Row(name, f"{optimizer} step", way.library, way.variant)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                task = way.make(problem, optimizer)
                for _ in range(2):  # whatever happens only the first time has happened
                    task()
        except ImportError:
            row = replace(row, status="not installed")
        except Exception as error:
            row = replace(row, status="fails", note=f"{type(error).__name__}: {error}"[:160])
        else:
            row = replace(row, extra=_agreement(task.found(), exact[:: way.every]))
            tasks[way.variant] = task
        rows.append(row)
    fast = {way.variant for way in ways if not way.slow} & set(tasks)
    rounds = options.rounds()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summaries = interleave(plain, {v: tasks[v] for v in tasks if v in fast}, rounds)
        few = replace(rounds, most=min(rounds.most, 5), least=min(rounds.least, 3))
        summaries |= interleave(plain, {v: tasks[v] for v in tasks if v not in fast}, few)
    rows = [row.timed(summaries[row.variant]) if row.variant in summaries else row for row in rows]
    tasks.clear()
    return [_with_memory(options, row, optimizer) for row in rows]


def _truth(problem: Problem, optimizer: str) -> list[float]:
    """Return the norm tests of the first steps, in float64, by vmap."""
    double = problem.to(problem.data[0][0].device, torch.float64)
    loop = _ours(alpha=False, individual="functional")(double, optimizer)
    loop()
    return loop.found()


def _agreement(found: list[float], exact: list[float]) -> dict[str, float]:
    """Return the largest relative difference over the first steps, where there are any."""
    pairs = list(zip(found, exact))
    if not pairs:
        return {}
    return {"error": float(f"{max(abs(a - b) / abs(b) for a, b in pairs):.3g}")}


def _with_memory(options: Options, row: Row, optimizer: str) -> Row:
    if row.status != MEASURED:
        return row
    order = {
        "problem": row.problem,
        "optimizer": optimizer,
        "library": row.library,
        "variant": row.variant,
        "quick": options.quick,
        "threads": options.threads,
    }
    try:
        peak = probe("training_probe", order)["peak_mb"]
    except ProbeError as error:
        return replace(row, note=f"memory: {error}")
    return replace(row, extra={**row.extra, "peak_mb": peak})


def table(rows: list[Row]) -> Table:
    """Return one line a problem, optimizer and way."""
    lines = []
    for row in rows:
        head = [TITLES[row.problem], row.quantity, f"{row.library}, {row.variant}"]
        if row.value is None:
            lines.append([*head, row.status, "", "", ""])
            continue
        spread = f" [{number(row.low)}, {number(row.high)}]" if row.rounds > 1 else ""
        seconds, extra = row.extra.get("seconds"), row.extra
        lines.append(
            [
                *head,
                number(row.value) + spread,
                "" if seconds is None else f"{seconds / STEPS * 1e3:.2f}",
                f"{extra['error']:.0e}" if "error" in extra else "",
                f"{extra['peak_mb']:.0f}" if "peak_mb" in extra else "",
            ]
        )
    headers = ["problem", "step", "way", "plain steps", "ms a step", "relative error", "peak MB"]
    return Table(headers, lines)


def overhead(rows: list[Row], problem: str, optimizer: str, variant: str) -> float | None:
    """Return how many plain steps a step with ours takes."""
    key = {"quantity": f"{optimizer} step", "library": "curvops", "variant": variant}
    row = find(rows, problem=problem, **key)
    return None if row is None else row.value
