"""What every peer is asked for: one small interface, so that the benchmarks know none by name."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from benchmarks.problems import Problem

Product = Callable[[Tensor], Tensor]
"""Multiplies a flat vector ``[P]``, or columns ``[P, K]`` where the peer takes them."""


class NotOfferedError(Exception):
    """The peer has no such product or solver; the message says what it has."""


@dataclass(frozen=True)
class Eigenpairs:
    """What a solver returned.

    Attributes:
        values: ``[k]``.
        vectors: ``[P, k]``.
        settings: How the solver was called, in a few words.
        seconds: The time to charge, where it is not that of the whole call.
    """

    values: Tensor
    vectors: Tensor
    settings: str = ""
    seconds: float | None = None


@dataclass
class Budget:
    """Counts products, and stops a solver that has used up its budget by an exception.

    Attributes:
        products: How many are allowed.
        used: How many products were made.
    """

    products: int
    used: int = 0

    def spend(self) -> None:
        """Count one product."""
        if self.used >= self.products:
            raise BudgetExceededError(f"no convergence within {self.products} products")
        self.used += 1

    def restart(self) -> None:
        """Forget what was spent."""
        self.used = 0


class BudgetExceededError(Exception):
    """The solver wanted more products than it was given."""


class Peer(ABC):
    """A library to measure.

    Attributes:
        name: What tables call it.
        distribution: The name of its package.
        blocks: Whether its products take several columns at once.
    """

    name: str
    distribution: str
    blocks: bool = False

    def missing(self) -> str | None:
        """Return why the peer cannot be measured, or ``None`` if it can."""
        try:
            version(self.distribution)
        except PackageNotFoundError:
            return "not installed"
        return None

    def product(self, problem: Problem, quantity: str) -> Product:
        """Return the product with the ``"Hessian"``, ``"GGN"`` or ``"EF"`` of all data.

        Raises:
            NotOfferedError: If the peer has no such matrix.
        """
        raise NotOfferedError(f"{self.name} has no {quantity}")

    def eigenpairs(self, problem: Problem, k: int, tol: float, budget: Budget) -> Eigenpairs:
        """Return k eigenpairs of the Hessian from the peer's own solver, or SciPy's over it.

        Args:
            problem: Model, loss and data.
            k: How many of the largest.
            tol: Relative residual asked for, as far as the solver can be told.
            budget: To be charged with every product.

        Raises:
            NotOfferedError: If there is no solver.
        """
        raise NotOfferedError(f"{self.name} has no eigensolver")


class CountedData(list[tuple[Tensor, Tensor]]):
    """Batches that charge a budget whenever somebody starts to read them.

    For peers whose products cannot be wrapped: each of theirs reads the data once.
    """

    def __init__(self, data: list[tuple[Tensor, Tensor]], budget: Budget) -> None:
        super().__init__(data)
        self._budget = budget

    def __iter__(self):  # type: ignore[no-untyped-def]
        """Start a pass over the data."""
        self._budget.spend()
        return super().__iter__()
