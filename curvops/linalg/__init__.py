"""Matrix-free linear algebra: anything with ``shape``, ``dtype``, ``device`` and ``@``."""

from __future__ import annotations

from curvops.linalg.estimate import Estimate, UnconvergedWarning

__all__ = [
    "Estimate",
    "UnconvergedWarning",
]
