"""The small real data of the demo, and readers for the real thing.

Every function returns ``(images, labels)``: images ``[N, 1, height, width]`` scaled to
``[0, 1]`` and labels ``[N]`` as int64, both in memory. :func:`batches` cuts them into the list
of batches that an empirical risk reads.

Nothing is downloaded. MNIST and Fashion-MNIST are read from their original idx files (plain or
``.gz``) wherever they already lie: a folder, torchvision's layout, or Debian's package
``dataset-fashion-mnist``.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from math import prod
from os import PathLike
from pathlib import Path
from typing import IO, Union

import numpy as np
import torch
from torch import Tensor

from curvops.errors import DataError, InputError, MissingDependencyError, ShapeError

StrPath = Union[str, "PathLike[str]"]
"""A path in a file system."""

Stream = Union[IO[bytes], gzip.GzipFile]
"""A file open for reading, compressed or not."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package ``dataset-fashion-mnist`` puts its files."""

# The third byte of an idx file's magic number names its dtype; numbers are big-endian.
_IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_READ_CHUNK = 1 << 24


def digits(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return scikit-learn's 1797 handwritten digits, 8 × 8 pixels, bundled with the package.

    Args:
        dtype: The real floating dtype of the images.

    Returns:
        Images ``[1797, 1, 8, 8]`` in ``[0, 1]`` and labels ``[1797]`` in ``0..9``.

    Raises:
        MissingDependencyError: If scikit-learn is not installed.

    Source:
        E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI (1998).

    Example:
        >>> images, labels = digits()
        >>> tuple(images.shape), labels[:5].tolist()
        ((1797, 1, 8, 8), [0, 1, 2, 3, 4])
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingDependencyError(
            "curvops.datasets.digits() reads scikit-learn's bundled digits, and scikit-learn is "
            'not installed. Install the extra "demo": pip install "curvops[demo]".'
        ) from error
    bunch = load_digits()
    images = torch.as_tensor(np.ascontiguousarray(bunch.images)).to(dtype) / 16
    return images.unsqueeze(1), torch.as_tensor(bunch.target, dtype=torch.int64)


def mnist(
    root: StrPath, train: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Read MNIST from its original idx files below ``root``.

    Looked for, in this order: ``root/MNIST/raw`` (torchvision's layout), ``root/MNIST``,
    ``root/raw`` and ``root`` itself; each file plain or with ``.gz``.

    Args:
        root: The folder.
        train: The 60000 training images, or the 10000 test images.
        dtype: The real floating dtype of the images.

    Returns:
        Images ``[N, 1, 28, 28]`` in ``[0, 1]`` and labels ``[N]`` in ``0..9``.

    Raises:
        DataError: If a file is missing, damaged, or is not what its name says.

    Source:
        Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, Proc. IEEE 86 (1998).
    """
    return _idx_pair(root, "MNIST", train, dtype)


def fashion_mnist(
    root: StrPath = DEBIAN_FASHION_MNIST,
    train: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Read Fashion-MNIST from its original idx files below ``root``.

    Looked for, in this order: ``root/FashionMNIST/raw`` (torchvision's layout),
    ``root/FashionMNIST``, ``root/raw`` and ``root`` itself; each file plain or with ``.gz``. The
    default is where Debian's package ``dataset-fashion-mnist`` installs them.

    Args:
        root: The folder.
        train: The 60000 training images, or the 10000 test images.
        dtype: The real floating dtype of the images.

    Returns:
        Images ``[N, 1, 28, 28]`` in ``[0, 1]`` and labels ``[N]`` in ``0..9``.

    Raises:
        DataError: If a file is missing, damaged, or is not what its name says.

    Source:
        H. Xiao, K. Rasul and R. Vollgraf, arXiv 1708.07747.
    """
    return _idx_pair(root, "FashionMNIST", train, dtype)


def batches(images: Tensor, labels: Tensor, batch_size: int = 256) -> list[tuple[Tensor, Tensor]]:
    """Cut a data set into a list of batches ``(X, y)``, in order; the last may be smaller.

    A list can be read as often as needed, which is what an empirical risk asks of its data.

    Args:
        images: Inputs ``[N, ...]``.
        labels: Targets ``[N, ...]``.
        batch_size: Number of samples in a batch.

    Returns:
        ``ceil(N / batch_size)`` pairs of views.

    Raises:
        InputError: If ``batch_size`` is not positive.
        ShapeError: If the two disagree about ``N``.

    Example:
        >>> import torch
        >>> [len(y) for _, y in batches(torch.zeros(5, 2), torch.zeros(5), batch_size=2)]
        [2, 2, 1]
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1.")
    if len(images) != len(labels):
        raise ShapeError(f"{len(images)} images but {len(labels)} labels.")
    if len(images) == 0:
        raise DataError("The data set is empty: 0 images.")
    return list(zip(images.split(batch_size), labels.split(batch_size), strict=True))


def read_idx(path: StrPath) -> Tensor:
    """Read one idx file, the format of MNIST, plain or gzip-compressed (told by content).

    The format: two zero bytes, one byte for the dtype, one for the number of dimensions ``d``,
    ``d`` sizes as big-endian uint32, then the numbers, big-endian, row-major.

    Args:
        path: The file.

    Returns:
        A tensor of the file's dtype and shape.

    Raises:
        DataError: If the file is missing, no idx file, truncated, longer than its header says,
            or a damaged gzip file.

    Source:
        Y. LeCun, C. Cortes, C. Burges, "The MNIST database", file formats.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
        >>> _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(file)
        tensor([7, 2, 1], dtype=torch.uint8)
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not compressed:
                return _parse_idx(raw, path)
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse_idx(stream, path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is a damaged gzip file ({error}). Copy or download it again."
        ) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _parse_idx(stream: Stream, path: Path) -> Tensor:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or magic[3] == 0:
        raise DataError(
            f"{path} is not an idx file: it begins with the bytes {magic.hex(' ')!r}, expected "
            "'00 00', a dtype code among "
            f"{[f'{code:02x}' for code in _IDX_DTYPES]}, and a number of dimensions."
        )
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise DataError(f"{path} is truncated: it ends inside its header.")
    shape = [int(size) for size in np.frombuffer(header, ">u4")]
    dtype = np.dtype(_IDX_DTYPES[magic[2]])
    expected = prod(shape) * dtype.itemsize
    body = b"".join(_read_at_most(stream, expected))
    if len(body) < expected:
        raise DataError(
            f"{path} is truncated: its header promises shape {shape} ({expected} bytes), "
            f"but {len(body)} bytes follow."
        )
    if stream.read(1):
        raise DataError(
            f"{path} is longer than its header says: shape {shape} takes {expected} bytes."
        )
    array = np.frombuffer(body, dtype).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))


def _read_at_most(stream: Stream, size: int) -> Iterator[bytes]:
    """Yield up to ``size`` bytes in pieces, so that memory grows with the file, not its header."""
    while size > 0:
        chunk = stream.read(min(size, _READ_CHUNK))
        if not chunk:
            return
        size -= len(chunk)
        yield chunk


def _idx_pair(root: StrPath, name: str, train: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Read and cross-check the image and the label file of MNIST or of a look-alike."""
    if not dtype.is_floating_point:
        raise InputError(f"dtype is {dtype}; images need a real floating dtype.")
    stem = "train" if train else "t10k"
    image_file = _find_idx(Path(root), name, f"{stem}-images", "idx3-ubyte")
    label_file = _find_idx(Path(root), name, f"{stem}-labels", "idx1-ubyte")
    images, labels = read_idx(image_file), read_idx(label_file)
    if images.dtype != torch.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise DataError(
            f"{image_file} holds {images.dtype} of shape {list(images.shape)}; expected "
            "unsigned bytes [N, 28, 28]."
        )
    if labels.dtype != torch.uint8 or labels.ndim != 1:
        raise DataError(
            f"{label_file} holds {labels.dtype} of shape {list(labels.shape)}; expected "
            "unsigned bytes [N]."
        )
    if len(images) != len(labels):
        raise DataError(
            f"{image_file} holds {len(images)} images but {label_file} {len(labels)} labels."
        )
    if len(labels) == 0:
        raise DataError(f"{label_file} is empty: 0 labels.")
    if int(labels.max()) > 9:
        raise DataError(f"{label_file} holds label {int(labels.max())}; expected 0..9.")
    return images.unsqueeze(1).to(dtype) / 255, labels.to(torch.int64)


def _find_idx(root: Path, name: str, stem: str, kind: str) -> Path:
    """Return the first of the known places that holds a file, plain before compressed."""
    folders = [root / name / "raw", root / name, root / "raw", root]
    # Some mirrors write a dot for the dash before "idx".
    names = [f"{stem}-{kind}", f"{stem}.{kind}", f"{stem}-{kind}.gz", f"{stem}.{kind}.gz"]
    for folder in folders:
        for candidate in names:
            if (folder / candidate).is_file():
                return folder / candidate
    if not root.is_dir():
        hint = f"{root} is not a folder."
    else:
        hint = f"Looked in {', '.join(str(folder) for folder in folders)}."
    raise DataError(
        f"No file {names[0]} or {names[2]} of {name}. {hint} curvops downloads nothing: put the "
        "four original idx files there, or name the folder that has them."
    )
