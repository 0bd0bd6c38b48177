r"""A block Krylov space that deflates its own probes.

n Gaussian vectors Z start a block Krylov space. Its basis, without what vector i contributes, is
:math:`Q_i`, independent of :math:`z_i`, and

.. math:: \operatorname{tr} f(A) = \operatorname{tr} Q_i^T f(A) Q_i
    + (P - s_i)\, \mathbb{E}\, v_i^T f(A) v_i, \qquad
    v_i = \frac{(I - Q_i Q_i^T) z_i}{\|(I - Q_i Q_i^T) z_i\|}

with :math:`s_i` the columns of :math:`Q_i`. Everything on the right lives in the whole space
Q, which is a little deeper than the :math:`Q_i`: with T the block tridiagonal matrix and C
the coordinates of :math:`Q_i` or :math:`v_i` in Q, C^T f(T) C is above the exact value for
f = log, which is operator concave (Hansen & Pedersen), and block Gauss–Radau is below it. So the
products that find the space to deflate are the same that sample what it leaves, and n samples
cost nothing on top of it.

A fifth of the products is not spent on depth but on one product each of fresh probes, which say
what the space leaves of tr A, the control variate (:mod:`curvops.linalg.logdet_control`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvops.linalg.block_lanczos import BlockLanczos
from curvops.linalg.matrix import Products
from curvops.linalg.probes import Probes
from curvops.linalg.quadrature import block_radau
from curvops.linalg.smallest_eigenvalue import below_block
from curvops.linalg.spectral_measures import Measures, Samples, node_below, not_symmetric

MEMORY = 1 << 31
"""Bytes that a basis may take, by default; beyond it, independent runs are averaged."""

FIRST_STEPS = 4
"""Steps of an adaptive run before it looks at its error bar."""

GROWTH = 1.5
"""By what an adaptive run gets deeper."""

_MOST_PROBES = 48
_LEAST_STEPS = 4
_TRACE_SHARE = 5
"""Of how many products the fresh probes get one."""
_EARLY = 4
"""A space of less than 1/4 of all directions; beyond, filling it up is the better plan."""


class KrylovAware:
    """Deflated quadrature whose probes start the deflating space; grows by steps, then by runs.

    Args:
        products: The matrix ``A``, symmetric ``[P, P]``.
        floor: A number known to be below the spectrum, or ``None`` to find one.
        limit: Products that may be made.
        num_probes: Width of the block, where prescribed.
        num_steps: Depth of the space, where prescribed.
        seed: Of the probes.
        memory: Bytes for a basis.

    Source:
        Chen & Hallman 2023, Krylov-aware stochastic trace estimation, for the space and its
        deeper steps. Epperly, Tropp & Webber 2024, XTrace, for leaving a probe out of it.
    """

    def __init__(
        self,
        products: Products,
        floor: float | None,
        limit: int,
        *,
        num_probes: int | None = None,
        num_steps: int | None = None,
        seed: int = 0,
        memory: int = MEMORY,
    ) -> None:
        self._products, self._floor, self._limit = products, floor, limit
        itemsize = max(products.dtype.itemsize, 4)
        room = max(memory // (max(products.dim, 1) * itemsize), 2)
        reserve = limit // _TRACE_SHARE if min(limit, room) < products.dim else 0
        columns = min(limit - reserve, room)
        if num_probes is None:
            wide = min(math.isqrt(2 * columns), _MOST_PROBES, max(columns // _LEAST_STEPS, 2))
            num_probes = max(columns // (num_steps or max(columns // wide, 1)), 2)
        self._width = min(num_probes, products.dim, limit)
        # The last, narrower block of a space that fills up is a step too.
        most = math.ceil if columns >= products.dim else math.floor
        self._depth = num_steps or max(most(columns / self._width), 1)
        self._stream = Probes(products.dim, "gaussian", seed, device=products.device)
        self._spaces: list[BlockLanczos] = []
        self._reserve = min(reserve, max(limit - self._width * self._depth, 0))
        self._traces = torch.empty(0, dtype=torch.float64)

    def spend(self) -> None:
        """Make all the products there are."""
        self._deepen(self._depth)
        while self._has_room_for_another and not self._is_exact:
            self._deepen(self._depth, fresh=True)
        if not self._is_exact:
            self._sample_traces(self._left)

    def begin(self) -> None:
        """Make a first, small run."""
        self._deepen(min(FIRST_STEPS, self._depth))

    def grow(self, sampling: float, quadrature: float) -> bool:
        """Make more products; return whether there were any left."""
        if self._is_exact:
            return False
        space = self._spaces[-1]
        missing = space.size // (_TRACE_SHARE - 1) - len(self._traces)
        early = _EARLY * space.size <= self._products.dim
        if early and sampling > quadrature and 0 < missing <= self._left:
            self._sample_traces(missing)
            return True
        blocks = min(math.ceil(GROWTH * space.num_blocks), self._depth)
        if blocks > space.num_blocks and 0 < space.next_width <= self._left:
            self._deepen(blocks)
            return True
        if space.num_blocks < self._depth:
            return False
        if self._has_room_for_another:
            self._deepen(self._depth, fresh=True)
            return True
        if self._left == 0:
            return False
        self._sample_traces(self._left)
        return True

    def measures(self, coarse: bool) -> Measures:
        """Return the samples so far."""
        spectra = [torch.linalg.eigvalsh(space.dense()) for space in self._spaces]
        smallest = min(float(values.min()) for values in spectra)
        largest = max(float(values.abs().max()) for values in spectra)
        noise = max(space.noise for space in self._spaces)
        if noise > self._products.eps**0.5 * largest:
            raise not_symmetric(noise, largest)
        if self._is_exact:
            ones = torch.ones(1, self._products.dim, dtype=torch.float64)
            whole = [Samples(spectra[-1].unsqueeze(0), ones)]
            return Measures(whole, whole, None, smallest, largest, smallest, is_exact=True)
        floor = self._floor
        if floor is None:
            floor = max(below_block(space) for space in self._spaces)
        floor = node_below(floor, smallest, 2.0 * self._products.eps * largest)
        over: list[Samples] = []
        under: list[Samples] = []
        half: list[Samples] = []
        for space in self._spaces:
            T, probes = space.dense(), _Probes(space, space.num_blocks)
            over.append(probes.samples(T))
            if floor > -math.inf:
                under.append(probes.samples(block_radau(space, floor)))
            if coarse:
                blocks = (space.num_blocks + 1) // 2
                half.append(_Probes(space, blocks).samples(space.dense(blocks)))
        return Measures(
            over, under or None, half or None, smallest, largest, floor, traces=self._traces
        )

    @property
    def _left(self) -> int:
        return self._limit - self._products.num_matvecs

    @property
    def _has_room_for_another(self) -> bool:
        """Whether there are products for another space, besides those for fresh probes."""
        kept_back = max(self._reserve - len(self._traces), 0)
        return self._left - kept_back >= self._width * self._depth

    @property
    def _is_exact(self) -> bool:
        """Whether the space is all there is."""
        return bool(self._spaces) and self._spaces[-1].size == self._products.dim

    def _sample_traces(self, count: int) -> None:
        """Let fresh probes say what the last space leaves of tr A, a block of them at a time."""
        space = self._spaces[-1]
        known = float(space.dense().trace())
        radius = max(self._products.dim - space.size, 0) ** 0.5
        found = [self._traces]
        while count > 0:
            V = self._stream.take(min(count, self._width))
            count -= V.shape[1]
            V = space.outside(space.outside(V))
            V = V * (radius / V.norm(dim=0).clamp(min=1e-300))
            found.append(known + (V * self._products(V)).sum(0).cpu())
        self._traces = torch.cat(found)

    def _deepen(self, num_blocks: int, fresh: bool = False) -> None:
        if fresh or not self._spaces:
            for space in self._spaces:
                space.release()
            capacity = min(self._width * self._depth, self._products.dim)
            start = self._stream.take(self._width)
            self._spaces.append(BlockLanczos(self._products, start, capacity=capacity))
        space = self._spaces[-1]
        while space.num_blocks < num_blocks and 0 < space.next_width <= self._left:
            space.step()


class _Probes:
    """The probes of a space, each seen from what the space would be without it.

    The Krylov space of some of the probes is found within Q, from T alone: as long as it is not
    as deep as Q, multiplying with T is multiplying with A.

    Args:
        space: The space of all probes.
        num_blocks: As deep as this.
    """

    def __init__(self, space: BlockLanczos, num_blocks: int) -> None:
        T, R = space.dense(num_blocks), space.start_coefficients
        self._dim = space.dim
        self._depth = max(num_blocks - 1, 1)
        if space.is_invariant and num_blocks == space.num_blocks:
            self._depth = len(T)  # nothing leads out of Q, so that T is A at any depth
        self._products = Products(T)
        self._start = torch.zeros(len(T), R.shape[1], dtype=torch.float64)
        self._start[: len(R)] = R
        count = R.shape[1]
        self._alone = [self._without([i]) for i in range(count)]
        self._pairs = [self._without([i, i + 1]) for i in range(0, count - 1, 2) if count > 2]

    def samples(self, M: Tensor) -> Samples:
        """Return the measures of M, T or a matrix that has T as its leading block."""
        nodes, vectors = torch.linalg.eigh(M)
        seen = vectors[: len(self._start)].T
        alone = [_weights(seen, *part) for part in self._alone]
        pairs = [_weights(seen, *part) for part in self._pairs]
        crossed = torch.cat(pairs) if pairs else None
        return Samples(nodes.unsqueeze(0), torch.cat(alone), crossed)

    def _without(self, probes: list[int]) -> tuple[Tensor, Tensor]:
        """Return the coordinates of the space of all others, and of √(P − s) v of these."""
        others = [i for i in range(self._start.shape[1]) if i not in probes]
        size = len(self._start)
        capacity = min(size, self._depth * len(others))
        inner = BlockLanczos(self._products, self._start[:, others], capacity=capacity)
        while inner.num_blocks < self._depth and inner.step():
            pass
        Q, V = inner.basis, self._start[:, probes]
        for _ in range(2):
            V = V - Q @ (Q.T @ V)
        radius = max(self._dim - Q.shape[1], 0) ** 0.5
        return Q, V * (radius / V.norm(dim=0).clamp(min=1e-300))


def _weights(seen: Tensor, Q: Tensor, V: Tensor) -> Tensor:
    """Return the weights of each column of V, with the space of Q, on the eigenvectors."""
    return (seen @ Q).square().sum(1) + (seen @ V).square().T
