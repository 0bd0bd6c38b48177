from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import docs, report
from benchmarks.problems import TITLES
from benchmarks.results import FOLDER, Result, Row
from benchmarks.scaling import slope
from benchmarks.tables import Table, number
from benchmarks.targets import LEADS, TARGETS

ENVIRONMENT = {
    "cpu": "a processor",
    "threads": 2,
    "device": "cpu",
    "date": "2026-01-02",
    "versions": {"curvops": "0", "curvlinops-for-pytorch": "not installed"},
}


def products() -> list[Row]:
    ours = {"library": "curvops", "rounds": 9}
    return [
        Row("mlp", "Hessian", variant="auto", value=1.3, low=1.2, high=1.4, **ours),
        Row("mlp", "Hessian", variant="auto", columns=8, value=1.35, **ours),
        Row("mlp", "Hessian", variant="streamed", value=2.7, **ours),
        Row("mlp", "GGN", variant="auto", status="fails", note="Error: a | b", library="curvops"),
        Row("mlp", "Hessian", "curvlinops", value=6.5, rounds=9),
        Row("mlp", "Hessian", "pyhessian", value=1.2, rounds=9),
        Row("mlp", "Hessian", "hessian-eigenthings", status="disagrees", note="by 5e-03"),
        Row("gpt", "Hessian", "curvlinops", status="not installed"),
    ]


def logdet() -> list[Row]:
    extra = {"claimed": 0.2, "held": 1.0, "products": 300, "seconds": 0.5}
    ours = {"library": "curvops", "rounds": 10, "extra": extra}
    return [
        Row("digits", "GGN, shift 0.01", variant="krylov", value=0.1, **ours),
        Row("digits", "GGN, shift 0.01", variant="slq", value=0.4, **ours),
        Row("digits", "GGN, shift 0.01", "imate", status="not installed"),
    ]


def volume() -> list[Row]:
    values = {"none": -9300.0, "adam": -7100.0, "diagonal": -7000.0, "dense": -6200.0}
    extra = {"stderr": 1.0, "ess": 1.0, "largest_weight": 1.0}
    key = {"problem": "digits", "quantity": "log p, star", "library": "curvops"}
    return [
        Row(**key, variant=name, value=90.0, extra={"log_volume": value, **extra})
        for name, value in values.items()
    ]


def bridge() -> list[Row]:
    quantity = "log p(KL ≤ 0.05)"
    more = {"samples": [-435.0, -437.0], "agree": {"beta": 400.0, "cost": 0.2}, "ladders": []}
    numbers = {
        "star domain, dense": (-6000.0, {}),
        "bridge": (-436.0, more),
        "Chernoff": (-430.0, {}),
    }
    return [
        Row("digits", quantity, "curvops", variant, value=None if variant == "Chernoff" else 9.0,
            extra={"log_volume": value, "stderr": 1.0, **extra})
        for variant, (value, extra) in numbers.items()
    ]  # fmt: skip


def landscape() -> list[Row]:
    key = {"problem": "landscape", "quantity": "losses", "columns": 81, "axis": "batch"}
    extra = {"error": 1e-6, "seconds": 2.0, "peak_mb": 90.0}
    ours = {**key, "library": "curvops", "rounds": 3}
    return [
        Row(**key, size=512, library="torch", variant="copies", value=1.0, extra={"error": 1e-6}),
        Row(**ours, size=512, variant="a plane, as Affine", value=0.25, extra=extra),
        Row(**ours, size=512, variant="any points", value=0.8, extra={**extra, "peak_mb": 300.0}),
        Row(**key, size=512, library="loss-landscapes", status="not installed"),
    ]


def training() -> list[Row]:
    ours = {"library": "curvops", "rounds": 5, "extra": {"error": 1e-6, "seconds": 0.01}}
    return [
        Row("mlp", "SGD step", variant="Alpha + GradientNoise", value=2.0, **ours),
        Row("cnn", "SGD step", variant="Alpha + GradientNoise", value=1.5, **ours),
        Row("mlp", "SGD step", "cockpit", status="not installed"),
    ]


def write(folder: Path) -> None:
    eigs = Row(
        "mlp",
        "eigenpairs",
        "curvops",
        "SciPy eigsh",
        value=400.0,
        rounds=3,
        extra={"k": 20, "products": 210, "residual": 9e-5, "difference": 0.0},
    )
    memory = Row("mlp", "Hessian", "curvops", "budget 200MB", columns=8, value=250.0)
    scaling = [
        Row("mlp", "Hessian", "curvops", "kept", axis="N", size=n, value=n / 100)
        for n in (128, 256, 512)
    ]
    runs = {
        "products": products(),
        "eigs": [eigs],
        "logdet": logdet(),
        "volume": volume(),
        "bridge": bridge(),
        "landscape": landscape(),
        "memory": [memory],
        "training": training(),
        "scaling": scaling,
    }
    for name, rows in runs.items():
        Result(name, ENVIRONMENT, {"quick": False}, rows).save(folder / f"{name}.json")


def test_the_page_is_deterministic(tmp_path: Path) -> None:
    write(tmp_path)
    page = docs.page(tmp_path)
    assert page == docs.page(tmp_path)
    docs.write(tmp_path, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page


def test_misses_are_marked(tmp_path: Path) -> None:
    write(tmp_path)
    lines = docs.page(tmp_path).splitlines()

    def line(start: str) -> str:
        return next(text for text in lines if text.startswith(f"| {start} |"))

    assert "✓ 1.30 (≤ 1.4)" in line("Hessian, K = 1")
    assert "✗ 1.35 (≤ 1.2)" in line("Hessian per vector, K = 8")
    assert "✗ 1.35 (≤ 1.30)" in line("no dearer per vector at K = 8 than at 1")
    assert "✗ 2.70 (≤ 2.6)" in line("streamed Hessian, K = 1")
    assert "✗ fails (≤ 1.1)" in line("GGN, K = 1")
    assert "✓ 5.00 (≥ 4)" in line("curvlinops, Hessian")
    assert "✗ 0.92 (≥ 1)" in line("pyhessian, Hessian")
    assert "disagrees" in line("hessian-eigenthings, Hessian")
    assert "| MLP | ✗ 400 (≤ 330) |" in lines
    assert "✗ 250 (≤ 200)" in line("`memory_budget='200MB'`, K = 8")
    assert "✗ 4.00 (≥ 5)" in line("GGN, shift 0.01")
    assert "| log p(KL ≤ 0.05) | ✓ | 2.0 | 1 |" in lines
    assert "✓ 4.00 (≥ 1.5) | ✓ 90.0 (≤ 268)" in line("512, a plane, as Affine")
    assert "✗ 1.25 (≥ 1.5) | ✗ 300 (≤ 268)" in line("512, any points")
    assert "✗ 2.00 (≤ 1.6) | ✓ 1.50 (≤ 1.6)" in line("SGD, Alpha + GradientNoise")
    assert "curvlinops, Hessian | 5" not in line("curvlinops, GGN")


def test_reasons_are_given_where_numbers_are_missing(tmp_path: Path) -> None:
    write(tmp_path)
    page = docs.page(tmp_path)
    assert "- hessian-eigenthings, Hessian, K = 1, MLP: disagrees, by 5e-03" in page
    assert "not installed" in page


def test_quick_runs_say_so(tmp_path: Path) -> None:
    Result("products", ENVIRONMENT, {"quick": True}, products()).save(tmp_path / "products.json")
    assert "A quick run" in docs.page(tmp_path)


def test_nothing_committed_is_no_error(tmp_path: Path) -> None:
    assert docs.page(tmp_path).count("Not measured yet.") == len(docs._TITLES)


def test_the_committed_page_is_up_to_date() -> None:
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(FOLDER)


def test_terminal_tables_have_a_cell_for_everything(tmp_path: Path) -> None:
    write(tmp_path)
    for name in report.TABLES:
        text = report.summary(Result.load(tmp_path / f"{name}.json"))
        assert "a processor" in text
    assert "1.30 [1.20, 1.40]" in report.products(products()).text()


def test_eigenpairs_that_missed_their_residual_reach_no_target(tmp_path: Path) -> None:
    extra = {"k": 20, "products": 50, "residual": 2e-3}
    row = Row("mlp", "eigenpairs", "curvops", "SciPy eigsh", value=50.0, rounds=3, extra=extra)
    Result("eigs", ENVIRONMENT, {"quick": False}, [row]).save(tmp_path / "eigs.json")
    page = docs.page(tmp_path)
    assert "| MLP | ✗ 50.0 (≤ 330) |" in page
    assert "2.0e-03 (missed)" in page


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_slopes(power: float) -> None:
    sizes = [1.0, 2.0, 4.0, 10.0]
    assert slope(sizes, [3.0 * size**power for size in sizes]) == pytest.approx(power)


def test_tables() -> None:
    table = Table(["a", "b"], [["x|y", "1"], ["z", "22"]])
    assert table.markdown().splitlines()[2] == "| x\\|y | 1 |"
    assert len({len(line) for line in table.text().splitlines()}) == 1
    assert [number(x) for x in (None, 0.5, 12.34, 1234.5)] == ["–", "0.50", "12.3", "1234"]


def test_targets_are_complete() -> None:
    assert all(set(target.limits) <= set(TITLES) for target in TARGETS)
    assert all(set(lead.factors) <= set(TITLES) for lead in LEADS)
