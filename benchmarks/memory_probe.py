"""One process of the memory benchmark: ``python -m benchmarks.memory_probe '{…}'``."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import ours
from benchmarks.peers import PEERS
from benchmarks.peers.base import Product
from benchmarks.problems import Problem, build

PRODUCTS = 3
"""Made after the warm-up: what a library keeps is kept by then, and what leaks shows."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def main(order: dict[str, Any]) -> dict[str, float | None]:
    """Measure one case; return the peak in megabytes, and the product's error."""
    torch.set_num_threads(order["threads"])
    problem = build(order["problem"], order["quick"], order["root"])
    columns = order["columns"]
    X = ours.vectors(problem, columns)
    x = X[:, 0] if columns == 1 else X
    tiny = _tiny()
    warm = product(tiny, order)
    for _ in range(PRODUCTS):
        warm(ours.vectors(tiny, columns)[:, 0] if columns == 1 else ours.vectors(tiny, columns))
    del warm
    if not order["peer"]:  # what tracing imports is code, not what a product takes
        ours.prepared(tiny, "Hessian", keep="residuals") @ ours.vectors(tiny, 1)[:, 0]
    before = reset_peak()
    multiply = product(problem, order)
    for _ in range(PRODUCTS):
        result = multiply(x)
    peak = (peak_bytes() - before) / 1e6
    error = None
    if order["quantity"] != "gradient":
        exact = ours.truth(problem, order["quantity"], X[:, :1])
        error = ours.relative_error(result.reshape(len(x), -1)[:, :1], exact)
    return {"peak_mb": round(max(peak, 0.0), 1), "error": error}


def product(problem: Problem, order: dict[str, Any]) -> Product:
    """Return what an order asks for, as a function of the vector."""
    if order["quantity"] == "gradient":
        gradient = ours.gradient(problem)

        def flat(_: Tensor) -> Tensor:
            return torch.cat([block.reshape(-1) for block in gradient()])

        return flat
    if order["peer"]:
        return PEERS[order["peer"]].product(problem, order["quantity"])
    op = ours.prepared(problem, order["quantity"], **order["knobs"])
    return lambda v: op @ v


def reset_peak() -> int:
    """Forget the peak so far, where the system can; return the resident set, in bytes."""
    try:
        _CLEAR.write_text("5")
        return _status("VmRSS")
    except (OSError, KeyError):
        return peak_bytes()


def peak_bytes() -> int:
    """Return the largest resident set since :func:`reset_peak`, in bytes."""
    try:
        return _status("VmHWM")
    except (OSError, KeyError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int:
    lines = (line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(dict(lines)[field].split()[0]) * 1024


def _tiny() -> Problem:
    """Return a problem of no size on which everything is imported and every pool started."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    data = [(torch.randn(4, 8), torch.randint(3, (4,))) for _ in range(2)]
    return Problem("tiny", model, nn.CrossEntropyLoss(), data)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
