r"""Directions in parameter space, by what they mean, whole or on a part of the parameters.

.. math::
    \frac{\nabla L}{\|\nabla L\|}, \quad \frac{\theta}{\|\theta\|}, \quad
    v_i : H v_i = \lambda_i v_i, \quad \frac{\theta' - \theta}{\|\theta' - \theta\|}, \quad
    \frac{P_s d}{\|P_s d\|}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor, nn

from curvops.errors import InputError
from curvops.landscape.normalization import Ignore, Normalization, check_normalization, normalize
from curvops.landscape.situation import Situation
from curvops.landscape.storage import Stored
from curvops.landscape.subspace import WHOLE, mask
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.matrix import Matrix
from curvops.tensors import Vector

if TYPE_CHECKING:
    from curvops.risk import EmpiricalRisk

NAMED = ("ascent", "descent", "radial_out", "radial_in", "random")
"""The directions that a string is enough for."""


@dataclass(frozen=True, eq=False)
class Direction(ABC):
    """A direction that is worked out where it is used; what the functions below return.

    Attributes:
        name: What results and pictures call it.
    """

    name: str

    @abstractmethod
    def vector(self, situation: Situation) -> Tensor:
        """Return the direction at a point, of any length, ``[P]`` (``[P, k]`` for several)."""

    def why_zero(self) -> str:
        """Return why it might be zero, and what to do."""
        return "Pass a vector that is not zero."


Wanted = Union[str, Direction, Tensor, Sequence[Tensor], Mapping[str, Tensor]]
"""A direction: one of :data:`NAMED`, what a function below returns, or a vector (or columns)."""


def eigenvector(index: int, of: EighResult | Matrix | None = None) -> Direction:
    """Return the direction of an eigenvector.

    Args:
        index: 0 for the largest eigenvalue, 1 for the next; −1 for the smallest (most negative).
        of: Eigenpairs that are there already, or the matrix ``[P, P]`` whose are wanted; the
            Hessian of the risk by default. Its sign is such that its largest entry is positive.

    Raises:
        InputError: If ``index`` is no integer, or not among the eigenpairs.

    Example:
        >>> eigenvector(0).name, eigenvector(-1).name
        ('eigenvector 0', 'eigenvector -1')
    """
    if isinstance(index, bool) or not isinstance(index, int):
        raise InputError(f"index is {index!r}; it must be an integer: 0, 1, … or -1, -2, …")
    if isinstance(of, EighResult):
        if of.eigenvectors is None:
            raise InputError("of has no eigenvectors; compute it with return_eigenvectors=True.")
        count = len(of.eigenvalues)
        if not -count <= index < count:
            raise InputError(f"index is {index}, but of holds {count} eigenpairs.")
    return _Eigenvector(f"eigenvector {index}", index, of)


def toward(other: Vector | nn.Module | EmpiricalRisk, name: str = "toward") -> Direction:
    """Return the direction from the current point to another.

    Args:
        other: A point in any format, a dict with further names in it (a ``state_dict``), a module
            or a risk with the same parameters.
        name: What results and pictures call it.
    """
    return _Toward(name, other)


def along(vector: Vector, name: str = "direction") -> Direction:
    """Return the direction of a vector, under a name.

    Args:
        vector: The vector in any format; its length does not matter.
        name: What results and pictures call it.
    """
    return _Given(name, vector)


@dataclass(frozen=True, eq=False)
class Directions(Stored):
    """Directions at one point, as columns.

    Attributes:
        labels: One for each: ``"descent"``, ``"random 3 on fc1"``.
        names: What is meant by each: ``"descent"``, ``"random"``.
        subspaces: The substring or glob each is confined to; ``"*"`` for all parameters.
        columns: The directions ``[P, K]``.
        lengths: The norm of each before it was normalised ``[K]``: of the gradient, of θ, of
            ``other − θ``, of a projected eigenvector.
        normalization: What they were normalised by.
        num_gradients: Gradients that it took.
        num_matvecs: Hessian products that it took.
        seconds: How long it took.
    """

    labels: tuple[str, ...]
    names: tuple[str, ...]
    subspaces: tuple[str, ...]
    columns: Tensor
    lengths: Tensor
    normalization: str
    num_gradients: int
    num_matvecs: int
    seconds: float

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.labels)

    def __str__(self) -> str:
        """Return one row a direction: its label and length."""
        rows = [f"{len(self)} directions in {self.columns.shape[0]} dimensions"]
        pairs = zip(self.labels, self.lengths.tolist(), strict=True)
        return "\n".join([*rows, *(f"  {label}: length {length:.4g}" for label, length in pairs)])


def directions(
    risk: EmpiricalRisk,
    wanted: Wanted | Iterable[Wanted],
    *,
    subspaces: str | Sequence[str] | None = None,
    normalization: Normalization = "unit",
    ignore: Ignore | None = "biasbn",
    num_random: int = 1,
    seed: int | torch.Generator = 0,
) -> Directions:
    r"""Work out directions at the current point of a risk.

    ==================  =========================================================================
    ``"ascent"``        :math:`\nabla L`, of all the data
    ``"descent"``       :math:`-\nabla L`
    ``"radial_out"``    :math:`\theta`
    ``"radial_in"``     :math:`-\theta`
    ``"random"``        ``num_random`` vectors of independent normal entries
    ==================  =========================================================================

    Further :func:`eigenvector`, :func:`toward`, :func:`along`, and vectors as they are.

    Args:
        risk: The risk; its current point is where the directions start.
        wanted: One or more directions.
        subspaces: Substrings or globs over the names of the parameters; every direction is
            projected onto each of them. ``"*"`` is the whole space, and the default.
        normalization: ``"unit"``, ``"filter"``, ``"layer"`` or ``"none"``, after the projection
            (see :func:`~curvops.landscape.normalization.normalize`).
        ignore: ``"biasbn"``: by filter or layer, biases and normalisation layers are set to 0.
        num_random: How many random directions ``"random"`` stands for. The first of them do not
            depend on how many follow, nor on the dtype.
        seed: Of the random directions and the eigensolver.

    Returns:
        The directions, in the order of ``wanted`` and, within each, of ``subspaces``.

    Raises:
        InputError: If nothing is wanted, a name is unknown, a substring or glob matches no
            parameter, or a direction is zero.
        ShapeError: If a vector or a point does not fit the parameters.
        NonFiniteError: If the gradient or a vector holds NaN or infinity.

    Example:
        >>> from curvops.risk import EmpiricalRisk
        >>> model = nn.Linear(3, 2)
        >>> risk = EmpiricalRisk(model, nn.MSELoss(), model, [(torch.eye(3), torch.zeros(3, 2))])
        >>> found = directions(risk, ["descent", eigenvector(0)], subspaces=["*", "weight"])
        >>> found.labels
        ('descent', 'descent on weight', 'eigenvector 0', 'eigenvector 0 on weight')
        >>> torch.allclose(found.columns.norm(dim=0), torch.ones(4))
        True
    """
    start = perf_counter()
    check_normalization(normalization, ignore)
    if isinstance(num_random, bool) or not isinstance(num_random, int) or num_random < 1:
        raise InputError(f"num_random is {num_random!r}; it must be an integer of at least 1.")
    specs = _specs(wanted, num_random)
    patterns = _patterns(subspaces)
    inside = [(pattern, mask(risk.space, pattern).to(risk.device)) for pattern in patterns]
    requests = [(d.index, d.of) for d in specs if isinstance(d, _Eigenvector)]
    situation = Situation(risk, seed, requests)
    labels: list[str] = []
    names: list[str] = []
    found: list[Tensor] = []
    lengths: list[Tensor] = []
    for spec in specs:
        vectors = situation.read(spec.vector(situation), f"direction {spec.name!r}")
        for number, vector in enumerate(vectors.T):
            name = f"{spec.name} {number}" if vectors.shape[1] > 1 else spec.name
            for pattern, part in inside:
                label = name if pattern == WHOLE else f"{name} on {pattern}"
                projected = torch.where(part, vector, 0)
                length = projected.norm()
                if not bool(length > 0):
                    _refuse_zero(label, spec, bool(vector.any()))
                column = normalize(risk, projected.unsqueeze(1), normalization, ignore)[:, 0]
                if not bool(column.any()):
                    raise InputError(
                        f"direction {label!r} is zero when it is normalised by {normalization}"
                        f" with ignore={ignore!r}. Pass ignore=None, or another subspace."
                    )
                labels.append(label)
                names.append(spec.name)
                found.append(column)
                lengths.append(length)
    return Directions(
        labels=tuple(labels),
        names=tuple(names),
        subspaces=tuple(patterns) * (len(labels) // len(patterns)),
        columns=torch.stack(found, dim=1),
        lengths=torch.stack(lengths).to("cpu", torch.float64),
        normalization=normalization,
        num_gradients=situation.num_gradients,
        num_matvecs=situation.num_matvecs,
        seconds=perf_counter() - start,
    )


# --------------------------------------------------------------------------- what is behind them


class _Gradient(Direction):
    """Up or down the gradient."""

    def vector(self, situation: Situation) -> Tensor:
        return situation.gradient if self.name == "ascent" else -situation.gradient

    def why_zero(self) -> str:
        return "The gradient vanishes at this point. Leave the direction out."


class _Radial(Direction):
    """Away from the origin or towards it."""

    def vector(self, situation: Situation) -> Tensor:
        theta = situation.risk.theta
        return theta if self.name == "radial_out" else -theta

    def why_zero(self) -> str:
        return "These parameters are all zero. Leave the direction out."


@dataclass(frozen=True, eq=False)
class _Random(Direction):
    """Independent normal entries."""

    num: int

    def vector(self, situation: Situation) -> Tensor:
        return situation.normal(self.num)


@dataclass(frozen=True, eq=False)
class _Eigenvector(Direction):
    """An eigenvector of the Hessian, of a matrix, or one that is there already."""

    index: int
    of: EighResult | Matrix | None

    def vector(self, situation: Situation) -> Tensor:
        return situation.eigenvector(self.index, self.of)


@dataclass(frozen=True, eq=False)
class _Toward(Direction):
    """From here to another point."""

    other: Vector | nn.Module | EmpiricalRisk

    def vector(self, situation: Situation) -> Tensor:
        risk = situation.risk
        return situation.point(self.other, f"the other point of {self.name!r}") - risk.theta

    def why_zero(self) -> str:
        return "Both points agree there. Pass another point."


@dataclass(frozen=True, eq=False)
class _Given(Direction):
    """A vector as it is, or columns of them."""

    given: Vector

    def vector(self, situation: Situation) -> Tensor:
        return situation.read(self.given, f"direction {self.name!r}")


def _patterns(subspaces: str | Sequence[str] | None) -> list[str]:
    if subspaces is None:
        return [WHOLE]
    patterns = [subspaces] if isinstance(subspaces, str) else list(subspaces)
    if not patterns:
        raise InputError('subspaces is empty. Leave it out, or pass "*" for the whole space.')
    return patterns


def _specs(wanted: Wanted | Iterable[Wanted], num_random: int) -> list[Direction]:
    if isinstance(wanted, (str, Direction, Tensor, Mapping)):
        wanted = [wanted]
    specs = [_spec(item, k, num_random) for k, item in enumerate(wanted)]
    if not specs:
        raise InputError(f"No direction is wanted; pass some of {', '.join(NAMED)}, or vectors.")
    return specs


def _spec(item: Wanted, index: int, num_random: int) -> Direction:
    if isinstance(item, Direction):
        return item
    if not isinstance(item, str):
        return _Given(f"direction {index}", item)
    if item == "random":
        return _Random("random", num_random)
    if item in ("ascent", "descent"):
        return _Gradient(item)
    if item in ("radial_out", "radial_in"):
        return _Radial(item)
    raise InputError(
        f"There is no direction {item!r}; known: {', '.join(NAMED)}. Further eigenvector(i), "
        "toward(other), along(vector), or a vector."
    )


def _refuse_zero(label: str, spec: Direction, is_elsewhere: bool) -> None:
    if is_elsewhere:
        why = "Its entries there are all zero. Leave out this subspace, or this direction."
    else:
        why = spec.why_zero()
    raise InputError(f"direction {label!r} is zero. {why}")
