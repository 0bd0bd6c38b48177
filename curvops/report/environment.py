"""What this machine computes with: versions, devices, and which attention kernels are safe."""

from __future__ import annotations

import os
import platform
import warnings
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import curvops

_PACKAGES = (
    "torch",
    "numpy",
    "scipy",
    "einops",
    "backpack-for-pytorch",
    "tqdm",
    "matplotlib",
    "rich",
    "typer",
    "scikit-learn",
)
_KERNELS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}


@dataclass(frozen=True)
class AttentionKernel:
    """What one kernel of ``scaled_dot_product_attention`` can do, found by trying.

    Attributes:
        kernel: Its name.
        device: Where it was tried.
        runs: Whether it ran at all, in half precision if it wants that.
        first: Whether it has a first derivative.
        second: Whether it has a second derivative, and with it a Hessian.
        reason: What torch said, where something is missing.
    """

    kernel: str
    device: str
    runs: bool
    first: bool
    second: bool
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain Python."""
        return asdict(self)


def environment() -> dict[str, Any]:
    """Return versions, platform and devices as plain Python."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "devices": devices(),
    }


def versions() -> dict[str, str | None]:
    """Return the versions of curvops, Python, and what curvops uses; None for what is missing."""
    found: dict[str, str | None] = {
        "curvops": curvops.__version__,
        "python": platform.python_version(),
    }
    found.update((package, _version(package)) for package in _PACKAGES)
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def devices() -> list[dict[str, str]]:
    """Return the devices torch can use, each with a description."""
    found = [{"device": "cpu", "name": platform.processor() or platform.machine()}]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found += [
        {"device": f"cuda:{index}", "name": torch.cuda.get_device_name(index)}
        for index in range(count)
    ]
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    return found


def attention_kernels() -> list[AttentionKernel]:
    """Try every attention kernel on every kind of device, on tensors of a few numbers."""
    kinds = dict.fromkeys(entry["device"].split(":")[0] for entry in devices())
    return [
        _try_kernel(name, backend, device) for device in kinds for name, backend in _KERNELS.items()
    ]


def _try_kernel(name: str, backend: SDPBackend, device: str) -> AttentionKernel:
    """Run a kernel once, twice and three times differentiated."""
    done, reason = 0, ""
    # The fused kernels on accelerators want half precision; those on the CPU want float32.
    for dtype in (torch.float32, torch.float16):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(1, 1, 8, 16, generator=generator).to(device, dtype).requires_grad_()
            for _ in range(3)
        )
        reached = 0
        try:
            with sdpa_kernel(backend), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                output = torch.nn.functional.scaled_dot_product_attention(query, key, value)
                reached = 1
                (slope,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
                reached = 2
                torch.autograd.grad(slope.square().sum(), query)
                reached = 3
        except (RuntimeError, NotImplementedError) as error:
            if reached >= done:
                reason = str(error).strip().splitlines()[0]
        done = max(done, reached)
        if done:
            break
    said = "" if done == 3 else reason
    return AttentionKernel(name, device, done >= 1, done >= 2, done >= 3, said)
