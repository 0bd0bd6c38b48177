"""Trajectories: what is recorded, that it survives, and principal components against dense SVD."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path as File
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvops.errors import DataError, InputError, NonFiniteError, ShapeError
from curvops.landscape import (
    Trajectory,
    TrajectoryPCA,
    TrajectoryPlane,
    trajectory_pca,
    trajectory_plane,
)
from tests import cases
from tests.landscape import nets


def walk(num: int = 13, dim: int = 40, dtype: torch.dtype = torch.float64) -> Tensor:
    return cases.randn(num, dim, seed=num).cumsum(0).to(dtype)


def recorded(points: Tensor, folder: File | None = None, **options: Any) -> Trajectory:
    trajectory = Trajectory(folder, **options)
    for point in points:
        trajectory.record(point)
    return trajectory


# Recording -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_snapshots_come_back(where: str, tmp_path: File) -> None:
    points = walk()
    folder = tmp_path / "t" if where == "disk" else None
    trajectory = recorded(points, folder, shard=4)
    assert torch.equal(trajectory.columns(), points.T)
    assert trajectory.steps.tolist() == list(range(13))
    assert len(trajectory) == 13
    for i in (0, 3, 4, 12, -1, -13):
        assert torch.equal(trajectory[i], points[i])
    with pytest.raises(IndexError, match="snapshot 13 of 13"):
        trajectory[13]
    assert f"T=13, P=40, every=1, in {folder or 'memory'}" in repr(trajectory)


def test_blocks_keep_to_their_budget(tmp_path: File) -> None:
    points = walk()
    trajectory = recorded(points, tmp_path, shard=2)
    one = 2 * 40 * 8
    found = list(trajectory.blocks(2 * one))
    assert [first for first, _ in found] == [0, 4, 8, 12]
    assert torch.equal(torch.cat([rows for _, rows in found]), points)
    assert [first for first, _ in trajectory.blocks(1)] == [0, 2, 4, 6, 8, 10, 12]
    assert len(list(trajectory.blocks())) == 1


@pytest.mark.parametrize("layout", ["module", "dict", "list", "flat"])
def test_any_format(layout: str, tmp_path: File) -> None:
    net = nets.trained("mlp", 0)
    named = {n: p.detach() for n, p in net.named_parameters()}
    forms: dict[str, Any] = {
        "module": net,
        "dict": named,
        "list": list(named.values()),
        "flat": torch.cat([p.reshape(-1) for p in named.values()]),
    }
    with Trajectory(tmp_path) as trajectory:
        trajectory.record(forms[layout])
        trajectory.record(forms[layout])
    for found in (trajectory[1], Trajectory(tmp_path)[0]):
        expected = named if layout == "module" else forms[layout]
        assert type(found) is type(expected)
        if isinstance(found, dict):
            assert all(torch.equal(found[n], p) for n, p in named.items())
        elif isinstance(found, list):
            assert all(torch.equal(x, p) for x, p in zip(found, expected, strict=True))
        else:
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_snapshot_is_a_copy(dtype: torch.dtype) -> None:
    x = torch.zeros(3, dtype=dtype)
    trajectory = Trajectory()
    for _ in range(3):
        trajectory.record(x)
        x += 1
    trajectory[0].add_(5)
    assert trajectory.columns()[0].tolist() == [0.0, 1.0, 2.0]


def test_every_so_many_steps() -> None:
    trajectory = Trajectory(every=5)
    kept = [trajectory.record(torch.tensor([float(i)])) for i in range(12)]
    assert kept == [i % 5 == 0 for i in range(12)]
    assert not trajectory.record(torch.tensor([0.0]), step=13)
    assert trajectory.record(torch.tensor([0.0]), step=20)
    assert trajectory.steps.tolist() == [0, 5, 10, 20]
    trajectory.record(torch.tensor([0.0]))
    assert trajectory.steps[-1] == 20


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_dtypes(given: torch.dtype, kept: torch.dtype, tmp_path: File) -> None:
    points = walk(4, 5).to(given)
    assert recorded(points, tmp_path / "a").columns().dtype == kept
    small = recorded(points, tmp_path / "b", dtype=torch.float16, shard=2)
    assert small.columns().dtype == torch.float16
    assert Trajectory(tmp_path / "b").columns().dtype == torch.float16


# Disk ----------------------------------------------------------------------------------------


def test_goes_on_where_it_was_left(tmp_path: File) -> None:
    points = walk(20)
    with Trajectory(tmp_path, every=2, shard=3) as trajectory:
        for step in range(11):
            trajectory.record(points[step], step)
    again = Trajectory(tmp_path)
    assert again.every == 2
    assert again.steps.tolist() == [0, 2, 4, 6, 8, 10]
    with again:
        for step in range(11, 20):
            again.record(points[step])
    whole = Trajectory(tmp_path)
    assert whole.steps.tolist() == list(range(0, 20, 2))
    assert torch.equal(whole.columns(), points[::2].T)


def test_rewinds_to_a_checkpoint(tmp_path: File) -> None:
    points = walk(20)
    for folder in (None, tmp_path):
        trajectory = recorded(points[:12], folder, shard=5)
        with pytest.raises(InputError, match=r"step 7 is not after .* 11.*rewind\(7\)"):
            trajectory.record(points[0], 7)
        trajectory.rewind(7)
        assert trajectory.steps.tolist() == list(range(7))
        for step in range(7, 20):
            trajectory.record(points[step] + 1, step)
        expected = torch.cat([points[:7], points[7:] + 1])
        assert torch.equal(trajectory.columns(), expected.T)
    trajectory.flush()
    assert torch.equal(Trajectory(tmp_path).columns(), expected.T)
    trajectory.rewind(0)
    assert len(trajectory) == 0
    assert not list(tmp_path.glob("*.npz"))


def test_survives_a_kill(tmp_path: File) -> None:
    """A process that records without end is killed; what it wrote is whole."""
    code = (
        "import sys, torch\n"
        "from curvops.landscape import Trajectory\n"
        "trajectory = Trajectory(sys.argv[1], shard=3)\n"
        "for step in range(10**9):\n"
        "    trajectory.record(torch.full((50_000,), float(step)))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("0*.npz"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    trajectory = Trajectory(tmp_path)
    T = len(trajectory)
    assert T >= 12
    assert T % 3 == 0
    assert trajectory.steps.tolist() == list(range(T))
    assert torch.equal(trajectory.columns()[7], torch.arange(float(T)))
    trajectory.record(torch.zeros(50_000))
    trajectory.flush()
    assert len(Trajectory(tmp_path)) == T + 1


def test_a_write_that_fails_can_be_made_again(
    tmp_path: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory = recorded(walk(4), tmp_path)

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space"):
            trajectory.flush()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["trajectory.json"]
    assert len(trajectory) == 4
    trajectory.flush()
    assert torch.equal(Trajectory(tmp_path).columns(), walk(4).T)


def test_nothing_is_unpickled(tmp_path: File) -> None:
    recorded(walk(3), tmp_path).flush()
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "00001.npz", steps=np.array([9]), points=objects)
    with pytest.raises(DataError, match=r"00001\.npz"):
        list(Trajectory(tmp_path).blocks())


@pytest.mark.parametrize("damage", ["shard", "header", "version", "missing", "shape"])
def test_damaged_folders_are_refused(damage: str, tmp_path: File) -> None:
    recorded(walk(3), tmp_path).flush()
    header = tmp_path / "trajectory.json"
    if damage == "shard":
        (tmp_path / "00000.npz").write_bytes(b"PK\3\4 and then nothing")
    elif damage == "header":
        header.write_text("{", encoding="utf-8")
    elif damage == "missing":
        header.unlink()
    elif damage == "version":
        content = json.loads(header.read_text(encoding="utf-8"))
        header.write_text(json.dumps(content | {"version": 99}), encoding="utf-8")
    else:
        np.savez(tmp_path / "00000.npz", steps=np.arange(3), points=np.zeros((3, 7)))
    with pytest.raises(DataError):
        list(Trajectory(tmp_path).blocks())


def test_a_folder_of_something_else(tmp_path: File) -> None:
    recorded(walk(3, 6), tmp_path, every=1).flush()
    with pytest.raises(InputError, match="every is 2"):
        Trajectory(tmp_path, every=2)
    with pytest.raises(InputError, match="recorded in"):
        Trajectory(tmp_path, dtype=torch.float32)
    with pytest.raises(ShapeError, match="params"):
        Trajectory(tmp_path).record(torch.zeros(7))


# Components ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["1GiB", 2 * 3 * 40 * 8])
@pytest.mark.parametrize("shape", [(13, 40), (9, 4), (2, 40)])
def test_against_a_dense_decomposition(shape: tuple[int, int], budget: Any, tmp_path: File) -> None:
    points = walk(*shape)
    num = shape[0]
    k = min(3, num - 1)
    found = recorded(points, tmp_path, shard=3).pca(k, memory_budget=budget)
    centred = points - points.mean(0)
    _, s, Vh = torch.linalg.svd(centred, full_matrices=False)
    expected = torch.zeros(num - 1, dtype=torch.float64)
    shares = (s**2 / (s**2).sum())[: num - 1]
    expected[: len(shares)] = shares
    torch.testing.assert_close(found.explained, expected)
    torch.testing.assert_close(found.mean, points.mean(0))
    assert found.variance == pytest.approx(float((centred**2).sum() / num))
    V = found.components
    torch.testing.assert_close(V.T @ V, torch.eye(k, dtype=torch.float64))
    torch.testing.assert_close((V * Vh[:k].T).sum(0).abs(), torch.ones(k).double())
    torch.testing.assert_close(found.coordinates, centred @ V)
    assert bool((found.coordinates.max(0).values >= -found.coordinates.min(0).values).all())
    assert len(found.null) == num - 1


def test_far_from_the_origin_nothing_cancels() -> None:
    """A small trajectory around a large point, kept in float32."""
    points = walk(10, 300)
    near = recorded((1e-3 * points).float()).pca()
    far = recorded((1e-3 * points + 1.0).double(), dtype=torch.float64).pca()
    torch.testing.assert_close(near.explained, far.explained, atol=1e-6, rtol=1e-4)


def test_result_saves_prints_and_converts(tmp_path: File, monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded(walk()).pca()
    found.save(tmp_path / "pca.npz")
    again = TrajectoryPCA.load(tmp_path / "pca.npz")
    assert torch.equal(again.components, found.components)
    assert "13 points in 40 dimensions" in str(found)
    assert "a random walk's 61." in str(found)
    assert found.null_coordinates.shape == (13, 2)
    assert float(found.null_coordinates.square().sum()) == pytest.approx(
        13 * found.variance * float(found.null[:2].sum())
    )
    json.dumps(found.to_dict())
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    assert found.to_pandas()["component"] == list(range(1, 13))


def test_too_little_to_decompose() -> None:
    with pytest.raises(InputError, match="0 points"):
        Trajectory().pca()
    with pytest.raises(InputError, match="1 points"):
        recorded(walk(1)).pca()
    with pytest.raises(InputError, match="are the same"):
        recorded(torch.ones(4, 3)).pca()
    for bad in (0, 13, 1.0, True):
        with pytest.raises(InputError, match="num_components"):
            recorded(walk()).pca(bad)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="memory_budget"):
        trajectory_pca(recorded(walk()), memory_budget="much")
    with pytest.raises(InputError, match="empty"):
        Trajectory().columns()


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(walk()).pca(progress=True)
    assert "Gram" in capsys.readouterr().err


# The plane below -----------------------------------------------------------------------------


def trained_trajectory() -> tuple[nn.Module, Trajectory]:
    X, y = nets.images()
    trajectory = Trajectory(every=5)
    with cases.seeded(3):
        net = nets.mlp()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
        trajectory.record(net)
        for _ in range(2):
            for rows in torch.randperm(len(X)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
                optimizer.step()
                trajectory.record(net)
    net.zero_grad()
    return net, trajectory


def test_the_plane_below_a_trajectory(tmp_path: File) -> None:
    net, trajectory = trained_trajectory()
    risk = nets.risk_of(net)
    found = trajectory_plane(risk, trajectory, resolution=(7, 5))
    plane, over = found.plane, found.overlay
    assert plane.losses.shape == (5, 7)
    assert plane.mark_labels == ("mean",)
    assert plane.labels[0].startswith("component 1 (")
    torch.testing.assert_close(over.coordinates, found.pca.coordinates, atol=1e-4, rtol=1e-4)
    for i in (0, 4):
        assert float(over.losses[i]) == pytest.approx(
            float(risk.at(trajectory[i]).loss()), rel=1e-4
        )
    apart = torch.stack([p - found.pca.mean for p in trajectory.columns().T.double()])
    V = found.pca.components
    rest = (apart - apart @ V @ V.T).norm(dim=1)
    torch.testing.assert_close(over.distances, rest, atol=1e-4, rtol=1e-3)
    corner = found.pca.mean + V @ torch.stack([plane.x[0], plane.y[0]])
    assert float(plane.losses[0, 0]) == pytest.approx(
        float(risk.at(corner.float()).loss()), rel=1e-4
    )
    for axis, values in ((plane.x, over.coordinates[:, 0]), (plane.y, over.coordinates[:, 1])):
        assert float(axis[0]) < float(values.min())
        assert float(axis[-1]) > float(values.max())
    found.save(tmp_path / "plane.npz")
    assert "of the variance is in the plane" in str(TrajectoryPlane.load(tmp_path / "plane.npz"))
    wide = trajectory_plane(risk, trajectory, found.pca, resolution=3, dtype=torch.float64)
    assert wide.plane.dtype == torch.float64
    torch.testing.assert_close(wide.overlay.losses, over.losses, atol=1e-5, rtol=1e-4)


def test_planes_that_do_not_exist() -> None:
    risk = nets.risk_of(nets.trained("mlp", 0))
    P = risk.space.dim
    with pytest.raises(InputError, match="2 points"):
        trajectory_plane(risk, recorded(torch.zeros(2, P)))
    straight = torch.arange(4.0)[:, None] * torch.ones(P)
    with pytest.raises(InputError, match="on a line"):
        trajectory_plane(risk, recorded(straight))
    with pytest.raises(InputError, match="margin"):
        trajectory_plane(risk, recorded(walk(4, P)), margin=-1)
    with pytest.raises(ShapeError):
        trajectory_plane(risk, recorded(walk(4, 7)))
    with pytest.raises(InputError, match="single component"):
        trajectory_plane(risk, recorded(walk(4, P)), recorded(walk(4, P)).pca(1))


# Bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "every"),
        ({"every": True}, "every"),
        ({"shard": 0}, "shard"),
        ({"shard": None}, "shard"),
        ({"dtype": torch.bfloat16}, "bfloat16"),
        ({"dtype": torch.int32}, "int32"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        Trajectory(**options)


def test_bad_snapshots() -> None:
    trajectory = recorded(walk(3, 5))
    for step in (-1, 1.5, True):
        with pytest.raises(InputError, match="step"):
            trajectory.record(torch.zeros(5), step)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="params has shape"):
        trajectory.record(torch.zeros(6))
    with pytest.raises(ShapeError, match="2 columns"):
        trajectory.record(torch.zeros(5, 2))
    with pytest.raises(NonFiniteError, match="params holds"):
        trajectory.record(torch.full((5,), torch.inf))
    with pytest.raises(InputError, match="without trainable"):
        trajectory.record(nn.ReLU())
    assert len(trajectory) == 3
    with pytest.raises(InputError, match="empty"):
        Trajectory().record([])
