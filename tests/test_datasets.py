"""The readers: right on good files, and a typed error that names the file on bad ones."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from curvops import datasets
from curvops.errors import (
    CurvopsError,
    DataError,
    InputError,
    MissingDependencyError,
    ShapeError,
)

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    """Write an array in the idx format."""
    code = CODES[array.dtype.str[1:]]
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return (
        bytes([0, 0, code, array.ndim])
        + sizes
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def write_pair(
    folder: Path, stem: str = "train", num: int = 5, *, zipped: bool = False, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Write an image and a label file as MNIST names them."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (num, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, num).astype(np.uint8)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        content = idx_bytes(array)
        path = folder / f"{stem}-{name}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(content) if zipped else content)
    return images, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_digits(dtype: torch.dtype) -> None:
    images, labels = datasets.digits(dtype)
    assert images.shape == (1797, 1, 8, 8)
    assert images.dtype == dtype
    assert labels.dtype == torch.int64
    assert float(images.min()) == 0
    assert float(images.max()) == 1
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_names_the_extra_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"curvops\[demo\]"):
        datasets.digits()


@pytest.mark.parametrize("kind", list(CODES))
@pytest.mark.parametrize("zipped", [False, True])
def test_read_idx_round_trip(tmp_path: Path, kind: str, zipped: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) - 3 * (kind[0] != "u")).astype(f"<{kind}")
    content = idx_bytes(array)
    # The name says nothing about compression: the content does.
    (tmp_path / "file").write_bytes(gzip.compress(content) if zipped else content)
    tensor = datasets.read_idx(tmp_path / "file")
    assert tensor.numpy().dtype == array.dtype
    np.testing.assert_array_equal(tensor.numpy(), array)
    tensor[0] = 1  # the result owns writable memory


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "MNIST", "raw", "."])
def test_mnist_layouts(tmp_path: Path, place: str, zipped: bool) -> None:
    images, labels = write_pair(tmp_path / place, zipped=zipped)
    test_images, _ = write_pair(tmp_path / place, "t10k", num=3, zipped=zipped, seed=1)
    x, y = datasets.mnist(tmp_path)
    assert x.shape == (5, 1, 28, 28)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    np.testing.assert_array_equal(x.squeeze(1).numpy(), images.astype(np.float32) / 255)
    np.testing.assert_array_equal(y.numpy(), labels)
    x, _ = datasets.mnist(str(tmp_path), train=False, dtype=torch.float64)
    assert x.dtype == torch.float64
    np.testing.assert_array_equal(x.squeeze(1).numpy(), test_images / 255)


def test_torchvision_root_holds_both(tmp_path: Path) -> None:
    write_pair(tmp_path / "MNIST" / "raw", seed=0)
    fashion, _ = write_pair(tmp_path / "FashionMNIST" / "raw", seed=1)
    x, _ = datasets.fashion_mnist(tmp_path)
    np.testing.assert_array_equal(x.squeeze(1).numpy(), fashion.astype(np.float32) / 255)


def test_dotted_names_of_mirrors(tmp_path: Path) -> None:
    write_pair(tmp_path)
    for path in list(tmp_path.iterdir()):
        path.rename(tmp_path / path.name.replace("-idx", ".idx"))
    assert len(datasets.mnist(tmp_path)[0]) == 5


@pytest.mark.skipif(
    not datasets.DEBIAN_FASHION_MNIST.is_dir(), reason="dataset-fashion-mnist is not installed"
)
def test_debian_package() -> None:
    images, labels = datasets.fashion_mnist(train=False)
    assert images.shape == (10000, 1, 28, 28)
    assert labels.bincount().tolist() == [1000] * 10


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.*MNIST/raw.*downloads nothing"):
        datasets.mnist(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        datasets.mnist(tmp_path / "nowhere")


IMAGES = idx_bytes(np.zeros((5, 28, 28), np.uint8))
LABELS = idx_bytes(np.zeros(5, np.uint8))
SPOILED = {
    "empty file": (b"", "not an idx file"),
    "another format": (b"\x89PNG\r\n\x1a\n", "not an idx file"),
    "unknown dtype": (b"\0\0\x07" + IMAGES[3:], "not an idx file"),
    "header cut": (IMAGES[:9], "ends inside its header"),
    "body cut": (IMAGES[:-1], "is truncated: its header promises"),
    "too long": (IMAGES + b"\0", "longer than its header"),
    "huge header": (b"\0\0\x08\x03" + b"\xff" * 12 + IMAGES, "is truncated"),
    "gzip cut": (gzip.compress(IMAGES)[:-9], "damaged gzip"),
    "gzip header cut": (gzip.compress(IMAGES)[:5], "damaged gzip"),
    "gzip noise": (b"\x1f\x8b\x08" + b"\xff" * 30, "damaged gzip"),
    "gzip checksum": (gzip.compress(IMAGES)[:-8] + b"\0" * 8, "damaged gzip"),
    "labels for images": (LABELS, r"expected unsigned bytes \[N, 28, 28\]"),
    "wrong dtype": (idx_bytes(np.zeros((5, 28, 28), "<i4")), "expected unsigned bytes"),
    "wrong size": (idx_bytes(np.zeros((5, 8, 8), np.uint8)), "expected unsigned bytes"),
    "fewer images": (idx_bytes(np.zeros((4, 28, 28), np.uint8)), "4 images but .* 5 labels"),
}


@pytest.mark.parametrize("case", list(SPOILED))
def test_spoiled_images(tmp_path: Path, case: str) -> None:
    write_pair(tmp_path)
    content, message = SPOILED[case]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        datasets.mnist(tmp_path)
    assert "train-images-idx3-ubyte" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(5, 10, np.uint8), "holds label 10"),
        (np.zeros((5, 1), np.uint8), r"expected unsigned bytes \[N\]"),
        (np.zeros(5, "<i4"), "expected unsigned bytes"),
    ],
)
def test_spoiled_labels(tmp_path: Path, labels: np.ndarray, message: str) -> None:
    write_pair(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(DataError, match=message):
        datasets.mnist(tmp_path)


def test_empty_set(tmp_path: Path) -> None:
    write_pair(tmp_path, num=0)
    with pytest.raises(DataError, match="is empty"):
        datasets.mnist(tmp_path)


def test_read_idx_of_a_folder_or_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DataError, match="cannot be read"):
            datasets.read_idx(path)


def test_integer_image_dtype_is_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    with pytest.raises(InputError, match="real floating dtype"):
        datasets.mnist(tmp_path, dtype=torch.int64)


def test_batches() -> None:
    x, y = torch.arange(10.0).reshape(5, 2), torch.arange(5)
    data = datasets.batches(x, y, 2)
    assert [len(b) for _, b in data] == [2, 2, 1]
    assert torch.equal(torch.cat([b for b, _ in data]), x)
    assert list(data) == list(data)  # re-iterable


@pytest.mark.parametrize(
    ("num_images", "num_labels", "size", "error"),
    [(5, 4, 2, ShapeError), (5, 5, 0, InputError), (0, 0, 2, DataError)],
)
def test_batches_refuses(
    num_images: int, num_labels: int, size: int, error: type[CurvopsError]
) -> None:
    with pytest.raises(error):
        datasets.batches(torch.zeros(num_images, 2), torch.zeros(num_labels), size)
