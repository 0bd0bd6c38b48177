"""Keep the global random number generators as the user left them.

Loaders that shuffle and models with dropout draw from the global generators. While curvops
calls them, the states are swapped: the library never reads nor advances the user's own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from curvops.errors import InputError

_State = tuple[torch.Tensor, Any, Any, "list[torch.Tensor] | None"]


def _capture() -> _State:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), cuda


def _restore(state: _State) -> None:
    cpu, numpy_state, python_state, cuda = state
    torch.set_rng_state(cpu)
    np.random.set_state(numpy_state)
    random.setstate(python_state)
    if cuda is not None:
        torch.cuda.set_rng_state_all(cuda)


class PrivateRNG:
    """A stream of global random states of one's own, swapped in only while it is used.

    Example:
        >>> import torch
        >>> before = torch.get_rng_state()
        >>> rng = PrivateRNG(seed=0)
        >>> with rng.active():
        ...     first = torch.rand(1)
        >>> with rng.active():
        ...     second = torch.rand(1)
        >>> bool(first != second), bool((before == torch.get_rng_state()).all())
        (True, True)
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._state: _State | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swap the stream in; on leaving, remember where it is and restore the user's."""
        outer = _capture()
        try:
            if self._state is None:
                # The CPU generator alone: torch.manual_seed would also queue a seeding of
                # accelerators that are not initialised yet.
                torch.default_generator.manual_seed(self._seed)
                np.random.seed(self._seed)
                random.seed(self._seed)
            else:
                _restore(self._state)
            yield
        finally:
            self._state = _capture()
            _restore(outer)


def preserved_rng() -> Any:
    """Return a context that leaves the global generators as they were on entering."""
    return PrivateRNG(seed=0).active()


def as_seed(seed: int | torch.Generator) -> int:
    """Return an integer seed; a generator is asked for one, and advances.

    Raises:
        InputError: If ``seed`` is neither a generator nor an integer from 0 to 2^63 - 1.
    """
    if isinstance(seed, torch.Generator):
        return int(torch.randint(2**62, (1,), generator=seed, device=seed.device))
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a nonnegative int or a torch.Generator, got {seed!r}.")
    return int(seed)
