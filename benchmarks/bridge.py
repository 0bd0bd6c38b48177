"""The bridge to the digits network's basin, between the best star domain and Chernoff's bound.

From the prior, so that the whole level set is measured, copies of the minimum by permuted units
included. Independent runs follow the ladder of a pilot. Beside the volumes stands how far down the
ladder the runs agree: beyond that β each has settled in a part of the level set of its own.

A value is the time in seconds; the volumes are in ``extra``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.options import Options
from benchmarks.results import Row
from benchmarks.tables import Table
from benchmarks.volume_problems import DIGITS_STD, Trained, digits_net
from curvops import UnconvergedWarning, basin_volume
from curvops.volume.bridge_result import BridgeVolume

THRESHOLDS = (5e-2, 1e-2)
"""Divergence of the predictions, in nats a datum; the second is the published one."""

RUNS = 3
GLOBAL: dict[str, Any] = {
    "start": "prior",
    "num_chains": 8,
    "num_moves": 4,
    "num_leapfrog": 24,
    "ess": 0.7,
    "acceptance": 0.75,
}
"""A run to 0.01 takes about 85 000 gradients of all data: six minutes on an idle core."""

AGREEMENT = 1.0
"""Runs agree where log Z scatters by no more nats, as a standard deviation."""


def run(options: Options) -> Iterator[list[Row]]:
    """Yield the rows of one threshold after the other."""
    net = digits_net()
    for threshold in (1.0,) if options.quick else THRESHOLDS:
        options.say(f"digits: star domain of {threshold:g} nats")
        count = 50 if options.quick else 3000
        star, seconds = measured(net, "star", threshold, preconditioner="dense",
                                 num_directions=count)  # fmt: skip
        rows = [_row("star domain, dense", threshold, seconds, _numbers(star))]
        options.say(f"digits: bridge to {threshold:g} nats")
        runs = options.repeats or (2 if options.quick else RUNS)
        bridge, seconds = measured(net, "bridge", threshold, num_runs=runs, **GLOBAL)
        rows.append(_row("bridge", threshold, seconds, described(bridge)))
        rows.append(_row("Chernoff", threshold, None, _numbers(bridge.chernoff)))
        yield rows


def measured(
    net: Trained, method: str, threshold: float, seed: int = 0, **given: Any
) -> tuple[Any, float]:
    """Return a volume of the digits network, and the seconds that it took.

    Args:
        net: From :func:`benchmarks.volume_problems.digits_net`.
        method: ``"star"`` or ``"bridge"``.
        threshold: Nats a datum.
        seed: Of directions or chains.
        given: Further options.
    """
    begin = time.perf_counter()
    basin = {"cost": "kl", "measure": "gaussian", "prior_std": DIGITS_STD}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconvergedWarning)  # the result says so itself
        found: Any = basin_volume(  # type: ignore[call-overload]
            net.risk, method, threshold=threshold, seed=seed, **basin, **given
        )
    return found, time.perf_counter() - begin


def described(bridge: BridgeVolume) -> dict[str, Any]:
    """Return a bridge's numbers: volume, runs, how far they agree, their ladders."""
    last = agreeing(bridge)
    return {
        **_numbers(bridge),
        "samples": bridge.volume.samples.tolist(),
        "beta": bridge.beta,
        "ess": bridge.ess,
        "acceptance": bridge.acceptance,
        "lag": list(bridge.lag),
        "num_evaluations": bridge.num_evaluations,
        "reasons": list(bridge.reasons),
        "agree": None if last is None else {"beta": last[0], "cost": last[1]},
        "ladders": [
            [
                [float(f"{number:.6g}") for number in (s.beta, s.log_z, s.mean_cost)]
                for s in ladder
                if s.stage == "temper"
            ]
            for ladder in bridge.ladders
        ],
    }


def agreeing(bridge: BridgeVolume) -> tuple[float, float] | None:
    """Return the largest β down to which runs agree, and the mean cost there."""
    found = None
    for steps in zip(*bridge.ladders):
        if steps[0].stage != "temper":
            continue
        mean = sum(s.log_z for s in steps) / len(steps)
        spread = (sum((s.log_z - mean) ** 2 for s in steps) / max(len(steps) - 1, 1)) ** 0.5
        if spread > AGREEMENT:
            break
        found = steps[0].beta, sum(s.mean_cost for s in steps) / len(steps)
    return found


def _numbers(found: Any) -> dict[str, Any]:
    value = found.log_volume if hasattr(found, "log_volume") else found.value
    return {
        "log_volume": value,
        "stderr": found.stderr,
        "lower": found.lower,
        "upper": found.upper,
        "converged": getattr(found, "converged", None),
    }


def _row(variant: str, threshold: float, seconds: float | None, extra: dict[str, Any]) -> Row:
    value = None if seconds is None else float(f"{seconds:.3g}")
    quantity = f"log p(KL ≤ {threshold:g})"
    return Row("digits", quantity, "curvops", variant, value=value, rounds=1, extra=extra)


def table(rows: Sequence[Row]) -> Table:
    """Return one line a threshold and way."""
    lines = []
    for row in rows:
        extra = row.extra
        kind = {"star domain, dense": " (lower bound)", "Chernoff": " (upper bound)"}
        agree = extra.get("agree")
        lines.append(
            [
                row.quantity,
                row.variant,
                f"{extra['log_volume']:.1f} ± {extra['stderr']:.2g}{kind.get(row.variant, '')}",
                ", ".join(f"{x:.1f}" for x in extra.get("samples", ())),
                f"β = {agree['beta']:.3g}, cost {agree['cost']:.2g}" if agree else "",
                "" if row.value is None else f"{row.value:.3g}",
            ]
        )
    headers = ["quantity", "way", "nats", "single runs", "runs agree down to", "seconds"]
    return Table(headers, lines)


def draw(figure: Any, rows: Sequence[Row]) -> None:
    """Draw the bracket over thresholds: bounds of every rung above, star domains below."""
    from curvops.plotting.style import LIGHT

    figure.set_size_inches(8.0, 5.0)
    axes = figure.subplots()
    for row in rows:
        threshold = float(row.quantity.split("≤")[1].rstrip(")"))
        value, error = row.extra["log_volume"], row.extra["stderr"]
        if row.variant == "Chernoff":
            continue
        if row.variant == "bridge":
            for ladder in row.extra["ladders"]:
                costs = [cost for _, _, cost in ladder]
                bounds = [log_z + beta * cost for beta, log_z, cost in ladder]
                axes.plot(costs, bounds, color=LIGHT.accent, linewidth=1.0, alpha=0.8)
            axes.errorbar(threshold, value, yerr=error, color=LIGHT.primary, marker="o", capsize=3)
        else:
            axes.plot(threshold, value, color=LIGHT.third, marker="^", markersize=8)
    handles = [
        axes.plot([], [], color=LIGHT.accent, label="Chernoff's bound at the cost of every rung")[
            0
        ],
        axes.plot([], [], "o", color=LIGHT.primary, label="bridge, with its error over runs")[0],
        axes.plot([], [], "^", color=LIGHT.third, label="star domain, 3000 directions")[0],
    ]
    axes.legend(handles=handles, loc="lower right")
    axes.set_xscale("log")
    axes.set_xlabel("threshold of the divergence  [nats a datum]")
    axes.set_ylabel("log p  [nats]")
    axes.set_title("The digits network's level sets under the prior, N(0, 1.3975²)")
