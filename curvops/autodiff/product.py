"""A product with the curvature of one mini-batch, stated once.

An operator says what it computes as a chain of the verbs of a
:class:`~curvops.autodiff.linearization.Linearization`. How the chain is differentiated, kept,
batched over columns or compiled is decided elsewhere, by :mod:`curvops.autodiff.keeper`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from curvops.autodiff.linearization import Blocks, Linearization

BlockMap = Callable[[Blocks], Blocks]
"""A linear map of vectors given as one tensor per parameter."""


class ExtraStream(Protocol):
    """Tensors that go with each batch, made in the order of the data (such as drawn labels)."""

    def __call__(self, lin: Linearization) -> list[Tensor]:
        """Return the next batch's tensors."""

    def state(self) -> Any:
        """Return where the stream is."""

    def resume(self, state: Any) -> None:
        """Go where the stream was."""


class NoExtras:
    """Nothing goes with the batches."""

    def __call__(self, lin: Linearization) -> list[Tensor]:
        return []

    def state(self) -> Any:
        return None

    def resume(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class Product:
    """v ↦ A_b v for every batch.

    Attributes:
        chain: Turns a batch's linearization, and the tensors that go with it, into the map.
            It must be a pure function of them: it may be traced.
        extras: Starts a stream of such tensors at the beginning of the data.
        scores: Where A_b = Σ_r Σ_n (J_nᵀ s_rn)(J_nᵀ s_rn)ᵀ for data n on the prediction's first
            axis: the s_r of a batch, each of the prediction's shape, from what ``chain`` gets.
            They need no graph. It is ``None``, or returns ``None``, where that does not hold.
    """

    chain: Callable[[Linearization, Sequence[Tensor]], BlockMap]
    extras: Callable[[], ExtraStream] = NoExtras
    scores: Callable[[Linearization, Sequence[Tensor]], list[Tensor] | None] | None = None
