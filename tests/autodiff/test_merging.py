"""Equal nodes of a graph are one; what differs in anything stays apart."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from curvops.autodiff.merging import merge_equal
from tests import cases

Function = Callable[..., Sequence[Tensor]]

CASES: dict[str, tuple[Function, int]] = {
    "equal calls": (lambda a, b: (a.exp() + a.exp() * b,), 3),
    "equal calls of equal calls": (lambda a, b: (a.exp().sin() + a.exp().sin() * b,), 4),
    "other arguments": (lambda a, b: (a.exp() + b.exp(),), 3),
    "in another order": (lambda a, b: (a @ b - b @ a,), 3),
    "equal numbers": (lambda a, b: (a * 2.0 + b * (a * 2.0),), 3),
    "numbers of another type": (lambda a, b: (a.pow(2).sum() + a.pow(2.0).sum(),), 5),
    "zeros of another sign": (lambda a, b: (a.clamp_min(0.0), a.clamp_min(-0.0)), 2),
    "equal keywords": (lambda a, b: (a.sum(dtype=torch.float32), a.sum(dtype=torch.float32)), 1),
    "other keywords": (lambda a, b: (a.sum(dtype=torch.float32), a.sum(dtype=torch.float16)), 2),
    "equal lists": (lambda a, b: (torch.cat([a, b]) * torch.cat([a, b]),), 2),
    "other lists": (lambda a, b: (torch.cat([a, b]) * torch.cat([b, a]),), 3),
    "parts of a result": (lambda a, b: (a.max(0).values + a.max(0).values,), 3),
    "random numbers": (lambda a, b: (torch.rand_like(a) - torch.rand_like(a),), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_merged(name: str) -> None:
    function, count = CASES[name]
    arguments = [cases.randn(4, 4, seed=i) for i in range(2)]
    module = make_fx(function, tracing_mode="fake")(*arguments)
    torch.manual_seed(0)
    expected = module(*arguments)
    merge_equal(module.graph)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    merged: Any = fx.GraphModule(module, module.graph)
    calls = [n for n in module.graph.nodes if n.op == "call_function"]
    assert len(calls) == count, [str(n.target) for n in calls]
    torch.manual_seed(0)
    for found, wanted in zip(merged(*arguments), expected, strict=True):
        assert torch.equal(found, wanted)


def test_what_writes_to_its_arguments_stays() -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    once = graph.call_function(torch.ops.aten.add_.Tensor, (a, 1))
    twice = graph.call_function(torch.ops.aten.add_.Tensor, (a, 1))
    graph.output((once, twice))
    merge_equal(graph)
    module: Any = fx.GraphModule({}, graph)
    assert torch.equal(module(torch.zeros(3))[0], torch.full((3,), 2.0))


PROGRAM = """
import sys
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from curvops import HessianLinearOperator

def compilers():
    return sorted(m for m in sys.modules if m.startswith("torch._inductor"))

model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
data = [(torch.randn(8, 3), torch.randint(2, (8,)))]
make_fx(lambda x: x + 1)(torch.ones(3))
before = compilers()
H = HessianLinearOperator(model, torch.nn.CrossEntropyLoss(), model, data, keep="residuals")
H @ torch.ones(26)
assert H.kept == "residuals"
assert compilers() == before, set(compilers()) - set(before)
"""


def test_tracing_does_not_import_the_compiler() -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
