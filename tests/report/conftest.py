"""A small problem whose names are hostile, a report on it, and a registry put back afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from curvops import EmpiricalRisk
from curvops.report import Options, Problem, Report, run_report
from curvops.report import registry as registry_module

HOSTILE = '<script>alert("1")</script>$_{'

SOURCE = """
import torch
from torch import nn

HOSTILE = {hostile!r}


def problem(seed, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential()
    model.add_module(HOSTILE, nn.Linear(4, 5))
    model.add_module("act", nn.Tanh())
    model.add_module("out", nn.Linear(5, 3))
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (30,), generator=generator)
    model, X, y = model.to(device), X.to(device), y.to(device)
    return model, nn.CrossEntropyLoss(), [(X[:16], y[:16]), (X[16:], y[16:])]
"""


@pytest.fixture(autouse=True)
def imports_put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what importing a user's module does to the process."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("curvops", "torch", "numpy", "scipy", "matplotlib", "rich")):
            file = getattr(sys.modules[name], "__file__", None) or ""
            if "pytest-" in file:
                del sys.modules[name]


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the user's module ``mine`` in it."""
    (tmp_path / "mine.py").write_text(SOURCE.format(hostile=HOSTILE))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """The decorator ``section``, whose registrations are forgotten after the test."""
    registry_module.known_sections()
    monkeypatch.setattr(registry_module, "_SECTIONS", dict(registry_module._SECTIONS))
    return registry_module.section


def make_risk(dtype: torch.dtype = torch.float64, weight_decay: float = 0.0) -> EmpiricalRisk:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential()
    model.add_module(HOSTILE, nn.Linear(4, 5))
    model.add_module("act", nn.Tanh())
    model.add_module("out", nn.Linear(5, 3))
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64).to(dtype)
    model = model.to(dtype)  # the same numbers, rounded
    y = torch.randint(3, (30,), generator=generator)
    data = [(X[:16], y[:16]), (X[16:], y[16:])]
    return EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data, weight_decay=weight_decay)


def make_problem(**choices: object) -> Problem:
    return Problem(make_risk(**choices), f"mine:{HOSTILE}", "setup")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def report() -> Report:
    """A complete report on the small problem; its Hessian is indefinite."""
    return run_report(make_problem(), Options(seed=1))
