"""One process of the training benchmark: ``python -m benchmarks.training_probe '{…}'``."""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import torch

from benchmarks import training
from benchmarks.memory_probe import _tiny, peak_bytes, reset_peak
from benchmarks.problems import build


def main(order: dict[str, Any]) -> dict[str, float]:
    """Make ten steps, and return the peak beyond what they started from, in megabytes."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(order["threads"])
    make: Any = training.Loop
    for way in training.WAYS:
        if (way.library, way.variant) == (order["library"], order["variant"]):
            make = way.make
    make(_tiny(), order["optimizer"])()  # imports everything, and starts the threads
    problem = build(order["problem"], order["quick"])
    problem.model.train()
    steps = make(problem, order["optimizer"])
    before = reset_peak()
    for _ in range(2):
        steps()
    return {"peak_mb": round(max((peak_bytes() - before) / 1e6, 0.0), 1)}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
