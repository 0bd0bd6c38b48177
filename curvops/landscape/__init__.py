"""The shape of the loss around a point.

``line``
    The loss along straight lines through the point, beside what its quadratic model predicts.
"""

from __future__ import annotations

from curvops.landscape.line import Lines, line

__all__ = ["Lines", "line"]
