r"""Directions: random ones, uniform on the sphere, or all of them where the sphere is a circle.

In one dimension there are two directions, in two a circle, over which adaptive quadrature gives
the mean of any function, however narrow its peaks are. In more dimensions it takes chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from curvops.rng import as_seed

_GAUSS, _KRONROD = 7, 15
_FIRST = 16
_DEPTH = 48


def random_directions(
    like: Tensor, count: int, seed: int | torch.Generator, chunk: int
) -> Iterator[Tensor]:
    """Yield unit vectors as columns ``[P, k]``, ``count`` in all.

    Each is drawn by itself, so that the directions do not depend on ``chunk``.

    Args:
        like: A point ``[P]``, for dtype and device.
        count: How many in all.
        seed: An integer, or a generator.
        chunk: At most so many at a time.
    """
    generator = torch.Generator().manual_seed(as_seed(seed))
    for start in range(0, count, chunk):
        U = torch.empty(min(chunk, count - start), len(like), dtype=like.dtype)
        for row in U:
            draw = torch.randn(len(like), generator=generator, dtype=torch.float64)
            row.copy_(draw / draw.norm())
        yield U.T.to(like.device)


def circle(angles: Tensor) -> Tensor:
    """Return unit vectors in the plane, ``[2, k]``."""
    return torch.stack([angles.cos(), angles.sin()])


def mean_over_circle(
    look: Callable[[Tensor], Tensor], num: int, *, rtol: float, max_nodes: int
) -> tuple[Tensor, Tensor, float]:
    r"""Return nodes and weights for the mean of positive functions over the circle.

    Gauss–Kronrod rules on intervals of the angle; those are halved whose error is more than their
    share, for any of the functions. The first intervals end at multiples of π/8, so that peaks on
    the coordinate axes, where parameters multiply one another, are at ends.

    Args:
        look: What there is to see at angles ``[k]``, ``[rows, k]``; its first rows are the
            logarithms of the functions.
        num: How many functions.
        rtol: The relative error to reach for each.
        max_nodes: Where to give up.

    Returns:
        What was seen at the nodes, ``[rows, N]``; the logarithms of their weights, ``[N]``, whose
        sum with a row of logarithms has the log-mean as its log-sum-exp; and the relative error
        left, the largest of all functions.

    Example:
        >>> import torch
        >>> seen, log_weights, error = mean_over_circle(
        ...     lambda a: 2 * a.cos().abs().log().unsqueeze(0), 1, rtol=1e-9, max_nodes=10_000
        ... )
        >>> round(float((seen[0] + log_weights).logsumexp(0).exp()), 9)  # of cos²
        0.5
    """
    nodes, kronrod, gauss = _rule()
    edges = torch.linspace(0, 2 * math.pi, _FIRST + 1, dtype=torch.float64)
    start, stop = edges[:-1], edges[1:]
    seen = _look(look, start, stop, nodes)
    for _ in range(_DEPTH):
        error = _errors(seen[:num], start, stop, kronrod, gauss)
        bad = error > rtol / len(start)
        too_many = _KRONROD * (len(start) + int(bad.sum())) > max_nodes
        if float(error.sum()) <= rtol or not bool(bad.any()) or too_many:
            break
        middle = (start[bad] + stop[bad]) / 2
        halves = torch.cat([start[bad], middle]), torch.cat([middle, stop[bad]])
        fresh = _look(look, *halves, nodes)
        start, stop = torch.cat([start[~bad], halves[0]]), torch.cat([stop[~bad], halves[1]])
        seen = torch.cat([seen[:, ~bad], fresh], dim=1)
    error = _errors(seen[:num], start, stop, kronrod, gauss)
    weights = (stop - start).unsqueeze(1) * kronrod / (2 * math.pi)
    return seen.flatten(1), weights.log().flatten(), float(error.sum())


def _look(look: Callable[[Tensor], Tensor], start: Tensor, stop: Tensor, nodes: Tensor) -> Tensor:
    """Return what is seen within intervals, ``[rows, intervals, nodes]``."""
    angles = start.unsqueeze(1) + (stop - start).unsqueeze(1) * nodes
    seen = look(angles.flatten())
    return seen.reshape(len(seen), *angles.shape)


def _errors(log_f: Tensor, start: Tensor, stop: Tensor, kronrod: Tensor, gauss: Tensor) -> Tensor:
    """Return the largest error of each interval, relative to the whole of its function."""
    largest = log_f.amax((1, 2), keepdim=True).clamp(min=torch.finfo(log_f.dtype).min)
    scaled = (log_f - largest).exp() * (stop - start).unsqueeze(1)
    whole = (scaled * kronrod).sum((1, 2)).unsqueeze(1)
    error = (scaled * (kronrod - gauss)).sum(2).abs() / whole
    return error.nan_to_num(0.0).amax(0)  # a function that is zero everywhere has none


def _rule() -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes on [0, 1], Kronrod's weights, and Gauss's, zero where he has no node.

    Kronrod's nodes are Gauss's and the roots of Stieltjes's polynomial, found from its condition:
    orthogonality, under the weight of the Legendre polynomial, to all lower powers.
    """
    n = _GAUSS
    legendre = np.polynomial.legendre
    own, weights = legendre.leggauss(n)
    x, w = legendre.leggauss(2 * n + 4)
    last = legendre.legval(x, [0] * n + [1])
    basis = np.stack([legendre.legval(x, [0] * k + [1]) for k in range(n + 2)])
    moments = (basis[: n + 1] * (w * last)) @ basis.T
    stieltjes = np.append(np.linalg.solve(moments[:, : n + 1], -moments[:, n + 1]), 1.0)
    between = np.sort(legendre.legroots(stieltjes).real)
    every = np.sort(np.concatenate([own, between]))
    vandermonde = legendre.legvander(every, _KRONROD - 1).T
    kronrod = np.linalg.solve(vandermonde, [2.0] + [0.0] * (_KRONROD - 1))
    gauss = np.zeros(_KRONROD)
    gauss[1::2] = weights
    return tuple(torch.from_numpy(a) for a in ((every + 1) / 2, kronrod / 2, gauss / 2))  # type: ignore[return-value]
