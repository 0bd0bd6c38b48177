"""``module:function``: found where it should be, seeded, and refused with a reason."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from curvops import EmpiricalRisk
from curvops.errors import CurvopsError, DeviceError
from curvops.report import load_problem
from curvops.report.problem import ProblemError, TargetError


def write(folder: Path, source: str, name: str = "mine.py") -> None:
    (folder / name).write_text(source)


def test_tuple_and_seed(user_folder: Path) -> None:
    problem = load_problem("mine:problem", seed=3)
    assert problem.name == "mine:problem"
    assert problem.risk.num_data == 30
    assert problem.seconds > 0
    assert not problem.is_demo
    again = load_problem("mine:problem", seed=3)
    assert torch.equal(problem.risk.theta, again.risk.theta)
    assert not torch.equal(problem.risk.theta, load_problem("mine:problem", seed=4).risk.theta)


def test_only_the_named_module_is_imported(user_folder: Path) -> None:
    write(user_folder, "raise RuntimeError('imported')", "other.py")
    write(user_folder, "raise RuntimeError('imported')", "einops_trap.py")
    before = set(sys.modules)
    load_problem("mine:problem")
    new = {
        name
        for name in set(sys.modules) - before
        if str(user_folder) in (getattr(sys.modules[name], "__file__", None) or "")
    }
    assert new == {"mine"}
    # A file in the folder can no longer take the place of an installed package.
    assert sys.path[0] != str(user_folder)
    assert sys.path[-1] == str(user_folder)


def test_siblings_of_the_module_are_found(user_folder: Path) -> None:
    write(user_folder, "WIDTH = 2\n", "sibling.py")
    write(
        user_folder,
        "import torch, sibling\n"
        "def problem():\n"
        "    model = torch.nn.Linear(sibling.WIDTH, 1)\n"
        "    data = [(torch.ones(3, sibling.WIDTH), torch.zeros(3, 1))]\n"
        "    return model, torch.nn.MSELoss(), data\n",
        "withsibling.py",
    )
    assert load_problem("withsibling:problem").risk.space.dim == 3


def test_global_generators_are_seeded_and_put_back(
    user_folder: Path, global_rng_untouched: None
) -> None:
    write(
        user_folder,
        "import random, numpy, torch\n"
        "def problem():\n"
        "    x = torch.tensor([random.random(), numpy.random.rand(), torch.rand(()).item()])\n"
        "    model = torch.nn.Linear(3, 1)\n"
        "    return model, torch.nn.MSELoss(), [(x[None], torch.zeros(1, 1))]\n",
        "randomly.py",
    )
    first, again = (load_problem("randomly:problem", seed=1).risk for _ in range(2))
    assert torch.equal(first.theta, again.theta)
    assert float(first.loss()) == float(again.loss())
    assert float(first.loss()) != float(load_problem("randomly:problem", seed=2).risk.loss())


def test_the_other_returns(user_folder: Path) -> None:
    write(
        user_folder,
        "import torch\n"
        "from curvops import EmpiricalRisk\n"
        "X, y = torch.ones(3, 2), torch.zeros(3, 1)\n"
        "class Factory:\n"
        "    @staticmethod\n"
        "    def risk():\n"
        "        model = torch.nn.Linear(2, 1)\n"
        "        return EmpiricalRisk(model, torch.nn.MSELoss(), model, [(X, y)])\n"
        "def four():\n"
        "    params = {'w': torch.ones(1, 2)}\n"
        "    return (lambda p, x: x @ p['w'].T), torch.nn.MSELoss(), params, [(X, y)]\n",
        "returns.py",
    )
    assert isinstance(load_problem("returns:Factory.risk").risk, EmpiricalRisk)
    assert load_problem("returns:four").risk.space.names == ("w",)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("mine", "not of the form module:function"),
        ("mine:", "not of the form"),
        (":problem", "not of the form"),
        ("mine:problem:more", "not of the form"),
        ("../mine:problem", "not of the form"),
        ("mine:__import__('os')", "not of the form"),
        ("mine.py", "write mine:problem"),
        ("folder/mine.py:f", "write folder.mine:f"),
        ("absent_module:problem", "no module 'absent_module' in"),
        ("mine.part:problem", r"no module 'mine.part'"),
        ("mine:probelm", r"mine.py\) has no 'probelm'. Did you mean problem\?"),
        ("mine:HOSTILE", "is str; it must be a function"),
    ],
)
def test_wrong_targets(user_folder: Path, target: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        load_problem(target)


FAILING = {
    "import no_such_dependency\n": "ModuleNotFoundError: No module named 'no_such_dependency'",
    "1 / 0\n": "ZeroDivisionError: division by zero",
    "def problem(:\n": "SyntaxError",
    "def problem():\n    raise ValueError('boom')\n": "spoiled:problem failed: ValueError: boom",
    "def problem(x):\n    return x\n": "TypeError",
    "def problem():\n    return 3\n": "returned int; expected an EmpiricalRisk",
    "def problem():\n    return 1, 2\n": "returned a tuple of 2",
    "def problem():\n    return print, print, []\n": "not a torch.nn.Module",
    "import torch\n"
    "def problem():\n"
    "    return torch.nn.Linear(1, 1), torch.nn.MSELoss(), []\n": "DataError",
}


@pytest.mark.parametrize("source", list(FAILING))
def test_failing_functions(user_folder: Path, source: str) -> None:
    write(user_folder, source, "spoiled.py")
    with pytest.raises(ProblemError) as caught:
        load_problem("spoiled:problem")
    assert FAILING[source] in str(caught.value)
    assert isinstance(caught.value, CurvopsError)


def test_a_device_that_is_ignored_is_an_error(user_folder: Path) -> None:
    write(
        user_folder,
        "import torch\n"
        "from curvops import EmpiricalRisk\n"
        "def problem():\n"
        "    model = torch.nn.Linear(1, 1)\n"
        "    data = [(torch.ones(1, 1), torch.ones(1, 1))]\n"
        "    return EmpiricalRisk(model, torch.nn.MSELoss(), model, data)\n",
        "stubborn.py",
    )
    assert load_problem("stubborn:problem", device="cpu").risk.device.type == "cpu"
    with pytest.raises(DeviceError, match="argument called device"):
        load_problem("stubborn:problem", device="meta")


def test_setup_builds_the_same_risk(user_folder: Path) -> None:
    problem = load_problem("mine:problem", seed=5)
    names: dict[str, object] = {}
    exec(problem.setup, names)
    risk = names["risk"]
    assert isinstance(risk, EmpiricalRisk)
    assert torch.equal(risk.theta, problem.risk.theta)
    assert isinstance(names["np"].random.rand, type(np.random.rand))  # type: ignore[attr-defined]
