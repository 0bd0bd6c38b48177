r"""Points that are affine in few directions, and the products that they share.

.. math::
    \theta_k = \theta + \sum_i c_{ik} d_i, \qquad
    X (W + \sum_i c_{ik} U_i)^T = X W^T + \sum_i c_{ik} X U_i^T

A linear or convolutional layer that sees the data themselves, which is often the widest, so costs
1 + r products for all points of a ray (r = 1) or a plane (r = 2) together, not one for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from curvops.errors import InputError, ShapeError
from curvops.nesting import tensors_of
from curvops.tensors import Format, Space, Vector, check_finite, check_real

_LINEAR_IN_WEIGHTS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
"""Functions ``(input, weight, bias, ...)`` that are linear in weight and bias."""

_NUMEL = 2**20
"""Coordinates looked at together, in float64."""
_PIVOTS = 2
"""Directions that are looked for in points given one by one."""
_FEWEST = 8
"""Points below which that does not pay."""
_SAMPLE = 256
"""Coordinates that most often show that points have no structure."""
_ROUNDING = 8.0
"""Units in the last place of a coordinate's largest value that points may lie off the plane."""


@dataclass(frozen=True)
class Affine:
    r"""Points :math:`\theta_k = \theta + \sum_i c_{ik} d_i`: a ray, a plane, a segment.

    Wherever points can be given as columns. It holds r + 1 vectors instead of K, and layers that
    see the data share their products among all points.

    Args:
        theta: The origin, in any format.
        directions: Directions as columns, ``[P, r]`` or in the other formats.
        coefficients: ``[r, K]``, one column a point; ``[K]`` for one direction.

    Example:
        >>> import torch
        >>> from curvops.risk import EmpiricalRisk
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> risk = EmpiricalRisk(model, torch.nn.MSELoss(), model, data)
        >>> ray = Affine(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0, 2.0]))
        >>> risk.losses(ray)
        tensor([0.0000, 0.5000, 2.0000])
    """

    theta: Vector
    directions: Vector
    coefficients: Tensor

    @property
    def format(self) -> Format:
        """How answers for these points are written: as the origin is."""
        layout = "dict" if isinstance(self.theta, Mapping) else "list"
        return Format("flat" if isinstance(self.theta, Tensor) else layout, is_vector=False)

    def read(
        self, space: Space, dtype: torch.dtype, device: torch.device, what: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Validate the points and return them as ``[P]``, ``[P, r]`` and ``[r, K]``.

        Raises:
            ShapeError: If shapes do not fit.
            InputError: If ``theta`` has several columns.
            DTypeError: If a dtype is not real floating.
            NonFiniteError: If something is NaN or infinite.
        """
        theta, _ = space.read(self.theta, dtype, device, f"{what}.theta")
        if theta.shape[1] != 1:
            raise InputError(f"{what}.theta has {theta.shape[1]} columns; it is one point.")
        directions, _ = space.read(self.directions, dtype, device, f"{what}.directions")
        given = torch.as_tensor(self.coefficients)
        check_real(given, f"{what}.coefficients")
        check_finite(given, f"{what}.coefficients")
        coefficients = given.detach().to(device, dtype)
        if coefficients.ndim == 1:
            coefficients = coefficients.unsqueeze(0)
        if coefficients.ndim != 2 or len(coefficients) != directions.shape[1]:
            raise ShapeError(
                f"{what}.coefficients has shape {list(given.shape)}; expected "
                f"[{directions.shape[1]}, K], a row for each direction."
            )
        return theta[:, 0], directions, coefficients


def find_affine(rows: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Tell whether points lie on a line or a plane, to the rounding of their coordinates.

    Origin and directions are made of the points themselves, the farthest from each other, so that
    coefficients are at most of the order of one and rounding is not magnified.

    Args:
        rows: Points ``[K, P]``.

    Returns:
        Origin ``[P]``, directions ``[P, r]`` and coefficients ``[r, K]``; ``None`` if they do not.
    """
    if len(rows) < _FEWEST:
        return None
    differs = (rows[[len(rows) // 2, -1]] != rows[0]).any(0).nonzero()[:, 0]
    if not len(differs):
        return None
    sample = rows[:, differs[:: max(1, len(differs) // _SAMPLE)]]
    pivots: list[int] = []
    distances = ((sample - sample[0]).abs() / sample.abs().amax(0)).amax(1)
    while len(pivots) < _PIVOTS:
        pivots.append(int(distances.argmax()))
        fit = _fit(sample, pivots)
        if fit is None:
            return None
        distances = fit[1]
        if float(distances.max()) <= _ROUNDING:
            found = _fit(rows, pivots)
            if found is None or float(found[1].max()) > _ROUNDING:
                return None
            steps = [(rows[k].double() - rows[0].double()).to(rows.dtype) for k in pivots]
            return rows[0], torch.stack(steps, dim=1), found[0].to(rows.dtype)
    return None


def _fit(rows: Tensor, pivots: list[int]) -> tuple[Tensor, Tensor] | None:
    """Express points by some of them: coefficients ``[r, K]``, and how far off the points are.

    Distances ``[K]`` are largest ones over the coordinates, in units of their rounding.
    """

    def moved() -> Iterator[Tensor]:
        """Yield differences from the first point, some coordinates at a time."""
        for part in rows.split(max(1, _NUMEL // len(rows)), dim=1):
            part = part.double()
            # Where a coordinate is small it rounds less, and knows more about the coefficients.
            unit = part.abs().amax(0) * torch.finfo(rows.dtype).eps
            yield (part - part[0]).mul_(torch.where(unit > 0, 1 / unit, 0))

    gram = torch.zeros(len(pivots), len(pivots), dtype=torch.float64, device=rows.device)
    for part in moved():
        gram += part[pivots] @ part[pivots].T
    if int(torch.linalg.matrix_rank(gram)) < len(pivots):
        return None
    coefficients = gram.new_zeros(len(pivots), len(rows))
    # Where doubles are fitted in doubles, a second time removes the rounding of the first.
    for _ in range(2 if rows.dtype == torch.float64 else 1):
        missed = torch.zeros_like(coefficients)
        for part in moved():
            missed += part[pivots] @ (part - coefficients.T @ part[pivots]).T
        coefficients += torch.linalg.solve(gram, missed)
    distances = gram.new_zeros(len(rows))
    for part in moved():
        rest = part.addmm(coefficients.T, part[pivots], alpha=-1)
        distances = torch.maximum(distances, rest.abs().amax(1))
    return coefficients, distances


class SharedProducts(TorchFunctionMode):
    """While it is entered, layers that see the data combine the products of all points.

    A layer is recognised by the very tensors it is called with: a weight that varies, and an
    input that is a tensor of the batch or a view of it. Everything else runs as it is.

    Args:
        X: The batch's inputs, not written to.
        origin: The parameters of θ, by name.
        directions: Those of every direction.
    """

    def __init__(
        self, X: Any, origin: Mapping[str, Tensor], directions: Sequence[Mapping[str, Tensor]]
    ) -> None:
        super().__init__()
        self._storages = {t.untyped_storage().data_ptr() for t in tensors_of(X)}
        self._origin, self._directions = origin, directions
        self._products: dict[Hashable, tuple[Tensor, Tensor]] = {}
        self._names: dict[int, str] = {}
        self._coefficients: Tensor | Sequence[float] = ()
        self.is_used = False

    @contextmanager
    def at(
        self, params: Mapping[str, Tensor], coefficients: Tensor | Sequence[float]
    ) -> Iterator[None]:
        """Enter for a point: its tensors, which identify themselves, and its coefficients [r]."""
        self._names = {id(t): name for name, t in params.items()}
        self._coefficients = coefficients
        with self:
            yield

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _LINEAR_IN_WEIGHTS and not kwargs and len(args) >= 2:
            names = [self._names.get(id(t)) for t in args[1:3]]
            if any(names) and self._is_data(args[0]):
                return self._combined(func, *args)
        return func(*args, **kwargs)

    def _is_data(self, x: Tensor) -> bool:
        try:
            return x.untyped_storage().data_ptr() in self._storages
        except (NotImplementedError, RuntimeError):  # batched by vmap: it depends on the point
            return False

    def _combined(
        self,
        func: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *options: Any,
    ) -> Tensor:
        names = self._names.get(id(weight)), self._names.get(id(bias))
        given = list(zip((weight, bias), names, strict=True))
        held = [t.data_ptr() for t, name in given if t is not None and name is None]
        key = (func, *names, *held, x.data_ptr(), x.shape, x.stride(), x.dtype, repr(options))
        if key not in self._products:
            self.is_used = True
            at = [self._origin[name] if name else t for t, name in given]
            terms = []
            for direction in self._directions:
                step = [direction[name] if name else None for name in names]
                u = torch.zeros_like(weight) if step[0] is None else step[0]
                terms.append(func(x, u, step[1], *options))
            self._products[key] = func(x, *at, *options), torch.stack(terms)
        base, moved = self._products[key]
        if isinstance(self._coefficients, Tensor):
            total: Tensor = base + torch.tensordot(self._coefficients, moved, dims=1)
            return total
        return _added(base, moved, self._coefficients)


def _added(base: Tensor, moved: Tensor, coefficients: Sequence[float]) -> Tensor:
    total = torch.add(base, moved[0], alpha=coefficients[0])
    for term, coefficient in zip(moved[1:], coefficients[1:], strict=True):
        total.add_(term, alpha=coefficient)
    return total
