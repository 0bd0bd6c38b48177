"""The trace of the Hessian, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from curvops.errors import InputError
from curvops.linalg.probes import Probes
from curvops.operators.ggn import GGNLinearOperator
from curvops.operators.linear import LinearOperator
from curvops.training.curvature import Point
from curvops.training.quantity import Every, Measured, Quantity
from curvops.training.run import plain_fields


@dataclass(frozen=True)
class HessianTraceResult:
    """Traces of the diagonal blocks of a curvature, one per layer.

    Attributes:
        layers: Their names.
        traces: tr H_ll of each.
        stderrs: Its standard error over the probes.
        total: tr H.
        total_stderr: Its standard error.
        num_matvecs: Products, each about a gradient of the data looked at.
        seconds: How long it took.
    """

    layers: tuple[str, ...]
    traces: tuple[float, ...]
    stderrs: tuple[float, ...]
    total: float
    total_stderr: float
    num_matvecs: int
    seconds: float

    def __str__(self) -> str:
        """Return the total and the layers."""
        parts = ", ".join(
            f"{name} {t:.3g} ± {e:.1g}"
            for name, t, e in zip(self.layers, self.traces, self.stderrs, strict=True)
        )
        return f"tr H = {self.total:.4g} ± {self.total_stderr:.2g} ({parts})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return plain_fields(self)


class HessianTrace(Quantity):
    r"""The trace of the Hessian and of its diagonal blocks, one per layer.

    .. math:: \operatorname{tr} H_{ll} = \mathbb{E}\, z_l^T (H z)_l, \qquad z \in \{\pm 1\}^P

    One product with a whole probe serves all layers, for what couples two of them averages out.

    Cost: ``num_probes`` products of the data looked at.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ...
        num_probes: How many probes, two or more.
        curvature: ``"hessian"`` or ``"ggn"``.

    Raises:
        InputError: If an argument is impossible.

    Source:
        Hutchinson 1990; Yao et al. 2020, PyHessian (arXiv:1912.07145), section 3.

    Example:
        >>> HessianTrace(every=100, num_probes=8).due(50)
        False
    """

    name = "hessian_trace"
    looks_at_risk = True

    def __init__(
        self,
        every: Every = 100,
        num_probes: int = 10,
        *,
        curvature: Literal["hessian", "ggn"] = "hessian",
    ) -> None:
        super().__init__(every)
        if isinstance(num_probes, bool) or not isinstance(num_probes, int) or num_probes < 2:
            raise InputError(f"num_probes must be an integer of 2 or more, got {num_probes!r}.")
        if curvature not in ("hessian", "ggn"):
            raise InputError(f'curvature must be "hessian" or "ggn", got {curvature!r}.')
        self._num_probes, self._curvature = num_probes, curvature

    def wants_point(self, step: int) -> bool:
        """Ask for the point."""
        return self.due(step)

    def at_point(self, point: Point) -> Iterable[Measured]:
        """Multiply with the probes."""
        begin = time.perf_counter()
        operator: LinearOperator = point.curvature.hessian
        if self._curvature == "ggn":
            operator = GGNLinearOperator.from_risk(point.curvature.risk, compile=False)
        groups = layers_of(tuple(point.params))
        slices = dict(operator.in_space.slices())
        stream = Probes(
            operator.shape[0], "rademacher", point.seed, operator.dtype, operator.device
        )
        samples = []
        for start in range(0, self._num_probes, 8):
            Z = stream.take(min(8, self._num_probes - start))
            entries = Z * (operator @ Z)
            rows = [
                torch.stack([entries[slices[name]].double().sum(0) for name in names]).sum(0)
                for names in groups.values()
            ]
            samples.append(torch.stack(rows, 1))
        found = torch.cat(samples)
        yield Measured(
            point.step,
            HessianTraceResult(
                layers=tuple(groups),
                traces=tuple(found.mean(0).tolist()),
                stderrs=tuple(_stderr(found).tolist()),
                total=float(found.sum(1).mean()),
                total_stderr=float(_stderr(found.sum(1))),
                num_matvecs=self._num_probes,
                seconds=time.perf_counter() - begin,
            ),
        )


def _stderr(samples: Tensor) -> Tensor:
    return samples.std(0).div(len(samples) ** 0.5)


def layers_of(names: tuple[str, ...]) -> dict[str, list[str]]:
    """Group names of parameters by the layer they belong to.

    Example:
        >>> layers_of(("0.weight", "0.bias", "scale"))
        {'0': ['0.weight', '0.bias'], 'scale': ['scale']}
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return groups
