"""What products share: the same numbers in every form, at the current parameters, and freed."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvops import EmpiricalRisk
from curvops.autodiff import batch_maps
from curvops.autodiff import forms as forms_module
from curvops.autodiff.batch_maps import GraphMap, ResidualMap
from curvops.autodiff.measure import can_compile
from curvops.errors import DifferentiationError, InputError
from tests import cases
from tests.autodiff import problems
from tests.autodiff.problems import (
    EF,
    FISHER,
    FORMS,
    GGN,
    HESSIAN,
    KINDS,
    PROBLEMS,
    Problem,
    assert_same,
    built,
    column_width,
    differ,
    vectors,
)
from tests.test_determinism import Boom, _assert_unchanged, _guarded, _snapshot

WIDTHS = (0, 1, 3, 11)
WAYS: tuple[Any, ...] = ("loop", "vmap", 3)


# The same numbers ---------------------------------------------------------------------------

ALL = [(name, kind) for name in PROBLEMS for kind in ("hessian", "ggn")]
ALL += [(name, kind) for name in ("mlp", "tied-embedding") for kind in ("ef", "fisher")]


@pytest.mark.parametrize(("name", "kind"), ALL)
def test_the_same_numbers_in_every_form(name: str, kind: str) -> None:
    problem = PROBLEMS[name]()
    risk = problem.risk()
    streamed = built(KINDS[kind], risk, keep="nothing", columns="loop")
    V = vectors(streamed, max(WIDTHS))
    expected = streamed @ V
    assert streamed.kept == "nothing"
    assert expected.abs().max() > 1e-4

    def check(operator: Any, what: str) -> None:
        for way in WAYS:
            with column_width(operator, way):
                for width in WIDTHS:
                    assert_same(operator @ V[:, :width], expected[:, :width], f"{what} {way}")
        assert_same(operator @ V[:, 0], expected[:, 0], what)

    graph = built(KINDS[kind], risk, keep="graph")
    check(graph, "graph")
    assert graph.kept == "graph"

    residuals = built(KINDS[kind], risk, keep="residuals")
    check(residuals, "residuals")
    assert residuals.kept == "residuals"
    full = residuals.kept_bytes

    if name not in ("transformer", "lstm", "gru") or kind == "hessian":  # seconds to trace
        residuals._keeper._forms.tracer.lean = True
        residuals.release()
        check(residuals, "lean residuals")
        assert residuals.kept == "residuals"
        assert 0 < residuals.kept_bytes <= full

    check(streamed, "streamed")
    assert streamed.kept_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_merged_batches(kind: str, form: str) -> None:
    problem = problems.mlp()
    V = vectors(reference := problem.build(KINDS[kind], keep="nothing"), 3)
    merged = problem.build(KINDS[kind], keep=form, merge_batches="auto")
    assert merged.risk.num_batches == 1
    assert reference.risk.num_batches == 3
    for _ in range(2):
        assert_same(merged @ V, reference @ V)


@pytest.mark.parametrize("name", cases.NAMES)
def test_every_loss(name: str) -> None:
    """Kept residuals, all data in one batch, against the dense truth."""
    case = cases.make(name)
    for kind, expected in ((HESSIAN, case.truth.hessian()), (GGN, case.truth.ggn())):
        for form in ("graph", "residuals"):
            operator = kind(*case.args, keep=form)
            cases.assert_matches(operator.to_dense(), expected)
            assert operator.kept == form


@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_formats_of_parameters_and_vectors(form: str) -> None:
    """A list of tensors, and a dict in another order: each laid out as it was given."""
    problem = problems.mlp((2, 2))
    reference = problem.build(keep="nothing")
    space = reference.risk.space
    v = vectors(reference)
    expected = dict(zip(space.names, space.unflatten(reference @ v), strict=True))
    by_name = dict(zip(space.names, space.unflatten(v), strict=True))

    listed = Problem(problem.model, problem.loss, list(problem.params.values()), problem.batches)
    operator = listed.build(keep=form)
    for _ in range(2):
        product = operator @ list(by_name.values())
        for actual, name in zip(product, by_name, strict=True):
            assert_same(actual, expected[name], name)

    turned = dict(reversed(problem.params.items()))
    operator = Problem(problem.model, problem.loss, turned, problem.batches).build(keep=form)
    for _ in range(2):
        product = operator @ {name: by_name[name] for name in turned}
        assert list(product) == list(turned)
        for name in turned:
            assert_same(product[name], expected[name], name)


@pytest.mark.parametrize("form", FORMS)
def test_draws_are_the_same_in_every_product_and_form(form: str) -> None:
    problem = problems.mlp()
    expected = problem.build(FISHER, keep="nothing") @ (v := cases.randn(31, 2, seed=4))
    operator = problem.build(FISHER, keep=form)
    for _ in range(3):
        assert_same(operator @ v, expected)
    other = problem.build(FISHER, keep=form, seed=4) @ v
    assert differ(other, expected)  # which the seed decides


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("form", FORMS)
def test_under_the_users_grad_mode(form: str, context: Callable[[], Any]) -> None:
    operator = problems.mlp((2, 2)).build(keep=form)
    V = vectors(operator, 2)
    with context():
        inside = [operator @ V, operator @ V.clone()]
    for product in (*inside, operator @ V):
        assert_same(product.clone(), problems.mlp((2, 2)).build(keep="nothing") @ V)
        assert not product.requires_grad


@pytest.mark.slow
def test_compiled() -> None:
    if not can_compile():
        pytest.skip("torch.compile needs a C++ compiler")
    problem = problems.mlp((2, 2))
    operator = problem.build(keep="residuals", compile=True)
    V = vectors(operator, 3)
    expected = problem.build(keep="nothing") @ V
    for way in ("loop", "vmap"):
        with column_width(operator, way):
            for _ in range(2):
                assert_same(operator @ V, expected, way)
    for p in problem.params.values():
        p.mul_(0.5)
    moved = problem.build(keep="nothing") @ V
    assert differ(moved, expected)
    assert_same(operator @ V, moved)


# Columns ------------------------------------------------------------------------------------


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of columns that went through together."""
    seen: list[int] = []
    inside = [False]  # a graph's many() calls one()

    def counted(kind: Any, name: str) -> None:
        original = getattr(kind, name)

        def run(self: Any, v: list[Tensor]) -> Any:
            if inside[0]:
                return original(self, v)
            seen.append(1 if name == "one" else len(v[0]))
            inside[0] = True
            try:
                return original(self, v)
            finally:
                inside[0] = False

        monkeypatch.setattr(kind, name, run)

    for kind in (GraphMap, ResidualMap):
        counted(kind, "one")
        counted(kind, "many")
    return seen


FIXED_WIDTHS = [("loop", 1), (1, 1), (3, 3), (5, 5), ("vmap", 8)]


@pytest.mark.parametrize(
    ("form", "columns", "largest"),
    # tracing takes its time: kept residuals with three of the widths
    [(f, c, w) for f in FORMS for c, w in FIXED_WIDTHS if f != "residuals" or c not in (1, 5)],
)
def test_columns_can_be_fixed(form: str, columns: Any, largest: int, widths: list[int]) -> None:
    """And memory does not grow with K: no more than so many columns go through together."""
    operator = problems.mlp((2,)).build(keep=form, columns=columns)
    V = vectors(operator, 20)
    for _ in range(2):
        widths.clear()
        operator @ V
        assert sum(widths) == 20
        assert max(widths) == largest


def test_columns_auto_settles_for_what_is_faster() -> None:
    operator = problems.mlp((2,)).build(keep="graph")
    V = vectors(operator, 20)
    expected = problems.mlp((2,)).build(keep="nothing", columns="loop") @ V
    for _ in range(3):
        assert_same(operator @ V, expected)
    assert set(operator._keeper._widths._seconds) == {1, 8}
    for fast, slow in ((1, 8), (8, 1)):
        operator._keeper._widths._seconds.update({fast: 0.0, slow: 1.0})
        assert operator._keeper._widths.choose(20) == fast


class _Unbatched(torch.autograd.Function):
    """The identity, by a function that vmap has no rule for."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return _Unbatched.apply(g)


class _Marked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Unbatched.apply(x)


@pytest.mark.parametrize("columns", ["auto", "vmap"])
@pytest.mark.parametrize("form", ["nothing", "graph"])
def test_what_cannot_be_vectorised_goes_through_one_by_one(form: str, columns: Any) -> None:
    problem = problems.mlp((3, 2), last=_Marked)
    operator = problem.build(keep=form, columns=columns)
    V = vectors(operator, 5)
    expected = problems.mlp((3, 2)).build(keep="nothing", columns="loop") @ V
    for _ in range(2):
        assert_same(operator @ V, expected)


# The current parameters ---------------------------------------------------------------------


class Followed(nn.Module):
    """A model with a buffer and a frozen parameter that its predictions depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0, 2.0, -1.0]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.norm(self.inner(x))) * self.gain)


def _step(optimizer: Callable[[Any], torch.optim.Optimizer]) -> Callable[[Followed], None]:
    def change(model: Followed) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        for p in trainable:
            p.grad = torch.ones_like(p)
        optimizer(trainable).step()

    return change


def _load(model: Followed) -> None:
    state = {k: v * 0.7 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def _replace_data(model: Followed) -> None:
    model.inner.weight.data = model.inner.weight.data * 1.5 + 0.1


def _vector_to_parameters(model: Followed) -> None:
    trainable = [p for p in model.parameters() if p.requires_grad]
    flat = nn.utils.parameters_to_vector(trainable).detach()
    nn.utils.vector_to_parameters(0.9 * flat + 0.05, trainable)


def _mean(model: Followed) -> Tensor:
    assert model.norm.running_mean is not None
    return model.norm.running_mean


def _new_buffer(model: Followed) -> None:
    model.norm.running_mean = _mean(model) - 0.4


def _nudge(model: Followed) -> None:
    model.outer.weight.data[1, 2] += 1e-7  # a finite difference


def _frozen_in_place(model: Followed) -> None:
    with torch.no_grad():
        model.gain.mul_(1.3)


CHANGES: dict[str, Callable[[Followed], Any]] = {
    "SGD": _step(lambda ps: torch.optim.SGD(ps, lr=0.1)),
    "Adam": _step(lambda ps: torch.optim.Adam(ps, lr=0.1, foreach=True)),
    "load_state_dict": _load,
    "data.add_": lambda model: model.inner.weight.data.add_(0.2),
    "data =": _replace_data,
    "vector_to_parameters": _vector_to_parameters,
    "buffer in place": lambda model: _mean(model).add_(0.5),
    "buffer.data": lambda model: _mean(model).data.sub_(0.3),
    "new buffer": _new_buffer,
    "frozen in place": _frozen_in_place,
    "frozen.data": lambda model: model.gain.data.add_(0.4),
    # changes that no norm can see
    "data.neg_": lambda model: model.outer.weight.data.neg_(),
    "data, one element, a little": _nudge,
    "data flipped": lambda model: model.inner.weight.data.copy_(model.inner.weight.data.flip(0)),
}


@pytest.fixture(scope="module", params=FORMS)
def followed(request: pytest.FixtureRequest) -> Any:
    """One operator a form: what was traced serves every change."""
    with cases.seeded(0):
        model = Followed().double().eval()
    batches = cases.cut(cases.randn(4, 3, seed=1), cases.randint(3, 4, seed=2), (2, 2))
    problem = Problem(model, nn.CrossEntropyLoss(), model, batches)
    return problem, problem.build(keep=request.param)


@pytest.mark.parametrize("change", CHANGES)
def test_a_product_is_at_the_current_parameters(followed: Any, change: str) -> None:
    problem, operator = followed
    v = vectors(operator)
    before = operator @ v
    CHANGES[change](problem.model)
    expected = problem.build(keep="nothing") @ v
    assert (before - expected).abs().max() > 1e-9 * expected.abs().max()
    assert_same(operator @ v, expected)
    assert_same(operator @ v, expected)


def _normed(affine: bool = True) -> Problem:
    with cases.seeded(0):
        norm = nn.BatchNorm1d(4, affine=affine)
        layers = (nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 3))
        model = nn.Sequential(*layers).double().eval()
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2), (4, 4))
    return Problem(model, nn.CrossEntropyLoss(), model, batches)


@pytest.mark.parametrize("release", [False, True], ids=["kept", "released"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", [HESSIAN, GGN])
def test_a_product_is_in_the_current_mode(kind: Any, form: str, release: bool) -> None:
    """Of any module; coming back to a mode, what was traced in it is used again."""
    problem = _normed()
    operator = problem.build(kind, keep=form, check_deterministic=False)
    v = vectors(operator)

    def check() -> Tensor:
        fresh = problem.build(kind, keep="nothing", check_deterministic=False)
        for _ in range(2):
            assert_same(operator @ v, expected := fresh @ v)
        if release:
            operator.release()
        return expected

    evaluated = check()
    problem.model[1].train()
    assert differ(check(), evaluated)
    problem.model.eval()
    assert torch.equal(check(), evaluated)


@pytest.mark.parametrize("form", ["auto", "layers"])
def test_layers_are_looked_for_in_every_mode(form: str) -> None:
    """In train mode a datum's gradient is not a sum over its own layer inputs."""
    problem = _normed(affine=False)
    operator = problem.build(EF, keep=form, check_deterministic=False)
    operator._keeper._forms._tried_layers = False  # whichever is faster
    v = vectors(operator)
    for _ in range(3):
        operator @ v
    problem.model.train()
    expected = problem.build(EF, keep="nothing", check_deterministic=False) @ v
    if form == "layers":
        with pytest.raises(DifferentiationError, match="layers"):
            operator @ v
    else:
        for _ in range(3):
            assert_same(operator @ v, expected)


# The caller's autocast ----------------------------------------------------------------------


EVERY_WAY = [(kind, form) for kind in KINDS for form in (*FORMS, "auto")]
EVERY_WAY += [("ef", "layers"), ("fisher", "layers")]


@pytest.mark.parametrize(("kind", "form"), EVERY_WAY)
def test_autocast_around_a_product_changes_nothing(kind: str, form: str) -> None:
    """Neither the product nor what is kept for later ones."""
    with cases.seeded(0):
        model = cases.mlp()
    batches = cases.cut(cases.randn(8, 3, seed=1).float(), cases.randint(3, 8, seed=2), (4, 4))
    problem = Problem(model, nn.CrossEntropyLoss(), model, batches)
    own, plain = (problem.build(KINDS[kind], keep=form, columns="loop") for _ in range(2))
    V = vectors(own, 2).float()
    for _ in range(2):
        plain @ V
        with torch.autocast("cpu", torch.bfloat16):
            inside = own @ V
        assert torch.is_autocast_enabled("cpu") is False
        rtol = 1e-5 if form == "auto" else 0.0
        assert_same(inside, plain @ V, rtol=rtol)
        assert_same(own @ V, plain @ V, rtol=rtol)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_autocast_around_a_risk_changes_nothing(autocast: Any) -> None:
    """What the risk itself is asked to compute in stays."""
    with cases.seeded(0):
        model = cases.mlp()
    batches = cases.cut(cases.randn(8, 3, seed=1).float(), cases.randint(3, 8, seed=2), (4, 4))
    loss = _Bilinear()
    problem = Problem(model, loss, model, batches)
    risk = problem.risk(autocast=autocast, reduction="mean")
    thetas = torch.stack([risk.theta, 0.9 * risk.theta], 1)
    computed: list[Callable[[], Tensor]] = [
        risk.loss,
        risk.gradient,
        lambda: risk.losses(thetas),
        lambda: risk.gradients(thetas),
        lambda: torch.cat(list(risk.per_sample_gradients())),
    ]
    for compute in computed:
        expected = compute()
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compute(), expected)
        assert torch.equal(compute(), expected)


class _Bilinear(nn.Module):
    """A loss that autocast would round: it multiplies matrices."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        f = prediction.float()
        return F.cross_entropy(f @ torch.eye(3).add(0.1), target)


BUFFERS: dict[str, Tensor] = {
    "sparse": torch.eye(4, dtype=torch.float64).to_sparse(),
    "complex": torch.ones(3, dtype=torch.complex128),
    "bool": torch.ones(3, dtype=torch.bool),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0),
    "number": torch.tensor(3),
    "expanded": torch.ones(1).expand(3),
}


class _Buffered(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = cases.mlp(), kind
        self.register_buffer("buffer", BUFFERS[kind].clone())

    def forward(self, x: Tensor) -> Tensor:
        f = self.net(x)
        return torch.sparse.mm(self.buffer, f) if self.kind == "sparse" else f


@pytest.mark.parametrize("kind", BUFFERS)
def test_buffers_of_every_kind(kind: str) -> None:
    with cases.seeded(0):
        model = _Buffered(kind)
    model.net.double()
    batches = cases.cut(cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2), (4, 4))
    problem = Problem(model, nn.CrossEntropyLoss(), cases.perturbed(model), batches)
    v = vectors(reference := problem.build(GGN, keep="nothing"))
    for form in ("auto", "graph", *(() if kind == "sparse" else ("residuals",))):
        operator = problem.build(GGN, keep=form)
        for _ in range(2):
            assert_same(operator @ v, reference @ v)


def test_what_was_traced_survives_a_change_of_the_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    traces = []
    trace = batch_maps.trace

    def counted(*args: Any) -> Any:
        traces.append(args)
        return trace(*args)

    monkeypatch.setattr(batch_maps, "trace", counted)
    problem = problems.mlp((2, 2, 1, 2, 1))
    operator = problem.build(GGN, keep="residuals")
    v = vectors(operator)
    before = operator @ v
    assert len(traces) == 2  # one a shape
    for p in problem.params.values():
        p.mul_(0.5)
    after = operator @ v
    assert differ(before, after)
    assert_same(after, problem.build(GGN, keep="nothing") @ v)
    assert len(traces) == 2


@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_nothing_is_built_again_while_nothing_changes(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.mlp((2, 2))
    operator = problem.build(keep=form)
    v = vectors(operator)
    first = operator @ v
    calls = []
    problem.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(3):
        assert torch.equal(operator @ v, operator @ v)
    assert_same(operator @ v, first)
    assert not calls


# When keeping begins, and ends --------------------------------------------------------------


def test_keeping_starts_at_the_second_product() -> None:
    operator = problems.mlp((2, 2)).build()
    v = vectors(operator)
    first = operator @ v
    assert (operator.kept, operator.kept_bytes) == ("nothing", 0)
    assert_same(operator @ v, first)
    assert operator.kept == "graph"
    assert operator.kept_bytes > 0
    assert_same(operator @ v, first)


def test_announced_products_start_it_at_the_first() -> None:
    operator = problems.mlp((2, 2)).build()
    v = vectors(operator)
    assert operator.prepare(num_products=2) is operator
    operator @ v
    assert operator.kept == "graph"


@pytest.mark.parametrize("number", [0, 1])
def test_a_single_announced_product_keeps_nothing(number: int) -> None:
    operator = problems.mlp((2, 2)).build().prepare(num_products=number)
    operator @ vectors(operator)
    assert operator.kept == "nothing"
    operator = problems.mlp((2, 2)).build().prepare(num_products=3)
    operator @ vectors(operator, 3)  # all that were announced
    assert operator.kept == "nothing"


@pytest.mark.parametrize("form", FORMS)
def test_release(form: str) -> None:
    operator = problems.mlp((2, 2)).build(keep=form)
    v = vectors(operator)
    expected = operator @ v
    kept = [] if form == "nothing" else operator._keeper._kept.maps
    assert len(kept) == (0 if form == "nothing" else 2)
    references = [weakref.ref(m) for m in kept]
    del kept
    operator.release()
    gc.collect()
    assert (operator.kept, operator.kept_bytes) == ("nothing", 0)
    assert not any(r() for r in references)
    for _ in range(2):
        assert_same(operator @ v, expected)
    assert operator.kept == form
    operator.release()
    operator.release()


@pytest.mark.parametrize("form", FORMS)
def test_an_operator_is_collected_with_what_it_keeps(form: str) -> None:
    problem = problems.mlp((2, 2))
    operator = problem.build(keep=form)
    operator @ vectors(operator)
    references = [weakref.ref(operator), weakref.ref(operator._keeper)]
    if form != "nothing":
        references += [weakref.ref(m) for m in operator._keeper._kept.maps]
    if form == "residuals":
        references += [weakref.ref(t) for t in operator._keeper._kept.maps[0]._residuals]
        batch = next(iter(operator.risk._data))
        held = {t.data_ptr() for t in (*problem.params.values(), batch.X, batch.y)}
        references = [r for r in references if getattr(r(), "data_ptr", int)() not in held]
    del operator
    gc.collect()
    assert [r() for r in references if r() is not None] == []


@pytest.mark.parametrize(
    "option",
    [
        {"keep": "everything"},
        {"keep": None},
        {"keep": True},
        {"columns": 0},
        {"columns": -1},
        {"columns": True},
        {"columns": 2.5},
        {"columns": "batch"},
        {"memory_budget": -1},
        {"memory_budget": "a lot"},
        {"memory_budget": "2 parsecs"},
        {"compile": "yes"},
        {"compile": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["hessian", "fisher"])
def test_bad_options_are_refused_by_name(kind: str, option: dict[str, Any]) -> None:
    (name,) = option
    problem = problems.mlp((2,))
    with pytest.raises(InputError, match=name):
        problem.build(KINDS[kind], **option)
    with pytest.raises(InputError, match=name):
        KINDS[kind].from_risk(problem.risk(), **option)


@pytest.mark.parametrize("number", [-1, 1.0, True, None, "3"])
def test_bad_numbers_of_products_are_refused(number: Any) -> None:
    operator = problems.mlp((2,)).build()
    with pytest.raises(InputError, match="num_products"):
        operator.prepare(num_products=number)


# Choosing the form --------------------------------------------------------------------------


@pytest.fixture
def favoured(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the measurement come out as one likes."""

    def favour(choice: tuple[str, bool], seconds: float = 1e-6, compiled: bool = True) -> list[Any]:
        seen: list[Any] = []

        def medians(candidates: dict[Any, Callable[[], Any]], rounds: int = 5) -> Any:
            for run in candidates.values():
                run()
            seen.append(set(candidates))
            best = (choice, compiled)
            return {key: seconds if key in best else 2 * seconds for key in candidates}

        monkeypatch.setattr(forms_module, "interleaved_medians", medians)
        monkeypatch.setattr(forms_module, "_TRACE_SECONDS", 0.0)
        return seen

    return favour


@pytest.mark.parametrize(
    "choice", [("graph", False), ("residuals", False), ("residuals", True)], ids=str
)
def test_auto_measures_once_and_settles(choice: tuple[str, bool], favoured: Any) -> None:
    measured = favoured(choice)
    problem = problems.mlp((2, 2))
    operator = problem.build(compile=False)
    V = vectors(operator, 2)
    expected = problem.build(keep="nothing") @ V
    for _ in range(5):
        assert_same(operator @ V, expected)
    assert measured == [{("graph", False), ("residuals", False), ("residuals", True)}]
    assert operator.kept == choice[0]
    if choice[0] == "residuals":
        assert operator._keeper._forms.tracer.lean is choice[1]
    for p in problem.params.values():
        p.mul_(0.5)
    assert_same(operator @ V, problem.build(keep="nothing") @ V)
    assert operator.kept == choice[0]
    assert len(measured) == 1


def test_short_runs_are_not_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_maps, "trace", lambda *_: pytest.fail("traced"))
    operator = problems.mlp((2, 2)).build().prepare(20)
    for _ in range(20):
        operator @ vectors(operator)
    assert operator.kept == "graph"


@pytest.mark.parametrize("compiler", [True, False])
@pytest.mark.parametrize(("seconds", "pays"), [(1e-6, False), (10.0, True)])
@pytest.mark.parametrize("faster", [True, False])
def test_compiling_waits_until_it_pays(
    compiler: bool,
    seconds: float,
    pays: bool,
    faster: bool,
    favoured: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[Any] = []
    calls: list[Any] = []

    def compile(function: Any) -> Any:
        compiled.append(function)

        def run(*args: Any) -> Any:
            calls.append(function)
            return function(*args)

        return run

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(forms_module, "can_compile", lambda: compiler)
    favoured(("residuals", True), seconds, faster)
    problem = problems.mlp((2, 2))
    operator = problem.build(GGN).prepare(100)
    v = vectors(operator)
    for _ in range(3):
        calls.clear()
        assert_same(operator @ v, problem.build(GGN, keep="nothing") @ v)
    assert bool(compiled) is (compiler and pays)
    assert bool(calls) is (compiler and pays and faster)


def test_what_cannot_be_compiled_is_not(favoured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(function: Any) -> Any:
        def run(*args: Any) -> Any:
            raise RuntimeError("the compiler has lost its way")

        return run

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(forms_module, "can_compile", lambda: True)
    favoured(("residuals", True), 10.0)
    problem = problems.mlp((2, 2))
    operator = problem.build(GGN).prepare(100)
    v = vectors(operator)
    for _ in range(3):
        assert_same(operator @ v, problem.build(GGN, keep="nothing") @ v)


VALUES: dict[str, Callable[[Tensor], bool]] = {
    "bool": lambda x: bool(x.sum() > 0),
    "item": lambda x: x.sum().item() > 0,
    "float": lambda x: float(x.data.sum()) > 0,
    "tolist": lambda x: x.sum(0).tolist()[0] > 0,
    "numpy": lambda x: x.detach().numpy().sum() > 0,
}


@pytest.mark.parametrize("read", VALUES)
def test_control_flow_that_depends_on_values(read: str, favoured: Any) -> None:
    """It cannot be traced: "auto" keeps graphs, and "residuals" says what to do."""
    favoured(("residuals", True))
    problem = problems.switch(VALUES[read])
    operator = problem.build()
    v = vectors(operator)
    expected = problem.build(keep="nothing") @ v
    for _ in range(4):
        assert_same(operator @ v, expected)
    assert operator.kept == "graph"
    operator = problem.build(keep="residuals")
    with pytest.raises(DifferentiationError, match=re.escape('keep="graph"')):
        operator @ v


@pytest.mark.parametrize("form", [*FORMS, "auto"])
def test_parameters_that_nothing_depends_on(form: str) -> None:
    problem = PROBLEMS["unused"]()
    params = {name: p for name, p in problem.params.items() if "unused" in name}
    assert params
    operator = Problem(problem.model, problem.loss, params, problem.batches).build(keep=form)
    v = vectors(operator)
    for _ in range(2):
        with pytest.raises(DifferentiationError, match="depends differentiably"):
            operator @ v


# Failures -----------------------------------------------------------------------------------


def _fail(monkeypatch: pytest.MonkeyPatch, times: int, kind: Any, error: BaseException) -> None:
    original = kind.one
    left = [times]

    def one(self: Any, v: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return original(self, v)

    monkeypatch.setattr(kind, "one", one)


MEMORY_ERRORS = {
    "device": torch.OutOfMemoryError("out of memory"),
    "python": MemoryError(),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes"),
}


@pytest.mark.parametrize("error", MEMORY_ERRORS)
@pytest.mark.parametrize("kind", ["hessian", "fisher"])
def test_out_of_memory_falls_back_to_streaming_once(
    kind: str, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.mlp()
    expected = problem.build(KINDS[kind], keep="nothing") @ (v := cases.randn(31, 3, seed=4))
    operator = problem.build(KINDS[kind], keep="graph")
    _fail(monkeypatch, 1, GraphMap, MEMORY_ERRORS[error])
    with pytest.warns(UserWarning, match="memory_budget="):
        product = operator @ v
    assert_same(product, expected)
    for _ in range(3):  # without another warning
        assert_same(operator @ v, expected)
    assert (operator.kept, operator.kept_bytes) == ("nothing", 0)


def test_out_of_memory_of_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problems.mlp((2, 2))
    operator = problem.build(GGN, keep="residuals")
    v = vectors(operator)
    expected = operator @ v
    _fail(monkeypatch, 1, ResidualMap, MEMORY_ERRORS["device"])
    with pytest.warns(UserWarning, match="memory_budget="):
        assert_same(operator @ v, expected)
    assert_same(operator @ v, expected)
    assert operator.kept == "nothing"


@pytest.mark.parametrize("form", ["nothing", "graph"])
def test_out_of_memory_while_streaming_is_raised(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.mlp((2, 2))
    operator = problem.build(keep=form)
    v = vectors(operator)
    expected = operator @ v
    _fail(monkeypatch, 2, GraphMap, MEMORY_ERRORS["device"])
    if form == "graph":  # the first failure is answered by streaming
        with (
            pytest.warns(UserWarning, match="memory_budget="),
            pytest.raises(torch.OutOfMemoryError),
        ):
            operator @ v
    else:
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                operator @ v
    assert_same(operator @ v, expected)


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    operator = problems.mlp((2, 2)).build(keep="graph")
    _fail(monkeypatch, 1, GraphMap, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        operator @ vectors(operator)


FAILING = [("graph", HESSIAN), ("graph", FISHER), ("residuals", GGN), ("residuals", FISHER)]


@pytest.mark.parametrize("failure", [Boom(), KeyboardInterrupt()], ids=["exception", "ctrl-c"])
@pytest.mark.parametrize(("form", "kind"), FAILING)
def test_nothing_changes_when_the_model_fails(form: str, kind: Any, failure: BaseException) -> None:
    """At every one of its calls while something is built to be kept."""
    model = _guarded()
    X, y = cases.randn(6, 3, seed=1), cases.randint(3, 6, seed=2)
    problem = Problem(model, nn.CrossEntropyLoss(), model, cases.cut(X, y, (2, 2, 2)))
    v = vectors(reference := problem.build(kind, keep="nothing"))
    expected = reference @ v
    operator = problem.build(kind, keep=form)
    before = _snapshot(model)
    for calls_left in range(30):
        operator.release()
        operator._keeper._forms.tracer = None
        model.raises, model.calls_left = failure, calls_left
        try:
            operator @ v
        except type(failure):
            failed = True
        else:
            failed = False
        model.raises = None
        _assert_unchanged(model, before)
        assert_same(operator @ v, expected, f"after call {calls_left}")
        assert operator.kept == form
        _assert_unchanged(model, before)
        if not failed:
            break
    assert not failed
    assert calls_left >= 2  # once to measure its memory, once to build


def test_a_failure_while_streaming_what_does_not_fit() -> None:
    """What was kept before stays right, draws of later batches included."""
    model = _guarded()
    X, y = cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2)
    problem = Problem(model, nn.CrossEntropyLoss(), model, cases.cut(X, y, (2, 2, 2, 2)))
    v = vectors(reference := problem.build(FISHER, keep="nothing"))
    ample = problem.build(FISHER, keep="graph")
    ample @ v
    each = ample.kept_bytes // 4
    # Room for two batches beside the one that is worked on, and the vectors.
    operator = problem.build(FISHER, keep="graph", memory_budget=6 * each + 4 * 8 * len(v))
    operator @ v
    assert 0 < operator.kept_bytes < ample.kept_bytes
    model.raises, model.calls_left = Boom(), 0
    with pytest.raises(Boom):
        operator @ v
    model.raises = None
    for _ in range(2):
        assert_same(operator @ v, reference @ v)


def test_operators_of_one_risk_keep_apart() -> None:
    risk = problems.mlp((2, 2)).risk()
    operators = [built(kind, risk, keep="graph") for kind in (HESSIAN, GGN, EF, FISHER)]
    V = vectors(operators[0], 2)
    first = [operator @ V for operator in operators]
    operators[0].release()
    assert [operator.kept for operator in operators] == ["nothing", *["graph"] * 3]
    for operator, expected in zip(operators, first, strict=True):
        assert_same(operator @ V, expected)


def test_a_risk_at_another_point_is_not_confused_with_the_first() -> None:
    risk: EmpiricalRisk = problems.mlp((2, 2)).risk()
    here, there = risk, risk.at(2 * risk.theta)
    a, b = (built(HESSIAN, r, keep="graph") for r in (here, there))
    v = vectors(a)
    for _ in range(2):
        assert_same(a @ v, built(HESSIAN, here, keep="nothing") @ v)
        assert_same(b @ v, built(HESSIAN, there, keep="nothing") @ v)
    assert differ(a @ v, b @ v)


@pytest.mark.parametrize("kind", [EF, FISHER])
def test_layers_are_tried_at_once_and_the_numbers_are_the_same(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = problems.mlp((2, 3))
    reference = problem.build(kind, keep="nothing")
    V = vectors(reference, 3)
    expected = reference @ V
    fixed = problem.build(kind, keep="layers")
    assert_same(fixed @ V, expected)
    assert fixed.kept == "layers"
    assert fixed.kept_bytes > 0
    for faster in ("layers", "graph"):
        monkeypatch.setattr(
            forms_module,
            "interleaved_medians",
            lambda tasks, rounds=5, faster=faster: {k: float(k != faster) for k in tasks},
        )
        operator = problem.build(kind).prepare(10)
        assert_same(operator @ V, expected)
        assert operator.kept == faster
        assert_same(operator @ V, expected)


def test_layers_are_refused_where_they_do_not_apply() -> None:
    operator = problems.mlp((2,)).build(HESSIAN, keep="layers")
    with pytest.raises(DifferentiationError, match="one term per datum"):
        operator @ vectors(operator)
