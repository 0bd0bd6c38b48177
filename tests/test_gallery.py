"""The scripts of the gallery run, at a small size and on images made up here."""

from __future__ import annotations

import gzip
import runpy
from pathlib import Path

import numpy as np
import pytest

GALLERY = Path(__file__).parents[1] / "docs" / "gallery"


@pytest.fixture
def made_up_images(tmp_path: Path) -> Path:
    """A folder with idx files: 300 noisy images, bright where their class says."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 10, 300).astype(np.uint8)
    pixels = generator.integers(0, 100, (300, 28, 28)).astype(np.uint8)
    for k, label in enumerate(labels):
        pixels[k, 2 * label : 2 * label + 4] += 150
    for name, array, magic in (
        ("train-images-idx3-ubyte", pixels, b"\0\0\x08\x03"),
        ("train-labels-idx1-ubyte", labels, b"\0\0\x08\x01"),
    ):
        shape = np.array(array.shape, dtype=">u4").tobytes()
        with gzip.open(tmp_path / f"{name}.gz", "wb") as file:
            file.write(magic + shape + array.tobytes())
    return tmp_path


def test_rays(
    made_up_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    global_rng_untouched: None,
) -> None:
    main = runpy.run_path(str(GALLERY / "rays.py"))["main"]
    small = ["--images", "300", "--epochs", "2", "--distances", "8", "--resolution", "3"]
    main([*small, "--root", str(made_up_images), "--out", str(tmp_path / "out")])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"rays.png", "plane.png"}
    printed = capsys.readouterr().out
    assert "on 300 images of Fashion-MNIST" in printed
    assert "eigenvector 0 on bias" in printed


def test_paths(
    made_up_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    global_rng_untouched: None,
) -> None:
    main = runpy.run_path(str(GALLERY / "paths.py"))["main"]
    small = ["--images", "300", "--epochs", "1", "--path-epochs", "1", "--points", "3"]
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    main([*small, "--root", str(made_up_images), *folders])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["paths.png"]
    assert len(list((tmp_path / "results").iterdir())) == 4
    printed = capsys.readouterr().out
    assert "aligned: bezier of 3 points" in printed
    assert "hidden units renumbered in 3 layers" in printed


def test_trajectory(
    made_up_images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    global_rng_untouched: None,
) -> None:
    main = runpy.run_path(str(GALLERY / "trajectory.py"))["main"]
    small = ["--images", "300", "--epochs", "2", "--every", "1", "--resolution", "3"]
    folders = ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    main([*small, "--root", str(made_up_images), *folders])
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["trajectory.png"]
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["trajectory.npz"]
    assert "7 points in 118282 dimensions" in capsys.readouterr().out
