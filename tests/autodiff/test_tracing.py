"""Traced products: split at the vector, the unsplit ones to rounding, pure, and vectorisable."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import grad, jvp

from curvops import EFLinearOperator, GGNLinearOperator, HessianLinearOperator
from curvops.autodiff import batch_maps
from curvops.autodiff.tracing import SplitProduct, split, storage_bytes, trace
from curvops.data import Batch
from curvops.errors import DifferentiationError
from tests import cases
from tests.autodiff import problems
from tests.autodiff.problems import GGN, HESSIAN, PROBLEMS, Problem, assert_same, vectors

Function = Callable[..., list[Tensor]]


# A split product is the unsplit one ---------------------------------------------------------


def _network(x: Tensor, W: Tensor, U: Tensor) -> Tensor:
    return torch.tanh(x @ W.T) @ U.T


def _hessian(x: Tensor, W: Tensor, U: Tensor, v: Tensor, z: Tensor) -> list[Tensor]:
    def loss(W: Tensor, U: Tensor) -> Tensor:
        return _network(x, W, U).logsumexp(-1).sum()

    return list(jvp(grad(loss, argnums=(0, 1)), (W, U), (v, z))[1])


def _in_place(x: Tensor, W: Tensor, U: Tensor, v: Tensor, z: Tensor) -> list[Tensor]:
    """Writes to views, slices and transposes of what it computed, before and behind the cut."""
    h = x @ W.T
    h += torch.tanh(h)
    h[:, 0] = h[:, 1].exp()
    torch.relu_(h.T)
    t = x @ v.T
    t.mul_(h)
    t[:, 1:].add_(2 * t[:, :1])
    out = torch.zeros(3, 5, dtype=x.dtype).T
    out.copy_((t @ U.T)[:5] + (h @ z.T)[:5])  # into another memory layout
    return [out, t.clone().zero_().add_(t.sum())]


def _passing(x: Tensor, W: Tensor, U: Tensor, v: Tensor, z: Tensor) -> list[Tensor]:
    """The vector itself, zero, and a view of a residual's multiple."""
    return [v, torch.zeros_like(z), (x.T @ x).T[:2] * z.sum(), v.T, W * v]


def _constant(x: Tensor, W: Tensor, U: Tensor, v: Tensor, z: Tensor) -> list[Tensor]:
    """A constant of the function, and one that is made inside."""
    weights = torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype)
    return [(weights + torch.arange(3)) * (x @ v.T).sum() * CONSTANT, z * CONSTANT[0].exp()]


CONSTANT = torch.tensor([0.5, 1.5, 2.5], dtype=torch.float64)
FUNCTIONS: dict[str, Function] = {
    "hessian": _hessian,
    "in-place": _in_place,
    "passing": _passing,
    "constant": _constant,
}


def _arguments(seed: int) -> tuple[list[Tensor], list[Tensor]]:
    x, W, U = (cases.randn(*s, seed=seed + i) for i, s in enumerate(((7, 3), (4, 3), (3, 4))))
    return [x, W, U], [cases.randn(*t.shape, seed=seed + 9) for t in (W, U)]


def _nodes(halves: SplitProduct) -> Iterator[fx.Node]:
    for part in (halves.primal, halves.tangent):
        assert isinstance(part, fx.GraphModule)
        yield from part.graph.nodes


@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_split_product_is_the_unsplit_one(name: str, lean: bool) -> None:
    """At other inputs and vectors than those it was traced with."""
    function = FUNCTIONS[name]
    inputs, v = _arguments(1)
    halves = split(trace(function, inputs, v), lean)
    for seed in (1, 20, 40):
        inputs, v = _arguments(seed)
        given = [t.clone() for t in (*inputs, *v)]
        residuals = halves.residuals(inputs)
        for scale in (1.0, -3.0):
            vector = [scale * t for t in v]
            expected = function(*[t.clone() for t in inputs], *[t.clone() for t in vector])
            actual = halves.tangent(*residuals, *vector)
            assert len(actual) == len(expected)
            for a, b in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14 * float(b.abs().max()))
                assert not a.requires_grad
        for t, before in zip((*inputs, *v), given, strict=True):
            assert torch.equal(t, before)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("lean", [False, True], ids=["full", "lean"])
def test_only_intermediate_results_are_overwritten(name: str, lean: bool) -> None:
    """Residuals and vectors stay what they were, whatever the tangent graph does."""
    inputs, v = _arguments(1)
    halves = split(trace(FUNCTIONS[name], inputs, v), lean)
    residuals = halves.residuals(inputs)
    before = [t.clone() for t in (*residuals, *v)]
    first = [t.clone() for t in halves.tangent(*residuals, *v)]
    for t, b in zip((*residuals, *v), before, strict=True):
        assert torch.equal(t, b)
    for again, once in zip(halves.tangent(*residuals, *v), first, strict=True):
        assert torch.equal(again, once)


def test_the_cut_is_at_the_vector() -> None:
    """What does not depend on it is computed once: no tanh, and none of its matrix products."""
    inputs, v = _arguments(1)
    halves = split(trace(_hessian, inputs, v), lean=False)

    def count(part: Any, target: Any) -> int:
        return sum(n.target is target for n in part.graph.nodes)

    aten = torch.ops.aten
    assert count(halves.primal, aten.tanh.default) == 1  # common subexpressions are merged
    assert count(halves.tangent, aten.tanh.default) == 0
    whole = 9  # of a Hessian product of two layers: 3 per gradient, forward and tangent
    assert count(halves.primal, aten.mm.default) == 3  # no gradient of the input, or of U's use
    products = (aten.mm.default, aten.addmm.default, aten.addmm_.default)
    assert 0 < sum(count(halves.tangent, product) for product in products) <= whole
    dead = [n for n in _nodes(halves) if n.op == "call_function" and not n.users]
    assert dead == []


def test_no_zeros_are_kept() -> None:
    """What has no tangent (the data) adds nothing, and is not carried along as zeros."""
    problem = problems.mlp((4,))
    operator = problem.build(HESSIAN, keep="residuals")
    v = vectors(operator)
    assert_same(operator @ v, problem.build(HESSIAN, keep="nothing") @ v)
    (kept,) = operator._keeper._kept.maps
    zeros = [tuple(r.shape) for r in kept._residuals if r.numel() > 1 and not r.any()]
    assert zeros == []


@pytest.mark.parametrize("name", ["hessian", "constant"])
def test_a_block_is_its_columns(name: str) -> None:
    inputs, v = _arguments(1)
    halves = split(trace(FUNCTIONS[name], inputs, v), lean=False)
    residuals = halves.residuals(inputs)
    block = [cases.randn(5, *t.shape, seed=3) for t in v]
    together = halves.block(*residuals, *block)
    for k in range(5):
        alone = halves.tangent(*residuals, *(t[k] for t in block))
        for a, b in zip(together, alone, strict=True):
            assert_same(a[k], b)


def test_lean_keeps_less_where_it_can() -> None:
    """Cheap operations of what is kept anyway are done again; exactly what is needed is kept."""

    def product(x: Tensor, v: Tensor) -> list[Tensor]:
        h = torch.relu(x)
        return [v * h, v * (h + 1), v * h.exp(), (v @ torch.linalg.inv(x)).neg()]

    x, v = cases.randn(50, 50, seed=1), cases.randn(50, 50, seed=2)
    traced = trace(product, [x], [v])
    full, lean = (split(traced, lean) for lean in (False, True))
    each = x.numel() * 8
    assert storage_bytes(full.residuals([x]), [x]) == 4 * each
    assert storage_bytes(lean.residuals([x]), [x]) == each  # the inverse is dear
    for a, b in zip(
        full.tangent(*full.residuals([x]), v), lean.tangent(*lean.residuals([x]), v), strict=True
    ):
        assert torch.equal(a, b)


def test_lean_does_not_trade_one_residual_for_a_larger_one() -> None:
    def product(x: Tensor, v: Tensor) -> list[Tensor]:
        wide = torch.linalg.inv(x).repeat(1, 20)
        return [v * wide.exp().sum(1), v * wide.mul(2)[:, :50].neg()]

    x, v = cases.randn(50, 50, seed=1), cases.randn(50, 50, seed=2)
    traced = trace(product, [x], [v])
    sizes = [storage_bytes(split(traced, lean).residuals([x]), [x]) for lean in (False, True)]
    assert sizes[1] <= sizes[0]


def test_storages_are_counted_once() -> None:
    a, b = torch.zeros(100), torch.zeros(7, dtype=torch.float64)
    assert storage_bytes([]) == 0
    assert storage_bytes([a, a[:10], a.view(10, 10).T, b]) == 400 + 56
    assert storage_bytes([a[:10]]) == 400  # a view keeps the whole
    assert storage_bytes([a[5:], b], shared=[a]) == 56
    assert storage_bytes([a, None, 3, b]) == 456


# In the engine ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "gru"])
@pytest.mark.parametrize("kind", [HESSIAN, GGN])
def test_recurrent_products_are_vectorised(name: str, kind: Any) -> None:
    """By batching rules, not by vmap's fallback to a loop, which would warn of it."""
    problem = PROBLEMS[name]()
    risk = problem.risk()
    operator = problems.built(kind, risk, keep="residuals", columns=4)
    V = vectors(operator, 5)
    expected = problems.built(kind, risk, keep="nothing", columns="loop") @ V
    operator @ V[:, 0]
    with _without_fallback(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        product = operator @ V
    assert_same(product, expected)
    assert [str(w.message) for w in caught] == []


@contextlib.contextmanager
def _without_fallback() -> Iterator[None]:
    functorch: Any = torch._C._functorch
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(True)


@pytest.mark.parametrize("kind", [HESSIAN, GGN])
def test_one_trace_serves_every_batch_of_a_shape(kind: Any) -> None:
    """And every shape, dtype and structure has its own."""
    problem = problems.mlp((3, 2, 3, 2, 3))
    operator = problem.build(kind, keep="residuals")
    v = vectors(operator)
    assert_same(operator @ v, problem.build(kind, keep="nothing") @ v)
    assert len(operator._keeper._forms.tracer._traced) == 2


class _Scaled(nn.Module):
    """A model of batches that hold things other than tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.net = cases.mlp()

    def forward(self, batch: dict[str, Any]) -> Tensor:
        f = self.net(batch["x"]) * batch["scale"]
        return -f if batch["flags"]["flip"] else f


def test_what_is_not_a_tensor_in_a_batch_is_part_of_its_shape() -> None:
    """A number or a flag is baked into a trace, so another one needs another trace."""
    with cases.seeded(0):
        model = _Scaled().double()
    batches = [
        (
            {"x": cases.randn(2, 3, seed=i), "scale": s, "flags": {"flip": f}},
            cases.randint(3, 2, seed=i),
        )
        for i, (s, f) in enumerate([(1.0, False), (2.0, False), (1.0, True), (1.0, False)])
    ]
    problem = Problem(model, nn.CrossEntropyLoss(), cases.perturbed(model), batches)
    options: dict[str, Any] = {"batch_size_fn": lambda X: len(X["x"])}
    operator = problem.build(GGN, keep="residuals", **options)
    v = vectors(operator)
    hessian = problem.build(HESSIAN, keep="residuals", **options)
    for kind, op in ((GGN, operator), (HESSIAN, hessian)):
        assert_same(op @ v, problem.build(kind, keep="nothing", **options) @ v)
    assert len(operator._keeper._forms.tracer._traced) == 3


class _Graph:
    """A batch that hides its tensors, and shows nothing but shapes."""

    def __init__(self, seed: int) -> None:
        self.x, self.a = cases.randn(4, 3, seed=seed), cases.rand(4, 4, seed=seed)

    def __repr__(self) -> str:
        return f"_Graph(x={list(self.x.shape)}, a={list(self.a.shape)})"


def _of_graph(model: nn.Module, graph: _Graph) -> Tensor:
    return model(graph.a @ graph.x)


def _of_array(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    return model(batch["x"] * torch.from_numpy(batch["scale"])[998:1002])


HIDING: dict[str, tuple[Any, Callable[[int], Any], Callable[[Any], int]]] = {
    "object": (_of_graph, _Graph, lambda graph: len(graph.x)),
    "array": (  # whose text leaves out what is in the middle
        _of_array,
        lambda seed: {
            "x": cases.randn(4, 3, seed=seed),
            "scale": cases.rand(2000, 3, seed=seed).numpy(),
        },
        lambda batch: len(batch["x"]),
    ),
}


@pytest.mark.parametrize("what", HIDING)
@pytest.mark.parametrize("kind", [HESSIAN, GGN, EFLinearOperator])
def test_hidden_tensors_are_not_baked_in(kind: Any, what: str) -> None:
    forward, make, size = HIDING[what]
    with cases.seeded(0):
        model = cases.mlp().double()
    batches = [(make(seed), cases.randint(3, 4, seed=seed)) for seed in (1, 2, 3)]
    problem = Problem(model, nn.CrossEntropyLoss(), cases.perturbed(model), batches)
    options: dict[str, Any] = {"forward": forward, "batch_size_fn": size}
    expected = problem.build(kind, keep="nothing", **options)
    v = vectors(expected)
    asked = problem.build(kind, keep="residuals", **options)
    with pytest.raises(DifferentiationError, match=r"cannot be traced .*at \(X, y\)\[0\]"):
        asked @ v
    operator = problem.build(kind, **options)
    operator.prepare(10**9)
    for _ in range(2):
        assert_same(operator @ v, expected @ v)
    assert operator.kept != "residuals"


class _Level(Enum):
    LOW, HIGH = 1, 2


@pytest.mark.parametrize(
    "values",
    [
        (_Level.LOW, _Level.HIGH),
        (np.float64(1.0), np.float64(2.0)),
        (np.int64(1), 1),
        (torch.float32, torch.float64),
        (True, 1),
        (None, "none"),
    ],
    ids=str,
)
def test_plain_values_are_told_apart(values: tuple[Any, Any]) -> None:
    signatures = {
        batch_maps._signature(Batch(0, {"x": torch.ones(2, 3), "flag": value}, torch.ones(2), 2))
        for value in (*values, *values)
    }
    assert len(signatures) == 2


def test_the_users_modules_are_not_held_by_what_was_traced() -> None:
    """The graphs are plain tensor operations: no parameter, buffer or batch is baked in."""
    problem = PROBLEMS["cnn"]()
    operator = problem.build(GGN, keep="residuals")
    operator @ vectors(operator)
    own = {
        t.data_ptr()
        for t in (
            *problem.model.parameters(),
            *problem.model.buffers(),
            *problem.params.values(),
            *(t for batch in problem.batches for t in batch),
        )
    }
    for halves in operator._keeper._forms.tracer._splits.values():
        for part in (halves.primal, halves.tangent):
            held = [*part.parameters(), *part.buffers()]
            held += [t for t in vars(part).values() if isinstance(t, Tensor)]
            assert not own & {t.data_ptr() for t in held}


@pytest.mark.parametrize("form", problems.FORMS)
def test_losses_without_a_second_forward_derivative_of_their_own(form: str) -> None:
    """torch's formula for the squared error makes zeros without storage, which crash traces."""
    with cases.seeded(0):
        model = cases.mlp(3, 4, 2).double()
    batches = cases.cut(cases.randn(4, 3, seed=1), cases.randn(4, 2, seed=2), (2, 2))
    expected = None
    for loss in (nn.MSELoss(), lambda f, y: ((f - y) ** 2).sum() / f.numel()):
        options = {} if isinstance(loss, nn.MSELoss) else {"reduction": "mean"}
        operator = HessianLinearOperator(
            model, loss, model, batches, keep=form, **cases.UNMERGED, **options
        )
        product = operator @ vectors(operator)
        expected = product if expected is None else expected
        assert_same(product / product.norm(), expected / expected.norm())


class _Gated(nn.Module):
    """Part of the forward pass is constant to autograd; torch's forward mode goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.no_grad():
            gate = h * h - h
        return self.last(h + gate)


@pytest.mark.parametrize("form", problems.FORMS)
def test_what_autograd_holds_constant_stays_constant(form: str) -> None:
    with cases.seeded(0):
        model = _Gated().double()
    params, loss = list(model.parameters()), nn.CrossEntropyLoss()
    X, y = cases.randn(6, 3, seed=1), cases.randint(3, 6, seed=2)
    gradient = torch.autograd.grad(loss(model(X), y), params, create_graph=True)
    rows = [
        torch.autograd.grad(g, params, retain_graph=True, materialize_grads=True)
        for g in torch.cat([g.reshape(-1) for g in gradient])
    ]
    hessian = torch.stack([torch.cat([b.reshape(-1) for b in row]) for row in rows])
    operator = HessianLinearOperator(model, loss, model, [(X, y)], keep=form)
    assert_same(operator.to_dense(), hessian)


class _ZeroGate(nn.Module):
    """What is held constant does not matter before a gate opens."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.gate, self.how = nn.Parameter(torch.zeros(())), how
        nn.init.zeros_(self.c.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        if self.how == "data":
            part = h.data.abs().sum(1, keepdim=True)
        elif self.how == "set_grad_enabled":
            enabled = torch.is_grad_enabled()
            torch.set_grad_enabled(False)
            part = torch.stack([h, -h]).amax(0)
            torch.set_grad_enabled(enabled)
        else:
            with torch.no_grad():
                part = h.abs().sum(1, keepdim=True)
        return self.b(h) + self.gate * self.c(h * part)


class _Squared(nn.Module):
    """The square of a part may be held constant: its slope vanishes where the data do."""

    def __init__(self, held: bool) -> None:
        super().__init__()
        self.held = held
        self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        with torch.set_grad_enabled(not self.held):
            gate = h * h
        return self.last(h + gate)


def _focal(prediction: Tensor, target: Tensor) -> Tensor:
    """A loss whose weights are held constant; their slope vanishes at uniform predictions."""
    logs = prediction.log_softmax(1).gather(1, target[:, None])
    with torch.no_grad():
        weight = 1 + (1 - 3 * logs.exp()) ** 2
    return -(weight * logs).mean()


def _moved(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


@pytest.mark.parametrize("how", ["no_grad", "set_grad_enabled", "data"])
def test_constant_parts_are_found_where_they_do_not_matter_yet(how: str) -> None:
    with cases.seeded(0):
        model = _ZeroGate(how).double()
    batches = [(cases.randn(5, 3, seed=1), cases.randint(3, 5, seed=2))]
    problem = Problem(model, nn.CrossEntropyLoss(), model, batches)
    operator = problem.build(HESSIAN, keep="residuals")
    v = vectors(operator)
    assert_same(operator @ v, problem.build(HESSIAN, keep="nothing") @ v)
    _moved(model)
    assert_same(operator @ v, problem.build(HESSIAN, keep="nothing") @ v)


@pytest.mark.parametrize("kind", [HESSIAN, GGN])
@pytest.mark.parametrize("where", ["model", "loss"])
def test_constant_parts_are_found_in_a_batch_of_zeros(kind: Any, where: str) -> None:
    """The first of its shape, whose trace serves all."""
    with cases.seeded(0):
        model = _Squared(held=where == "model").double()
    loss: Any = nn.CrossEntropyLoss() if where == "model" else _focal
    options: dict[str, Any] = {} if where == "model" else {"reduction": "mean"}
    X, y = cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2)
    X[:4] = 0
    args = (model, loss, model, cases.cut(X, y, (4, 4)))
    streamed, traced = (
        kind(*args, keep=form, **cases.UNMERGED, **options) for form in ("nothing", "residuals")
    )
    v = vectors(streamed)
    assert_same(traced @ v, streamed @ v)


class _Masked(nn.Module):
    """Masks and positions are computed under no_grad, from what parameters have a part in."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(x))
        with torch.no_grad():
            mask = (h > 0).to(h.dtype) + torch.arange(h.shape[1]) + torch.zeros_like(h.detach())
        return self.outer(h * mask)


def test_masks_and_positions_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no derivative in any mode: the tangent graph is that of forward mode."""
    forward = []
    hvp = batch_maps.ForwardOverReverse.hvp
    monkeypatch.setattr(
        batch_maps.ForwardOverReverse, "hvp", lambda lin, v: forward.append(1) or hvp(lin, v)
    )
    with cases.seeded(0):
        model = _Masked().double()
    batches = [(cases.randn(5, 3, seed=1), cases.randint(3, 5, seed=2))]
    problem = Problem(model, nn.CrossEntropyLoss(), model, batches)
    operator = problem.build(HESSIAN, keep="residuals")
    v = vectors(operator)
    assert_same(operator @ v, problem.build(HESSIAN, keep="nothing") @ v)
    assert forward


class _Remembers(nn.Module):
    """Holds what it computed last."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(3, 3), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x)
        with torch.no_grad():  # so that it is traced last of all
            gate = self.last * self.last
        return torch.tanh(self.last) + gate


@pytest.mark.parametrize("kind", [HESSIAN, GGN])
def test_what_a_module_remembers_is_not_of_a_trace(kind: Any) -> None:
    with cases.seeded(0):
        model = _Remembers().double()
    batches = [(cases.randn(n, 3, seed=n), cases.randint(3, n, seed=n)) for n in (4, 6)]
    operator = kind(
        model, nn.CrossEntropyLoss(), model, batches, keep="residuals", **cases.UNMERGED
    )
    assert (operator @ vectors(operator)).isfinite().all()
    assert model.last.detach().numpy().shape == (6, 3)  # which a traced tensor has none of


# What cannot be differentiated --------------------------------------------------------------


def test_a_wrong_second_derivative_is_refused_in_every_form() -> None:
    """Before anything is kept: torch's double backward of weight norm is not symmetric."""
    torch.manual_seed(0)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    model = nn.Sequential(normed, nn.Tanh(), nn.Linear(4, 3)).double()
    batches = [(cases.randn(6, 3, seed=1), cases.randint(3, 6, seed=2))]
    for form in (*problems.FORMS, "auto"):
        with pytest.raises(DifferentiationError, match="not symmetric"):
            HessianLinearOperator(model, nn.CrossEntropyLoss(), model, batches, keep=form)
    unchecked = HessianLinearOperator(
        model, nn.CrossEntropyLoss(), model, batches, check_deterministic=False
    )
    dense = unchecked.to_dense()
    assert (dense - dense.T).abs().max() > 1e-6 * dense.abs().max()
    GGNLinearOperator(model, nn.CrossEntropyLoss(), model, batches)  # does not need it


class _Cube(torch.autograd.Function):
    """x³ with a backward that torch would differentiate to zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _Square(torch.autograd.Function):
    """x² with a backward that can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * g


class _Custom(nn.Module):
    """A custom function at a place of one's choosing."""

    def __init__(self, function: Any, place: str) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 3)
        self.function, self.place = function, place

    def forward(self, x: Tensor) -> Tensor:
        if self.place == "data":
            x = self.function(x)
        h = torch.tanh(self.inner(x))
        if self.place == "middle" or (self.place == "second batch" and len(x) == 2):
            h = self.function(h)
        f = self.outer(h)
        return self.function(f) if self.place == "end" else f


@pytest.mark.parametrize("form", [*problems.FORMS, "auto"])
@pytest.mark.parametrize("place", ["middle", "end", "second batch"])
@pytest.mark.parametrize("kind", [HessianLinearOperator, GGNLinearOperator, EFLinearOperator])
def test_once_differentiable_functions_are_refused(kind: Any, place: str, form: str) -> None:
    """Wherever they are, and whichever batch is the first to come through them."""
    model = _Custom(_Cube.apply, place).double()
    problem = Problem(
        model,
        nn.CrossEntropyLoss(),
        model,
        cases.cut(cases.randn(5, 3, seed=1), cases.randint(3, 5, seed=2), (3, 2)),
    )

    def twice() -> None:
        operator = problem.build(kind, keep=form)
        operator @ vectors(operator)
        operator @ vectors(operator)

    with pytest.raises(DifferentiationError, match="_Cube"):
        twice()


@pytest.mark.parametrize(
    ("function", "place"), [(_Square, "middle"), (_Square, "end"), (_Cube, "data")]
)
def test_other_custom_functions_are_not_refused(function: Any, place: str) -> None:
    """Twice differentiable ones, and those that no parameter goes through."""
    plain: dict[Any, Callable[[Tensor], Tensor]] = {
        _Square: lambda x: x**2,
        _Cube: lambda x: x**3,
    }
    batches = cases.cut(cases.randn(5, 3, seed=1), cases.randint(3, 5, seed=2), (3, 2))
    products = []
    for f in (function.apply, plain[function]):
        with cases.seeded(0):
            model = _Custom(f, place).double()
        for kind in (HESSIAN, GGN):
            operator = Problem(model, nn.CrossEntropyLoss(), model, batches).build(kind)
            products.append([operator @ vectors(operator) for _ in range(2)][1])
    assert_same(products[0], products[2])
    assert_same(products[1], products[3])
