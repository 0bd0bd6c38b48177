"""Cases as fixtures."""

from __future__ import annotations

import pytest
import torch

from tests import cases


@pytest.fixture(params=cases.REDUCTIONS)
def reduction(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=cases.NAMES)
def case(request: pytest.FixtureRequest, reduction: str, dtype: torch.dtype) -> cases.Case:
    """Every case, mean and sum, in float64 and float32."""
    return cases.make(request.param, reduction, dtype)


@pytest.fixture(params=cases.NAMES)
def case64(request: pytest.FixtureRequest, reduction: str) -> cases.Case:
    """Every case, mean and sum, in float64."""
    return cases.make(request.param, reduction)
