"""A product with the curvature or the Jacobian of one mini-batch, stated once.

An operator says what it computes as a chain of the verbs of a
:class:`~curvops.autodiff.linearization.Linearization`. How the chain is differentiated, kept,
batched over columns or compiled is decided elsewhere, by :mod:`curvops.autodiff.keeper`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from curvops.autodiff.linearization import Blocks, Linearization

BlockMap = Callable[[Blocks], Blocks]
"""A linear map of vectors, one tensor per parameter, or one of the prediction's shape."""


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


class Ends(Protocol):
    """Where the vectors of a product come from and where their products go, batch by batch."""

    def at(self, shape: torch.Size | None) -> None:
        """Go to the next batch.

        Args:
            shape: Of its predictions, where one of the ends lies there.
        """

    def take(self, columns: Tensor) -> Blocks:
        """Return what a batch multiplies of a vector ``[n]`` or of several ``[c, n]``."""

    def add(self, first: int, count: int, product: Blocks) -> None:
        """Take the products of a range of columns, in tensors with a leading axis if several."""


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
        takes: Whether v is one tensor per parameter, or has the shape of the batch's predictions.
        gives: Whether A_b v does.
    """

    chain: Callable[[Linearization, Sequence[Tensor]], BlockMap]
    extras: Callable[[], ExtraStream] = NoExtras
    scores: Callable[[Linearization, Sequence[Tensor]], list[Tensor] | None] | None = None
    takes: Literal["parameters", "predictions"] = "parameters"
    gives: Literal["parameters", "predictions"] = "parameters"

    def example(self, lin: Linearization) -> Blocks:
        """Return a vector of ones."""
        like = lin.params if self.takes == "parameters" else [lin.prediction]
        return [torch.ones_like(t, memory_format=torch.contiguous_format) for t in like]

    def shape(self, lin: Linearization) -> torch.Size | None:
        """Return the shape of the predictions, where v or A_b v has it."""
        return lin.prediction.shape if "predictions" in (self.takes, self.gives) else None
