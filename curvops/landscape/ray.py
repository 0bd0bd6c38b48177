r"""The loss along rays from a point, at distances that double: roughness, grit and curvature.

.. math:: l(h) = L(\theta + h d), \qquad h = h_0 \, 2^{j/K} \, 2^i
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvops.errors import InputError, ShapeError
from curvops.landscape.directions import Directions, Wanted, directions
from curvops.landscape.noise import measure_noise
from curvops.landscape.normalization import Ignore, Normalization
from curvops.landscape.ray_result import Rays
from curvops.landscape.scan import (
    Metrics,
    bar_over,
    check_metrics,
    check_start,
    evaluate,
    in_dtype,
    on_rays,
)

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk


def rays(
    risk: EmpiricalRisk,
    wanted: Wanted | Iterable[Wanted] | Directions,
    *,
    subspaces: str | Sequence[str] | None = None,
    base: float = 1e-4,
    num: int = 20,
    num_random: int = 1,
    normalization: Normalization = "unit",
    ignore: Ignore | None = "biasbn",
    two_sided: bool = False,
    metrics: Metrics = (),
    dtype: torch.dtype | None = None,
    num_noise: int = 24,
    seed: int | torch.Generator = 0,
    progress: bool = False,
) -> Rays:
    r"""Evaluate the loss along rays from the current point of a risk.

    .. math:: L(\theta + h d_j), \qquad h = h_0 \, 2^{j/K} \, 2^i, \quad i = 0, \dots, n - 1

    Distances on a ray double, exactly: with h on the grid, 2h is on it too. The rays are offset
    against one another, so that together they cover the distances evenly.

    Args:
        risk: The risk; its current point is where the rays start, and is left untouched.
        wanted: One or more directions: ``"ascent"``, ``"descent"``, ``"radial_out"``,
            ``"radial_in"``, ``"random"``, :func:`~curvops.landscape.directions.eigenvector`,
            :func:`~curvops.landscape.directions.toward`, vectors; or what
            :func:`~curvops.landscape.directions.directions` returned.
        subspaces: Substrings or globs over the names of the parameters; every direction is
            projected onto each of them and scaled to length one again.
        base: The first distance h₀ of the first ray, in units of the parameters (of the
            directions, where they are not of length one).
        num: Distances on each ray, at least 2.
        num_random: How many random directions ``"random"`` stands for.
        normalization: ``"unit"``, ``"filter"``, ``"layer"`` or ``"none"``.
        ignore: ``"biasbn"``: by filter or layer, biases and normalisation layers are not moved.
        two_sided: Look at ``L(θ − h d)`` too, for a curvature that is centred at the point.
        metrics: What to compute beside the loss: ``"accuracy"``, or functions
            ``(prediction, y) -> values per datum`` in a dict by name.
        dtype: Evaluate the whole net in another dtype; ``torch.float64`` sees roughness at
            distances where float32 sees its own rounding.
        num_noise: How many points to evaluate in another precision too, for the noise floors.
        seed: Of the random directions and the eigensolver.
        progress: Show a bar over the points.

    Returns:
        The losses with their noise floors; roughness, grit and curvature follow from them. A loss
        that is NaN or infinite is kept as it is.

    Raises:
        InputError: If an argument is impossible, a substring or glob matches no parameter, or a
            direction is zero.
        ShapeError: If a direction does not fit the parameters.
        NonFiniteError: If the loss at the point is NaN or infinite.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False).double()
        >>> data = [(torch.eye(2).double(), torch.zeros(2, 1).double())]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> scan = rays(risk, torch.tensor([1.0, 1.0]), base=0.25, num=4)  # L = |θ|²/2
        >>> scan.distances[:, 0].tolist()
        [0.25, 0.5, 1.0, 2.0]
        >>> torch.allclose(scan.grit, scan.distances[:-1], rtol=1e-10)  # λh with λ = 1
        True
    """
    start = perf_counter()
    named = check_metrics(metrics)
    _check_grid(base, num, num_noise)
    risk = in_dtype(risk, dtype)
    check_start(risk, named)
    if isinstance(wanted, Directions):
        found = _same_space(risk, wanted, subspaces)
    else:
        found = directions(
            risk,
            wanted,
            subspaces=subspaces,
            normalization=normalization,
            ignore=ignore,
            num_random=num_random,
            seed=seed,
        )
    count = len(found)
    distances = grid(base, num, count)
    _check_range(risk, distances)
    # The point itself is the first on the first ray; what lies behind follows what lies ahead.
    steps = torch.cat([distances, -distances]) if two_sided else distances
    zero = torch.zeros(1, dtype=torch.float64)
    walks = [torch.cat([zero, ray]) if k == 0 else ray for k, ray in enumerate(steps.T)]
    pieces = on_rays(risk.theta, found.columns, walks)

    def by_ray(flat: Tensor) -> Tensor:
        return flat[1:].reshape(count, len(steps)).T.contiguous()

    with bar_over(1 + steps.numel() + 1 + num_noise, progress) as bar:
        values = evaluate(risk, pieces, named, bar=bar)
        loss, losses = float(values.losses[0]), by_ray(values.losses)[:num]
        noise = measure_noise(risk, found.columns, distances, losses, loss, num_noise, bar)
    return Rays(
        labels=found.labels,
        directions=found.names,
        subspaces=found.subspaces,
        lengths=found.lengths,
        normalization=found.normalization,
        distances=distances,
        losses=losses,
        loss=loss,
        noise=noise,
        metrics={name: by_ray(v)[:num] for name, v in values.metrics.items()},
        point_metrics={name: float(v[0]) for name, v in values.metrics.items()},
        losses_behind=by_ray(values.losses)[num:] if two_sided else None,
        dtype=risk.dtype,
        num_losses=steps.numel() + 2 + noise.num_losses,
        num_gradients=found.num_gradients,
        num_matvecs=found.num_matvecs,
        seconds=perf_counter() - start,
    )


def grid(base: float, num: int, num_rays: int) -> Tensor:
    r"""Return the distances :math:`h_0 2^{j/K} 2^i` of ray j at step i, ``[num, K]``, float64.

    Only the first row is rounded; from there on every number is twice the one above it.

    Example:
        >>> grid(1.0, 3, 2).tolist()
        [[1.0, 1.4142135623730951], [2.0, 2.8284271247461903], [4.0, 5.656854249492381]]
    """
    first = [base * 2.0 ** (j / num_rays) for j in range(num_rays)]
    powers = torch.tensor([2.0**i for i in range(num)], dtype=torch.float64)
    return powers.unsqueeze(1) * torch.tensor(first, dtype=torch.float64)


def _check_grid(base: float, num: int, num_noise: int) -> None:
    if not 0 < base < math.inf:
        raise InputError(f"base is {base!r}; it must be a positive, finite distance.")
    for name, value, least in (("num", num, 2), ("num_noise", num_noise, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}; it must be an integer of at least {least}.")
    if math.log2(base) + num > 1020:
        raise InputError(
            f"the largest distance is {base!r} * 2**{num}, which no float can hold. Pass a smaller "
            "base or num."
        )


def _check_range(risk: EmpiricalRisk, distances: Tensor) -> None:
    largest, most = float(distances.max()), torch.finfo(risk.dtype).max
    if not largest < most / 4:
        raise InputError(
            f"the largest distance is {largest:.3g}, which {risk.dtype} cannot hold. Pass a "
            "smaller base or num."
        )


def _same_space(
    risk: EmpiricalRisk, found: Directions, subspaces: str | Sequence[str] | None
) -> Directions:
    if subspaces is not None:
        raise InputError(
            "subspaces has no effect on directions that are there already. Pass it to directions()."
        )
    if found.columns.shape[0] != risk.space.dim:
        raise ShapeError(
            f"the directions have {found.columns.shape[0]} entries, the risk {risk.space.dim} "
            "parameters. Compute them from this risk."
        )
    return replace(found, columns=found.columns.to(risk.device, risk.dtype))
