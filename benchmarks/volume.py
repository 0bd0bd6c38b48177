"""Basin volumes: star-domain bounds of the digits network by preconditioner, a toy, a small CNN.

The digits network is trained by the published recipe, and the bounds stand beside the published
ones: of 3000 directions each, as log-probabilities under N(0, σ²I), σ = 1.3975, of a mean
divergence of at most 0.01 nats. Few directions speak for all of the volume, so that every number is
that of a lucky one, and a lower bound.

A value is the time in seconds; the volumes are in ``extra``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.options import Options
from benchmarks.results import Row
from benchmarks.tables import Table
from benchmarks.volume_problems import DIGITS_STD, digits_net, small_cnn
from curvops import EmpiricalRisk, UnconvergedWarning, basin_volume
from curvops.errors import DataError

THRESHOLD = 1e-2
DIRECTIONS = 3000

CHOICES = {"threshold": 2.0, "weight_decay": 1e-5, "prior_std": 0.5, "prior_count": 1.0}
"""T, λ, σ and k of the small CNN's volume."""

PUBLISHED = {"none": -9795.0, "adam": -7021.0, "diagonal": -6578.0}
"""The best of several dampings each (arXiv 2501.18812 and its notebooks)."""

WAYS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("none", {}),
    ("adam", {}),
    ("diagonal", {}),
    ("lowrank", {"rank": 300}),
    ("dense", {}),
)


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of the toy, the digits network and the CNN."""
    count = options.repeats or (50 if options.quick else DIRECTIONS)
    yield toy(options, min(count, 1000))
    yield from digits(options, count)
    try:
        yield cnn(options, num_data=100 if options.quick else 1000)
    except DataError as error:
        options.say(f"cnn: left out, its data are not here ({error})")


def digits(options: Options, count: int) -> Iterator[list[Row]]:
    """Yield the bounds of the digits network, by preconditioner."""
    net = digits_net()
    for name, more in WAYS:
        options.say(f"digits: {count} directions, preconditioner {name}")
        given = dict(more, preconditioner=name, num_directions=count)
        if name == "adam":  # the moments that trained it, as published
            given["optimizer"] = net.optimizer
        basin = {"threshold": THRESHOLD, "cost": "kl", "measure": "gaussian"}
        row = _row("digits", name, net.risk, prior_std=DIGITS_STD, **basin, **given)
        if name in PUBLISHED:
            row.extra["published"] = PUBLISHED[name]
        yield [row]


def toy(options: Options, count: int) -> list[Row]:
    """Return the bounds of a rotated quadratic of 200 parameters, eigenvalues from 100 to 1e-4."""
    generator = torch.Generator().manual_seed(0)
    V = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))[0]
    values = torch.logspace(2, -4, 200, dtype=torch.float64)
    X = (V * (values / 2).sqrt()).T

    def model(params: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return inputs @ params["w"].unsqueeze(1)

    params = {"w": torch.zeros(200, dtype=torch.float64)}
    data = [(X, torch.zeros(200, 1, dtype=torch.float64))]
    risk = EmpiricalRisk(model, nn.MSELoss(reduction="sum"), params, data)
    options.say(f"toy: {count} directions")
    given = {"threshold": THRESHOLD, "measure": "lebesgue", "num_directions": count}
    return [
        _row("toy", "exact", risk, "quadratic", threshold=THRESHOLD),
        *(
            _row("toy", name, risk, preconditioner=name, **given)
            for name in ("none", "diagonal", "lowrank", "dense")
        ),
    ]


def cnn(options: Options, num_data: int) -> list[Row]:
    """Return the ellipsoid of the CNN, exactly and by the log-determinant's bracket."""
    options.say("cnn: training")
    root = {} if options.root is None else {"root": options.root}
    risk = small_cnn(num_data=num_data, **root)
    rows = []
    for name, more in (("exact", {}), ("krylov", {"logdet": "krylov", "num_matvecs": 300})):
        options.say(f"cnn: log det, {name}")
        rows.append(_row("CNN, P = 1710", name, risk, "quadratic", **CHOICES, **more))
    return rows


def _row(
    problem: str, variant: str, risk: EmpiricalRisk, method: str = "star", **given: Any
) -> Row:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)
        result: Any = basin_volume(risk, method, **given)  # type: ignore[call-overload]
    seconds = time.perf_counter() - start
    extra = {"log_volume": result.log_volume, "stderr": result.stderr, "lower": result.lower}
    for name in (
        "upper",
        "ess",
        "largest_weight",
        "num_directions",
        "num_evaluations",
        "num_matvecs",
        "logdet",
        "ball_term",
        "threshold_term",
    ):
        number = float(getattr(result, name, float("nan")))
        if abs(number) < float("inf"):
            extra[name] = number
    return Row(
        problem,
        f"{result.symbol}, {method}",
        "curvops",
        variant,
        value=float(f"{seconds:.3g}"),
        rounds=1,
        note="" if result.converged else "lower bound",
        extra=extra,
    )


def table(rows: list[Row]) -> Table:
    """Return one line a way: the volume, how much there is to it, what was published."""
    lines = []
    for row in rows:
        extra = row.extra
        error = f" ± {extra['stderr']:.2g}" if extra["stderr"] and not row.note else ""
        bound = f" ({row.note})" if row.note else ""
        lines.append(
            [
                row.problem,
                row.variant,
                f"{extra['log_volume']:.1f}{error}{bound}",
                f"{extra['ess']:.3g}" if "ess" in extra else "",
                f"{extra['largest_weight']:.2f}" if "ess" in extra else "",
                f"{extra['published']:.0f}" if "published" in extra else "",
                f"{row.value:.3g}" if row.value is not None else "",
            ]
        )
    headers = ["problem", "way", "nats", "ESS", "largest weight", "published", "seconds"]
    return Table(headers, lines)
