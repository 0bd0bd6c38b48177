"""Saved results come back equal to the last bit; damaged or foreign files are told apart."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from curvops.errors import DataError, InputError
from curvops.landscape import storage
from curvops.landscape.storage import Stored


@dataclass(frozen=True, eq=False)
class Inner(Stored):
    values: Tensor
    name: str = "inner"


@dataclass(frozen=True, eq=False)
class Outer(Stored):
    value: Any
    inner: Inner | None = None


def back(value: Any, folder: Path) -> Any:
    Outer(value).save(folder / "file.npz")
    return Outer.load(folder / "file.npz").value


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool],
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (4, 0, 2)])
def test_tensors_come_back_to_the_last_bit(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(shape, generator=generator, dtype=torch.float64).mul(3).to(dtype)
    got = back(tensor, tmp_path)
    assert got.dtype == dtype
    assert got.shape == tensor.shape
    assert torch.equal(got, tensor)


def test_strides_gradients_and_non_finite_values(tmp_path: Path) -> None:
    tensor = torch.tensor([[1.0, math.inf], [-math.inf, math.nan], [-0.0, 5e-324]]).double().T
    tensor[1, 2] = 5e-324
    got = back(tensor.requires_grad_(), tmp_path)
    assert not got.requires_grad
    bits = tensor.detach().contiguous().view(torch.int64)
    assert torch.equal(got.view(torch.int64), bits)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2**80,
        0.1,
        -0.0,
        math.inf,
        -math.inf,
        "τ <script>",
        (),
        [1, (2.5, "x")],
        {"a.b": (1, [2]), "tensor": 1, "dict": {}},
        torch.bfloat16,
    ],
)
def test_plain_values_come_back_with_their_types(value: Any, tmp_path: Path) -> None:
    got = back(value, tmp_path)
    assert got == value
    assert type(got) is type(value)
    assert str(got) == str(value)


def test_nan_arrays_and_results_within(tmp_path: Path) -> None:
    assert math.isnan(back(math.nan, tmp_path))
    array = np.array([[1, 2], [3, 4]], dtype=np.int16)
    np.testing.assert_array_equal(back(array, tmp_path), array)
    path = tmp_path / "nested.npz"
    Outer({"x y": torch.ones(2), "x_y": torch.zeros(2)}, Inner(torch.arange(3))).save(path)
    got = Outer.load(path)
    assert torch.equal(got.value["x y"], torch.ones(2))
    assert torch.equal(got.value["x_y"], torch.zeros(2))
    assert got.inner is not None
    assert torch.equal(got.inner.values, torch.arange(3))


def test_to_dict_is_plain() -> None:
    result = Outer({"t": (torch.ones(2), torch.float64)}, Inner(torch.arange(2)))
    plain = {
        "value": {"t": [[1.0, 1.0], "float64"]},
        "inner": {"values": [0, 1], "name": "inner"},
    }
    assert json.loads(json.dumps(result.to_dict())) == plain


def test_an_older_file_may_lack_a_field_with_a_default(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    Inner(torch.ones(1), "other").save(path)
    rewrite(path, lambda h: h["result"]["fields"].pop("name"))
    assert Inner.load(path).name == "inner"
    rewrite(path, lambda h: h["result"]["fields"].pop("values"))
    with pytest.raises(DataError, match="values"):
        Inner.load(path)


def rewrite(path: Path, change: Any) -> None:
    """Change the header of a file."""
    with np.load(path) as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    change(header)
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with path.open("wb") as file:
        np.savez(file, **arrays)


def test_the_name_is_taken_as_it_is_and_a_file_is_replaced_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "no_suffix"
    Inner(torch.ones(1)).save(path)
    Inner(torch.zeros(1)).save(str(path))
    assert [p.name for p in tmp_path.iterdir()] == ["no_suffix"]

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        Inner(torch.ones(1)).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["no_suffix"]
    assert torch.equal(Inner.load(path).values, torch.zeros(1))


@pytest.mark.parametrize("value", [object(), {1: 2}, 1j, np.array([object()]), {"a": [set()]}])
def test_what_no_file_can_hold_is_named(value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="value"):
        Outer(value).save(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []


def test_other_results_and_newer_layouts_are_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    Inner(torch.ones(1)).save(path)
    with pytest.raises(DataError, match=r"holds Inner, not Outer.*Inner\.load"):
        Outer.load(path)
    assert torch.equal(Stored.load(path).values, torch.ones(1))  # type: ignore[attr-defined]
    rewrite(path, lambda h: h.update(version=99))
    with pytest.raises(DataError, match="newer curvops"):
        Inner.load(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("format"),
        lambda h: h.update(format="other"),
        lambda h: h.update(version="1"),
        lambda h: h.pop("result"),
        lambda h: h["result"].update(kind="Popen"),
        lambda h: h["result"]["fields"].update(extra=1),
        lambda h: h["result"]["fields"].update(values={"tensor": "gone", "dtype": "float32"}),
        lambda h: h["result"]["fields"]["values"].update(dtype="save"),
        lambda h: h["result"]["fields"].update(values={"what": 1}),
        lambda h: h["result"]["fields"].update(values={}),
    ],
)
def test_damaged_headers(change: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    Inner(torch.ones(1)).save(path)
    rewrite(path, change)
    with pytest.raises(DataError, match="file"):
        Inner.load(path)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    Inner(torch.ones(1000)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="part of one"):
        Inner.load(path)
    flipped = bytearray(whole)
    flipped[300] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(DataError, match="damaged"):
        Inner.load(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="npz"):
        Inner.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(DataError, match="not written by curvops"):
        Inner.load(path)
    with pytest.raises(FileNotFoundError):
        Inner.load(tmp_path / "nowhere")


class Bomb:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    trap, path = tmp_path / "sprung", tmp_path / "file"
    path.write_bytes(pickle.dumps(Bomb(trap)))
    with pytest.raises(DataError):
        Inner.load(path)
    Inner(torch.ones(1)).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    arrays["0_values"] = np.array([Bomb(trap)], dtype=object)
    with path.open("wb") as file:
        np.savez(file, allow_pickle=True, **arrays)
    with pytest.raises(DataError, match="pickle"):
        Inner.load(path)
    assert not trap.exists()
