"""Log-determinants on the digits network: true error, claimed error, seconds, at equal products.

The network of 64-64-10 units (P = 4810) on 1024 digits, in float64. Its GGN is positive
semidefinite. Its Hessian, with the L2 penalty of the training, has eigenvalues down to about
-6e-4, so that shifts below that have no log-determinant: there log det(|H| + shift I) is measured,
and rows say "of |A|". The exact values come from all eigenvalues.

Products are counted where they are made. A peer that only takes arrays gets the dense matrix, and
its seconds are those of products with an array.
"""

from __future__ import annotations

import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.options import Options
from benchmarks.results import MEASURED, Row
from benchmarks.tables import Table
from curvops.datasets import batches, digits
from curvops.linalg.logdet import logdet
from curvops.operators import GGNLinearOperator, HessianLinearOperator
from curvops.risk import EmpiricalRisk

PRODUCTS = 300
"""What every sampled method may spend on all shifts, or on each where it needs a run a shift."""

SHIFTS = (1e-2, 1e-3, 1e-4)
SEEDS = 10
PENALTY = 5e-4
STEPS = 30
"""Lanczos steps a probe of plain quadrature, ours and the peers': ten probes at 300 products."""

Claim = tuple[float, float]
"""A value, and half the width of the interval that is claimed for it (NaN where none is)."""


class Counted:
    """An operator that counts the columns it is multiplied with."""

    def __init__(self, operator: Any) -> None:
        self.operator, self.products = operator, 0
        self.shape, self.dtype, self.device = operator.shape, operator.dtype, operator.device
        self.POSITIVE_SEMIDEFINITE = operator.POSITIVE_SEMIDEFINITE

    def __matmul__(self, x: Tensor) -> Tensor:
        """Multiply and count."""
        self.products += 1 if x.ndim == 1 else x.shape[1]
        return self.operator @ x


@dataclass(frozen=True)
class Task:
    """One matrix of the digits network.

    Attributes:
        name: ``"GGN"`` or ``"Hessian"``.
        operator: It.
        eigenvalues: All of its eigenvalues.
        dense: It, formed.
    """

    name: str
    operator: Any
    eigenvalues: Tensor
    dense: Tensor

    def on_negative(self, shift: float) -> str:
        """Return whether the matrix is taken as it is, or its absolute value."""
        return "raise" if float(self.eigenvalues[0]) + shift > 0 else "abs"

    def truth(self, shift: float) -> float:
        """Return the exact value."""
        values = self.eigenvalues
        if self.on_negative(shift) == "abs":
            values = values.abs()
        return float((values + shift).log().sum())


@dataclass(frozen=True)
class Method:
    """A way to a log-determinant.

    Attributes:
        library: Whose.
        variant: Which of its ways.
        solve: ``(task, operator, shift, seed)`` to a claim, or the reason that there is none.
        seeds: Whether another seed gives another answer.
    """

    library: str
    variant: str
    solve: Callable[[Task, Counted, float, int], Claim | str]
    seeds: bool = True


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one matrix after the other."""
    seeds = options.repeats or (2 if options.quick else SEEDS)
    risk = digits_risk(epochs=2 if options.quick else 25)
    penalised = digits_risk(epochs=2 if options.quick else 25, weight_decay=PENALTY)
    for name, operator in (
        ("GGN", GGNLinearOperator.from_risk(risk)),
        ("Hessian", HessianLinearOperator.from_risk(penalised)),
    ):
        options.say(f"digits, {name}: all eigenvalues")
        dense = operator.prepare(operator.shape[0]).to_dense()
        dense = 0.5 * (dense + dense.T)
        task = Task(name, operator, torch.linalg.eigvalsh(dense), dense)
        yield [
            _measured(options, task, method, shift, seeds) for method in METHODS for shift in SHIFTS
        ]


def digits_risk(seed: int = 0, epochs: int = 25, weight_decay: float = 0.0) -> EmpiricalRisk:
    """Train the network on the first 1024 digits, and return its risk in float64."""
    X, y = digits(torch.float32)
    X, y = X[:1024].flatten(1), y[:1024]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
        for bias in (model[0].bias, model[2].bias):
            nn.init.normal_(bias)
    generator = torch.Generator().manual_seed(seed)
    params = list(model.parameters())
    optimizer = torch.optim.AdamW(params, lr=0.05, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 16 * epochs)
    for _ in range(epochs):
        for rows in torch.randperm(1024, generator=generator).split(64):
            optimizer.zero_grad()
            penalty = 0.5 * PENALTY * sum(p.square().sum() for p in params)
            (nn.functional.cross_entropy(model(X[rows]), y[rows]) + penalty).backward()
            optimizer.step()
            schedule.step()
    optimizer.zero_grad(set_to_none=True)
    data = batches(X.double(), y, 256)
    model = model.double()
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, weight_decay=weight_decay)


def _measured(options: Options, task: Task, method: Method, shift: float, seeds: int) -> Row:
    """Run one method on one shift with every seed."""
    variant = method.variant
    if task.on_negative(shift) == "abs" and method.library == "curvops":
        variant += ", of |A|"
    row = Row("digits", f"{task.name} {shift:g}", method.library, variant)
    options.say(f"digits, {task.name}, shift {shift:g}: {method.library} {variant}")
    truth, errors, claims, seconds, held, counted = task.truth(shift), [], [], [], 0, 0
    for seed in range(seeds if method.seeds else 1):
        operator = Counted(task.operator)
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                claim = method.solve(task, operator, shift, seed)
        except Exception as error:
            note = f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"
            return replace(row, status="fails", note=note)
        if isinstance(claim, str):
            return replace(row, status=claim)
        seconds.append(time.perf_counter() - start)
        value, half_width = claim
        errors.append(abs(value - truth))
        claims.append(half_width)
        held += errors[-1] <= half_width
        counted = max(counted, operator.products)
    low, _, high = _quartiles(errors)
    extra = {
        "truth": truth,
        "claimed": _three(statistics.median(claims)),
        "held": held / len(errors),
        "seconds": _three(statistics.median(seconds)),
        "products": counted,
    }
    return replace(
        row,
        value=_three(statistics.median(errors)),
        low=_three(low),
        high=_three(high),
        rounds=len(errors),
        status=MEASURED,
        extra={name: number for name, number in extra.items() if number == number},
    )


def _quartiles(values: list[float]) -> list[float]:
    return statistics.quantiles(values, n=4) if len(values) > 1 else values * 3


def _three(number: float) -> float:
    return float(f"{number:.3g}")


# --------------------------------------------------------------------------------------- the ways


def _ours(method: str, **options: Any) -> Callable[[Task, Counted, float, int], Claim]:
    def solve(task: Task, operator: Counted, shift: float, seed: int) -> Claim:
        # The factor of the GGN is the operator's own.
        A = operator.operator if method == "gram" else operator
        estimate = logdet(
            A, shift, method=method, on_negative=task.on_negative(shift), seed=seed, **options
        )
        return estimate.value, 0.5 * (estimate.upper - estimate.lower)

    return solve


def _gram(task: Task, operator: Counted, shift: float, seed: int) -> Claim | str:
    if task.name != "GGN":
        return "not of the form V Vᵀ"
    return _ours("gram")(task, operator, shift, seed)


def _imate(task: Task, operator: Counted, shift: float, seed: int) -> Claim | str:
    try:
        imate = importlib.import_module("imate")
    except ImportError:
        return "not installed"
    matrix = (task.dense + shift * torch.eye(len(task.dense), dtype=task.dense.dtype)).numpy()
    probes = PRODUCTS // STEPS
    value, info = imate.logdet(
        matrix,
        method="slq",
        lanczos_degree=STEPS,
        min_num_samples=probes,
        max_num_samples=probes,
        orthogonalize=-1,
        seed=seed,
        return_info=True,
    )
    operator.products = probes * STEPS
    return float(value), 3.0 / 1.96 * float(info["error"]["absolute_error"])


def _linear_operator(task: Task, operator: Counted, shift: float, seed: int) -> Claim | str:
    try:
        library = importlib.import_module("linear_operator")
    except ImportError:
        return "not installed"
    base = library.operators.LinearOperator

    class Wrapped(base):  # type: ignore[misc, valid-type]
        def _matmul(self, rhs: Tensor) -> Tensor:
            return operator @ rhs + shift * rhs

        def _size(self) -> torch.Size:
            return torch.Size(operator.shape)

        def _transpose_nonbatch(self) -> Any:
            return self

        @property
        def dtype(self) -> torch.dtype:
            return operator.dtype

        @property
        def device(self) -> torch.device:
            return operator.device

    settings = library.settings
    with (
        torch.random.fork_rng(devices=[]),
        settings.max_cholesky_size(0),
        settings.num_trace_samples(PRODUCTS // STEPS),
        settings.max_cg_iterations(STEPS),
        settings.max_lanczos_quadrature_iterations(STEPS),
        settings.max_preconditioner_size(0),
        settings.min_preconditioning_size(10**9),
        settings.deterministic_probes(False),
    ):
        torch.manual_seed(seed)
        matrix = Wrapped(torch.zeros(1, dtype=operator.dtype))
        value = matrix.inv_quad_logdet(logdet=True)[1]
    return float(value), float("nan")


def _skerch(task: Task, operator: Counted, shift: float, seed: int) -> str:
    try:
        importlib.import_module("skerch")
    except ImportError:
        return "not installed"
    return "not offered: traces and decompositions, no log-determinant"


METHODS = (
    Method("curvops", "gram", _gram, seeds=False),
    Method("curvops", "krylov", _ours("krylov", num_matvecs=PRODUCTS)),
    Method("curvops", "slq", _ours("slq", num_matvecs=PRODUCTS, num_steps=STEPS)),
    Method("imate", "slq, dense array", _imate),
    Method("linear_operator", "slq by CG", _linear_operator),
    Method("skerch", "", _skerch, seeds=False),
)


def table(rows: list[Row]) -> Table:
    """Return one line a matrix, shift and way."""
    lines = []
    for row in rows:
        extra = row.extra
        label = f"{row.library} {row.variant}".strip()
        if row.value is None:
            lines.append([row.quantity, label, row.status, "", "", "", ""])
            continue
        claimed = f"{extra['claimed']:.2g}" if "claimed" in extra else "none"
        lines.append(
            [
                row.quantity,
                label,
                f"{row.value:.2g}",
                claimed,
                f"{extra['held']:.0%}" if "claimed" in extra else "",
                f"{extra['products']:.0f}",
                f"{extra['seconds']:.2g}",
            ]
        )
    return Table(["matrix, shift", "way", "error", "claimed", "held", "products", "seconds"], lines)
