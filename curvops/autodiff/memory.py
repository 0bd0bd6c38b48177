"""How much memory a device has left, and what becomes of it when it is freed."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import torch

_LARGEST_MAPPED = 1 << 25
"""Bytes of the largest block that glibc learns from (its DEFAULT_MMAP_THRESHOLD_MAX)."""


@functools.cache
def reuse_freed_memory() -> None:
    """Let this process use again what it frees, instead of handing it back to the system.

    glibc maps blocks of the size of a batch's activations anew each time, or gives the free end of
    its heap back, and every page that is touched again costs a fault: a third of the time of a
    product of convolutions. Its limits follow the largest mapped block that was freed, so that
    one, never touched, teaches it. Up to 64 MiB then stay with the process. Other allocators, and
    limits that the user has set, remain as they are.
    """
    torch.empty(_LARGEST_MAPPED - (1 << 16), dtype=torch.uint8)


def available_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes, as far as the system tells.

    On the CPU the smaller of what the kernel calls available and what the process's control
    group still allows.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    found = [_kernel_available(), _group_available()]
    return min((size for size in found if size is not None), default=4 * 2**30)


def _kernel_available() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # other systems: half of what is installed
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _group_available() -> int | None:
    root = Path("/sys/fs/cgroup")
    try:
        limit = (root / "memory.max").read_text().strip()
        used = (root / "memory.current").read_text().strip()
        return None if limit == "max" else max(0, int(limit) - int(used))
    except (OSError, ValueError):
        return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
