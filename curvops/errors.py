"""The exceptions of curvops: what was wrong, the offending name and value, and what to do.

Every class also derives from the built-in exception a caller would guess, so that
``except ValueError`` keeps working.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class CurvopsError(Exception):
    """Base class of every error that curvops raises on purpose."""


class InputError(CurvopsError, ValueError):
    """An argument has an impossible value."""


class ShapeError(InputError):
    """A tensor, vector or matrix has the wrong shape."""


class NonFiniteError(InputError):
    """A parameter, a datum or a vector holds NaN or infinity."""


class DTypeError(CurvopsError, TypeError):
    """A tensor has a dtype that curvature products cannot work with (integer, complex)."""


class DeviceError(InputError):
    """Tensors that must share a device do not."""


class DataError(InputError):
    """The data source is empty, one-shot, or its batches are malformed."""


class DeterminismError(CurvopsError, RuntimeError):
    """The data or the model changes from one evaluation to the next."""


class DifferentiationError(CurvopsError, RuntimeError):
    """The model or the loss cannot be differentiated as often as the operator needs."""


class DivergenceError(CurvopsError, ArithmeticError):
    """Chains or iterates ran away, or cannot move at all; the message names the step size."""


class IndefiniteError(InputError):
    """A matrix must be positive definite and is not; the message names the shift that helps.

    Attributes:
        smallest: The most negative (or smallest) eigenvalue.
        num_bad: Number of eigenvalues that the shift leaves at or below the noise.
        shift: The shift that was asked for.
        sufficient_shift: The smallest shift that makes the matrix positive definite.
    """

    def __init__(
        self, message: str, *, smallest: float, num_bad: int, shift: float, sufficient_shift: float
    ) -> None:
        super().__init__(message)
        self.smallest = smallest
        self.num_bad = num_bad
        self.shift = shift
        self.sufficient_shift = sufficient_shift


class MissingDependencyError(CurvopsError, ImportError):
    """An optional dependency is needed for this call; the message names the extra."""


def refuse_constant(names: list[str]) -> None:
    """Raise the error of a pass in which no batch depended on any of the named parameters."""
    raise DifferentiationError(
        f"no prediction depends differentiably on any of the parameters {names}: the model does "
        "not use them, or detaches them (no_grad, .detach(), .item())."
    )


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn torch's complaints about missing derivatives into typed errors with the remedy."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "heckpointing is not compatible with" in text or "use_reentrant" in text:
            raise DifferentiationError(
                f"{what}: the model uses reentrant activation checkpointing, which cannot be "
                "differentiated with respect to chosen tensors. Use "
                "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            ) from error
        if "derivative for" in text or "does not support double backward" in text:
            raise DifferentiationError(
                f"{what}: an operation of the model has no second derivative ({text.strip()}). "
                "Replace it; attention must not force a fused kernel."
            ) from error
        raise
