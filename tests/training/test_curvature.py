"""Quantities of the risk: against dense Hessians, closed forms and simulated dynamics."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops.errors import InputError
from curvops.training import (
    TIC,
    Alpha,
    ExactAlpha,
    GradientNoise,
    HessianTrace,
    Monitor,
    Quantity,
    Sharpness,
    SubspaceOverlap,
    SubspaceOverlapResult,
    stability,
)
from curvops.training.curvature import Probe
from tests.cases import randint, randn, seeded
from tests.training.test_gradient_noise import diverging

DATA = [
    (X, y)
    for X, y in zip(randn(40, 6, seed=1).split(16), randint(3, 40, seed=2).split(16), strict=True)
]


def mlp() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)).double()


def all_data(data: Any = DATA) -> tuple[Tensor, Tensor]:
    return torch.cat([X for X, _ in data]), torch.cat([y for _, y in data])


def dense(model: nn.Module, data: Any = DATA) -> tuple[Tensor, Tensor]:
    """Hessian and gradient of the mean loss, without dropout, by torch.func."""
    X, y = all_data(data)
    named = {n: p.detach() for n, p in model.named_parameters()}
    shapes = [p.shape for p in named.values()]
    quiet = mlp().eval()

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([s.numel() for s in shapes])
        params = {n: part.reshape(s) for n, part, s in zip(named, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(quiet, params, (X,)), y)

    theta = torch.cat([p.reshape(-1) for p in named.values()])
    return torch.func.hessian(loss)(theta), torch.func.grad(loss)(theta)


def measured(
    quantity: Quantity,
    optimizer: Any = None,
    model: nn.Module | None = None,
    steps: int = 1,
    **o: Any,
) -> tuple[list[dict[str, Any]], nn.Module]:
    model = mlp() if model is None else model
    sgd = torch.optim.SGD(model.parameters(), 0.1) if optimizer is None else optimizer
    options = {"data": DATA} | o
    monitor = Monitor(model, nn.CrossEntropyLoss(), sgd, [quantity], **options)
    with torch.random.fork_rng(devices=[]):
        for i in range(steps):
            X, y = DATA[i % len(DATA)]
            with monitor.step(X, y):
                nn.functional.cross_entropy(model(X), y).backward()
            if i < steps - 1:
                sgd.step()
                sgd.zero_grad()
    monitor.close()
    return [dict(r.values) for r in monitor.records if r.quantity == quantity.name], model


def test_sharpness_is_the_top_of_the_dense_hessian() -> None:
    [found], model = measured(Sharpness(every=1, k=4, tol=1e-8))
    H, _ = dense(model)
    values = torch.linalg.eigvalsh(H).flip(0)
    assert found["eigenvalues"] == pytest.approx(values[:4].tolist(), rel=1e-8)
    assert found["sharpness"] == found["eigenvalues"][0]
    assert found["threshold"] == pytest.approx(20.0)
    assert found["ratio"] == pytest.approx(found["sharpness"] * 0.1 / 2)
    assert found["converged"]
    assert not found["preconditioned"]


def test_warm_starts_are_cheaper_and_right() -> None:
    rows, model = measured(Sharpness(every=1, k=2), steps=6)
    H, _ = dense(model)
    top = torch.linalg.eigvalsh(H)[-2:].flip(0)
    assert rows[-1]["eigenvalues"] == pytest.approx(top.tolist(), rel=1e-4)
    assert rows[-1]["num_matvecs"] <= rows[0]["num_matvecs"]


def test_weight_decay_is_part_of_the_matrix() -> None:
    model = mlp()
    sgd = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.3)
    [found], _ = measured(Sharpness(every=1, tol=1e-8), sgd, model)
    H, _ = dense(model)
    assert found["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]) + 0.3)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad"])
def test_preconditioned_sharpness(name: str) -> None:
    model = mlp()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.01, weight_decay=0.1)
    rows, _ = measured(Sharpness(every=1, k=3, tol=1e-8), optimizer, model, steps=4)
    assert rows[0]["threshold"] is None
    assert "no preconditioner yet" in rows[0]["notes"][0]
    P = []
    for p in model.parameters():
        state = optimizer.state[p]
        t = float(state["step"])
        if name.startswith("Adam"):
            root = (state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8
            P.append((1 - 0.9**t) * root)
        elif name == "RMSprop":
            P.append(state["square_avg"].sqrt() + 1e-8)
        else:
            P.append(state["sum"].sqrt() + 1e-10)
    flat = torch.cat([x.reshape(-1) for x in P])
    H, _ = dense(model)
    if name != "AdamW":  # the others add the decay to the gradient
        H = H + 0.1 * torch.eye(len(H), dtype=H.dtype)
    values = torch.linalg.eigvals(H / flat.unsqueeze(1)).real.sort(descending=True).values
    assert rows[-1]["eigenvalues"] == pytest.approx(values[:3].tolist(), rel=1e-6)
    assert rows[-1]["preconditioned"]
    expected = 38 / 0.01 if name.startswith("Adam") else 2 / 0.01
    assert rows[-1]["threshold"] == pytest.approx(expected)


def _diverges(step: Any, scale: float) -> bool:
    """Whether iterates of a linear method grow on f(x) = scale x²/2."""
    x = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = step([x])
    for _ in range(400):
        optimizer.zero_grad()
        (0.5 * scale * x.square()).sum().backward()
        optimizer.step()
        if not abs(x.item()) < 1e6:
            return True
    return False


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.5, "weight_decay": 1.0},
        {"dampening": 0.5},
    ],
)
def test_thresholds_are_where_torchs_optimizer_diverges(options: dict[str, Any]) -> None:
    make = lambda p: torch.optim.SGD(p, 0.1, **options)  # noqa: E731
    model = nn.Linear(1, 1, bias=False)
    bound = stability(make(list(model.parameters())), dict(model.named_parameters()))
    assert bound.threshold is not None
    edge = bound.threshold - bound.shift
    assert not _diverges(make, 0.98 * edge)
    assert _diverges(make, 1.05 * edge)


def test_adams_threshold_is_that_of_its_averaged_momentum() -> None:
    """x ← x − η m, m ← β m + (1 − β) λ x with the preconditioner held still."""
    model = nn.Linear(1, 1, bias=False)
    adam = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.999))
    model(torch.ones(1, 1)).sum().backward()
    adam.step()
    edge = stability(adam, dict(model.named_parameters())).threshold
    assert edge == pytest.approx(2 * 1.8 / (0.2 * 0.1))
    for factor, grows in ((0.98, False), (1.02, True)):
        x, m = 1.0, 0.0
        for _ in range(2000):
            m = 0.8 * m + 0.2 * factor * edge * x
            x -= 0.1 * m
        assert (abs(x) > 1.0) is grows


def test_what_has_no_threshold_says_why() -> None:
    model = mlp()
    params = dict(model.named_parameters())
    first, second = list(params.values())[:2], list(params.values())[2:]
    sgd = torch.optim.SGD([{"params": first}, {"params": second, "momentum": 0.9}], 0.1)
    assert "more than their step sizes" in stability(sgd, params).note
    assert "not hold all" in stability(torch.optim.SGD(first, 0.1), params).note
    assert "no step size" in stability(None, params).note
    assert "SparseAdam" in stability(torch.optim.SparseAdam(list(params.values())), params).note
    maximising = torch.optim.SGD(list(params.values()), 0.1, maximize=True)
    assert "maximises" in stability(maximising, params).note
    assert "zero" in stability(torch.optim.SGD(list(params.values()), 0.0), params).note


def test_groups_with_step_sizes_of_their_own() -> None:
    model = mlp()
    params = dict(model.named_parameters())
    first, second = list(params.values())[:2], list(params.values())[2:]
    sgd = torch.optim.SGD([{"params": first, "lr": 0.2}, {"params": second, "lr": 0.05}])
    [found], _ = measured(Sharpness(every=1, tol=1e-8), sgd, model)
    H, _ = dense(model)
    eta = torch.cat(
        [torch.full((p.numel(),), 0.2 if i < 2 else 0.05) for i, p in enumerate(params.values())]
    )
    largest = float(torch.linalg.eigvals(eta.double().unsqueeze(1) * H).real.max())
    assert found["ratio"] == pytest.approx(largest / 2)


def test_traces_of_layers() -> None:
    found, model = measured(HessianTrace(every=1, num_probes=400))
    H, _ = dense(model)
    diagonal = H.diagonal()
    truth = [float(diagonal[:35].sum()), float(diagonal[35:].sum())]
    assert found[0]["layers"] == ["0", "3"]
    for value, error, exact in zip(found[0]["traces"], found[0]["stderrs"], truth, strict=True):
        assert abs(value - exact) < 4 * error
        assert 0 < error < 0.2 * abs(exact) + 0.2
    assert abs(found[0]["total"] - sum(truth)) < 4 * found[0]["total_stderr"]
    ggn, _ = measured(HessianTrace(every=1, num_probes=4, curvature="ggn"))
    assert min(ggn[0]["traces"]) > 0
    with pytest.raises(InputError, match="num_probes"):
        HessianTrace(num_probes=1)
    with pytest.raises(InputError, match="curvature"):
        HessianTrace(curvature="fisher")  # type: ignore[arg-type]


def test_subspace_overlap_and_the_gradient_in_it() -> None:
    rows, model = measured(SubspaceOverlap(every=1, k=3, tol=1e-8), steps=3)
    H, g = dense(model)
    V = torch.linalg.eigh(H).eigenvectors[:, -3:]
    inside = float((V.T @ g).square().sum() / g.square().sum())
    assert rows[-1]["gradient_fraction"] == pytest.approx(inside, rel=1e-5)
    assert rows[0]["overlap"] is None
    assert rows[1]["since"] == 0
    assert 0.5 < rows[-1]["overlap"] <= 1.0
    assert rows[0]["chance"] == 3 / len(H)
    still, _ = measured(
        SubspaceOverlap(every=1, k=3, tol=1e-8), torch.optim.SGD(mlp().parameters(), 0.1), steps=2
    )
    assert still[1]["overlap"] == pytest.approx(1.0)  # another model's optimizer moves nothing


def test_quantities_at_the_same_step_share_eigenpairs() -> None:
    model = mlp()
    monitor = Monitor(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1),
        [Sharpness(every=1, k=2), SubspaceOverlap(every=1, k=5)], data=DATA,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), monitor.step(*DATA[0]):
        pass
    sharpness, overlap = (monitor.latest(n).values for n in ("sharpness", "subspace_overlap"))  # type: ignore[union-attr]
    assert len(sharpness["eigenvalues"]) == 2
    assert sharpness["num_matvecs"] == overlap["num_matvecs"]


def test_tic_by_its_definition() -> None:
    [found], model = measured(TIC(every=1))
    X, y = all_data()
    model.eval()
    params = list(model.parameters())
    G = torch.stack(
        [
            torch.cat([
                g.reshape(-1) for g in torch.autograd.grad(
                    nn.functional.cross_entropy(model(X[n : n + 1]), y[n : n + 1]), params)
            ])
            for n in range(len(y))
        ]
    )  # fmt: skip

    def row(n: int, c: int) -> Tensor:
        gradients = torch.autograd.grad(model(X[n : n + 1])[0, c], params)
        return torch.cat([g.reshape(-1) for g in gradients])

    J = torch.stack([torch.stack([row(n, c) for c in range(3)]) for n in range(len(y))])
    p = model(X).softmax(1).detach()
    S = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    ggn = torch.einsum("nci,ncd,ndi->i", J, S, J) / len(y)
    covariance = G.var(0)
    assert found["noise_trace"] == pytest.approx(float(covariance.sum()))
    assert found["curvature_trace"] == pytest.approx(float(ggn.sum()))
    assert found["ratio_of_traces"] == pytest.approx(float(covariance.sum() / ggn.sum()))
    assert found["diagonal"] == pytest.approx(float((covariance / ggn).sum()), rel=1e-6)
    assert found["num_data"] == 40


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_exact_alpha_of_what_the_optimizer_did(name: str) -> None:
    model = mlp()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05)
    before = [p.detach().clone() for p in model.parameters()]
    H, g = dense(model)
    rows, _ = measured(ExactAlpha(every=1), optimizer, model, steps=2)
    # One step was made and one more block opened, which told what it was.
    d = torch.cat([(p.detach() - q).reshape(-1) for p, q in zip(model.parameters(), before)])
    assert rows[0]["alpha"] == pytest.approx(float(-(d @ H @ d) / (g @ d) - 1), rel=1e-6)
    assert rows[0]["stderr"] == 0.0


def test_the_probe_set_is_the_first_data_and_stays() -> None:
    probe = Probe(20)
    for X, y in DATA:
        probe.see(X, y)
    assert probe.complete
    assert sum(len(X) for X, _ in probe.batches) == 32
    DATA[0][0].add_(1.0)
    assert not torch.equal(probe.batches[0][0], DATA[0][0])
    DATA[0][0].sub_(1.0)
    full = Probe(1000)
    for _ in range(2):
        full.see(*DATA[0])
    assert full.complete  # the full batch, again
    assert len(full.batches) == 1


def test_measurements_wait_for_the_probe_set() -> None:
    rows, _ = measured(Sharpness(every=10), steps=4, data=None, probe_size=40)
    assert len(rows) == 1
    model = mlp()
    monitor = Monitor(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1),
        [Sharpness(every=10)], probe_size=40,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        for X, y in DATA:
            monitor.backward(X, y)
            monitor._optimizer.step()
            monitor._optimizer.zero_grad()
    assert [r.step for r in monitor.records if r.quantity == "sharpness"] == [2]


def test_updates_that_move_no_version_counter_are_seen() -> None:
    model = mlp()
    monitor = Monitor(model, nn.CrossEntropyLoss(), None, [Sharpness(every=1, tol=1e-8)], data=DATA)
    with torch.random.fork_rng(devices=[]):
        for scale in (1.0, 0.5):
            for p in model.parameters():
                p.data.mul_(scale)
            with monitor.step(*DATA[0]):
                nn.functional.cross_entropy(model(DATA[0][0]), DATA[0][1]).backward()
    H, _ = dense(model)
    assert monitor.latest("sharpness").values["sharpness"] == pytest.approx(  # type: ignore[union-attr]
        float(torch.linalg.eigvalsh(H)[-1])
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sharpness(k=0), "k must be"),
        (lambda: Sharpness(tol=0.0), "tol"),
        (lambda: SubspaceOverlap(k=True), "k must be"),
    ],
)
def test_impossible_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_has_not_converged_is_told_in_the_record() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = mlp().float()
        data = [(X.float(), y) for X, y in DATA]
        monitor = Monitor(
            model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1),
            [Sharpness(every=1, k=2, tol=1e-12)], data=data,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]), monitor.step(*data[0]):
            pass
    found = monitor.latest("sharpness")
    assert found is not None
    assert not found.values["converged"]
    assert "residual above 1e-12" in found.values["notes"][0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_a_diverged_run_lacks_says_why(dtype: torch.dtype) -> None:
    quantities = [SubspaceOverlap(every=10, k=2), TIC(every=10)]
    run = diverging(quantities, dtype, individual="functional").run
    missing = dict.fromkeys(("subspace_overlap", "tic"), 0)
    for record in run.records:
        if record.quantity == "subspace_overlap":
            lost = record.values["gradient_fraction"] is None
            # The span of a linear model never moves, and its gradient lies in it at the start.
            assert lost or record.values["gradient_fraction"] > 0.1
        elif record.quantity == "tic":
            names = ("diagonal", "ratio_of_traces", "noise_trace")
            lost = any(record.values[name] is None for name in names)
        else:
            continue
        assert lost == any("diverged" in note for note in record.values["notes"])
        missing[record.quantity] += lost
    assert min(missing.values()) > 10


def test_no_curvature_says_so() -> None:
    model = nn.Linear(6, 3).double()
    monitor = Monitor(model, lambda f, y: f.sum(), None, [TIC(every=1)], data=DATA, reduction="sum")
    monitor.backward(*DATA[0])
    found = monitor.latest("tic")
    assert found is not None
    assert found.values["diagonal"] is None
    assert found.values["notes"] == ["no parameter has curvature"]


def test_a_fraction_that_is_missing_prints() -> None:
    result = SubspaceOverlapResult(None, None, None, 0.1, 2, True, 3, 0.0)
    assert "– of the gradient" in str(result)


def test_every_is_asked_once_a_step() -> None:
    """A function that answers at random must not be asked again for the same step."""
    draw, asked = random.Random(0), []

    def every(step: int) -> bool:
        asked.append(step)
        return draw.random() < 0.5

    with seeded(0):
        model = nn.Linear(6, 3).double()
    sgd = torch.optim.SGD(model.parameters(), 0.1)
    monitor = Monitor(
        model, nn.CrossEntropyLoss(), sgd, [GradientNoise(every), Alpha(lambda s: every(-s - 1))]
    )
    for i in range(40):
        monitor.backward(*DATA[i % 3])
        sgd.step()
        sgd.zero_grad()
    monitor.close()
    assert len(asked) == len(set(asked)) == 80
    for name in ("gradient_noise", "alpha"):
        assert 10 < sum(r.quantity == name for r in monitor.records) < 30
