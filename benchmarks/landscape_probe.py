"""One process of the landscape benchmark: ``python -m benchmarks.landscape_probe '{…}'``."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import nn

from benchmarks import landscape
from benchmarks.memory_probe import peak_bytes, reset_peak


def main(order: dict[str, Any]) -> dict[str, float]:
    """Evaluate one way twice, and return the peak beyond what it started from, in megabytes."""
    torch.set_num_threads(order["threads"])
    make = landscape.copies
    for way in landscape.WAYS:
        if way.variant == order["variant"]:
            make = way.make
    make(_tiny())()  # imports everything, and starts the threads
    plane = landscape.build(order["size"], order["quick"], order["root"])
    evaluate = make(plane)
    before = reset_peak()
    for _ in range(2):
        evaluate()
    return {"peak_mb": round(max((peak_bytes() - before) / 1e6, 0.0), 1)}


def _tiny() -> landscape.Plane:
    g = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    dim = sum(p.numel() for p in model.parameters())
    data = [(torch.rand(4, 8, generator=g), torch.randint(3, (4,), generator=g)) for _ in range(2)]
    return landscape.Plane("tiny", model, data, torch.eye(dim, 2))


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
