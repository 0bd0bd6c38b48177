"""The memory budget is kept, nothing leaks, and the numbers do not depend on what fits."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvops import EmpiricalRisk, GGNLinearOperator, HessianLinearOperator
from curvops.autodiff import keeper as keeper_module
from curvops.autodiff import memory
from curvops.autodiff.memory import available_bytes, is_out_of_memory
from tests import cases
from tests.autodiff import problems
from tests.autodiff.problems import (
    FISHER,
    FORMS,
    GGN,
    HESSIAN,
    KINDS,
    assert_same,
    vectors,
)

_MB = 10**6


def resident_bytes() -> int:
    """What the process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")


def num_kept(operator: Any) -> int:
    kept = operator._keeper._kept
    return 0 if kept is None else len(kept.maps)


# Budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1, "16 B"])
@pytest.mark.parametrize("form", ["graph", "residuals"])
@pytest.mark.parametrize("kind", ["hessian", "fisher"])
def test_a_tiny_budget_keeps_nothing(kind: str, form: str, budget: Any) -> None:
    problem = problems.mlp((2, 2, 1))
    operator = problem.build(KINDS[kind], keep=form, memory_budget=budget)
    V = vectors(operator, 2)
    expected = problem.build(KINDS[kind], keep="nothing") @ V
    for _ in range(3):
        assert_same(operator @ V, expected)
        assert num_kept(operator) == 0
        assert operator.kept_bytes == 0
        assert operator.kept == "nothing"


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize("form", ["graph", "residuals"])
@pytest.mark.parametrize("kind", ["hessian", "ggn", "ef", "fisher"])
def test_a_prefix_that_fits(kind: str, form: str, kept: int, monkeypatch: Any) -> None:
    """The budget is used, not exceeded; drawn labels do not depend on what is kept."""
    problem = problems.mlp((2, 2, 2, 2))
    # what a batch needs while it is alive would dwarf these little budgets
    budget = [10**9]
    monkeypatch.setattr(keeper_module.Keeper, "_budget", _only(budget))
    operator = problem.build(KINDS[kind], keep=form)
    V = vectors(operator, 2)
    expected = problem.build(KINDS[kind], keep="nothing") @ V
    operator @ V
    assert num_kept(operator) == 4
    each = operator.kept_bytes // 4
    budget[0] = kept * each + each // 2
    operator.release()
    for _ in range(3):
        assert_same(operator @ V, expected)
        assert num_kept(operator) == kept
        assert 0 < operator.kept_bytes <= budget[0]
    for p in problem.params.values():
        p.mul_(0.5)
    assert_same(operator @ V, problem.build(KINDS[kind], keep="nothing") @ V)


def _only(budget: list[int]) -> Any:
    original = keeper_module.Keeper._budget

    def fixed(self: Any, lin: Any, *rest: Any) -> int:
        original(self, lin, *rest)
        return budget[0]

    return fixed


@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_the_users_budget_is_what_counts(form: str) -> None:
    """More is kept the larger it is, never more than it."""
    problem = problems.mlp((2,) * 6)
    expected = problem.build(keep="nothing") @ (v := cases.randn(31, seed=4))
    ample = problem.build(keep=form)
    ample @ v
    whole = ample.kept_bytes
    assert num_kept(ample) == 6
    found = []
    for share in (0.5, 1.0, 2.0, 4.0):
        budget = int(share * whole)
        operator = problem.build(keep=form, memory_budget=budget)
        operator._keeper._forms.tracer = ample._keeper._forms.tracer  # which need not trace again
        assert_same(operator @ v, expected)
        assert operator.kept_bytes <= budget
        found.append(num_kept(operator))
    assert found == sorted(found)
    assert found[0] < 6
    assert found[-1] == 6


def test_the_default_is_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problems.mlp((2, 2))
    for free, kept in ((0, 0), (10**9, 2)):
        monkeypatch.setattr(keeper_module, "available_bytes", lambda device, free=free: free)
        operator = problem.build(keep="graph")
        operator @ vectors(operator)
        assert num_kept(operator) == kept


class _Drawn:
    """Data that are made anew for every pass."""

    def __init__(self, batches: int, size: int, width: int) -> None:
        self.batches, self.size, self.width = batches, size, width

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for i in range(self.batches):
            yield (
                cases.randn(self.size, self.width, seed=i),
                cases.randn(self.size, 2, seed=100 + i),
            )


@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_data_that_are_not_cached_count_where_they_are_kept(form: str) -> None:
    """A linear layer's input is needed for its products: keeping it keeps the batch alive."""
    model = nn.Linear(100, 2).double()
    data = _Drawn(3, 50, 100)
    options: dict[str, Any] = {"keep": form, **cases.UNMERGED}
    operator = GGNLinearOperator(model, nn.MSELoss(), model, data, cache_data=0, **options)
    v = vectors(operator)
    expected = operator @ v
    bytes_of_X = 3 * 50 * 100 * 8
    assert operator.kept_bytes >= bytes_of_X
    cached = GGNLinearOperator(model, nn.MSELoss(), model, list(data), **options)
    assert_same(cached @ v, expected)
    assert cached.kept_bytes < bytes_of_X  # the list holds them anyway
    assert_same(operator @ v, expected)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "ef", "fisher"])
def test_a_scarce_budget_cuts_merged_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One merged batch may need more than the budget alone; its parts do not."""
    sizes: list[int] = []
    original = keeper_module.Keeper._multiply

    def multiply(self: Any, batch: Any, *rest: Any) -> None:
        sizes.append(batch.size)
        original(self, batch, *rest)

    problem = problems.mlp((7, 7, 5))
    whole = problem.build(KINDS[kind], merge_batches=64)
    V = vectors(whole, 3)
    expected = whole @ V
    monkeypatch.setattr(keeper_module.Keeper, "_multiply", multiply)
    for budget, most in (("1 GB", 19), (12_000, 10), (3_000, 5)):
        operator = problem.build(KINDS[kind], merge_batches=64, memory_budget=budget)
        for _ in range(3):
            sizes.clear()
            assert_same(operator @ V, expected)
            assert max(sizes) <= most
            assert sum(sizes) % 19 == 0


def test_batches_that_were_not_merged_are_never_cut() -> None:
    """Their data may depend on one another."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    data = [(cases.randn(8, 3, seed=i), cases.randn(8, 2, seed=i)) for i in range(2)]
    args: Any = (model, nn.MSELoss(), list(model.parameters()), data)
    expected = HessianLinearOperator(*args, memory_budget=0, check_deterministic=False)
    scarce = HessianLinearOperator(*args, memory_budget=100, check_deterministic=False)
    v = vectors(expected)
    assert_same(scarce @ v, expected @ v)


@needs_proc
@pytest.mark.parametrize("form", ["graph", "residuals"])
@pytest.mark.parametrize("kind", [HessianLinearOperator, GGNLinearOperator])
def test_the_process_stays_inside_the_budget(kind: Any, form: str) -> None:
    """Small batches of a wide model: the parameter-sized tensors a graph ends in count too."""
    model = nn.Sequential(nn.Linear(1000, 500), nn.Tanh(), nn.Linear(500, 2)).double()
    batches = [(cases.randn(1, 1000, seed=i), cases.randn(1, 2, seed=i)) for i in range(24)]
    args = (model, nn.MSELoss(), model, batches)
    streamed = kind(*args, keep="nothing", **cases.UNMERGED)
    v = vectors(streamed)
    expected = streamed @ v
    warm = problems.mlp((2,)).build(keep=form)  # tracing imports a part of torch
    warm @ vectors(warm)
    budget = 40 * _MB
    operator = kind(*args, keep=form, memory_budget=budget, **cases.UNMERGED)
    gc.collect()
    before = resident_bytes()
    assert_same(operator @ v, expected)
    gc.collect()
    assert operator.kept_bytes <= budget
    # 20 MB of noise
    assert resident_bytes() - before < budget + 20 * _MB
    assert_same(operator @ v, expected)


@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_kept_bytes_tells_what_is_really_held(form: str) -> None:
    """Against the tensors that appear on the heap; whole-network activations dominate."""
    layers = [m for _ in range(3) for m in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(64, 2)).double()
    data = [(cases.randn(400, 64, seed=1), cases.randn(400, 2, seed=2))]
    operator = GGNLinearOperator(model, nn.MSELoss(), model, data, keep=form)
    v = vectors(operator)
    operator._keeper._forms.tracer = None
    gc.collect()
    with _Allocations() as allocated:
        operator @ v
        gc.collect()
    assert operator.kept_bytes > 3 * 400 * 64 * 8
    assert 0.6 * allocated.held() < operator.kept_bytes < 1.6 * allocated.held()


class _Allocations:
    """Bytes of the tensors' storages that were allocated inside and are still alive."""

    def __enter__(self) -> _Allocations:
        self._profile = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)

    def held(self) -> int:
        events = self._profile.profiler.kineto_results.events()
        return sum(e.nbytes() for e in events if e.name() == "[memory]")


# What is free, and what running out looks like ----------------------------------------------


def test_available_bytes_is_plausible() -> None:
    free = available_bytes(torch.device("cpu"))
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 10 * _MB < free <= installed


def test_the_control_group_bounds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_kernel_available", lambda: 500)
    for group, expected in ((300, 300), (900, 500), (None, 500)):
        monkeypatch.setattr(memory, "_group_available", lambda group=group: group)
        assert available_bytes(torch.device("cpu")) == expected


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_kernel_available", lambda: None)
    monkeypatch.setattr(memory, "_group_available", lambda: None)
    assert available_bytes(torch.device("cpu")) > 0


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shape mismatch"), False),
        (ValueError("can't allocate memory"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_out_of_memory_is_told_from_other_errors(error: BaseException, says: bool) -> None:
    assert is_out_of_memory(error) is says


def test_torchs_own_words_on_the_cpu_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


# Growth -------------------------------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("form", FORMS)
def test_two_thousand_products_do_not_grow(form: str) -> None:
    warm = problems.mlp((2,)).build(keep="residuals")  # tracing imports a part of torch
    warm @ vectors(warm)
    operator = problems.mlp((2,)).build(GGN if form == "residuals" else HESSIAN, keep=form)
    v = vectors(operator)
    first = operator @ v
    for _ in range(50):
        operator @ v
    gc.collect()
    before = resident_bytes()
    kept = operator.kept_bytes
    for _ in range(2000):
        last = operator @ v
    assert resident_bytes() - before < 20 * _MB
    assert operator.kept_bytes == kept
    assert_same(last, first)


@needs_proc
@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_parameters_that_keep_moving_do_not_grow(form: str) -> None:
    """What was kept at the last point is freed before the next is built."""
    model = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 2)).double()
    data = [(cases.randn(500, 100, seed=1), cases.randn(500, 2, seed=2))]
    operator = GGNLinearOperator(model, nn.MSELoss(), model, data, keep=form)
    v = vectors(operator)
    operator @ v
    assert operator.kept_bytes > 0.3 * _MB
    gc.collect()
    before = resident_bytes()
    references = []
    for _ in range(100):
        with torch.no_grad():
            next(model.parameters()).mul_(0.999)
        operator @ v
        references.append(weakref.ref(operator._keeper._kept.maps[0]))
    assert resident_bytes() - before < 20 * _MB
    assert sum(r() is not None for r in references) == 1


@needs_proc
def test_risks_do_not_pile_up() -> None:
    """Measuring a model's memory must not hold on to what was measured."""
    model = nn.Sequential(nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 2)).double()
    batch = (cases.randn(500, 100, seed=1), cases.randn(500, 2, seed=2))
    for i in range(50):
        if i == 10:
            before = resident_bytes()
        EmpiricalRisk(model, nn.MSELoss(), model, [batch, batch])
    gc.collect()
    assert resident_bytes() - before < 20 * _MB


@needs_proc
@pytest.mark.parametrize("form", ["graph", "residuals"])
def test_dropped_operators_do_not_pile_up(form: str) -> None:
    """Nothing but the garbage collector is needed, and it is not needed to be told."""
    risk = problems.mlp((2, 2)).risk()
    references = []
    for _ in range(8 if form == "graph" else 2):
        operator = problems.built(FISHER, risk, keep=form)
        operator @ vectors(operator)
        references.append(weakref.ref(operator._keeper._kept.maps[0]))
    gc.collect()
    assert sum(r() is not None for r in references) == 1


@pytest.mark.parametrize("form", FORMS)
def test_memory_does_not_grow_with_the_number_of_columns(form: str) -> None:
    """Beyond the vectors and products themselves: a block at a time goes through."""
    model = nn.Sequential(nn.Linear(8, 50), nn.Tanh(), nn.Linear(50, 2)).double()
    data = [(cases.randn(500, 8, seed=1), cases.randn(500, 2, seed=2))]
    operator = GGNLinearOperator(model, nn.MSELoss(), model, data, keep=form, columns="vmap")
    peaks = []
    for width in (9, 65):
        V = vectors(operator, width)
        operator @ V
        with _Peak() as peak:
            operator @ V
        peaks.append(peak.bytes() - 4 * V.numel() * 8)
    activation = 500 * 50 * 8
    assert peaks[0] > 8 * activation  # so that the test would see a column more
    assert peaks[1] < 1.3 * peaks[0] + 2 * activation


class _Peak(_Allocations):
    """The most that was allocated inside at any one time."""

    def bytes(self) -> int:
        events = self._profile.profiler.kineto_results.events()
        memory = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        total = highest = 0
        for _, change in memory:
            total += change
            highest = max(highest, total)
        return highest


_FAULTS = """
import resource
import torch
from curvops.autodiff import FunctionalModel

def touch():
    blocks = [torch.ones(1 << 20) for _ in range(10)]  # 4 MiB each, all freed on return

FunctionalModel(torch.nn.Linear(1, 1), ())
for _ in range(3):
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="only glibc's allocator is taught anything; others keep what is freed or not",
)
def test_freed_memory_is_used_again_without_page_faults() -> None:
    command = [sys.executable, "-c", _FAULTS]
    environment = _without_malloc_settings()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    # Handed back and mapped again ten times, 40 MiB are 102,400 pages.
    assert int(done.stdout) <= 1000


def _without_malloc_settings() -> dict[str, str]:
    """Return an environment in which glibc's own limits hold, and the package is found."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUN"))}
    return kept | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
