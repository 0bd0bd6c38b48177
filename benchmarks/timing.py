"""Interleaved timing: every entry beside a baseline, round after round, medians.

A baseline that is timed apart from the rest misleads: clocks and neighbours change within a
minute by more than what is to be measured. So each entry is timed between two runs of the
baseline and divided by their mean, and the rounds go through all entries in turn, starting
elsewhere every time.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Task = Callable[[], Any]


@dataclass(frozen=True)
class Summary:
    """The ratios of one entry over the rounds.

    Attributes:
        median: Of entry / baseline.
        low: Lower quartile.
        high: Upper quartile.
        rounds: How many ratios these are.
        seconds: Median duration of the entry itself.
    """

    median: float
    low: float
    high: float
    rounds: int
    seconds: float

    def per(self, vectors: int) -> Summary:
        """Return the summary divided by a number of vectors."""
        scaled = (value / vectors for value in (self.median, self.low, self.high))
        return Summary(*scaled, self.rounds, self.seconds / vectors)


@dataclass(frozen=True)
class Rounds:
    """How long to go on.

    Attributes:
        budget: Seconds after which no further round starts.
        least: Rounds to make in any case.
        most: Rounds after which to stop in any case.
    """

    budget: float = 60.0
    least: int = 5
    most: int = 41


def interleave(
    baseline: Task,
    entries: Mapping[str, Task],
    rounds: Rounds,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Summary]:
    """Time entries against a baseline.

    The tasks must be warm: what happens only the first time is the caller's to do before.

    Args:
        baseline: What one unit is.
        entries: What to time, by name.
        rounds: How long to go on.
        clock: Seconds.

    Returns:
        A summary per entry, under the same names.
    """
    names = list(entries)
    ratios: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = clock()
    for index in range(rounds.most):
        if index >= rounds.least and clock() - start > rounds.budget:
            break
        with collected():
            before = duration(baseline, clock)
            for name in _rotated(names, index):
                taken = duration(entries[name], clock)
                after = duration(baseline, clock)
                ratios[name].append(2 * taken / (before + after))
                seconds[name].append(taken)
                before = after
    return {name: summarize(ratios[name], seconds[name]) for name in names}


def duration(task: Task, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a task takes, in seconds, with the device's queue empty at both ends."""
    synchronize()
    start = clock()
    task()
    synchronize()
    return clock() - start


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def collected() -> Iterator[None]:
    """Collect garbage now, and not inside the block."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def summarize(ratios: Sequence[float], seconds: Sequence[float]) -> Summary:
    """Return median and quartiles; one ratio is its own quartiles."""
    low, _, high = (
        statistics.quantiles(ratios, n=4, method="inclusive")
        if len(ratios) > 1
        else (ratios[0],) * 3
    )
    middle = statistics.median(ratios)
    return Summary(middle, low, high, len(ratios), statistics.median(seconds))


def _rotated(names: list[str], by: int) -> list[str]:
    by %= max(len(names), 1)
    return names[by:] + names[:by]
