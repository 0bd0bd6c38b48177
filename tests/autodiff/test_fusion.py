"""Fused tangent graphs: the same numbers, and nothing overwritten that is read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from curvops.autodiff.fusion import depending, fix_factors, fuse
from tests import cases

_aten = torch.ops.aten
Function = Callable[..., Sequence[Tensor]]


def _traced(function: Function, arguments: Sequence[Tensor]) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*arguments)


def _fused(function: Function, arguments: Sequence[Tensor]) -> fx.GraphModule:
    module = _traced(function, arguments)
    fuse(module.graph)
    module.graph.lint()
    return fx.GraphModule(module, module.graph)


def _targets(module: fx.GraphModule) -> list[object]:
    return [n.target for n in module.graph.nodes if n.op == "call_function"]


def _square(count: int) -> list[Tensor]:
    return [cases.randn(4, 4, seed=i) for i in range(count)]


CASES: dict[str, tuple[Function, list[object]]] = {
    "sum of products": (
        lambda a, b, c, d: (a @ b + c @ d,),
        [_aten.mm.default, _aten.addmm_.default],
    ),
    "bias and products": (
        lambda a, b, c, d: (a[0] + a @ b + c @ d,),
        [_aten.select.int, _aten.addmm.default, _aten.addmm_.default],
    ),
    "difference": (
        lambda a, b, c, d: (a @ b - c @ d,),
        [_aten.mm.default, _aten.addmm_.default],
    ),
    "pointwise": (
        lambda a, b, c, d: (a * b + c * d,),
        [_aten.mul.Tensor, _aten.addcmul_.default],
    ),
    "pointwise difference": (
        lambda a, b, c, d: (a * b - c * d,),
        [_aten.mul.Tensor, _aten.addcmul_.default],
    ),
    "views that undo one another": (lambda a, b, c, d: (a.t().t() @ b,), [_aten.mm.default]),
    "chains": (
        lambda a, b, c, d: (-(a @ b) * c / d,),
        [_aten.mm.default, _aten.neg_.default, _aten.mul_.Tensor, _aten.div_.Tensor],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_fused(name: str) -> None:
    function, targets = CASES[name]
    arguments = _square(4)
    module = _fused(function, arguments)
    assert _targets(module) == targets
    assert torch.allclose(module(*arguments)[0], function(*arguments)[0], rtol=1e-13, atol=1e-13)


READ_AGAIN: dict[str, Function] = {
    "a product is an output": lambda a, b, c, d: (p := a @ b, p + c @ d),
    "a view of it is": lambda a, b, c, d: (p := a @ b, (p + c @ d), p.t()),
    "an input": lambda a, b, c, d: (a + c @ d, -a),
    "a view of an input": lambda a, b, c, d: (a.t() + c * d, a.view(16) * 2.0),
    "used twice at once": lambda a, b, c, d: ((p := a @ b) + p, (q := c * d) * q),
    "used by the product itself": lambda a, b, c, d: ((p := a @ b) + p @ d,),
    "another layout": lambda a, b, c, d: (
        (a @ b).t() + c @ d,
        ((a * b).t() + c.t() * d.t()).t().view(16),
    ),
    "broadcast": lambda a, b, c, d: (a.sum(0) + c * d, a.sum(0, keepdim=True) + c @ d),
    "broadcast the other way": lambda a, b, c, d: (c + a.sum(0) * b[0], (a.sum(0) * b[0]) + c),
    "scaled": lambda a, b, c, d: (torch.add(a @ b, c @ d, alpha=2), torch.sub(a, c * d, alpha=3)),
    "another dtype": lambda a, b, c, d: ((a @ b).float() + (c @ d).float(), a * b.float() + c * d),
}


@pytest.mark.parametrize("name", READ_AGAIN)
def test_what_is_read_again_is_left_alone(name: str) -> None:
    function = READ_AGAIN[name]
    arguments = _square(4)
    before = [t.clone() for t in arguments]
    module = _fused(function, arguments)
    for _ in range(2):
        for a, b in zip(module(*arguments), function(*before), strict=True):
            torch.testing.assert_close(
                a, b, rtol=1e-6 if a.dtype == torch.float32 else 1e-13, atol=1e-13
            )
    for t, b in zip(arguments, before, strict=True):
        assert torch.equal(t, b)


ACTIVATIONS = {
    "gelu": torch.nn.functional.gelu,
    "gelu-tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": torch.nn.functional.elu,
    "softplus": torch.nn.functional.softplus,
    "leaky": torch.nn.functional.leaky_relu,
    "mish": torch.nn.functional.mish,
    "hardswish": torch.nn.functional.hardswish,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_do_not_depend_on_the_vector(name: str) -> None:
    """J v of an activation is a multiplication: its slope lies before the cut."""
    activation = ACTIVATIONS[name]

    def pulled(x: Tensor, v: Tensor) -> tuple[Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(activation(x), x, v)

    x, v = cases.randn(5, 3, seed=1), cases.randn(5, 3, seed=2)
    module = _traced(pulled, (x, v))
    graph = module.graph
    fix_factors(graph, 1)
    graph.lint()
    after = [n for n in depending(graph, 1) if n.op == "call_function"]
    slow = [n for n in after if n.target not in (_aten.mul.Tensor, _aten.detach.default)]
    assert slow == []
    module = fx.GraphModule(module, graph)
    assert torch.allclose(module(x, v)[0], pulled(x, v)[0], rtol=1e-13, atol=1e-14)


def test_factors_one_after_the_other_become_one() -> None:
    def scaled(a: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor]:
        return (-(v * a) * b * 0.5,)

    a, b, v = _square(3)
    module = _traced(scaled, (a, b, v))
    fix_factors(module.graph, 1)
    module.graph.lint()
    assert sum(n.op == "call_function" for n in depending(module.graph, 1)) <= 2
    module = fx.GraphModule(module, module.graph)
    assert torch.allclose(module(a, b, v)[0], scaled(a, b, v)[0], rtol=1e-13, atol=1e-14)
