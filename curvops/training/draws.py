"""What random layers draw for a mini-batch, the same however often it is looked at."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch

from curvops.rng import PrivateRNG

_SEEDS = 1 << 32  # numpy takes no larger ones


class Draw:
    """One draw, for every evaluation to see again.

    Args:
        source: A seed, or a private stream, which is asked for one when it is needed.

    Example:
        >>> import torch
        >>> draw = Draw(0)
        >>> with draw.replayed():
        ...     first = torch.rand(1)
        >>> with draw.replayed():
        ...     second = torch.rand(1)
        >>> bool(first == second)
        True
    """

    def __init__(self, source: PrivateRNG | int) -> None:
        self._source = source

    @cached_property
    def _seed(self) -> int:
        if isinstance(self._source, int):
            return self._source
        with self._source.active():
            return int(torch.randint(_SEEDS, (1,)))

    @contextmanager
    def replayed(self, place: int = 0) -> Iterator[None]:
        """Swap the draw in, and restore the user's random state on leaving.

        Args:
            place: Every place, such as that of a chunk of data, has a draw of its own.
        """
        seed = (self._seed + place) % _SEEDS
        with PrivateRNG(seed).active():
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed_all(seed)
            yield


def random_state() -> tuple[Any, ...]:
    """Return the states of the global generators; equal ones tell that nothing was drawn."""
    numpy_state: Any = np.random.get_state()  # noqa: NPY002 - what models may draw from
    _, keys, *rest = numpy_state
    tensors = [torch.get_rng_state()]
    if torch.cuda.is_initialized():
        tensors += torch.cuda.get_rng_state_all()
    return keys.tobytes(), rest, random.getstate(), [t.numpy().tobytes() for t in tensors]
