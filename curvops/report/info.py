"""``curvops info``: versions, devices, and which attention kernels have second derivatives."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from curvops.report.environment import attention_kernels, environment


def info_document() -> dict[str, Any]:
    """Return everything as plain Python."""
    kernels = [kernel.to_dict() for kernel in attention_kernels()]
    return {**environment(), "attention_kernels": kernels}


def info_tables() -> Any:
    """Return everything as tables, for rich to print."""
    found = environment()
    versions = Table(title="Versions", title_justify="left", show_header=False)
    for name, number in found["versions"].items():
        versions.add_row(name, number or Text("not installed", style="dim"))
    devices = Table("device", "name", title="Devices", title_justify="left")
    for entry in found["devices"]:
        devices.add_row(entry["device"], Text(entry["name"]))
    kernels = Table(
        "device",
        "kernel",
        "runs",
        "gradient",
        "Hessian",
        title="Kernels of scaled_dot_product_attention",
        title_justify="left",
    )
    for kernel in attention_kernels():
        marks = [_mark(flag) for flag in (kernel.runs, kernel.first, kernel.second)]
        kernels.add_row(kernel.device, kernel.kernel, *marks)
    place = f"{found['platform']}, {found['processors']} processors, "
    return Group(
        versions,
        devices,
        kernels,
        Text(
            "curvops runs every model under the math kernel by itself and puts your setting back.",
            style="dim",
        ),
        Text(f"{place}{found['torch_threads']} torch threads", style="dim"),
    )


def _mark(flag: bool) -> Text:
    return Text("yes", style="green") if flag else Text("no", style="red")
