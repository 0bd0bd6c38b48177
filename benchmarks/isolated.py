"""Run a probe in a process of its own, where peak memory is that of one way alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class ProbeError(Exception):
    """Raised with the last line of a probe that failed."""


def probe(module: str, order: dict[str, Any]) -> dict[str, Any]:
    """Return what ``python -m benchmarks.<module> <order as JSON>`` prints on its last line.

    Args:
        module: Its name within ``benchmarks``.
        order: What it is asked for, plain Python.

    Raises:
        ProbeError: If the process fails.
    """
    process = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", json.dumps(order)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise ProbeError(lines[-1][:160])
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found
