"""What the command line asked for, as the benchmarks read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.peers import PEERS, Peer
from benchmarks.problems import Problem, build
from benchmarks.timing import Rounds
from curvops.datasets import StrPath
from curvops.errors import DataError


@dataclass(frozen=True)
class Options:
    """Arguments shared by all benchmarks.

    Attributes:
        problems: Keys of the problems to measure.
        peers: Keys of the peers to measure beside.
        quick: Small data and few rounds, for a first look.
        threads: Of torch.
        repeats: Rounds, where the number is fixed; ``None`` to let the budget decide.
        budget: Seconds of timing per problem and table.
        device: Where to compute.
        root: Where Fashion-MNIST lies.
        say: Receives a line about what is being done.
    """

    problems: tuple[str, ...]
    peers: tuple[str, ...] = ()
    quick: bool = False
    threads: int = 2
    repeats: int | None = None
    budget: float | None = None
    device: str = "cpu"
    root: StrPath | None = None
    say: Callable[[str], None] = print

    def rounds(self) -> Rounds:
        """Return how long to time one group of entries."""
        if self.repeats is not None:
            return Rounds(budget=float("inf"), least=self.repeats, most=self.repeats)
        if self.quick:
            return Rounds(self.budget or 5.0, least=3, most=11)
        return Rounds(self.budget or 60.0, least=5, most=41)

    def build(self, name: str, **sizes: int) -> Problem | None:
        """Return a problem on the device, or ``None`` if its data are not on this machine."""
        try:
            return build(name, self.quick, self.root, **sizes).to(self.device)
        except DataError as error:
            self.say(f"{name}: left out, its data are not here ({error})")
            return None

    def chosen_peers(self) -> list[Peer]:
        """Return the peers asked for, installed or not."""
        return [PEERS[name] for name in self.peers]

    def to_dict(self) -> dict[str, Any]:
        """Return what a reader of the results needs to know."""
        return {
            "problems": list(self.problems),
            "peers": list(self.peers),
            "quick": self.quick,
            "repeats": self.repeats,
            "budget": self.budget,
        }
