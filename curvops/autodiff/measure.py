"""Measure alternatives on the work at hand, to choose between them."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

Key = TypeVar("Key")


def interleaved_medians(
    candidates: Mapping[Key, Callable[[], Any]], rounds: int = 5
) -> dict[Key, float]:
    """Return the median seconds of each candidate, run in turns after a warm-up."""
    seconds: dict[Key, list[float]] = {key: [] for key in candidates}
    for key in candidates:
        candidates[key]()
    for _ in range(rounds):
        for key, run in candidates.items():
            start = time.perf_counter()
            synchronize_all(run())
            seconds[key].append(time.perf_counter() - start)
    return {key: statistics.median(times) for key, times in seconds.items()}


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def synchronize_all(result: Any) -> None:
    """Wait for the device of a result, a list of tensors."""
    if result:
        synchronize(result[0].device)


def can_compile() -> bool:
    """Tell whether torch.compile has what it needs: a GPU, or a C++ compiler."""
    return torch.cuda.is_available() or any(shutil.which(c) for c in ("c++", "g++", "clang++"))
