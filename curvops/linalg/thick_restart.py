"""Grow a Krylov basis until what is wanted has converged and nothing of it is missing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.linalg.krylov_basis import KrylovBasis, Ritz
from curvops.linalg.matrix import Products
from curvops.linalg.wanted import Which, margin, prominence, wanted

STANDS_OUT = 0.25
"""An eigenvalue stands out if it is so much of the spread of the rest away from the last wanted."""

FINE = 0.02
"""The finest gap, in the same units, that a search for missed copies resolves."""

GROWN = 1.0
"""What is so much beyond the last wanted shows, though a previous result had nothing of it."""

UNLUCKY = 0.1
"""It is found unless a random direction has less than so much of its typical share of it."""

PERTURBATION = 0.1
"""What is mixed into the residual, in units of the smallest residual that is asked for."""

KEPT = 0.6
"""The share of what is not wanted that a restart keeps."""

LOOKS = 12
"""How often convergence is looked at while the basis grows e-fold, at least about."""

EARLY = 2
"""How many steps before a look is due one is taken that costs next to nothing."""


@dataclass(frozen=True)
class Task:
    """What is asked for.

    Attributes:
        k: How many pairs.
        which: Of which end.
        tol: The residual relative to the eigenvalue; 0 for what rounding allows.
        max_matvecs: Products after which to stop.
        ncv: The largest basis.
    """

    k: int
    which: Which
    tol: float
    max_matvecs: int
    ncv: int

    def chosen(self, ritz: Ritz) -> Tensor:
        """Return where the wanted pairs are."""
        return wanted(ritz.values, self.which, self.k)

    def thresholds(self, ritz: Ritz) -> Tensor:
        """Return the residuals that are asked for, of every pair.

        What is zero but for rounding is not asked for more than rounding.
        """
        values, floor = ritz.values.abs(), 2 * ritz.inside
        asked = self.tol * values if self.tol else floor
        return torch.where(values <= 10 * floor, torch.maximum(asked, floor), asked)

    def converged(self, ritz: Ritz) -> Tensor:
        """Return which pairs are as good as asked."""
        return ritz.residuals <= self.thresholds(ritz)

    def excess(self, ritz: Ritz) -> Tensor:
        """Return by what factor residuals are larger than asked, or than rounding allows."""
        asked = (self.thresholds(ritz) ** 2 - ritz.inside**2).clamp(min=0).sqrt()
        bound = torch.maximum(asked, ritz.inside)
        return torch.where(ritz.leaving > bound, ritz.leaving / bound, 0.0)


class ThickRestart:
    """The iteration.

    Args:
        products: Multiplies and counts.
        basis: With a block to start from.
        task: What is asked for.
        generic: Whether the start is random, so that it has a share of every eigenvector.
        share: Of a random direction in a start from a previous result, where copies have been
            searched for already: there is another search only if some are found, but enough
            steps for what has outgrown the rest by its whole spread to show.

    Attributes:
        restarts: How often the basis was cut back.
        checks: Random directions that were searched for missed copies.
        exhausted: Whether products ran out.
    """

    def __init__(
        self,
        products: Products,
        basis: KrylovBasis,
        task: Task,
        generic: bool,
        share: float = 0.0,
    ) -> None:
        self._products, self._basis, self._task = products, basis, task
        self._trusted = share > 0
        self._least = search_length(products.dim, gap=GROWN, share=share) if share else 0
        # The one largest eigenvalue has no copies to miss, unless the start is blind to it.
        self._suspicious = task.k > 1 or not generic
        self._finds = 0
        self._perturbed: tuple[int, int] | None = None
        self._steps = 0
        self._due, self._last = 2 * task.k if generic else basis.block, (0, math.inf)
        self._wait = 1
        self.restarts, self.checks, self.exhausted = 0, 0, False

    def run(self) -> Ritz:
        """Return Ritz pairs of which the wanted have converged, unless products ran out."""
        while True:
            ritz = self._converge()
            if self.exhausted or self._basis.full or not self._suspicious:
                return ritz
            length = search_length(self._products.dim, FINE)
            if self._is_multiple(ritz):  # a search for the same again takes as long as the first
                length = min(max(length, self._steps), self._task.ncv // 2)
            elif self._trusted or self._would_have_shown(ritz):
                return ritz
            if self._basis.size + length > self._basis.rows:
                self._restart(ritz)
                ritz = self._basis.ritz()
            if self._excess(ritz) <= 1 and not self._finds_more(ritz, length):
                return ritz

    def _converge(self) -> Ritz:
        """Grow until the wanted pairs have converged, or products are used up."""
        basis, task = self._basis, self._task
        while True:
            if not basis.block and basis.size < task.k:
                basis.inject()
            if basis.size + basis.block > task.ncv and not basis.full:
                self._restart(basis.ritz())
            if self._products.num_matvecs + basis.block > task.max_matvecs:
                self.exhausted = True
                return basis.ritz()
            if basis.block:
                basis.expand()
                self._steps += 1
            early = EARLY if basis.is_clean else 0
            if basis.size >= min(self._due - early, task.ncv) or not basis.block:
                ritz = basis.ritz()
                excess = self._excess(ritz)
                if excess <= 1:
                    if self._steps >= self._least or not basis.block:
                        return ritz
                    self._due = basis.size + 1
                    continue
                if basis.size > task.k:
                    self._perturb(ritz)
                self._schedule(excess)

    def _excess(self, ritz: Ritz) -> float:
        """Return the worst of the wanted pairs; infinity if there are too few."""
        chosen = self._task.chosen(ritz)
        enough = len(chosen) == self._task.k
        return float(self._task.excess(ritz)[chosen].max()) if enough else math.inf

    def _restart(self, ritz: Ritz) -> None:
        """Keep what is wanted and a good half of the rest."""
        k, room = self._task.k, self._task.ncv - self._basis.block
        keep = min(k + int(KEPT * (self._task.ncv - k)), room)
        self._basis.restart(ritz.rotation[:, wanted(ritz.values, self._task.which, keep)])
        self._due = self._basis.size + self._wait
        self.restarts += 1

    def _schedule(self, excess: float) -> None:
        """Look again when, by how residuals have fallen, half of the rest of the way is done."""
        made, size = self._products.num_matvecs, self._basis.size
        before, last = self._last
        wait = size // LOOKS if excess > 10 else 1
        if excess < last < math.inf:
            fall = math.log(last / excess) / (made - before)
            wait = min(2 * size // LOOKS, int(0.5 * math.log(excess) / fall))
        self._wait, self._last = max(wait, 1), (made, excess)
        self._due = size + self._wait

    def _perturb(self, ritz: Ritz) -> None:
        """Once all that stands out has converged, mix a random direction into the residual.

        A copy of an eigenvalue that stands out grows out of it while the rest converges, at no
        cost. The perturbation is too small to matter for the residuals, and is counted in them.
        """
        task = self._task
        outstanding = _outstanding(ritz, task)
        before = -1 if self._perturbed is None else self._perturbed[0]
        if not (self._suspicious and task.tol) or int(outstanding.sum()) <= before:
            return
        chosen = task.chosen(ritz)
        if bool((task.excess(ritz)[chosen][outstanding] <= 1).all()):
            smallest = float(task.thresholds(ritz)[chosen].min())
            share = self._basis.perturb(PERTURBATION * smallest)
            if share:
                self.checks += 1
                due = self._steps + search_length(self._products.dim, share=share)
                self._perturbed = int(outstanding.sum()), due

    def _would_have_shown(self, ritz: Ritz) -> bool:
        """Return whether copies of what stands out have had the time to grow out of noise.

        Something must stand out: where eigenvalues are multiple, all are as a rule.
        """
        if self._perturbed is None or not self._basis.block:
            return False
        count, due = self._perturbed
        return 0 < int(_outstanding(ritz, self._task).sum()) <= count and self._steps >= due

    def _is_multiple(self, ritz: Ritz) -> bool:
        """Return whether copies have been found; converged values agree to their square."""
        if self._finds or self.checks > 1:
            return True
        values = ritz.values[self._task.chosen(ritz)]
        close = 0.01 * self._task.tol * values.abs().max() + self._basis.rounding
        return bool((values.diff() <= close).any())

    def _finds_more(self, ritz: Ritz, length: int) -> bool:
        """Search a random direction of the complement for what is wanted; join it if there is."""
        basis, task = self._basis, self._task
        chosen = task.chosen(ritz)
        before, rest = ritz.values[chosen], _rest(ritz, chosen)
        slack = max(10 * task.tol * float(before.abs().max()), 10 * basis.rounding)
        start = basis.size
        basis.set_aside()
        if not basis.inject():
            return False
        self.checks += 1
        for step in range(1, min(length, basis.rows - start) + 1):
            if self._products.num_matvecs >= task.max_matvecs:
                self.exhausted = True
                break
            basis.expand()
            values = torch.linalg.eigvalsh(basis.compressed(start))
            away = margin(values, before, task.which)
            values = torch.cat([rest, values])
            gap = away / max(float(values.max() - values.min()), away, 1e-300)
            if away < -slack or not basis.block:
                break
            if gap > 0 and step >= search_length(self._products.dim, gap):
                break
        merged = basis.ritz()
        if float((merged.values[task.chosen(merged)] - before).abs().max()) <= slack:
            return False
        basis.rejoin(max(1, (task.ncv - task.k) // 2))
        self._finds += 1
        self._due, self._last, self._perturbed = 0, (0, math.inf), None
        return True


def search_length(dim: int, gap: float = STANDS_OUT, share: float = 1.0) -> int:
    """Return after how many steps an eigenvalue that stands out shows in a random direction.

    The part of a random vector along one eigenvector, of order 1/√P, outgrows the rest by the
    factor of a Chebyshev polynomial, about exp(m arcosh(1 + 2 gap))/2.

    Args:
        dim: P.
        gap: By how much it stands out, relative to the spread of the rest.
        share: Of the random direction in the start.

    Example:
        >>> search_length(10**6), search_length(10**6, gap=2.0), search_length(100)
        (11, 5, 6)
    """
    steps = math.log(2 * math.sqrt(dim) / (UNLUCKY * share)) / math.acosh(1 + 2 * max(gap, 1e-9))
    return math.ceil(steps)


def _rest(ritz: Ritz, chosen: Tensor) -> Tensor:
    """Return the Ritz values that are not wanted."""
    kept = torch.ones(len(ritz.values), dtype=torch.bool)
    kept[chosen] = False
    return ritz.values[kept]


def _outstanding(ritz: Ritz, task: Task) -> Tensor:
    """Return which of the wanted values stand out from those that are not."""
    chosen = task.chosen(ritz)
    rest = _rest(ritz, chosen)
    spread = float(rest.max() - rest.min()) if len(rest) else 0.0
    return prominence(ritz.values[chosen], task.which) > STANDS_OUT * spread
