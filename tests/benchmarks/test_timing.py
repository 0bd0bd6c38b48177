from __future__ import annotations

import gc

import pytest

from benchmarks.timing import Rounds, collected, interleave, summarize


class FakeClock:
    """A clock that only tasks move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def task(self, *durations: float):  # type: ignore[no-untyped-def]
        """A task that takes these times in turn, then the last for good."""
        left = list(durations)

        def run() -> None:
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_a_ratio_is_to_the_gradient_beside_it() -> None:
    clock = FakeClock()
    found = interleave(
        clock.task(2.0),
        {"same": clock.task(2.0), "double": clock.task(4.0)},
        Rounds(budget=0.0, least=3, most=9),
        clock,
    )
    assert found["same"].median == pytest.approx(1.0)
    assert found["double"].median == pytest.approx(2.0)
    assert found["double"].seconds == pytest.approx(4.0)
    assert found["double"].rounds == 3


def test_a_machine_that_slows_down_does_not_change_the_ratio() -> None:
    clock = FakeClock()
    speed = [1.0]

    def slowing(units: float):  # type: ignore[no-untyped-def]
        def run() -> None:
            clock.now += units * speed[0]
            speed[0] *= 1.01

        return run

    found = interleave(slowing(1.0), {"three": slowing(3.0)}, Rounds(0.0, 20, 20), clock)
    assert found["three"].median == pytest.approx(3.0, rel=1e-3)


def test_one_outlier_does_not_move_the_median() -> None:
    clock = FakeClock()
    entry = clock.task(1.0, 100.0, 1.0)
    found = interleave(clock.task(1.0), {"x": entry}, Rounds(0.0, 7, 7), clock)
    assert found["x"].median == 1.0
    assert found["x"].high == 1.0


def test_rounds_stop_at_the_budget() -> None:
    clock = FakeClock()
    tasks = {"x": clock.task(1.0)}
    assert interleave(clock.task(1.0), tasks, Rounds(10.0, 2, 99), clock)["x"].rounds == 4
    assert interleave(clock.task(1.0), tasks, Rounds(0.0, 2, 99), clock)["x"].rounds == 2
    assert interleave(clock.task(1.0), tasks, Rounds(1e9, 2, 5), clock)["x"].rounds == 5


def test_every_round_starts_elsewhere() -> None:
    clock, order = FakeClock(), []

    def entry(name: str):  # type: ignore[no-untyped-def]
        def run() -> None:
            order.append(name)
            clock.now += 1.0

        return run

    entries = {name: entry(name) for name in "abc"}
    interleave(clock.task(1.0), entries, Rounds(0.0, 3, 3), clock)
    assert "".join(order) == "abcbcacab"


def test_garbage_is_not_collected_within_a_timing() -> None:
    with collected():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_summaries() -> None:
    one = summarize([3.0], [6.0])
    assert (one.median, one.low, one.high, one.rounds) == (3.0, 3.0, 3.0, 1)
    five = summarize([5.0, 1.0, 3.0, 2.0, 4.0], [1.0])
    assert (five.median, five.low, five.high) == (3.0, 2.0, 4.0)
    eighth = five.per(8)
    assert (eighth.median, eighth.seconds, eighth.rounds) == (3.0 / 8, 1.0 / 8, 5)
