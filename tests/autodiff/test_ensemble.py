"""Many points at once: the same numbers whatever goes through the model together."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, passes
from curvops.autodiff import ensemble as ensemble_module
from curvops.autodiff.affine import Affine, SharedProducts, find_affine
from curvops.autodiff.ensemble import Ensemble, Plan
from curvops.errors import (
    DeterminismError,
    DifferentiationError,
    DTypeError,
    InputError,
    NonFiniteError,
    ShapeError,
)
from tests import cases, truth
from tests.autodiff import problems
from tests.operators.test_models import MODELS, _build, _math_kernels, _reference

CHUNKS: tuple[Any, ...] = ("loop", "vmap", 2, "auto")
RTOL = 1e-11


def points(risk: EmpiricalRisk, count: int, seed: int = 7, scale: float = 0.2) -> Tensor:
    """Points around that of a risk, as columns."""
    moved = scale * cases.randn(risk.space.dim, count, seed=seed)
    return risk.theta.unsqueeze(1) + moved.to(risk.dtype)


def ray(risk: EmpiricalRisk, count: int, num_directions: int, seed: int = 7) -> Affine:
    """Points on a line or in a plane."""
    directions = cases.randn(risk.space.dim, num_directions, seed=seed)
    coefficients = 0.3 * cases.randn(num_directions, count, seed=seed + 1)
    return Affine(risk.theta, directions.to(risk.dtype), coefficients.to(risk.dtype))


def columns_of(affine: Affine) -> Tensor:
    assert isinstance(affine.theta, Tensor)
    assert isinstance(affine.directions, Tensor)
    return affine.theta.unsqueeze(1) + affine.directions @ affine.coefficients


def one_by_one(risk: EmpiricalRisk, thetas: Tensor) -> tuple[Tensor, Tensor]:
    there = [risk.at(theta) for theta in thetas.T]
    losses = torch.stack([r.loss() for r in there])
    return losses, torch.stack([r.gradient() for r in there], dim=1)


def state(module: nn.Module) -> Iterator[Any]:
    """What evaluating must not change."""
    for name, m in module.named_modules():
        yield name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        yield name, id(t), t.data_ptr(), t.requires_grad, t._version, t.grad is None


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """Every plan that was carried out (trials included)."""
    carried: list[Plan] = []
    original = Ensemble._evaluate

    def evaluate(evaluation: Any, plan: Plan, start: int, stop: int) -> Tensor:
        result = original(evaluation, plan, start, stop)
        carried.append(Plan(stop - start, plan.shared) if plan.width > 1 else plan)
        return result

    monkeypatch.setattr(Ensemble, "_evaluate", staticmethod(evaluate))
    return carried


# The same numbers ----------------------------------------------------------------------------


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("name", MODELS)
def test_every_layer(name: str) -> None:
    """Losses and gradients of all strategies are those of torch on the whole data."""
    model, loss, params, batches = _build(name)
    risk = EmpiricalRisk(model, loss, params, batches, **cases.UNMERGED)
    thetas, before = points(risk, 3), list(state(model))
    with cases.seeded(0):
        reference = _reference(model)
    with _math_kernels():
        dense = truth.Dense(truth.module_predict(reference), loss, params, batches)
        losses, slopes = [], []
        for theta in thetas.T:
            at = theta.clone().requires_grad_()
            losses.append(dense.loss_at(at))
            slopes.append(torch.autograd.grad(losses[-1], at, materialize_grads=True)[0])
    expected, gradients = torch.stack(losses).detach(), torch.stack(slopes, dim=1)
    for columns in CHUNKS:
        problems.assert_same(risk.losses(thetas, columns=columns), expected, rtol=RTOL)
        both = risk.losses_and_gradients(thetas, columns=columns)
        problems.assert_same(both[0], expected, rtol=RTOL)
        assert isinstance(both[1], Tensor)
        problems.assert_same(both[1], gradients, rtol=RTOL)
    assert list(state(model)) == before


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_on_a_ray(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing products changes nothing but the time."""
    model, loss, params, batches = _build(name)
    risk = EmpiricalRisk(model, loss, params, batches, **cases.UNMERGED)
    line, before = ray(risk, 9, 2), list(state(model))
    expected, gradients = one_by_one(risk, columns_of(line))
    always_faster(monkeypatch)
    monkeypatch.setattr(passes, "_MANY_DATA", 0)
    for given in (line, columns_of(line)):
        problems.assert_same(risk.losses(given), expected, rtol=RTOL)
    problems.assert_same(risk.losses(line, columns=4), expected, rtol=RTOL)
    problems.assert_same(risk.gradients(line), gradients, rtol=RTOL)
    assert list(state(model)) == before


def always_faster(monkeypatch: pytest.MonkeyPatch, width: int = 1) -> None:
    """Let sharing win every trial that it does not fail, at one width."""
    original = Ensemble._try

    def attempt(self: Ensemble, evaluation: Any, plan: Plan) -> float:
        seconds = original(self, evaluation, plan)
        if seconds == float("inf"):
            return seconds
        if not plan.shared:
            return 1e-3
        return 1e-9 if plan.width == width else 1e-4

    monkeypatch.setattr(Ensemble, "_try", attempt)


@pytest.mark.parametrize("name", cases.NAMES)
@pytest.mark.parametrize("reduction", cases.REDUCTIONS)
def test_every_loss(name: str, reduction: str) -> None:
    """Weights, masks, smoothing and ragged batches: one global normaliser."""
    case = cases.make(name, reduction)
    decay = 0.3
    risk = EmpiricalRisk(*case.args, weight_decay=decay, **cases.UNMERGED)
    thetas = points(risk, 5)
    expected = torch.stack([case.truth.loss_at(t) + decay / 2 * t @ t for t in thetas.T])
    slopes = [torch.func.grad(case.truth.loss_at)(t) + decay * t for t in thetas.T]
    for columns in CHUNKS:
        losses, gradients = risk.losses_and_gradients(thetas, columns=columns)
        assert isinstance(gradients, Tensor)
        cases.assert_matches(losses, expected)
        cases.assert_matches(gradients, torch.stack(slopes, dim=1))
        cases.assert_matches(risk.losses(thetas, columns=columns), expected)


@pytest.mark.parametrize("make", [problems.branches, problems._tied_embedding])
def test_parameters_that_a_batch_does_not_use(make: Any) -> None:
    risk = make().risk()
    thetas = points(risk, 4)
    expected, gradients = one_by_one(risk, thetas)
    for columns in CHUNKS:
        problems.assert_same(risk.losses(thetas, columns=columns), expected)
        problems.assert_same(risk.gradients(thetas, columns=columns), gradients)


def test_parameters_of_several_dtypes() -> None:
    model = cases.mlp()
    model[2].double()
    params = cases.perturbed(model)
    risk = EmpiricalRisk(
        lambda p, x: (
            torch.tanh(x.float() @ p["0.weight"].T + p["0.bias"]).double() @ p["2.weight"].T
        ),
        nn.MSELoss(),
        {name: p for name, p in params.items() if name != "2.bias"},
        cases.cut(cases.randn(8, 3, seed=1), cases.randn(8, 3, seed=2)),
        **cases.UNMERGED,
    )
    assert risk.dtype == torch.float64
    thetas = points(risk, 3)
    expected, gradients = one_by_one(risk, thetas)
    for columns in CHUNKS:
        problems.assert_same(risk.losses(thetas, columns=columns), expected, rtol=1e-6)
        problems.assert_same(risk.gradients(thetas, columns=columns), gradients, rtol=1e-6)


@pytest.mark.parametrize("budget", [0, 2_000, "1MB"])
@pytest.mark.parametrize("columns", [1, 3, 7, 100, "vmap", "loop", "auto"])
def test_chunks_change_nothing(columns: Any, budget: Any) -> None:
    risk = problems.mlp((7, 7, 5)).risk(merge_batches=64)
    thetas = points(risk, 20)
    expected, gradients = one_by_one(risk, thetas)
    options: Any = {"columns": columns, "memory_budget": budget}
    problems.assert_same(risk.losses(thetas, **options), expected)
    losses, answer = risk.losses_and_gradients(thetas, **options)
    problems.assert_same(losses, expected)
    assert isinstance(answer, Tensor)
    problems.assert_same(answer, gradients)
    line = ray(risk, 20, 2)
    problems.assert_same(risk.losses(line, **options), one_by_one(risk, columns_of(line))[0])


def test_a_row_matrix_seen_as_columns_is_not_copied_wrongly() -> None:
    """Chains keep their points as rows; the transpose is a view."""
    risk = problems.mlp().risk()
    rows = points(risk, 6).T.contiguous()
    expected, gradients = one_by_one(risk, rows.T.contiguous())
    problems.assert_same(risk.losses(rows.T), expected)
    problems.assert_same(risk.gradients(rows.T), gradients)
    problems.assert_same(risk.losses(rows[::2].T), expected[::2])


# How it is done ------------------------------------------------------------------------------


def test_a_budget_bounds_what_goes_through_together(plans: list[Plan]) -> None:
    risk = problems.mlp((4, 4)).risk()
    thetas = points(risk, 12)
    per_point = 2 * 8 * risk.space.dim
    for budget, most in ((0, 1), (3 * per_point, 3), ("1GB", 12)):
        plans.clear()
        risk.losses(thetas, columns="vmap", memory_budget=budget)
        assert 1 <= max(plan.width for plan in plans) <= most
        assert sum(plan.width for plan in plans) == 2 * 12
    assert plans == [Plan(12), Plan(12)]


def test_chunks_are_of_about_the_same_size(plans: list[Plan]) -> None:
    risk = problems.mlp((4,)).risk()
    risk.losses(points(risk, 9), columns=4)
    assert [plan.width for plan in plans] == [3, 3, 3]


def test_a_choice_is_measured_once_and_for_all_copies(plans: list[Plan]) -> None:
    risk = problems.mlp((4, 4)).risk()
    thetas = points(risk, 6)
    risk.losses(thetas)
    first = len(plans)
    plans.clear()
    risk.losses(thetas)
    again = sum(plan.width for plan in plans)
    assert again == 12
    assert len(plans) < first
    plans.clear()
    risk.at(thetas[:, 0]).losses(thetas)
    assert sum(plan.width for plan in plans) == 12


def test_copies_in_another_dtype_and_other_quantities_share_what_is_measured(
    plans: list[Plan],
) -> None:
    """So that the same question twice has the same answer to the last bit."""
    risk = problems.mlp((4, 4)).risk()
    line = ray(risk, 20, 2)
    first = risk.to(torch.float32).losses(line)
    plans.clear()
    assert torch.equal(risk.to(torch.float32).losses(line), first)
    again, _ = risk.to(torch.float32).losses_and_metrics(line, {"right": "accuracy"})
    assert torch.equal(again, first)
    assert sum(plan.width for plan in plans) == 2 * 2 * 20


@pytest.mark.parametrize("ratio", [0.5, 0.85, 1.5])
def test_chance_does_not_decide_between_plans_that_are_about_as_fast(
    ratio: float, monkeypatch: pytest.MonkeyPatch, plans: list[Plan]
) -> None:
    monkeypatch.setattr(
        Ensemble, "_try", lambda self, evaluation, plan: ratio if plan.width > 1 else 1.0
    )
    risk = problems.mlp((4, 4)).risk()
    risk.losses(points(risk, 16))
    assert {plan.width > 1 for plan in plans} == {ratio < 0.8}


def test_what_vmap_refuses_is_evaluated_one_by_one(plans: list[Plan]) -> None:
    """Control flow that depends on the values of a parameter."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.gate = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            gate = self.gate.weight.squeeze()
            return (self.up(x) if gate > 0 else self.down(x)) * gate

    risk = problems.problem(Gate, cases.randn(8, 3, seed=1), (4, 1, 3)).risk()
    thetas = points(risk, 6, scale=1.0)
    expected, gradients = one_by_one(risk, thetas)
    plans.clear()
    for columns in ("vmap", "auto"):
        problems.assert_same(risk.losses(thetas, columns=columns), expected)
        problems.assert_same(risk.gradients(thetas, columns=columns), gradients)
    assert {plan.width for plan in plans} == {1}


def test_what_answers_differently_under_vmap_is_evaluated_one_by_one(plans: list[Plan]) -> None:
    """Here on purpose: the trial compares."""

    def predict(params: dict[str, Tensor], x: Tensor) -> Tensor:
        stacked = torch._C._functorch.is_batchedtensor(params["w"])
        return x @ params["w"] * (2.0 if stacked else 1.0)

    data = [(cases.randn(4, 3, seed=1), cases.randn(4, 1, seed=2))]
    risk = EmpiricalRisk(predict, nn.MSELoss(), {"w": cases.randn(3, 1, seed=3)}, data)
    thetas = points(risk, 6)
    expected, gradients = one_by_one(risk, thetas)
    problems.assert_same(risk.losses(thetas), expected)
    problems.assert_same(risk.gradients(thetas), gradients)


def test_an_error_of_the_model_is_the_models_own() -> None:
    def predict(params: dict[str, Tensor], x: Tensor) -> Tensor:
        if params["w"].requires_grad:
            raise KeyError("missing")
        return x @ params["w"]

    data = [(cases.randn(4, 3, seed=1), cases.randn(4, 1, seed=2))]
    risk = EmpiricalRisk(predict, nn.MSELoss(), {"w": cases.randn(3, 1, seed=3)}, data)
    with pytest.raises(KeyError, match="missing"):
        risk.gradients(points(risk, 3))


@pytest.mark.parametrize("columns", CHUNKS)
def test_out_of_memory_halves_the_width(columns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from curvops.autodiff.evaluation import Evaluation

    original = Evaluation.several
    widths: list[int] = []

    def several(self: Any, start: int, stop: int, shared: bool = False) -> Tensor:
        widths.append(stop - start)
        if stop - start > 2:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, start, stop, shared)

    risk = problems.mlp().risk()
    thetas = points(risk, 12)
    expected, _ = one_by_one(risk, thetas)
    monkeypatch.setattr(Evaluation, "several", several)
    problems.assert_same(risk.losses(thetas, columns=columns), expected)
    if columns == "vmap":
        assert set(widths) == {12, 6, 3, 1} - {1} or 2 in widths or widths[:2] == [12, 6]


def test_models_that_draw_random_numbers_see_the_same_ones_at_every_point() -> None:
    """Unchecked, dropout in train mode: the points differ, the masks do not."""
    with cases.seeded(0):
        model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).double()
    data = cases.cut(cases.randn(8, 3, seed=1), cases.randn(8, 2, seed=2))
    risk = EmpiricalRisk(model, nn.MSELoss(), model, data, check_deterministic=False)
    thetas = risk.theta.unsqueeze(1).repeat(1, 5)
    losses, gradients = risk.losses_and_gradients(thetas)
    assert isinstance(gradients, Tensor)
    assert torch.equal(losses, losses[:1].expand(5))
    assert torch.equal(gradients, gradients[:, :1].expand(-1, 5))
    assert torch.equal(losses[0], risk.loss())
    assert torch.equal(gradients[:, 0], risk.gradient())
    assert torch.equal(risk.losses(thetas), losses)


class Counter(nn.Module):
    """Its predictions depend on how often it was called."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x) * self.calls


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("kind", ["batch-norm", "counter"])
def test_buffers_that_an_unchecked_model_writes_to_start_anew_at_every_point(kind: str) -> None:
    with cases.seeded(0):
        model = Counter()
        if kind == "batch-norm":
            model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        model.double()
    data = cases.cut(cases.randn(8, 3, seed=1), cases.randn(8, 2, seed=2), (4, 4))
    risk = EmpiricalRisk(model, nn.MSELoss(), model, data, check_deterministic=False)
    before = list(state(model))
    thetas = points(risk, 4)
    expected, gradients = one_by_one(risk, thetas)
    problems.assert_same(risk.losses(thetas), expected)
    problems.assert_same(risk.gradients(thetas), gradients)
    assert list(state(model)) == before


def test_no_prediction_depends_on_the_parameters() -> None:
    data = [(cases.randn(4, 3, seed=1), cases.randn(4, 3, seed=2))]
    risk = EmpiricalRisk(lambda p, x: x, nn.MSELoss(), {"w": torch.zeros(2)}, data)
    thetas = torch.ones(2, 3)
    assert risk.losses(thetas).shape == (3,)
    for columns in CHUNKS:
        with pytest.raises(DifferentiationError, match="'w'"):
            risk.gradients(thetas, columns=columns)


# Losses that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("columns", CHUNKS)
def test_non_finite_losses_are_returned_as_such(columns: Any) -> None:
    """One infinite batch makes an infinite sum, whatever comes before and after."""
    data = [(torch.full((2, 1), x).double(), torch.zeros(2, 1).double()) for x in (1, 2, 3, 1, 1)]
    risk = EmpiricalRisk(
        lambda p, x: x * p["w"].log(), nn.MSELoss(), {"w": torch.ones(1).double()}, data,
        **cases.UNMERGED,
    )  # fmt: skip
    thetas = torch.tensor([[1.0, 0.0, -1.0, 2.0, 1e300]], dtype=torch.float64)
    losses = risk.losses(thetas, columns=columns)
    assert losses[0] == 0
    assert losses[1] == torch.inf
    assert losses[2].isnan()
    finite = thetas[0, 3:].log().square() * (1 + 4 + 9 + 1 + 1) / 5
    problems.assert_same(losses[3:], finite)
    again, gradients = risk.losses_and_gradients(thetas, columns=columns)
    problems.assert_same(again[3:], finite)
    assert torch.equal(again.isfinite(), losses.isfinite())
    assert isinstance(gradients, Tensor)
    problems.assert_same(gradients[0, 3:], 2 * finite / thetas[0, 3:] / thetas[0, 3:].log())


# Affine points -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_directions", [0, 1, 2, 3, 12])
def test_affine_points_are_their_columns(num_directions: int) -> None:
    risk = EmpiricalRisk(*cases.make("ce-weight-mask").args, weight_decay=0.4, **cases.UNMERGED)
    line = ray(risk, 10, num_directions)
    expected, gradients = one_by_one(risk, columns_of(line))
    cases.assert_matches(risk.losses(line), expected)
    losses, answer = risk.losses_and_gradients(line)
    cases.assert_matches(losses, expected)
    assert isinstance(answer, Tensor)
    cases.assert_matches(answer, gradients)
    cases.assert_matches(risk.metrics(line, "accuracy"), risk.metrics(columns_of(line), "accuracy"))


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("frozen", ["weight", "bias", "nothing"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_layers_that_see_the_data_share_products(
    layer: str, frozen: str, width: int, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    with cases.seeded(0):
        first: nn.Module = nn.Linear(6, 4)
        if layer == "conv":
            first = nn.Conv2d(1, 2, 2, stride=2, padding=1)
        rest = (nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))
        model = nn.Sequential(nn.Flatten() if layer == "linear" else nn.Identity(), first, *rest)
        X = cases.randn(8, *((6,) if layer == "linear" else (1, 3, 3)), seed=1).float()
        model(X)
        model.double()
    if frozen != "nothing":
        getattr(first, frozen).requires_grad_(False)
    data = cases.cut(X.double(), cases.randint(3, 8, seed=2))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), cases.perturbed(model), data)
    line = ray(risk, 9, 2)
    expected, _ = one_by_one(risk, columns_of(line))
    original = SharedProducts._combined
    monkeypatch.setattr(
        SharedProducts,
        "_combined",
        lambda self, func, *args: calls.append(func.__name__) or original(self, func, *args),
    )
    always_faster(monkeypatch, width)
    plans.clear()
    problems.assert_same(risk.losses(line), expected)
    assert plans[-1].shared
    assert (plans[-1].width > 1) == (width > 1)
    assert set(calls) == {"linear" if layer == "linear" else "conv2d"}


@pytest.mark.parametrize("enough", [True, False])
def test_points_in_columns_share_products_where_data_are_many(
    enough: bool, plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "_MANY_DATA", 8 if enough else 9)
    always_faster(monkeypatch)
    risk = problems.mlp((4, 4)).risk()
    columns = columns_of(ray(risk, 9, 2))
    expected, _ = one_by_one(risk, columns)
    plans.clear()
    problems.assert_same(risk.losses(columns), expected)
    assert plans[-1].shared == enough
    plans.clear()
    problems.assert_same(risk.losses(columns, columns="loop"), expected)
    assert not any(plan.shared for plan in plans)


def test_data_that_are_views_of_one_tensor_do_not_exhaust_the_budget(
    plans: list[Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    always_faster(monkeypatch)
    X = torch.zeros(4096, 4, 4).double()
    X[:64] = cases.randn(64, 4, 4, seed=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    data = [(X[i : i + 16], cases.randint(3, 16, seed=i)) for i in (0, 16, 32, 48)]
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)
    line = ray(risk, 9, 2)
    expected, _ = one_by_one(risk, columns_of(line))
    plans.clear()
    problems.assert_same(risk.losses(line, memory_budget=X.numel() * 8 // 2), expected)
    assert plans[-1].shared


def test_layers_that_do_not_see_the_data_do_not_share(plans: list[Plan]) -> None:
    """The data are changed before the first layer."""
    model = nn.Sequential(nn.Tanh(), nn.Linear(3, 3)).double()
    data = cases.cut(cases.randn(8, 3, seed=1), cases.randint(3, 8, seed=2))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)
    line = ray(risk, 9, 1)
    expected, _ = one_by_one(risk, columns_of(line))
    plans.clear()
    for _ in range(2):
        problems.assert_same(risk.losses(line), expected)
    assert sum(plan.shared for plan in plans) <= ensemble_module._REPEATS


def test_affine_points_in_all_formats_and_shapes() -> None:
    case = cases.make("ce")
    risk = EmpiricalRisk(*case.args)
    line = ray(risk, 4, 2)
    expected = risk.losses(columns_of(line))
    blocks = [risk.space.unflatten(t) for t in (line.theta, line.directions)]  # type: ignore[arg-type]
    as_lists = Affine(blocks[0], blocks[1], line.coefficients)
    as_dicts = Affine(*(dict(zip(case.params, b, strict=True)) for b in blocks), line.coefficients)
    for given in (as_lists, as_dicts):
        problems.assert_same(risk.losses(given), expected)
    assert isinstance(risk.gradients(as_lists), list)
    answer = risk.gradients(as_dicts)
    assert isinstance(answer, dict)
    assert [t.shape for t in answer.values()] == [(*p.shape, 4) for p in case.params.values()]
    assert isinstance(line.directions, Tensor)
    single = Affine(line.theta, line.directions[:, 0], line.coefficients[0])
    moved = risk.theta.unsqueeze(1) + line.directions[:, :1] * line.coefficients[0]
    problems.assert_same(risk.losses(single), risk.losses(moved))
    nothing = Affine(line.theta, line.directions, line.coefficients[:, :0])
    assert risk.losses(nothing).shape == (0,)
    assert risk.gradients(nothing).shape == (case.dim, 0)


def test_bad_affine_points() -> None:
    risk = EmpiricalRisk(*cases.make("ce").args)
    theta, dim = risk.theta, risk.space.dim
    for bad, error, what in (
        (Affine(theta, theta, torch.zeros(2, 5)), ShapeError, r"coefficients .*\[2, 5\]"),
        (Affine(theta, theta[:-1], torch.zeros(1, 5)), ShapeError, "directions"),
        (Affine(torch.zeros(dim, 2), theta, torch.zeros(1, 5)), InputError, "2 columns"),
        (Affine(theta, theta, torch.tensor([1.0, torch.nan])), NonFiniteError, "coefficients"),
        (Affine(theta * torch.inf, theta, torch.zeros(1, 5)), NonFiniteError, "theta"),
    ):
        with pytest.raises(error, match=what):
            risk.losses(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_points_in_a_plane_are_recognised(dtype: torch.dtype, scale: float) -> None:
    """From columns rounded to their dtype, and to the rounding of the dtype."""
    theta = cases.randn(500, seed=1)
    theta[::7] = 0.0
    for num, count in ((1, 8), (2, 40), (1, 9), (2, 9)):
        directions = scale * cases.randn(500, num, seed=2)
        directions[::5] = 0.0
        coefficients = cases.randn(num, count, seed=3)
        exact = theta.unsqueeze(1) + directions @ coefficients
        rows = (theta.to(dtype).unsqueeze(1) + (directions @ coefficients).to(dtype)).T.contiguous()
        found = find_affine(rows)
        assert found is not None
        origin, steps, weights = found
        assert steps.shape[1] == num
        assert weights.abs().max() <= 2.0
        again = origin.double().unsqueeze(1) + steps.double() @ weights.double()
        bound = 8 * torch.finfo(dtype).eps * exact.abs().amax(1, keepdim=True)
        assert bool(((again - exact).abs() <= bound).all())


def test_points_that_are_not_in_a_plane() -> None:
    line = cases.randn(5000, 2, seed=1) @ cases.randn(2, 20, seed=2)
    assert find_affine(line.T) is not None
    for row, column in ((0, 0), (2501, 7), (4999, 19)):  # one coordinate of one point is off
        bent = line.clone()
        bent[row, column] += 1e-9
        assert find_affine(bent.T) is None
    assert find_affine(cases.randn(20, 500, seed=3)) is None
    assert find_affine((cases.randn(500, 3, seed=1) @ cases.randn(3, 20, seed=2)).T) is None
    assert find_affine(line.T[:4]) is None  # too few to pay
    assert find_affine(torch.ones(10, 500)) is None  # all the same


# Another dtype -------------------------------------------------------------------------------


@pytest.mark.usefixtures("global_rng_untouched")
@pytest.mark.parametrize("name", ["mlp", "lstm", "batch-norm-eval", "conv2d", "partly-frozen"])
@pytest.mark.parametrize("cache_data", ["1GiB", 0])
def test_to_float64_through_the_whole_net(name: str, cache_data: Any) -> None:
    """Equal to the problem built in float64 from the same numbers, and nothing has changed."""
    if name == "mlp":
        problem = problems.mlp()
        model, loss, params, batches = problem.args
    else:
        model, loss, params, batches = _build(name)
    model = copy.deepcopy(model).float()
    single = {n: p.float() for n, p in params.items()}
    data = truth.to(batches, torch.float32)
    risk = EmpiricalRisk(model, loss, single, data, weight_decay=0.1, **cases.UNMERGED)
    before, seen = list(state(model)), risk.loss()

    wide = risk.to(torch.float64, cache_data=cache_data)
    assert wide.dtype == torch.float64
    again = EmpiricalRisk(
        copy.deepcopy(model).double(),
        loss,
        {n: p.double() for n, p in single.items()},
        truth.to(data, torch.float64),
        weight_decay=0.1,
        **cases.UNMERGED,
    )
    thetas = points(again, 4)
    problems.assert_same(wide.loss(), again.loss())
    problems.assert_same(wide.gradient(), again.gradient())
    problems.assert_same(wide.losses(thetas), again.losses(thetas))
    problems.assert_same(wide.at(thetas[:, 0]).loss(), again.at(thetas[:, 0]).loss())
    assert wide.num_data == risk.num_data
    assert wide.normalizer == risk.normalizer
    assert list(state(model)) == before
    assert risk.dtype == torch.float32
    assert torch.equal(risk.loss(), seen)
    problems.assert_same(wide.to(torch.float32).loss(), seen, rtol=1e-6)


def test_to_is_a_copy() -> None:
    model = cases.mlp()
    data = cases.cut(cases.randn(8, 3, seed=1).float(), cases.randint(3, 8, seed=2))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)
    for dtype in (torch.float64, torch.float32):
        other = risk.to(dtype)
        before = other.loss()
        with torch.no_grad():
            model[0].weight.add_(1.0)
        assert torch.equal(other.loss(), before)
    assert risk.loss() != before


@pytest.mark.parametrize("cache_data", ["1GiB", 0])
def test_data_that_change_are_refused_in_another_dtype_too(cache_data: Any) -> None:
    model = cases.mlp()
    X, y = cases.randn(8, 3, seed=1).float(), cases.randint(3, 8, seed=2)
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, [(X, y)])
    wide = risk.to(torch.float64, cache_data=cache_data)
    wide.loss()
    X += 1
    with pytest.raises(DeterminismError, match="modified in place"):
        wide.loss()


def test_dtypes_that_are_not_real_floating() -> None:
    risk = EmpiricalRisk(*cases.make("ce").args)
    bad: Any
    for bad in (torch.int64, torch.complex64, "float64"):
        with pytest.raises(DTypeError, match="real floating"):
            risk.to(bad)


def test_modules_that_cannot_be_copied() -> None:
    model = cases.mlp()
    model.extra = model[0].weight * 2  # torch copies only leaves
    data = cases.cut(cases.randn(8, 3, seed=1).float(), cases.randint(3, 8, seed=2))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), model, data)
    with pytest.raises(InputError, match="cannot be copied"):
        risk.to(torch.float64)


def test_warnings_of_vmap_stay_inside() -> None:
    risk = problems.mlp().risk()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses, gradients = risk.losses_and_gradients(points(risk, 8), columns="vmap")
    assert bool(losses.isfinite().all())
    assert bool(gradients.isfinite().all())
