r"""How noisy a mini-batch gradient is: tr Σ, the noise scale, three tests, signal to noise.

With g_n the gradient of datum n, g their mean over the B data of a step, Σ their covariance:

.. math::
    \operatorname{tr}\hat\Sigma = \frac{1}{B-1} \sum_n \|g_n - g\|^2, \qquad
    B_\text{simple} = \frac{\operatorname{tr}\Sigma}{\|g\|^2}

All of it comes from ‖g_n‖² and ⟨g_n, g⟩, two numbers per datum, and the signal-to-noise ratio from
Σ g_n² of every parameter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curvops.errors import InputError
from curvops.training.individual import Batch, Request, Rows, Statistics, sampled_rows
from curvops.training.mean_variance import variance_of_mean
from curvops.training.quantity import Every, Measured, Quantity, Setting
from curvops.training.run import plain_fields

COORDINATES = 1 << 13
"""Parameters whose signal-to-noise ratio is averaged, by default."""

_ZERO = 1e-200
"""A squared gradient below this part of its data's is zero to any rounding, and not divided by."""


@dataclass(frozen=True)
class GradientNoiseResult:
    """The noise of one mini-batch gradient. NaN is never among the numbers; ``None`` may be.

    Attributes:
        batch_size: B.
        squared_norm: ‖g‖²; ``None`` where it is not finite.
        trace: tr Σ, unbiased; ``None`` for one datum.
        trace_stderr: Its standard error, by leaving out each datum.
        noise_scale: tr Σ/‖g‖²: the batch size at which noise and signal are equal.
        noise_scale_stderr: Its standard error, by leaving out each datum.
        signal: ‖g‖² − tr Σ/B, the unbiased estimate of the squared norm of the true gradient; it
            is negative where noise drowns it.
        norm_test: √(tr Σ/(B‖g‖²)), relative noise of g. Below some θ < 1 the batch is large enough.
        inner_product_test: √(Var⟨g_n, g⟩/(B‖g‖⁴)), the part along g.
        orthogonality_test: √(the rest), the part orthogonal to it; their squares add up to that
            of the norm test.
        signal_to_noise: The mean of g_j²/Σ_jj over parameters j that have noise; ``None`` if none
            has, or Σ g_n² is not finite.
        signal_to_noise_stderr: Its standard error from looking at some parameters only.
        status: ``"ok"``; ``"undetermined"`` for one datum, or gradients whose squares hold NaN or
            infinity; ``"zero_gradient"`` if g = 0.
        notes: What to know.
        seconds: How long it took.
    """

    batch_size: int
    squared_norm: float | None
    trace: float | None
    trace_stderr: float | None
    noise_scale: float | None
    noise_scale_stderr: float | None
    signal: float | None
    norm_test: float | None
    inner_product_test: float | None
    orthogonality_test: float | None
    signal_to_noise: float | None
    signal_to_noise_stderr: float | None
    status: str = "ok"
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return the noise scale and the norm test."""
        if self.noise_scale is None or self.norm_test is None:
            return f"gradient noise: {self.status}"
        trace = _with_error(self.trace, self.trace_stderr)
        scale = _with_error(self.noise_scale, self.noise_scale_stderr)
        return (
            f"tr Σ = {trace}, noise scale {scale}, norm test {self.norm_test:.3g} "
            f"(B = {self.batch_size})"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return plain_fields(self)


class GradientNoise(Quantity):
    r"""The noise of the mini-batch gradient (see :mod:`curvops.training.gradient_noise`).

    Cost: no pass over the data with BackPACK, about a product of the layers' inputs with one
    another; otherwise one gradient of every datum of the mini-batch.

    Args:
        every: Measure at steps 0, ``every``, 2 ``every``, ...
        coordinates: How many parameters the mean signal-to-noise ratio looks at, whole rows of
            every tensor, the same all the time; ``None`` for all.

    Raises:
        InputError: If an argument is impossible.

    Source:
        McCandlish, Kaplan, Amodei et al. 2018, An empirical model of large-batch training
        (arXiv:1812.06162), equation 2.9. Byrd, Chin, Nocedal & Wu 2012, Sample size selection in
        optimization methods for machine learning (norm test). Bollapragada, Byrd & Nocedal 2017,
        Adaptive sampling strategies for stochastic optimization (arXiv:1710.11258; inner-product
        and orthogonality tests). Liu et al. 2020, Understanding why
        neural networks generalize well through GSNR of parameters (arXiv:2001.07384).

    Example:
        >>> GradientNoise(every=2).due(3)
        False
    """

    name = "gradient_noise"

    def __init__(self, every: Every = 1, *, coordinates: int | None = COORDINATES) -> None:
        super().__init__(every)
        if coordinates is not None and (
            isinstance(coordinates, bool) or not isinstance(coordinates, int) or coordinates < 1
        ):
            raise InputError(
                f"coordinates must be a positive integer or None, got {coordinates!r}."
            )
        self._coordinates = coordinates
        self._ratio: SignalToNoise | None = None

    def bind(self, setting: Setting) -> None:
        """Choose the parameters to look at."""
        # Those without elements draw nothing, so that they do not change what others draw.
        filled = [shape for shape in setting.shapes if shape.numel()]
        drawn = iter(sampled_rows(filled, self._coordinates, setting.seed))
        rows = [next(drawn) if shape.numel() else None for shape in setting.shapes]
        self._ratio = SignalToNoise(setting.shapes, rows, setting.eps)

    def request(self, step: int) -> Request:
        """Ask for norms, products with the mean, and second moments."""
        if not self.due(step) or self._ratio is None:
            return Request()
        return Request(noise=True, moments=self._ratio.rows)

    def at_batch(self, step: int, batch: Batch, found: Statistics) -> Iterable[Measured]:
        """Evaluate."""
        if not self.due(step):
            return
        begin = time.perf_counter()
        assert found.squared_norms is not None
        assert found.inner is not None
        noise = noise_of(found.squared_norms, found.inner / batch.size)
        ratio = stderr = None
        notes = batch.notes
        if batch.size > 1:
            assert self._ratio is not None
            ratio, stderr = self._ratio(found.sums, found.squares, batch.size)
        yield Measured(
            step,
            GradientNoiseResult(
                **noise,
                signal_to_noise=ratio,
                signal_to_noise_stderr=stderr,
                notes=notes,
                seconds=time.perf_counter() - begin,
            ),
        )


def noise_of(squared_norms: Tensor, inner: Tensor) -> dict[str, Any]:
    r"""Return the fields of a :class:`GradientNoiseResult` that two numbers per datum give.

    Args:
        squared_norms: ‖g_n‖² ``[B]``, float64.
        inner: ⟨g_n, g⟩ with the mean g, ``[B]``.

    Example:
        >>> G = torch.tensor([[1.0, 1.0], [3.0, -1.0]], dtype=torch.float64)
        >>> found = noise_of((G * G).sum(1), G @ G.mean(0))
        >>> found["squared_norm"], found["trace"], found["norm_test"] ** 2
        (4.0, 4.0, 0.5000000000000001)
    """
    # numpy's calls cost a tenth of torch's, and these are short vectors.
    norms, along = squared_norms.numpy(force=True), inner.numpy(force=True)
    size = len(norms)
    with np.errstate(over="ignore", invalid="ignore"):
        total, square = float(norms.sum()), max(float(along.mean()), 0.0)  # Σ ‖g_n‖², ⟨g, g⟩
    found: dict[str, Any] = {"batch_size": size, "status": "ok"} | dict.fromkeys(_NUMBERS)
    if math.isfinite(square):
        found["squared_norm"] = square
    if size < 2 or not math.isfinite(total + square):
        return {**found, "status": "undetermined"}
    # In units of about ‖g_n‖² squares do not overflow; a power of two rounds nothing.
    unit = 2.0 ** (math.frexp(total)[1] - 1)
    norms, along, total, square = norms / unit, along / unit, total / unit, square / unit
    trace = max((total - size * square) / (size - 1), 0.0)
    found |= {"trace": trace * unit, "signal": (square - trace / size) * unit}
    # The same with each datum left out, from the same numbers.
    rest = size - 1
    squares = np.maximum((size**2 * square - 2 * size * along + norms) / rest**2, 0.0)
    traces = squares
    if size > 2:
        traces = np.maximum((total - norms - rest * squares) / (rest - 1), 0.0)
        found["trace_stderr"] = _jackknife(traces) * unit
    if square <= _ZERO:
        return {**found, "status": "zero_gradient"}
    spread = variance_of_mean(along / square)
    whole = trace / (size * square)
    found |= {
        "noise_scale": trace / square,
        "norm_test": math.sqrt(whole),
        "inner_product_test": math.sqrt(spread),
        "orthogonality_test": math.sqrt(max(whole - spread, 0.0)),
    }
    if size > 2 and bool((squares > _ZERO).all()):
        found["noise_scale_stderr"] = _jackknife(traces / squares)
    return found


_NUMBERS = (
    "squared_norm", "trace", "trace_stderr", "noise_scale", "noise_scale_stderr", "signal",
    "norm_test", "inner_product_test", "orthogonality_test",
)  # fmt: skip


def _with_error(value: float | None, error: float | None) -> str:
    return f"{value:.3g}" + ("" if error is None else f" ± {error:.1g}")


def _jackknife(replicates: NDArray[np.float64]) -> float:
    return (len(replicates) - 1) * math.sqrt(variance_of_mean(replicates))


class SignalToNoise:
    r"""The mean of g_j²/Σ_jj over parameters that have noise, from some of their rows.

    A parameter whose variance is no more than rounding has no noise and is left out, such as one
    that no datum reaches, and so are tensors without elements. Rows are a cluster sample of each
    tensor: their sums are raised to all rows, and what they scatter is the error.

    Args:
        shapes: The parameters' shapes.
        rows: Those that are looked at, ``None`` for all of a parameter.
        eps: Relative rounding of second moments.
    """

    def __init__(self, shapes: Sequence[torch.Size], rows: Rows, eps: float) -> None:
        self.rows, self._shapes, self._eps = rows, shapes, eps
        filled = [(s, r) for s, r in zip(shapes, rows, strict=True) if s.numel()]
        whole = np.array([s[0] if len(s) else 1 for s, _ in filled], dtype=int)
        seen = np.array([n if r is None else len(r) for n, (_, r) in zip(whole, filled)], dtype=int)
        width = [s.numel() // n for n, (s, _) in zip(whole, filled)]
        self._of_row, self._of_tensor = _starts(np.repeat(width, seen)), _starts(seen)
        self._seen, self._raise = seen, whole / seen
        some = (seen > 1) & (seen < whole)
        self._to_variance = np.where(
            some, whole * (whole - seen) / (seen * np.maximum(seen - 1, 1)), 0.0
        )

    def __call__(
        self, sums: Sequence[Tensor], squares: Sequence[Tensor], size: int
    ) -> tuple[float | None, float]:
        """Return the mean, and its standard error over rows.

        The mean is ``None`` if no parameter has noise, or Σ g_n² is not finite.

        Args:
            sums: Σ g_n of each parameter, at the rows or at all.
            squares: Σ g_n², likewise.
            size: B.
        """
        s, q = self._flat(sums), self._flat(squares)
        if not math.isfinite(q.max(initial=0.0)):  # nor is any of what follows
            return None, 0.0
        mean_square = np.square(s / size)
        spread = (q - size * mean_square) / (size - 1)
        noisy = spread > 16 * self._eps / size * q
        ratio = np.divide(mean_square, spread, out=np.zeros_like(spread), where=noisy)
        by_row, counts = (
            np.add.reduceat(x, self._of_row, dtype=np.float64) for x in (ratio, noisy)
        )
        ratios, counted = (np.add.reduceat(x, self._of_tensor) for x in (by_row, counts))
        total, weight = float(ratios @ self._raise), float(counted @ self._raise)
        if weight == 0.0:
            return None, 0.0
        means = np.divide(ratios, counted, out=np.zeros_like(ratios), where=counted > 0)
        rest = by_row - np.repeat(means, self._seen) * counts  # zero on average, in each tensor
        variance = float(np.add.reduceat(rest * rest, self._of_tensor) @ self._to_variance)
        return total / weight, math.sqrt(variance) / weight

    def _flat(self, blocks: Sequence[Tensor]) -> NDArray[Any]:
        chosen = [
            b if r is None or b.shape[:1] != shape[:1] else b[r.to(b.device)]
            for b, r, shape in zip(blocks, self.rows, self._shapes, strict=True)
        ]
        flat = torch.cat([b.reshape(-1) for b in chosen])
        return flat.to(torch.promote_types(flat.dtype, torch.float32)).numpy(force=True)


def _starts(lengths: NDArray[Any]) -> NDArray[Any]:
    """Return where runs of these lengths start."""
    starts: NDArray[Any] = np.cumsum(lengths) - lengths
    return starts
