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
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes

_ROTATED_COLUMNS = 2**16


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
        probes: Probes,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._products, self._probes = products, probes
        self._V = torch.empty(rows, products.dim, dtype=dtype, device=device)
        self._H = torch.zeros(rows, rows, dtype=torch.float64)
        self._R = self._V.new_empty(0, products.dim)
        self._B = self._H.new_empty(0, 0)
        self._P, self._C = self._R, self._B
        self._dropped = 0.0
        self._restarts = 0
        self.size = 0
        self.scale = 0.0

    @property
    def rows(self) -> int:
        """The largest n."""
        return self._V.shape[0]

    @property
    def block(self) -> int:
        """How many directions are multiplied next, b."""
        return self._R.shape[0]

    @property
    def full(self) -> bool:
        """Whether the basis spans the whole space."""
        return self.size >= self._products.dim

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
        if directions is None:
            count = min(count, self._products.dim - self.size - self.block)
            directions = self._probes.take(count).T
        W = directions.to(self._V.device, self._V.dtype)
        norms = W.norm(dim=1, keepdim=True)
        W = W[norms[:, 0] > 0] / norms[norms[:, 0] > 0]
        taken = torch.cat([self._V[: self.size], self._R])
        _remove(taken, W)
        fresh, _, _ = _orthonormal(W, 100 * self.eps, taken)
        self._R = torch.cat([self._R, fresh])
        self._B = torch.cat([self._B, self._B.new_zeros(fresh.shape[0], self.size)])
        return fresh.shape[0]

    def expand(self) -> None:
        """Append the block to the basis and multiply it: b products."""
        n, b = self.size, self.block
        stop = n + b
        self._V[n:stop] = self._R
        self._H[n:stop, :n] = self._B
        self._orthogonalise_aside(n, stop)
        V = self._V[:stop]
        # A copy: a product may be the very tensor that was multiplied.
        W = torch.empty_like(self._R).copy_(self._products(V[n:].T).T)
        self._H[:stop, n:stop] = self._recur(n, stop, W)
        self._R, M = self._orthonormal(W, V)
        lengths = torch.hypot(self._H[:stop, n:stop].norm(dim=0), M.norm(dim=0))
        self.scale = max(self.scale, float(lengths.max()))
        self._B = torch.cat([self._B.new_zeros(M.shape[0], n), M], 1)
        self.size = stop

    def _recur(self, n: int, stop: int, W: Tensor) -> Tensor:
        """Remove from products ``W`` what lies in the basis; return it as columns ``[stop, b]``.

        What they have along earlier vectors is known from the couplings: the Lanczos recurrence.
        After it, all vectors are gone through once more.
        """
        known = torch.zeros(stop, stop - n, dtype=torch.float64)
        known[:n] = self._H[n:stop, :n].T
        rows = torch.nonzero(known.abs().amax(1)).flatten().tolist()
        if rows:
            first = rows[0]  # a restart couples to the first vectors, a step to the last
            span = slice(first, rows[-1] + 1)
            W.addmm_(known[span].T.to(W.device, W.dtype), self._V[span], alpha=-1)
        inner = self._V[n:stop] @ W.T
        W.addmm_(inner.T, self._V[n:stop], alpha=-1)
        known[n:] += inner.to("cpu", torch.float64)
        self.scale = max(self.scale, float(known.norm(dim=0).max()))
        return known + _remove(self._V[:stop], W)

    def ritz(self) -> Ritz:
        """Return the eigenpairs of the symmetric part of ``H``."""
        H = self._H[: self.size, : self.size]
        S, D = (H + H.T) / 2, (H - H.T) / 2
        values, rotation = torch.linalg.eigh(S)
        outside = torch.cat([self._R, self._P])
        gram = (outside @ outside.T).to("cpu", torch.float64)
        leaving = _lengths(torch.cat([self._B, self._C]) @ rotation, gram)
        inside = (D @ rotation).norm(dim=0)
        rounding = inside.new_tensor(self.rounding)
        return Ritz(values, rotation, leaving, torch.hypot(inside, rounding))

    def restart(self, rotation: Tensor) -> None:
        """Shrink the basis to Ritz vectors, keeping the relation.

        Args:
            rotation: Which ones, orthonormal ``[n, p]``.
        """
        n, p = rotation.shape
        turn = rotation.T.to(self._V.device, self._V.dtype)
        for start in range(0, self._products.dim, _ROTATED_COLUMNS):
            part = self._V[:, start : start + _ROTATED_COLUMNS]
            part[:p] = turn @ part[:n]
        self._H[:p, :p] = rotation.T @ self._H[:n, :n] @ rotation
        self._B, self._C = self._B @ rotation, self._C @ rotation
        self._restarts += 1
        self.size = p

    def vectors(self, rotation: Tensor) -> Tensor:
        """Return ``V`` times a rotation ``[n, k]`` as unit columns ``[P, k]``."""
        n = rotation.shape[0]
        X: Tensor = self._V[:n].T @ rotation.to(self._V.device, self._V.dtype)
        norms: Tensor = X.norm(dim=0)
        return X / norms

    def perturb(self, size: float) -> float:
        """Mix a fresh direction into the block, and set aside what this adds to the relation.

        Args:
            size: The norm of what is added.

        Returns:
            The share of the fresh direction in the block; zero if there is nothing to mix with.
        """
        length = float(self._B[0].norm()) if self.block else 0.0
        z = self._probes.take(1).T.to(self._V.device, self._V.dtype)
        _remove(torch.cat([self._V[: self.size], self._R]), z)
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
        self._P, self._C = torch.cat([self._P, self._R]), torch.cat([self._C, self._B])
        self._R, self._B = self._R[:0], self._B[:0]

    def rejoin(self, most: int) -> None:
        """Make one block of the present one and of all residuals set aside.

        Args:
            most: Its largest size; what is weaker stays aside.
        """
        R, B = torch.cat([self._P, self._R]), torch.cat([self._C, self._B])
        lengths = B.norm(dim=1, keepdim=True)
        lengths = torch.where(lengths > 0, lengths, torch.ones_like(lengths))
        W = R * lengths.to(R.device, R.dtype)
        Q, M = self._orthonormal(W, self._V[: self.size])
        C = M @ (B / lengths)
        self._R, self._P = Q[:most], Q[most:]
        self._B, self._C = C[:most], C[most:]

    def compressed(self, start: int) -> Tensor:
        """Return the symmetric part of ``H`` from vector ``start`` on."""
        H = self._H[start : self.size, start : self.size]
        return (H + H.T) / 2

    def _orthogonalise_aside(self, start: int, stop: int) -> None:
        """Move what residuals set aside have along new vectors into ``H``."""
        if len(self._P):
            self._H[start:stop, :start] += _remove(self._V[start:stop], self._P) @ self._C
        self._C = torch.cat([self._C, self._C.new_zeros(len(self._C), stop - start)], 1)

    def _orthonormal(self, W: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
        Q, M, dropped = _orthonormal(W, 10 * self.eps * self.scale, V)
        self._dropped = max(self._dropped, dropped)
        return Q, M


def _lengths(columns: Tensor, gram: Tensor) -> Tensor:
    """Return the norms of combinations of vectors with this Gram matrix."""
    return (columns * (gram @ columns)).sum(0).clamp(min=0).sqrt()


def _remove(V: Tensor, W: Tensor) -> Tensor:
    """Remove from rows ``W`` what lies in the orthonormal rows ``V``, in place; return ``V Wᵀ``.

    Once if they are almost orthogonal already, as after the recurrence; again while a sweep has
    removed more than a hundredth of what is left, for then its own rounding is no longer small
    beside the rest (Giraud, Langou & Rozložník 2005).

    Args:
        V: ``[n, P]``.
        W: ``[b, P]``.
    """
    total = torch.zeros(V.shape[0], W.shape[0], dtype=torch.float64)
    if not V.shape[0]:
        return total
    for _ in range(5):
        C = V @ W.T
        W.addmm_(C.T, V, alpha=-1)
        total += C.to("cpu", torch.float64)
        if bool((C.abs().amax(0) <= 0.01 * W.norm(dim=1)).all()):
            break
    return total


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
        return W / length, torch.full((1, 1), length, dtype=torch.float64), 0.0
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
            _remove(V, q)
            _remove(Q[:rank], q)
            q /= q.norm()
        Q[rank] = q[0]
        M[rank, row] = length
        if rest:
            others = W[rest]
            M[rank, rest] += _remove(Q[rank : rank + 1], others)[0]
            W[rest] = others
        rank += 1
    return Q[:rank], M[:rank], dropped
