"""One thread a worker, reproducible properties, and a guard on the global RNG."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# Few, fixed examples: a test that fails does so on every machine and every time. Looking for new
# failures is a job for `pytest --hypothesis-profile=explore`.
settings.register_profile(
    "fixed",
    derandomize=True,
    deadline=None,
    max_examples=15,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("explore", deadline=None, max_examples=300)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    # xdist runs one process a core; torch would start a thread a core in each of them.
    torch.set_num_threads(1)


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fail the test if it reads or advances a global random number generator."""
    before = _states()
    yield
    after = _states()
    moved = [name for name in before if before[name] != after[name]]
    assert not moved, f"the global RNG moved: {', '.join(moved)}"


def _states() -> dict[str, object]:
    """States that compare with ``==``."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (kind, keys.tolist(), *rest),
        "random": random.getstate(),
    }
