r"""An orthonormal basis V that grows by products and shrinks to Ritz vectors.

At any time

    A V = V H + R B + P C,

with ``V`` the basis ``[P, n]``, ``H = VᵀAV`` measured ``[n, n]``, ``R`` the orthonormal residual
block that is multiplied next ``[P, b]`` with its coupling ``B`` ``[b, n]``, and ``P C`` residuals
that are set aside. Block Lanczos, its thick restarts, the injection of fresh directions and the
removal of dependent ones are four moves that keep this relation (Stewart 2001, "A Krylov–Schur
algorithm for large eigenproblems", Section 3; Wu & Simon 2000, Section 2, for the symmetric case).

``H`` is not made symmetric: what it lacks of symmetry is the rounding of the products, and
counts in the residuals.

Between moves a few new vectors may be orthogonal to their neighbours only. The relation holds
nevertheless, and orthogonality is restored for all of them at once: before it is used, and before
too much is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.rows import combine, inner, remove
from curvops.linalg.semiorthogonal import Drift, restore

LAZY = 8
"""After how many vectors orthogonality is restored at the latest."""

MOST = 0.01
"""How much of it may be lost: a new vector is so much of a step in vain."""


@dataclass(frozen=True)
class Ritz:
    """Eigenpairs of the projected matrix.

    Attributes:
        values: Ritz values ``[n]``, ascending.
        rotation: Their vectors in the basis ``[n, n]``.
        leaving: ‖(R B + P C) s‖, the part of a residual outside of the basis ``[n]``.
        inside: The part inside, which is rounding: ‖(H − Hᵀ)s‖/2, and that of one product ``[n]``.
    """

    values: Tensor
    rotation: Tensor
    leaving: Tensor
    inside: Tensor

    @property
    def residuals(self) -> Tensor:
        """‖A v − θ v‖ of every pair ``[n]``."""
        return torch.hypot(self.leaving, self.inside)


class KrylovBasis:
    """The relation above, held in memory.

    Args:
        products: Multiplies and counts.
        rows: The largest n.
        block: The largest b beside a basis of that size.
        probes: Where fresh directions come from.
        device: Where the basis lives.
        dtype: Of the basis; ``H`` is float64.

    Attributes:
        size: n.
        scale: The largest norm of a product with a unit vector so far, a lower bound of ‖A‖.
    """

    def __init__(
        self,
        products: Products,
        rows: int,
        block: int,
        probes: Probes,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._products, self._probes = products, probes
        self._rows = rows
        # The block lies in the memory behind the basis, where it becomes part of it.
        self._V = torch.empty(rows + block, products.dim, dtype=dtype, device=device)
        self._work = self._V[:0]
        self._H = torch.zeros(rows, rows, dtype=torch.float64)
        self._R = self._V.new_empty(0, products.dim)
        self._B = self._H.new_empty(0, 0)
        self._P, self._C = self._R, self._B
        self._dropped = 0.0
        self._restarts = 0
        self._clean = self._settled = 0
        self._drift = Drift(self.eps)
        self.size = 0
        self.scale = 0.0

    @property
    def rows(self) -> int:
        """The largest n."""
        return self._rows

    @property
    def block(self) -> int:
        """How many directions are multiplied next, b."""
        return self._R.shape[0]

    @property
    def full(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size >= self._products.dim

    @property
    def is_clean(self) -> bool:
        """Whether all vectors are orthonormal to rounding, so that looking at them is cheap."""
        return self._clean >= self.size + self.block and self._settled >= self.size

    @property
    def rounding(self) -> float:
        """What products and small residuals that were dropped may add to any residual."""
        each: float = 4 * self.eps * self.scale * math.sqrt(1 + self._restarts)
        return max(each, self._dropped)

    @property
    def eps(self) -> float:
        """Relative rounding of what is coarser, products or basis."""
        return max(self._products.eps, float(torch.finfo(self._V.dtype).eps))

    def inject(self, directions: Tensor | None = None, count: int = 1) -> int:
        """Add directions to the block, without coupling; return how many were independent.

        Args:
            directions: Rows ``[m, P]``; by default ``count`` fresh random ones.
            count: How many fresh ones.
        """
        self.restore()
        if directions is None:
            count = min(count, self._products.dim - self.size - self.block)
            directions = self._probes.take(count).T
        W = directions.to(self._V.device, self._V.dtype)
        norms = W.norm(dim=1, keepdim=True)
        W = W[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
        taken = self._V[: self.size + self.block]
        remove(taken, W)
        fresh, _, _ = _orthonormal(W, 100 * self.eps, taken)
        self._place(torch.cat([self._R, fresh]))
        self._B = torch.cat([self._B, self._B.new_zeros(fresh.shape[0], self.size)])
        self._clean = self.size + self.block
        return fresh.shape[0]

    def expand(self) -> None:
        """Append the block to the basis and multiply it: b products."""
        n, b = self.size, self.block
        stop = n + b
        # A copy: a product may be the very tensor that was multiplied.
        if self._work.shape != self._R.shape:
            self._work = torch.empty_like(self._R)
        W = self._work.copy_(self._products(self._R.T).T)
        self._H[n:stop, :n] = self._B
        self._H[:stop, n:stop] = self._recur(n, stop, W)
        self._C = torch.cat([self._C, self._C.new_zeros(len(self._C), b)], 1)
        self._B = torch.cat([self._B.new_zeros(b, n), torch.eye(b, dtype=torch.float64)], 1)
        self.size = stop
        beta = _smallest(W)
        lengths = torch.hypot(self._H[:stop, n:stop].norm(dim=0), W.norm(dim=1).cpu().double())
        self.scale = max(self.scale, float(lengths.max()))
        extra = float(self._C.norm()) / self.scale if len(self._P) else 0.0
        if self._drift.ahead(beta, self.scale, extra) > MOST:
            self._restore(stop)
            self._H[:stop, :stop] += remove(self._V[:stop], W) @ self._B
            self._normalise(W, self._V[:stop])
            self._clean = stop + self.block
            self._drift.clear()
            return
        # What W has of old vectors stays in it, or the relation would no longer hold.
        self._normalise(W, self._V[:0])
        self._drift.step(beta, self.scale, extra)
        due = stop + b - self._clean >= LAZY
        if due or self._drift.ahead(beta, self.scale, extra) > MOST:
            self.restore()

    def restore(self) -> None:
        """Make vectors and block orthonormal to rounding again."""
        self._restore(self.size + self.block)

    def _restore(self, stop: int) -> None:
        """Make the first vectors of basis and block orthonormal, and those aside orthogonal.

        With ``X = [V R]`` and ``K = [H; B]`` the relation is ``A V = X K``; with ``X S`` instead
        of ``X`` it holds for ``S⁻¹ K S``, so that nothing of what was lost goes unnoticed.
        """
        n, clean = self.size, self._clean
        if stop > clean:
            S, inverse = restore(self._V[:stop], clean)
            both = torch.cat([self._H[:n, :n], self._B])
            both[:stop] = inverse @ both[:stop]
            both, self._C = both @ S[:n, :n], self._C @ S[:n, :n]
            self._H[:n, :n], self._B = both[:n], both[n:]
            self._clean = stop
            self._drift.clear(seen=float(inverse[:clean, clean:].abs().max()) if clean else 0.0)
        if len(self._P) and self._settled < n:
            fresh = slice(self._settled, n)
            self._H[fresh, :n] += remove(self._V[fresh], self._P) @ self._C
        self._settled = n

    def _place(self, R: Tensor) -> None:
        """Make these rows the block, in the memory behind the basis."""
        self._R = self._V[self.size : self.size + len(R)]
        if self._R.data_ptr() != R.data_ptr():
            self._R.copy_(R)

    def _normalise(self, W: Tensor, V: Tensor) -> None:
        """Make what products have left the block."""
        Q, M = self._orthonormal(W, V)
        self._place(Q)
        self._B = M @ self._B

    def _recur(self, n: int, stop: int, W: Tensor) -> Tensor:
        """Remove from products ``W`` what they have along the vectors that are coupled.

        What they have along earlier vectors is known from the couplings: the Lanczos recurrence.

        Returns:
            What was removed, as columns ``[stop, b]``.
        """
        known = torch.zeros(stop, stop - n, dtype=torch.float64)
        known[:n] = self._H[n:stop, :n].T
        rows = torch.nonzero(known.abs().amax(1)).flatten().tolist()
        if rows:
            first = rows[0]  # a restart couples to the first vectors, a step to the last
            span = slice(first, rows[-1] + 1)
            W.addmm_(known[span].T.to(W.device, W.dtype), self._V[span], alpha=-1)
        own = self._V[n:stop] @ W.T
        W.addmm_(own.T, self._V[n:stop], alpha=-1)
        known[n:] += own.to("cpu", torch.float64)
        return known

    def ritz(self) -> Ritz:
        """Return the eigenpairs of the symmetric part of ``H``."""
        self.restore()
        H = self._H[: self.size, : self.size]
        S, D = (H + H.T) / 2, (H - H.T) / 2
        values, rotation = torch.linalg.eigh(S)
        outside = torch.cat([self._R, self._P])
        leaving = _lengths(torch.cat([self._B, self._C]) @ rotation, inner(outside, outside))
        inside = (D @ rotation).norm(dim=0)
        rounding = inside.new_tensor(self.rounding)
        return Ritz(values, rotation, leaving, torch.hypot(inside, rounding))

    def restart(self, rotation: Tensor) -> None:
        """Shrink the basis to Ritz vectors, keeping the relation.

        Args:
            rotation: Which ones, orthonormal ``[n, p]``.
        """
        n, p = rotation.shape
        self.restore()
        combine(self._V[:n], rotation, self._V[:p])
        self._H[:p, :p] = rotation.T @ self._H[:n, :n] @ rotation
        self._B, self._C = self._B @ rotation, self._C @ rotation
        self._restarts += 1
        self.size = self._settled = p
        self._clean = p + self.block
        self._place(self._R.clone())

    def vectors(self, rotation: Tensor) -> Tensor:
        """Return ``V`` times a rotation ``[n, k]`` as unit columns ``[P, k]``."""
        n, k = rotation.shape
        X = self._V.new_empty(k, self._products.dim)
        combine(self._V[:n], rotation, X)
        X /= X.norm(dim=1, keepdim=True)
        return X.T

    def perturb(self, size: float) -> float:
        """Mix a fresh direction into the block, and set aside what this adds to the relation.

        Args:
            size: The norm of what is added.

        Returns:
            The share of the fresh direction in the block; zero if there is nothing to mix with.
        """
        self.restore()
        length = float(self._B[0].norm()) if self.block else 0.0
        z = self._probes.take(1).T.to(self._V.device, self._V.dtype)
        remove(self._V[: self.size + self.block], z)
        left = float(z.norm())
        if not (length and left):
            return 0.0
        z /= left
        share = size / length
        grown = math.sqrt(1 + share**2)
        self._P = torch.cat([self._P, z])
        self._C = torch.cat([self._C, -share * self._B[:1]])
        self._R[0] = (self._R[0] + share * z[0]) / grown
        self._B[0] *= grown
        return share / grown

    def set_aside(self) -> None:
        """Keep the residual block out of the next expansions, until :meth:`rejoin`."""
        self.restore()
        self._P, self._C = torch.cat([self._P, self._R]), torch.cat([self._C, self._B])
        self._clean = self.size
        self._R, self._B = self._R[:0], self._B[:0]

    def rejoin(self, most: int) -> None:
        """Make one block of the present one and of all residuals set aside.

        Args:
            most: Its largest size; what is weaker stays aside.
        """
        self.restore()
        R, B = torch.cat([self._P, self._R]), torch.cat([self._C, self._B])
        lengths = B.norm(dim=1, keepdim=True)
        lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        W = R * lengths.to(R.device, R.dtype)
        Q, M = self._orthonormal(W, self._V[: self.size])
        C = M @ (B / lengths)
        most = min(most, len(self._V) - self.size)
        self._place(Q[:most])
        self._P = Q[most:].clone()
        self._B, self._C = C[:most], C[most:]
        self._clean = self.size + self.block

    def compressed(self, start: int) -> Tensor:
        """Return the symmetric part of ``H`` from vector ``start`` on."""
        self.restore()
        H = self._H[start : self.size, start : self.size]
        return (H + H.T) / 2

    def _orthonormal(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        Q, M, dropped = _orthonormal(W, 10 * self.eps * self.scale, V)
        self._dropped = max(self._dropped, dropped)
        return Q, M


def _smallest(W: Tensor) -> float:
    """Return the smallest singular value."""
    if len(W) == 1:
        return float(W.norm())
    return math.sqrt(max(float(torch.linalg.eigvalsh(inner(W, W))[0]), 0.0))


def _lengths(columns: Tensor, gram: Tensor) -> Tensor:
    """Return the norms of combinations of vectors with this Gram matrix."""
    return (columns * (gram @ columns)).sum(0).clamp(min=0).sqrt()


def _orthonormal(W: Tensor, negligible: float, V: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return orthonormal rows ``Q``, ``M`` with ``Wᵀ ≈ Qᵀ M``, and how much that misses.

    Rows that are, or become, as small as said are dropped. The largest of what is left goes
    first, so that dependent rows are seen as such. Rows are made orthogonal to ``V`` again where
    little of them is left.
    """
    count = W.shape[0]
    if count == 1:
        length = float(W.norm())
        if not length > negligible:
            return W[:0], torch.zeros(0, 1, dtype=torch.float64), length
        W /= length
        return W, torch.full((1, 1), length, dtype=torch.float64), 0.0
    Q = W.new_empty(count, W.shape[1])
    M = torch.zeros(count, count, dtype=torch.float64)
    rest = list(range(count))
    rank, dropped = 0, 0.0
    original = W.norm(dim=1)
    while rest:
        norms = W[rest].norm(dim=1)
        best = int(norms.argmax())
        row = rest.pop(best)
        length = float(norms[best])
        if not length > negligible:
            dropped = length * math.sqrt(count)
            break
        q = W[row : row + 1] / length
        if length < 0.5 * float(original[row]):
            remove(V, q)
            remove(Q[:rank], q)
            q /= q.norm()
        Q[rank] = q[0]
        M[rank, row] = length
        if rest:
            others = W[rest]
            M[rank, rest] += remove(Q[rank : rank + 1], others)[0]
            W[rest] = others
        rank += 1
    return Q[:rank], M[:rank], dropped
