"""Coordinate ascent over permutations: one linear assignment problem a layer, until none improves.

Source:
    Ainsworth, Hayase & Srinivasa, Git Re-Basin: merging models modulo permutation symmetries, ICLR
    2023, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from curvops.landscape.permutation import Axis, group_size, permute, take, units

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Match:
    """An order of the units of every group.

    Attributes:
        permutations: Indices ``[n]`` of each group.
        similarity: ⟨a, π(b)⟩ of all parameters.
        num_sweeps: How often all groups were gone through.
        converged: Whether the last time changed nothing.
    """

    permutations: dict[str, Tensor]
    similarity: float
    num_sweeps: int
    converged: bool


def match(
    a: Tensors,
    b: Tensors,
    groups: Mapping[str, tuple[Axis, ...]],
    max_sweeps: int,
    generator: torch.Generator,
) -> Match:
    """Return the order of units that coordinate ascent ends in, from that of ``b``.

    Args:
        a: Parameters by name.
        b: Those of the net whose units are permuted.
        groups: The axes that each group runs along.
        max_sweeps: After how many rounds to stop.
        generator: Draws the order of the groups, for each round.
    """
    names = list(groups)
    found = {name: torch.arange(group_size(axes, b)) for name, axes in groups.items()}
    sweep, changed = 0, True
    while changed and sweep < max_sweeps:
        sweep, changed = sweep + 1, False
        for i in torch.randperm(len(names), generator=generator).tolist():
            name = names[i]
            gain, better = _reassign(a, b, groups, found, name)
            if gain:
                found[name], changed = better, True
    return Match(found, similarity(a, permute(b, groups, found)), sweep, not changed)


def _reassign(
    a: Tensors,
    b: Tensors,
    groups: Mapping[str, tuple[Axis, ...]],
    found: Mapping[str, Tensor],
    name: str,
) -> tuple[bool, Tensor]:
    """Return whether another order of one layer's units is closer, and the best one."""
    size = len(found[name])
    others = {other: order for other, order in found.items() if other != name}
    held = permute(b, {other: groups[other] for other in others}, others)
    scores = torch.zeros(size, size, dtype=torch.float64)
    own: dict[str, list[Axis]] = {}
    for axis in groups[name]:
        own.setdefault(axis.tensor, []).append(axis)
    for tensor, along in own.items():
        if tensor not in a:
            continue
        for axis in along:
            # A tensor that the group runs through twice is as it was along its other axis.
            x = held[tensor]
            for other in along:
                if other is not axis:
                    x = take(x, other, found[name])
            rows = (units(t.double(), axis) for t in (a[tensor], x))
            scores += (next(rows) @ next(rows).T).cpu()
    best = torch.from_numpy(linear_sum_assignment(scores.numpy(), maximize=True)[1])
    now = torch.arange(size)
    before, after = (float(scores[now, order].sum()) for order in (found[name], best))
    if after <= before + 1e-12 * float(scores.abs().max()) * size:
        return False, found[name]
    if all(len(along) == 1 for along in own.values()):
        return True, best
    # The problem is then not linear in this layer's order: only what is better as a whole counts.
    only = {name: groups[name]}
    before, after = (
        similarity(a, permute(held, only, {name: order})) for order in (found[name], best)
    )
    return after > before, best


def similarity(a: Tensors, b: Tensors) -> float:
    """Return the inner product of parameters, over the names of the first."""
    return sum(float((a[name].double() * b[name].double()).sum()) for name in a)
