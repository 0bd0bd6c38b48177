"""A number with its error: what every stochastic algorithm returns."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


class UnconvergedWarning(UserWarning):
    """An estimate cannot vouch for itself; the message names the remedy."""


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class Estimate:
    """A value, its Monte-Carlo error, and a bracket that holds the systematic error too.

    Attributes:
        value: The estimate.
        stderr: The standard error of ``value`` over the random probes alone; 0 if exact.
        lower: Lower end of a bracket that also holds the systematic part (quadrature, truncation).
        upper: Upper end.
        num_matvecs: Products of the matrix with one vector that it took.
        converged: Whether the error is as small as asked, and the estimate vouches for itself.
        samples: What each probe said ``[num_samples]``; empty where nothing was sampled.
        method: How it was computed.
        seconds: How long it took.

    Example:
        >>> import torch
        >>> e = Estimate(-410.21, 0.14, -410.9, -409.6, 310, True, torch.empty(0), "slq", 1.5)
        >>> print(e)
        -410.21 ± 0.14 [-410.9, -409.6] (310 matvecs)
        >>> float(e)
        -410.21
    """

    value: float
    stderr: float
    lower: float
    upper: float
    num_matvecs: int
    converged: bool
    samples: Tensor
    method: str
    seconds: float

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def __str__(self) -> str:
        """Return the value to the digits that its error leaves, the bracket and the cost."""
        width = max(self.stderr, (self.upper - self.lower) / 20)
        value = _rounded(self.value, width)
        ends = ", ".join(_rounded(end, 10 * width) for end in (self.lower, self.upper))
        doubt = "" if self.converged else ", not converged"
        error = f" ± {self.stderr:.2g}" if self.stderr else ""
        return f"{value}{error} [{ends}] ({self.num_matvecs} matvecs{doubt})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain["samples"] = self.samples.tolist()
        return plain

    def vouched(self, remedy: str) -> Estimate:
        """Return itself, after warning with the remedy if it has not converged."""
        if not self.converged:
            warnings.warn(
                f"{self.method}: {self} has not converged. {remedy}",
                UnconvergedWarning,
                stacklevel=3,
            )
        return self


@dataclass(frozen=True, eq=False)  # tensors do not compare to a truth value
class VectorEstimate:
    """A vector, and for every entry its Monte-Carlo error and a bracket.

    Attributes:
        value: The estimate ``[P]``, float64.
        stderr: Standard errors over the random probes ``[P]``; 0 where exact.
        lower: Lower ends of the entries' brackets ``[P]``.
        upper: Upper ends ``[P]``.
        num_matvecs: Products of the matrix with one vector that it took.
        converged: Whether the error is as small as asked.
        method: How it was computed.
        seconds: How long it took.

    Example:
        >>> import torch
        >>> d = torch.tensor([1.0, 2.0])
        >>> print(VectorEstimate(d, 0.1 * d, 0.8 * d, 1.2 * d, 9, True, "xdiag", 0.1))
        2 entries from 1 to 2, ± 10% in norm (9 matvecs)
    """

    value: Tensor
    stderr: Tensor
    lower: Tensor
    upper: Tensor
    num_matvecs: int
    converged: bool
    method: str
    seconds: float

    @property
    def relative_error(self) -> float:
        """Norm of the standard errors over the norm of the values."""
        error, size = float(self.stderr.norm()), float(self.value.norm())
        return error / size if size else (math.inf if error else 0.0)

    def __str__(self) -> str:
        """Return the range of the entries, their error in norm, and the cost."""
        doubt = "" if self.converged else ", not converged"
        cost = f"({self.num_matvecs} matvecs{doubt})"
        if not self.value.numel():
            return f"no entries {cost}"
        low, high = float(self.value.min()), float(self.value.max())
        error = f", ± {100 * self.relative_error:.2g}% in norm" if self.relative_error else ""
        return f"{self.value.numel()} entries from {low:.4g} to {high:.4g}{error} {cost}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in plain.items()}

    def vouched(self, remedy: str) -> VectorEstimate:
        """Return itself, after warning with the remedy if it has not converged."""
        if not self.converged:
            warnings.warn(
                f"{self.method}: {self} has not converged. {remedy}",
                UnconvergedWarning,
                stacklevel=3,
            )
        return self


def _rounded(value: float, error: float) -> str:
    """Return a value to two digits of its error."""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return f"{value:.10g}"
    decimals = 1 - math.floor(math.log10(error))
    return f"{value:.{max(decimals, 0)}f}" if decimals <= 12 else f"{value:.10g}"
