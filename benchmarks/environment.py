"""The machine and the versions that numbers belong to."""

from __future__ import annotations

import datetime
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import torch

import curvops

BESIDE = ("torch", "numpy", "scipy", "backpack-for-pytorch")
"""What ours runs on."""


def environment(device: str = "cpu") -> dict[str, Any]:
    """Return versions, processor, threads and date as plain Python."""
    versions = {"curvops": curvops.__version__, "python": platform.python_version()}
    versions.update((package, _version(package)) for package in (*BESIDE, *peers()))
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cpu": cpu(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "threads": torch.get_num_threads(),
        "load": load(),
        "system": platform.system(),
        "versions": versions,
    }


def peers() -> list[str]:
    """Return the packages of the ``bench`` extra, by name."""
    found = [line.partition(";") for line in requires("curvops") or []]
    return [re.split(r"[^\w.-]", name)[0] for name, _, marker in found if "bench" in marker]


def load() -> float | None:
    """Return how many processes wanted a processor over the last minute, where that is known."""
    try:
        return round(os.getloadavg()[0], 1)
    except (AttributeError, OSError):
        return None


def cpu() -> str:
    """Return the processor's model name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
