r"""Renumber the hidden units of one net so that they lie as close as possible to another's.

.. math:: \max_{\pi} \; \langle \theta_a, \pi(\theta_b) \rangle
    \quad\Longleftrightarrow\quad \min_{\pi} \; \|\theta_a - \pi(\theta_b)\|

over permutations of the units of every hidden layer, none of which changes what the net computes.
One layer at a time, with the others held, this is a linear assignment problem; layers are taken in
turn until none can be improved.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn

from curvops.errors import InputError, NonFiniteError
from curvops.landscape.batch_norm import isolated
from curvops.landscape.permutation import Axis, Groups, group_size, permute, read_groups
from curvops.landscape.points import Point
from curvops.landscape.situation import read_point
from curvops.landscape.storage import Stored
from curvops.landscape.weight_matching import match
from curvops.landscape.wiring import permutation_groups
from curvops.risk import EmpiricalRisk
from curvops.rng import as_seed
from curvops.tensors import Format


@dataclass(frozen=True, eq=False)
class Alignment(Stored):
    r"""A net whose hidden units are numbered like another's.

    Attributes:
        point: The aligned net, in the format of ``b`` (a dict by name for a module).
        permutations: For each group of units the indices ``[n]`` of what came to each place.
        groups: The axes that each of them permutes.
        distance_before: ``‖θ_a − θ_b‖``.
        distance: ``‖θ_a − π(θ_b)‖``.
        num_sweeps: How often all layers were gone through, in the best of the starts.
        converged: Whether the last sweep changed nothing.
        seconds: How long it took.
    """

    point: Any
    permutations: dict[str, Tensor]
    groups: dict[str, tuple[tuple[Any, ...], ...]]
    distance_before: float
    distance: float
    num_sweeps: int
    converged: bool
    seconds: float

    def apply(self, net: nn.Module | Mapping[str, Tensor]) -> Any:
        """Return a net with the same permutations: a copy of a module, or tensors by name.

        Args:
            net: A module, which is left untouched, or parameters and buffers by name.
        """
        axes = {name: [Axis(*axis) for axis in group] for name, group in self.groups.items()}
        if not isinstance(net, nn.Module):
            return permute(net, axes, self.permutations)
        other = copy.deepcopy(net)
        own = dict(other.named_parameters()) | dict(other.named_buffers())
        with torch.no_grad():
            for name, tensor in permute(own, axes, self.permutations).items():
                own[name].copy_(tensor.clone())
        return other

    def __str__(self) -> str:
        """Return how much closer the nets are."""
        moved = sum(int((p != torch.arange(len(p))).sum()) for p in self.permutations.values())
        total = sum(len(p) for p in self.permutations.values())
        return (
            f"{moved} of {total} hidden units renumbered in {len(self.permutations)} layers: "
            f"distance {self.distance_before:.4g} → {self.distance:.4g} ({self.num_sweeps} sweeps)"
        )


def align(
    risk: EmpiricalRisk,
    a: Point,
    b: Point,
    *,
    groups: Groups | None = None,
    restarts: int = 1,
    max_sweeps: int = 100,
    seed: int | torch.Generator = 0,
) -> Alignment:
    r"""Return ``b`` with its hidden units renumbered like those of ``a``, by weight matching.

    Args:
        risk: The risk that both are points of; its module says which units there are.
        a: The net that keeps its numbering, in any format, or a module.
        b: The net that is renumbered.
        groups: The axes that are permuted together, by any name: pairs ``(tensor, axis)``, or
            triples with the number of consecutive entries of a unit, where a convolution is
            flattened. By default read off the forward pass; see
            :func:`~curvops.landscape.wiring.permutation_groups`.
        restarts: How many orders of the layers to try; the closest result is returned.
        max_sweeps: After how many rounds through the layers to stop.
        seed: Of the orders.

    Returns:
        The aligned net; it computes what ``b`` does, up to the rounding of reordered sums.

    Raises:
        InputError: If the units cannot be told, their permutation would change the predictions,
            or would have to move tensors that are no parameters of the risk.
        ShapeError: If a point or a group does not fit.

    Note:
        The module's buffers are not part of a point. :meth:`Alignment.apply` permutes the running
        averages of batch normalisation with a module's parameters;
        :func:`~curvops.landscape.path_scan.scan_path` estimates them again.

    Source:
        Ainsworth, Hayase & Srinivasa, Git Re-Basin: merging models modulo permutation symmetries,
        ICLR 2023, Algorithm 1.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(net, torch.nn.MSELoss(), net, data)
        >>> a = {name: p.detach() for name, p in net.named_parameters()}
        >>> order = torch.tensor([2, 0, 1])
        >>> b = {"0.weight": a["0.weight"][order], "0.bias": a["0.bias"][order]}
        >>> b |= {"2.weight": a["2.weight"][:, order], "2.bias": a["2.bias"]}
        >>> aligned = align(risk, a, b)
        >>> aligned.distance, aligned.permutations["0.weight"].tolist()
        (0.0, [1, 2, 0])
    """
    begin = perf_counter()
    for name, value in (("restarts", restarts), ("max_sweeps", max_sweeps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be an integer of 1 or more, got {value!r}.")
    generator = torch.Generator().manual_seed(as_seed(seed))
    first, second = (read_point(risk, p, what) for p, what in ((a, "a"), (b, "b")))
    reference, moved = (risk._named(flat) for flat in (first, second))
    axes = _axes(risk, groups)
    _try_out(risk, moved, axes, generator)
    runs = [match(reference, moved, axes, max_sweeps, generator) for _ in range(restarts)]
    best = max(runs, key=lambda run: run.similarity)
    flat = risk.flat(list(permute(moved, axes, best.permutations).values()))
    return Alignment(
        point=_like(b, risk, flat),
        permutations=best.permutations,
        groups={name: tuple(tuple(axis) for axis in group) for name, group in axes.items()},
        distance_before=float((first - second).norm()),
        distance=float((first - flat).norm()),
        num_sweeps=best.num_sweeps,
        converged=best.converged,
        seconds=perf_counter() - begin,
    )


def _axes(risk: EmpiricalRisk, groups: Groups | None) -> dict[str, tuple[Axis, ...]]:
    """Return the groups, checked against what the risk is a function of."""
    module = risk.model
    buffers = {} if module is None else dict(module.named_buffers())
    frozen = {} if module is None else dict(module.named_parameters())
    if groups is None:
        if module is None:
            raise InputError(
                "the model is a plain callable, whose hidden units cannot be told. Pass groups=, "
                'for example {"hidden": [("W1", 0), ("b1", 0), ("W2", 1)]}.'
            )
        groups = permutation_groups(module)
        if not groups:
            raise InputError(f"{type(module).__name__} has no hidden units to renumber.")
    read = read_groups(groups, {**frozen, **risk.params, **buffers})
    for name, axes in read.items():
        outside = [x.tensor for x in axes if x.tensor not in risk.params and x.tensor in frozen]
        if outside:
            raise InputError(
                f"the units of {name!r} run through {outside}, which are no parameters of the "
                "risk. Make them parameters of it, or leave the group out of groups=."
            )
    return read


def _try_out(
    risk: EmpiricalRisk,
    params: Mapping[str, Tensor],
    groups: Mapping[str, tuple[Axis, ...]],
    generator: torch.Generator,
) -> None:
    """Raise an error if a random renumbering changes the predictions for the first batch."""
    own = isolated(risk)
    buffers = {} if own.model is None else dict(own.model.named_buffers())
    orders = {
        name: torch.randperm(group_size(axes, {**params, **buffers}), generator=generator)
        for name, axes in groups.items()
    }
    expected = _predicted(own, params)
    if not bool(expected.isfinite().all()):
        raise NonFiniteError("the predictions of b for the first batch hold NaN or infinity.")
    moved = permute(buffers, groups, orders)
    for name, buffer in buffers.items():
        buffer.copy_(moved[name].clone())
    found = _predicted(own, permute(params, groups, orders))
    worst = float((found - expected).abs().max())
    if not worst <= torch.finfo(risk.dtype).eps ** 0.5 * float(expected.abs().max()):
        raise InputError(
            f"renumbering the units of {list(groups)} changes predictions by {worst:.3g}, so they "
            "were not found rightly. Pass groups= with every axis that each layer's units run "
            "along, and how many consecutive entries a unit has where it is flattened."
        )


def _predicted(risk: EmpiricalRisk, params: Mapping[str, Tensor]) -> Tensor:
    return next(risk.at(params).predictions())[0]


def _like(b: Point, risk: EmpiricalRisk, flat: Tensor) -> Any:
    """Return a point in the format of ``b``."""
    layout = "dict" if isinstance(b, (nn.Module, Mapping)) else "list"
    return risk.space.write(
        flat.unsqueeze(1), Format("flat" if isinstance(b, Tensor) else layout, True)
    )
