"""The curvature that quantities look at: of the whole data, or of a fixed probe set.

The risk is that of the model in evaluation mode: without dropout, and with the running statistics
of batch normalisation, for a Hessian needs a function.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from curvops.autodiff import FunctionalModel, Linearization, unwrap
from curvops.errors import InputError
from curvops.linalg.eigen_result import EighResult
from curvops.linalg.eigsh import eigsh
from curvops.linalg.estimate import UnconvergedWarning
from curvops.nesting import leading_size, map_tensors, tensors_of
from curvops.operators.ggn_diagonal import GGNDiagonalLinearOperator
from curvops.operators.hessian import HessianLinearOperator
from curvops.risk import EmpiricalRisk
from curvops.training.functional import FromData

PROBE_SIZE = 512
"""Data of the probe set, by default."""


class Probe:
    """A fixed set of data out of the first mini-batches that pass by.

    It is complete once it holds enough data, or once the first mini-batch comes again, as it does
    in training with the full batch.

    Args:
        size: How many data are enough.
    """

    def __init__(self, size: int = PROBE_SIZE) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"probe_size must be a positive integer, got {size!r}.")
        self._wanted = size
        self._count = 0
        self._first: Any = None
        self.batches: list[tuple[Any, Any]] = []
        self.complete = False

    def see(self, X: Any, y: Any) -> None:
        """Take a mini-batch in, unless the set is complete."""
        if self.complete:
            return
        if self.batches and _same((X, y), self.batches[0]):
            self.complete = True
            return
        copy = map_tensors(lambda t: t.detach().clone(), (X, y))
        self.batches.append((copy[0], copy[1]))
        self._count += leading_size(X)
        self.complete = self._count >= self._wanted


def _same(a: Any, b: Any) -> bool:
    pairs = list(zip(tensors_of(a), tensors_of(b)))
    return bool(pairs) and all(x.shape == y.shape and torch.equal(x, y) for x, y in pairs)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and back into what each was in."""
    modes = [(m, m.training) for m in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


class Curvature:
    """The risk whose curvature is looked at, and its operators, built at the first need.

    Args:
        model: The module.
        loss_func: The loss.
        params: The trained parameters, by name.
        data: A re-iterable of batches; ``None`` for a probe set.
        probe: The probe set.
        options: Arguments of :class:`~curvops.risk.EmpiricalRisk`.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_func: Callable[..., Any],
        params: Mapping[str, nn.Parameter],
        data: Iterable[Any] | None,
        probe: Probe,
        **options: Any,
    ) -> None:
        self.model = unwrap(model)
        self._loss_func, self._params, self._options = loss_func, params, options
        self._data, self._probe = data, probe
        self._risk: EmpiricalRisk | None = None
        self._hessian: HessianLinearOperator | None = None
        self._ggn_diagonal: GGNDiagonalLinearOperator | None = None
        self._previous: dict[str, EighResult] = {}

    @property
    def ready(self) -> bool:
        """Whether there are data to look at."""
        return self._data is not None or self._probe.complete

    @property
    def risk(self) -> EmpiricalRisk:
        """The risk at the parameters' current values."""
        if self._risk is None:
            data = self._probe.batches if self._data is None else self._data
            named: dict[str, Tensor] = dict(self._params)
            self._risk = EmpiricalRisk(self.model, self._loss_func, named, data, **self._options)
        return self._risk

    @property
    def hessian(self) -> HessianLinearOperator:
        """Its Hessian."""
        if self._hessian is None:
            # Compiling would pay only over many more products than one point is asked for.
            self._hessian = HessianLinearOperator.from_risk(self.risk, compile=False)
        return self._hessian

    @property
    def ggn_diagonal(self) -> GGNDiagonalLinearOperator:
        """The diagonal of its GGN."""
        if self._ggn_diagonal is None:
            self._ggn_diagonal = GGNDiagonalLinearOperator.from_risk(self.risk)
        return self._ggn_diagonal

    def gradient_variances(self) -> tuple[Tensor, int]:
        """Return the variance of the individual gradients, by parameter ``[P]``, and N.

        Scaled so that the individual gradients average to that of the risk.
        """
        risk = self.risk
        risk.require_separable()
        total = torch.zeros(risk.space.dim, dtype=torch.float64, device=risk.device)
        squares = torch.zeros_like(total)
        params = {name: p.detach() for name, p in self._params.items()}
        model = FunctionalModel(
            self.model, tuple(params), self._options.get("forward"), self._options.get("autocast")
        )

        def visit(lin: Linearization) -> None:
            batch = lin.batch
            data = FromData(model, risk.loss_func, params, batch.X, batch.y, batch.size)
            for block in data.gradients():
                total.add_(block.sum(0))
                squares.add_(block.square().sum(0))

        risk.for_each(visit)
        count = risk.num_data
        scale = count / risk.normalizer
        mean = total * (scale / count)
        spread = (squares * scale**2 - count * mean.square()) / max(count - 1, 1)
        return spread.clamp(min=0.0), count

    @contextmanager
    def at_current_point(self) -> Iterator[None]:
        """Look at the parameters as they are, in evaluation mode; kept graphs are freed after."""
        with evaluation_mode(self.model):
            try:
                yield
            finally:
                # Writing to p.data moves no version counter: what was kept may not be trusted.
                for operator in (self._hessian, self._ggn_diagonal):
                    if operator is not None:
                        operator.release()

    def top(self, matrix: Any, k: int, key: str, tol: float, seed: int) -> tuple[EighResult, str]:
        """Return the k largest eigenpairs, started at those found last under the same key.

        Returns:
            The eigenpairs, and what to know about them.
        """
        k = min(k, matrix.shape[0])
        previous = self._previous.get(key)
        if previous is not None and len(previous.eigenvalues) < k:
            previous = None
        with warnings.catch_warnings():
            # A training run is told in its records, not by a warning at every step.
            warnings.simplefilter("ignore", UnconvergedWarning)
            found = eigsh(matrix, k, "LA", tol=tol, seed=seed, warm_start=previous)
        self._previous[key] = found
        missed = int((~found.converged).sum())
        note = f"{missed} of {k} eigenpairs have a residual above {tol:g} |λ|" if missed else ""
        return found, note


@dataclass
class Point:
    """Where a step starts, as quantities see it.

    Attributes:
        step: The step.
        curvature: The risk there, and its operators.
        optimizer: The optimizer, before it steps.
        params: The trained parameters, by name.
        k: The most eigenpairs that anyone will ask for here.
        seed: Seeds what is random.
    """

    step: int
    curvature: Curvature
    optimizer: Any
    params: Mapping[str, nn.Parameter]
    k: int
    seed: int
    _tops: dict[str, tuple[EighResult, str, float]] = field(default_factory=dict)
    _gradient: Tensor | None = None

    def top_of_hessian(self, k: int, tol: float) -> tuple[EighResult, str, float]:
        """Return at least the k largest eigenpairs of the Hessian, a note, and the seconds.

        Quantities that are due at the same step share them.
        """
        if "hessian" not in self._tops:
            begin = time.perf_counter()
            most = max(k, self.k)
            found, note = self.curvature.top(
                self.curvature.hessian, most, "hessian", tol, self.seed
            )
            self._tops["hessian"] = (found, note, time.perf_counter() - begin)
        return self._tops["hessian"]

    def gradient(self) -> Tensor:
        """Return the gradient of the risk ``[P]``."""
        if self._gradient is None:
            self._gradient = self.curvature.risk.gradient()
        return self._gradient
